// What the vector kernels ask of a machine: a register wrapper, some fifty static functions. Kernels are written once
// over it.
//
//     f32   `lanes` floats        i32   the same bits as 32-bit words, or as 4 * lanes bytes
//
//     zero splat load load_first load_f16 load_bf16 store store_first store_f16    load_first: lanes from n on are 0
//     add sub mul fma minimum maximum    fma(a, b, c) = a b + c, rounded once; where a or b is NaN, the minimum and the
//                                        maximum are b
//     reduce_min reduce_max reduce_add                                            over the lanes
//     sum_four(rows)            lane 4 b + k of the result is the sum of lanes 4 b .. 4 b + 3 of rows[k]; 4 rows
//     sum_fours(fours)          lane i is the sum of row i; lanes / 4 results of sum_four, each of its own 4 rows
//     sum_halves(fours)         lane 2 i + h is the sum of half h of row i; lanes / 8 results of sum_four. Registers of
//                               4 lanes have no such operation
//     zero_i32 splat_i32 load_i32 store_i32 add_i32 bits_and bits_or shift_left shift_right
//     shift_right_each(a, by)   lane by lane
//     to_f32 round              signed words to floats and back, to nearest, ties to even; what no word holds becomes
//                               any word
//     as_f32 as_i32             the bits
//     repeat<Bytes>(from)       these bytes over and over, 4 .. 4 * lanes of them
//     load_u8 store_u8          a byte for each word: zero-extended, the lowest byte
//     store_bytes(to, words)    a byte for each word of 4 registers, of signed words within -128 .. 127
//     store_two_bytes(high, low, words)   likewise of 256 high + low, of signed words within -32,640 .. 32,639
//     load_halves(a, b)         half a register from each of two places
//     interleave_bytes(a, b, c, d, out)   word t of the 4 results, taken one after another, is {a[t], b[t], c[t], d[t]}
//     interleave_halves(a, b, out)   likewise, of the halves of a and b: word t of the 2 results is
//                                    {a[t], a[2 lanes + t], b[t], b[2 lanes + t]}
//     transpose(rows)           `lanes` registers as a square matrix of words
//     transpose_fours(rows)     4 registers: words 4 b .. 4 b + 3 of them all, for every b, as a square matrix
//     dot(sum, codes, weights)  adds to each word the products of its 4 unsigned bytes with 4 signed ones. Up to
//                               dot_run(bits) of them may follow each other, from zero; dot_end makes 32-bit words of
//                               that. Weights have all 8 bits, codes of at most dot_bits bits (5, 7 or 8).
//     matrix_unit               whether there is a unit that multiplies tiles of bytes. Then:
//     MatrixScope               a thread may use the unit while one lives, if its ready(); they may nest
//     multiply_panel(weights, step, quads, quad_step, groups, sums)   sums [16][64], of 32 bits: of 16 columns, whose
//                               weights begin `step` words apart, and 64 tokens, the words of quads lying quad_step
//                               apart, over groups of 64 channels: signed times unsigned bytes
//
// Wrappers: backend/avx2, backend/avx512, backend/amx, backend/neon, backend/emulated (plain C++; the specification of
// these operations).
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>

#include <xquant/types.hpp>

namespace xquant::backend {

// clang-format off
template <class R>
concept register_wrapper = requires(typename R::f32 x, typename R::i32 w, float* floats, const f16* halves,
                                    void* memory, std::uint8_t* bytes, typename R::f32* rows, typename R::i32* words) {
    { R::lanes } -> std::convertible_to<std::size_t>;
    { R::count } -> std::convertible_to<std::size_t>;
    { R::name } -> std::convertible_to<const char*>;
    { R::fma(x, x, x) } -> std::same_as<typename R::f32>;
    { R::sum_four(rows) } -> std::same_as<typename R::f32>;
    { R::sum_fours(rows) } -> std::same_as<typename R::f32>;
    requires R::lanes < 8 || requires { { R::sum_halves(rows) } -> std::same_as<typename R::f32>; };
    { R::load_f16(halves) } -> std::same_as<typename R::f32>;
    { R::dot(w, w, w) } -> std::same_as<typename R::i32>;
    { R::dot_end(w) } -> std::same_as<typename R::i32>;
    { R::matrix_unit } -> std::convertible_to<bool>;
    typename R::MatrixScope;
    R::store_first(floats, x, std::size_t{});
    R::store_u8(bytes, w);
    R::store_bytes(bytes, words);
    R::store_two_bytes(bytes, bytes, words);
    { R::load_halves(memory, memory) } -> std::same_as<typename R::i32>;
    R::interleave_bytes(w, w, w, w, words);
    R::interleave_halves(w, w, words);
    R::transpose(words);
    R::transpose_fours(words);
    R::load_i32(memory);
};
// clang-format on

}  // namespace xquant::backend
