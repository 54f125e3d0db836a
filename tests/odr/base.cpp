// The probe, compiled for any machine.
#define PROBE probe_base
#include "probe.inc"
