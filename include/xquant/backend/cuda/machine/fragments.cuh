// Which lane of a warp holds which element of a matrix that tensor cores multiply, as the PTX ISA defines it for
// mma.m16n8k16 with 16-bit operands and mma.m16n8k32 with 8-bit ones (sections "Matrix Fragments for ..."). Plain
// functions, so that they are tested on machines without a GPU.
//
//     C [16 x 8, f32] += A [16 x 16, f16] B [16 x 8, f16]    a register: two halves that follow each other along k
//
//     A   4 registers a lane    register i, half h: row  lane / 4 + 8 (i % 2)     column  2 (lane % 4) + h + 8 (i / 2)
//     B   2 registers           register i, half h: row  2 (lane % 4) + h + 8 i   column  lane / 4
//     C   4 floats              float i:            row  lane / 4 + 8 (i / 2)     column  2 (lane % 4) + i % 2
//
//     C [16 x 8, s32] += A [16 x 32, 8 bits] B [32 x 8, 8 bits]   a register: four bytes that follow each other along k
//
//     A   4 registers a lane    register i, byte h: row  lane / 4 + 8 (i % 2)     column  4 (lane % 4) + h + 16 (i / 2)
//     B   2 registers           register i, byte h: row  4 (lane % 4) + h + 16 i  column  lane / 4
//
// A load of halves from rows of shared memory therefore loads pairs of bytes as well. Results become operands in place,
// once they are rounded to f16:
//     C of 16 tokens and two neighbouring blocks of 8 channels (K)   is B of 16 channels and two blocks of 8 tokens
//     C of 16 queries and two blocks of 8 tokens (P)                 is A of 16 queries and 16 tokens
//     C of 16 channels and two blocks of 8 tokens (V)                is twice B of 16 tokens and 8 channels
// Neither K nor P nor V has to leave its registers.
#pragma once

#include <cstdint>

#include <xquant/config.hpp>

namespace xquant::backend::gpu {

inline constexpr unsigned lanes = 32;

struct Element {
    unsigned row, column;
    friend constexpr bool operator==(Element, Element) = default;
};

XQUANT_DEVICE constexpr Element element_a(unsigned lane, unsigned i, unsigned h) noexcept {
    return {lane / 4 + 8 * (i % 2), 2 * (lane % 4) + h + 8 * (i / 2)};
}
XQUANT_DEVICE constexpr Element element_b(unsigned lane, unsigned i, unsigned h) noexcept {
    return {2 * (lane % 4) + h + 8 * i, lane / 4};
}
XQUANT_DEVICE constexpr Element element_c(unsigned lane, unsigned i) noexcept {
    return {lane / 4 + 8 * (i / 2), 2 * (lane % 4) + i % 2};
}
XQUANT_DEVICE constexpr Element element_a8(unsigned lane, unsigned i, unsigned h) noexcept {
    return {lane / 4 + 8 * (i % 2), 4 * (lane % 4) + h + 16 * (i / 2)};
}
XQUANT_DEVICE constexpr Element element_b8(unsigned lane, unsigned i, unsigned h) noexcept {
    return {4 * (lane % 4) + h + 16 * i, lane / 4};
}

}  // namespace xquant::backend::gpu
