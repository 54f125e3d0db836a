// Keys and values rebuilt on tensor cores, 64 channels of a head at a time, for the strips of a block's warps.
//
//     keys  Product of [16 Tiles slots x 64 channels] = z A;  values  Product of [64 x 16 Tiles] = A^T z^T
//
// Results have the form in which the next product takes them from registers (fragments.cuh). z are halves; or codes,
// where these lie along a token in groups of 32, 64 or 128 and meet 8-bit weights: then sums are whole numbers, which
// are folded into floats once for each group.
// Limit   shared memory and tensor cores alike: 6 loads of 512 bytes for 16 products (halves: 16 x 8 x 16; codes: 16 x
//         8 x 32). Folding takes 4 operations for each value and group.
// Not     8-bit products for codes that lie along a channel: their scales would have to go into A, which would be
//         rounded anew for each page, and that is counted to take as long as the products save.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include <xquant/backend/cuda/device/decode.cuh>
#include <xquant/backend/cuda/device/packed_weights.cuh>

namespace xquant::backend::gpu {
inline namespace XQUANT_ABI_NS {

/// Channels of a latent that meet A at a time: rows of A in shared memory.
inline constexpr unsigned matrix_rows = 128;

namespace detail {

template <class M, class T>
using Lanes = typename M::template Lanes<T>;

/// Columns 16 k .. + 16 of 16 rows, `stride` halves apart, as A. (As bytes: columns 32 k .. + 32.)
template <class M>
XQUANT_DEVICE_INLINE void load_rows(const typename M::Warp& warp, Lanes<M, std::uint32_t> (&a)[4], const f16* from,
                                    unsigned stride, unsigned k) noexcept {
    Lanes<M, const f16*> row;
    warp.each([&](unsigned lane) { row[lane] = from + (lane % 16) * stride + 16 * k + 8 * (lane / 16); });
    warp.template load_matrices<false>(a, row);
}

/// 16 rows along k, columns 8 j .. + 16, as two of B.
template <class M>
XQUANT_DEVICE_INLINE void load_columns(const typename M::Warp& warp, Lanes<M, std::uint32_t> (&b)[2][2],
                                       const f16* from, unsigned stride, unsigned j) noexcept {
    Lanes<M, const f16*> row;
    Lanes<M, std::uint32_t> four[4];
    warp.each([&](unsigned lane) { row[lane] = from + (lane % 16) * stride + 8 * j + 8 * (lane / 16); });
    warp.template load_matrices<true>(four, row);
    for (unsigned i = 0; i < 4; ++i) b[i / 2][i % 2] = four[i];
}

/// Columns 16 k .. + 16 along k of 16 rows, as two of B of 8 rows each. (As bytes: columns 32 k .. + 32.)
template <class M>
XQUANT_DEVICE_INLINE void load_across(const typename M::Warp& warp, Lanes<M, std::uint32_t> (&b)[2][2], const f16* from,
                                      unsigned stride, unsigned k) noexcept {
    Lanes<M, const f16*> row;
    Lanes<M, std::uint32_t> four[4];
    warp.each(
        [&](unsigned lane) { row[lane] = from + (lane % 8 + 8 * (lane / 16)) * stride + 16 * k + 8 * (lane / 8 % 2); });
    warp.template load_matrices<false>(four, row);
    for (unsigned i = 0; i < 4; ++i) b[i / 2][i % 2] = four[i];
}

/// The sum over the four lanes that share a row of C.
template <class M>
XQUANT_DEVICE_INLINE Lanes<M, float> sum_of_four(const typename M::Warp& warp, Lanes<M, float> x) noexcept {
    XQUANT_UNROLL
    for (unsigned mask = 1; mask < 4; mask *= 2) {
        const Lanes<M, float> other = warp.exchange(x, mask);
        warp.each([&](unsigned lane) { x[lane] += other[lane]; });
    }
    return x;
}

}  // namespace detail

/// Rows of shared memory that a product reads: `stride` halves apart.
struct Operand {
    const f16* at;
    unsigned stride;
};

/// C += L R^T in registers: 16 Rows x 8 Columns, both sides from rows of shared memory.
template <class M, unsigned Rows, unsigned Columns>
struct Product {
    template <class T>
    using Lanes = typename M::template Lanes<T>;
    Lanes<float> at[Rows][Columns][4];

    /// Calls f(lane, row, column, value, value of the next column) for all of them.
    template <class F>
    XQUANT_DEVICE_INLINE void each(const typename M::Warp& warp, F&& f) noexcept {
        warp.each([&](unsigned lane) {
            XQUANT_UNROLL
            for (unsigned i = 0; i < Rows; ++i) {
                XQUANT_UNROLL
                for (unsigned r = 0; r < 2; ++r) {
                    XQUANT_UNROLL
                    for (unsigned j = 0; j < Columns; ++j) {
                        f(lane, 16 * i + lane / 4 + 8 * r, 8 * j + 2 * (lane % 4), at[i][j][2 * r][lane],
                          at[i][j][2 * r + 1][lane]);
                    }
                }
            }
        });
    }
    XQUANT_DEVICE_INLINE void clear(const typename M::Warp& warp) noexcept {
        each(warp, [](unsigned, unsigned, unsigned, float& a, float& b) { a = b = 0; });
    }

    /// Halves, 16 `steps` of them in a row.
    XQUANT_DEVICE_INLINE void add(const typename M::Warp& warp, Operand left, Operand right, unsigned steps) noexcept {
        for (unsigned k = 0; k < steps; ++k) {
            Lanes<std::uint32_t> a[Rows][4];
            XQUANT_UNROLL
            for (unsigned i = 0; i < Rows; ++i) {
                detail::load_rows<M>(warp, a[i], left.at + 16 * i * left.stride, left.stride, k);
            }
            XQUANT_UNROLL
            for (unsigned j = 0; j < Columns; j += 2) {
                Lanes<std::uint32_t> b[2][2];
                detail::load_across<M>(warp, b, right.at + 8 * j * right.stride, right.stride, k);
                XQUANT_UNROLL
                for (unsigned i = 0; i < Rows; ++i) {
                    warp.multiply(at[i][j], a[i], b[0]);
                    warp.multiply(at[i][j + 1], a[i], b[1]);
                }
            }
        }
    }
};

/// Scale and zero of one group, for the slots of a lane. Slot i is lane / 4 + 8 i for keys, and
/// 8 (i / 2) + 2 (lane % 4) + i % 2 for values.
template <class M, unsigned Tiles>
struct SlotFactors {
    typename M::template Lanes<float> scale[4 * Tiles], zero[4 * Tiles];

    template <bool Keys>
    XQUANT_DEVICE_INLINE void load(const typename M::Warp& warp, const StreamView& in, unsigned block,
                                   const Strip& place) noexcept {
        const std::size_t first = std::size_t{block} * in.format.tokens;
        warp.each([&](unsigned lane) {
            XQUANT_UNROLL
            for (unsigned i = 0; i < (Keys ? 2 : 4) * Tiles; ++i) {
                const unsigned row = Keys ? lane / 4 + 8 * i : 8 * (i / 2) + 2 * (lane % 4) + i % 2;
                scale[i][lane] = zero[i][lane] = 0;
                if (!place.wants(row)) continue;
                const GroupScale of_slot = scale_of<M>(in, first + place.slot(row));
                scale[i][lane] = of_slot.scale;
                // centre_of has been subtracted from the codes.
                zero[i][lane] = static_cast<float>(centre_of(in.format.bits)) * of_slot.scale + of_slot.zero;
            }
        });
    }
};

/// Sums of whole numbers start as the bits of this float: 1.5 * 2^23 + n has n in its lowest bits, so that a
/// subtraction gives n as a float. A conversion would take longer than the products. Holds for |n| < 2^22; n is at most
/// 16 * 127 * 128.
inline constexpr float whole_offset = 12582912.0F;

namespace detail {

template <class M, unsigned Rows>
XQUANT_DEVICE_INLINE void clear_sums(const typename M::Warp& warp,
                                     Lanes<M, std::int32_t> (&sums)[Rows][2][4]) noexcept {
    warp.each([&](unsigned lane) {
        XQUANT_UNROLL
        for (auto& pair : sums) {
            XQUANT_UNROLL
            for (auto& block : pair) {
                XQUANT_UNROLL
                for (auto& sum : block) sum[lane] = std::bit_cast<std::int32_t>(whole_offset);
            }
        }
    });
}

}  // namespace detail

/// keys += s (q W) step + z sum, for one group of 32 Steps channels: codes q [16 Tiles slots], weights W [64 columns].
/// @param factors  of the 64 columns
template <unsigned Steps, class M, unsigned Tiles>
XQUANT_DEVICE_INLINE void add_codes(const typename M::Warp& warp, Product<M, Tiles, 8>& keys, Operand codes,
                                    Operand weights, const SlotFactors<M, Tiles>& slots,
                                    const ColumnFactor* factors) noexcept {
    using detail::Lanes;
    Lanes<M, std::uint32_t> a[Steps][Tiles][4];
    XQUANT_UNROLL
    for (unsigned k = 0; k < Steps; ++k) {
        XQUANT_UNROLL
        for (unsigned i = 0; i < Tiles; ++i) {
            detail::load_rows<M>(warp, a[k][i], codes.at + 16 * i * codes.stride, codes.stride, k);
        }
    }
    XQUANT_UNROLL
    for (unsigned j = 0; j < 8; j += 2) {
        Lanes<M, std::int32_t> sums[Tiles][2][4];
        detail::clear_sums<M>(warp, sums);
        XQUANT_UNROLL
        for (unsigned k = 0; k < Steps; ++k) {
            Lanes<M, std::uint32_t> b[2][2];
            detail::load_across<M>(warp, b, weights.at + 8 * j * weights.stride, weights.stride, k);
            XQUANT_UNROLL
            for (unsigned i = 0; i < Tiles; ++i) {
                warp.multiply(sums[i][0], a[k][i], b[0]);
                warp.multiply(sums[i][1], a[k][i], b[1]);
            }
        }
        warp.each([&](unsigned lane) {
            XQUANT_UNROLL
            for (unsigned h = 0; h < 2; ++h) {
                XQUANT_UNROLL
                for (unsigned c = 0; c < 2; ++c) {
                    const ColumnFactor column = factors[8 * (j + h) + 2 * (lane % 4) + c];
                    XQUANT_UNROLL
                    for (unsigned i = 0; i < 2 * Tiles; ++i) {
                        const float sum = std::bit_cast<float>(sums[i / 2][h][2 * (i % 2) + c][lane]) - whole_offset;
                        float& to = keys.at[i / 2][j + h][2 * (i % 2) + c][lane];
                        to = std::fma(slots.scale[i][lane], column.step * sum,
                                      std::fma(slots.zero[i][lane], column.sum, to));
                    }
                }
            }
        });
    }
}

/// values [64 channels x 16 Tiles slots] += s (q W) step + z sum, for one group of 32 Steps channels.
template <unsigned Steps, class M, unsigned Tiles2>
XQUANT_DEVICE_INLINE void add_codes(const typename M::Warp& warp, Product<M, 4, Tiles2>& values, Operand codes,
                                    Operand weights, const SlotFactors<M, Tiles2 / 2>& slots,
                                    const ColumnFactor* factors) noexcept {
    using detail::Lanes;
    Lanes<M, std::uint32_t> b[Steps][Tiles2 / 2][2][2];
    XQUANT_UNROLL
    for (unsigned k = 0; k < Steps; ++k) {
        XQUANT_UNROLL
        for (unsigned j = 0; j < Tiles2; j += 2) {
            detail::load_across<M>(warp, b[k][j / 2], codes.at + 8 * j * codes.stride, codes.stride, k);
        }
    }
    XQUANT_UNROLL
    for (unsigned i = 0; i < 4; ++i) {
        Lanes<M, std::int32_t> sums[Tiles2 / 2][2][4];
        detail::clear_sums<M>(warp, sums);
        XQUANT_UNROLL
        for (unsigned k = 0; k < Steps; ++k) {
            Lanes<M, std::uint32_t> a[4];
            detail::load_rows<M>(warp, a, weights.at + 16 * i * weights.stride, weights.stride, k);
            XQUANT_UNROLL
            for (unsigned j = 0; j < Tiles2; ++j) {
                warp.multiply(sums[j / 2][j % 2], a, b[k][j / 2][j % 2]);
            }
        }
        warp.each([&](unsigned lane) {
            XQUANT_UNROLL
            for (unsigned r = 0; r < 2; ++r) {
                const ColumnFactor row = factors[16 * i + lane / 4 + 8 * r];
                XQUANT_UNROLL
                for (unsigned n = 0; n < 2 * Tiles2; ++n) {
                    const float sum = std::bit_cast<float>(sums[n / 4][n / 2 % 2][2 * r + n % 2][lane]) - whole_offset;
                    float& to = values.at[i][n / 2][2 * r + n % 2][lane];
                    to = std::fma(slots.scale[n][lane], row.step * sum, std::fma(slots.zero[n][lane], row.sum, to));
                }
            }
        });
    }
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend::gpu
