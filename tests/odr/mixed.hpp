// What the two objects of a mixed program offer: each encodes a row with the headers, by its own instruction set.
#pragma once

#include <cstdint>

namespace odr {

/// The sum of 128 codes of a fixed row.
using Sum = std::uint32_t (*)();

std::uint32_t sum_base();

}  // namespace odr

// Plain C: the isolated program finds it in a shared object, by this name.
extern "C" std::uint32_t odr_sum_avx512();
