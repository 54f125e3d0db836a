// The body, compiled for any x86-64.
#include "mixed.inc"

std::uint32_t odr::sum_base() { return sum_of_codes(); }
