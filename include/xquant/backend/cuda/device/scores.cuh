// Scores of 16 queries against the keys of a warp's strip, all in registers. Rebuilt keys come one set of 64 channels
// after the other; stored keys come from the strip.
//
//     rebuilt (+ c, gain, RoPE) in registers -> scores += q K^T; a norm of K is a factor of its slot's scores, known at
//             the end
//     stored  strip -> fragments (-> RoPE) -> scores
//
// Rare cases are done row by row in the strip: constants and norms of stored keys, RoPE pairs that no lane has whole.
#pragma once

#include <xquant/attention/task.hpp>
#include <xquant/backend/cuda/device/product.cuh>
#include <xquant/backend/cuda/device/rope.cuh>

namespace xquant::backend::gpu {
inline namespace XQUANT_ABI_NS {

/// An AttendTask, and its matrices and RoPE table in the kernels' form.
struct DeviceTask : AttendTask {
    MatrixTable key_matrix, value_matrix;
    const float* key_gain = nullptr;  ///< [size], by place: norm_scale * key_norm, or null
    PackedRope rope_table;            ///< pairs: 0 where keys are not turned
    std::size_t key_channels =
        0;                  ///< of a query, and of what it meets: head_dim, or the latent's where A is in the queries
    WeightMatrix absorbed;  ///< A [key_channels, head_dim] where it is in the queries, or null
    DeviceRows given{};     ///< queries before A was folded into them: row 0 is the task's
    std::size_t given_channel = 0;  ///< where the kv head's queries begin
};

/// The scores of a warp: C of 16 queries and 8 slots each.
template <class M, unsigned Tiles>
using Scores = typename M::template Lanes<float>[Tiles][2][4];

namespace detail {

/// RoPE for a set of rebuilt keys. What does not depend on the pair is a template parameter: a branch for each pair
/// would cost more.
/// @tparam All  there is a pair for every two places
template <bool Interleaved, bool All, class M, unsigned Tiles>
XQUANT_DEVICE_INLINE void apply_rope_to_keys(const typename M::Warp& warp, Product<M, Tiles, 8>& keys,
                                             const PackedRope& rope_table, const ChannelOrder& order, unsigned set,
                                             const Strip& place) noexcept {
    constexpr unsigned half = set_channels / 2;  // columns of either half of a set
    warp.each([&](unsigned lane) {
        const unsigned first = half * set + 2 * (lane % 4);  // the lane's first place
        XQUANT_UNROLL
        for (unsigned i = 0; i < 2 * Tiles; ++i) {
            auto& blocks = keys.at[i / 2];
            const unsigned r = 2 * (i % 2);
            const std::uint32_t* row = rope_table.row(place.offset(8 * i + lane / 4));
            XQUANT_UNROLL
            for (unsigned c = 0; c < 2; ++c) {
                // Interleaved: channels are neighbours, in the first half of the head or in the second.
                const unsigned from = Interleaved ? first / 2 + c * order.size / 4 : first + c;
                const std::uint32_t* angles = row + from;
                XQUANT_UNROLL
                for (unsigned j = 0; j < half / 8; ++j) {
                    constexpr unsigned step = Interleaved ? 4 : 8;
                    if (!All && from + step * j >= rope_table.pairs) continue;
                    auto& a = Interleaved ? blocks[j + c * half / 8][r] : blocks[j][r + c];
                    auto& b = Interleaved ? blocks[j + c * half / 8][r + 1] : blocks[j + half / 8][r + c];
                    rope_table.apply<M>(a[lane], b[lane], from + step * j, angles[step * j]);
                }
            }
        }
    });
}

}  // namespace detail

/// Constants, gain of the norm and RoPE for a set of rebuilt keys.
/// @param squares  of slots lane / 4 + 8 i: what this set adds to the sum of their channels' squares
template <class M, unsigned Tiles>
XQUANT_DEVICE_INLINE void finish_keys(const typename M::Warp& warp, Product<M, Tiles, 8>& keys, const DeviceTask& task,
                                      const PackedRope& rope_table, const ChannelOrder& order, unsigned set,
                                      const Strip& place,
                                      typename M::template Lanes<float> (&squares)[2 * Tiles]) noexcept {
    if (const float* constant = task.key_matrix.constant; constant != nullptr) {
        keys.each(warp, [&](unsigned, unsigned, unsigned column, float& a, float& b) {
            const unsigned at = order.place(set, column);
            a += constant[at];
            b += constant[at + 1];
        });
    }
    if (task.key_gain != nullptr) {
        keys.each(warp, [&](unsigned lane, unsigned row, unsigned column, float& a, float& b) {
            squares[row / 8][lane] += a * a + b * b;
            const unsigned at = order.place(set, column);
            a *= task.key_gain[at];
            b *= task.key_gain[at + 1];
        });
    }
    // Where heads share the channels that are turned, they are not among these.
    if (rope_table.pairs == 0 || task.shared_channels > 0) return;
    const bool all = 2 * rope_table.pairs == order.size;
    if (rope_table.interleaved) {
        all ? detail::apply_rope_to_keys<true, true>(warp, keys, rope_table, order, set, place)
            : detail::apply_rope_to_keys<true, false>(warp, keys, rope_table, order, set, place);
    } else {
        all ? detail::apply_rope_to_keys<false, true>(warp, keys, rope_table, order, set, place)
            : detail::apply_rope_to_keys<false, false>(warp, keys, rope_table, order, set, place);
    }
}

/// The factor of a slot's norm, from the sums of its channels' squares.
template <class M, unsigned Tiles>
XQUANT_DEVICE_INLINE void find_norms(const typename M::Warp& warp, const AttendTask& task,
                                     typename M::template Lanes<float> (&squares)[2 * Tiles]) noexcept {
    XQUANT_UNROLL
    for (auto& square : squares) {
        square = detail::sum_of_four<M>(warp, square);
        warp.each([&](unsigned lane) {
            square[lane] =
                M::inverse_root(square[lane] / static_cast<float>(task.head_dim) + task.rules.key_norm_epsilon) /
                norm_scale;
        });
    }
}

/// scores += q K^T over a set of rebuilt keys: C of 16 slots and 16 channels is B of 16 channels and two times 8 slots.
/// @param queries  by place
template <class M, unsigned Tiles>
XQUANT_DEVICE_INLINE void score_keys(const typename M::Warp& warp, const Product<M, Tiles, 8>& keys, Operand queries,
                                     const ChannelOrder& order, unsigned set, Scores<M, Tiles>& scores) noexcept {
    using detail::Lanes;
    XQUANT_UNROLL
    for (unsigned k = 0; k < set_channels / 16; ++k) {
        Lanes<M, std::uint32_t> a[4];
        detail::load_rows<M>(warp, a, queries.at + order.place(set, 16 * k), queries.stride, 0);
        XQUANT_UNROLL
        for (unsigned tile = 0; tile < Tiles; ++tile) {
            Lanes<M, std::uint32_t> b[2][2];
            warp.each([&](unsigned lane) {
                XQUANT_UNROLL
                for (unsigned i = 0; i < 4; ++i) {
                    const auto& c = keys.at[tile][2 * k + i % 2];
                    const unsigned r = 2 * (i / 2);
                    b[i / 2][i % 2][lane] = M::pack(c[r][lane], c[r + 1][lane]);
                }
            });
            warp.multiply(scores[tile][0], a, b[0]);
            warp.multiply(scores[tile][1], a, b[1]);
        }
    }
}

/// Scores of a slot times its factor: slots lie along columns of the scores, along rows of the keys.
template <class M, unsigned Tiles>
XQUANT_DEVICE_INLINE void scale_slots(const typename M::Warp& warp,
                                      const typename M::template Lanes<float> (&factors)[2 * Tiles],
                                      Scores<M, Tiles>& scores) noexcept {
    XQUANT_UNROLL
    for (unsigned h = 0; h < 2; ++h) {
        detail::Lanes<M, unsigned> from;
        warp.each([&](unsigned lane) { from[lane] = 4 * (2 * (lane % 4) + h); });
        XQUANT_UNROLL
        for (unsigned block = 0; block < 2 * Tiles; ++block) {
            const detail::Lanes<M, float> factor = warp.fetch(factors[block], from);
            warp.each([&](unsigned lane) {
                scores[block / 2][block % 2][h][lane] *= factor[lane];
                scores[block / 2][block % 2][2 + h][lane] *= factor[lane];
            });
        }
    }
}

/// Whether stored keys can be turned in the fragments that are scored.
XQUANT_DEVICE_INLINE constexpr bool rope_fits_fragments(const PackedRope& rope_table) noexcept {
    return rope_table.interleaved || rope_table.pairs % 16 == 0;
}

namespace detail {

/// Applies RoPE to fragments of keys, channels 16 k .. + 16 of 16 slots: `b` alone where neighbours are pairs, else
/// with their partners.
template <class M>
XQUANT_DEVICE_INLINE void apply_rope_to_fragments(const typename M::Warp& warp, Lanes<M, std::uint32_t> (&b)[2][2],
                                                  Lanes<M, std::uint32_t> (*partners)[2], const PackedRope& rope_table,
                                                  const Strip& place, unsigned tile, unsigned k) noexcept {
    warp.each([&](unsigned lane) {
        XQUANT_UNROLL
        for (unsigned i = 0; i < 4; ++i) {
            const std::uint32_t* angles = rope_table.row(place.offset(16 * tile + 8 * (i / 2) + lane / 4));
            const unsigned channel = 16 * k + 8 * (i % 2) + 2 * (lane % 4);
            std::uint32_t& here = b[i / 2][i % 2][lane];
            float x = half_of<M>(here, 0), y = half_of<M>(here, 1);
            if (partners == nullptr) {
                if (channel / 2 >= rope_table.pairs) continue;
                rope_table.apply<M>(x, y, channel / 2, angles[channel / 2]);
                here = M::pack(x, y);
                continue;
            }
            std::uint32_t& there = partners[i / 2][i % 2][lane];
            float u = half_of<M>(there, 0), v = half_of<M>(there, 1);
            rope_table.apply<M>(x, u, channel, angles[channel]);
            rope_table.apply<M>(y, v, channel + 1, angles[channel + 1]);
            here = M::pack(x, y);
            there = M::pack(u, v);
        }
    });
}

}  // namespace detail

/// scores += q K^T for stored keys in a strip, channels in their own order; turned on the way unless they are already.
template <class M, unsigned Tiles>
XQUANT_DEVICE_INLINE void score_strip(const typename M::Warp& warp, Operand strip, unsigned channels, Operand queries,
                                      const PackedRope* rope_table, const Strip& place,
                                      Scores<M, Tiles>& scores) noexcept {
    using detail::Lanes;
    const unsigned steps = (channels + 15) / 16;
    const bool halves = rope_table != nullptr && !rope_table->interleaved;
    const unsigned paired = halves ? rope_table->pairs / 16 : 0;
    for (unsigned k = 0; k < steps; ++k) {
        if (k >= paired && k < 2 * paired) continue;  // with their partners
        Lanes<M, std::uint32_t> a[4], a_partners[4];
        detail::load_rows<M>(warp, a, queries.at, queries.stride, k);
        if (k < paired) detail::load_rows<M>(warp, a_partners, queries.at, queries.stride, k + paired);
        XQUANT_UNROLL
        for (unsigned tile = 0; tile < Tiles; ++tile) {
            Lanes<M, std::uint32_t> b[2][2], partners[2][2];
            const f16* rows = strip.at + 16 * tile * strip.stride;
            detail::load_across<M>(warp, b, rows, strip.stride, k);
            if (k < paired) {
                detail::load_across<M>(warp, partners, rows, strip.stride, k + paired);
                detail::apply_rope_to_fragments<M>(warp, b, partners, *rope_table, place, tile, k);
                warp.multiply(scores[tile][0], a_partners, partners[0]);
                warp.multiply(scores[tile][1], a_partners, partners[1]);
            } else if (rope_table != nullptr && !halves) {
                detail::apply_rope_to_fragments<M>(warp, b, nullptr, *rope_table, place, tile, k);
            }
            warp.multiply(scores[tile][0], a, b[0]);
            warp.multiply(scores[tile][1], a, b[1]);
        }
    }
}

/// Keys of a strip, a row for each lane: constants and norm (where `whole`), and RoPE (unless null).
template <class M>
XQUANT_DEVICE_COLD void finish_strip(const typename M::Warp& warp, const DeviceTask& task, const PackedRope* rope_table,
                                     const Strip& place, bool whole, f16* strip, unsigned stride) noexcept {
    const std::size_t dh = task.head_dim;
    warp.each([&](unsigned lane) {
        if (lane >= place.rows) return;
        f16* row = strip + lane * stride;
        for (std::size_t c = 0; whole && task.key.constant != nullptr && c < dh; ++c) {
            row[c] = M::to_half(M::to_float(row[c]) + task.key.constant[c]);
        }
        if (whole && task.rules.key_norm != nullptr) {
            float squares = 0;
            for (std::size_t c = 0; c < dh; ++c) squares += M::to_float(row[c]) * M::to_float(row[c]);
            const float factor = M::inverse_root(squares / static_cast<float>(dh) + task.rules.key_norm_epsilon);
            for (std::size_t c = 0; c < dh; ++c) {
                row[c] = M::to_half(M::to_float(row[c]) * factor * task.rules.key_norm[c]);
            }
        }
        for (unsigned j = 0; rope_table != nullptr && j < rope_table->pairs; ++j) {
            f16 &first = row[task.rope.first(j)], &second = row[task.rope.second(j)];
            float a = M::to_float(first), b = M::to_float(second);
            rope_table->apply<M>(a, b, j, rope_table->row(place.offset(lane))[j]);
            first = M::to_half(a);
            second = M::to_half(b);
        }
    });
    warp.sync();
}

/// Replaces the first channels of a strip's keys by the channels that all heads share.
template <class M>
XQUANT_DEVICE_COLD void put_shared(const typename M::Warp& warp, const StreamView& shared, unsigned channels,
                                   const Strip& place, f16* strip, unsigned stride) noexcept {
    warp.each([&](unsigned lane) {
        for (unsigned i = lane; i < place.rows * channels; i += lanes) {
            const unsigned row = i / channels, c = i % channels;
            strip[row * stride + c] =
                place.wants(row) ? M::to_half(stored_value<M>(shared, place.slot(row), c)) : f16{};
        }
    });
    warp.sync();
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend::gpu
