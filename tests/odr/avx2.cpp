// The probe, compiled for AVX2.
#define PROBE probe_avx2
#include "probe.inc"
