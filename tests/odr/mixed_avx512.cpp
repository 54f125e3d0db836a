// The body, compiled for AVX-512.
#include "mixed.inc"

extern "C" __attribute__((visibility("default"))) std::uint32_t odr_sum_avx512() { return sum_of_codes(); }
