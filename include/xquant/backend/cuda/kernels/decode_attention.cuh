// Attention of up to 16 queries of a kv head over a range of tiles, by one block of 4 warps: split-KV decoding.
//
//     strip (32 or 16 slots of 128, one warp): z -> K = z A + c, norm, RoPE -> S = q K^T -> softmax -> sum += P z_v
//
// Each warp has a softmax of its own over its strips; the block's four are merged at the end, in order. K stays in
// registers between the product that rebuilds it and the product that scores it, 64 channels at a time. V is not
// rebuilt where its latent is no wider than the kernel's heads, since P z then takes no more registers: A_v is applied
// once, when partial results are merged.
//
// Shapes  as backend/tile_loop.hpp has them: the same task, the same partial result.
// Error   q, z, A, K and P are rounded to f16 (2^-11 each), products are summed in f32. Codes that meet 8-bit weights:
//         that of rematerialize_int8 (backend/rematerialize.hpp).
// Limit   counted, not measured: docs/backends.md. f16 rows: memory. Rebuilt keys: product.cuh.
// Not     All channels of K at once: at 128 they take all registers for 16 slots. A block whose warps share strips and
//         own channels: norms and RoPE would need K in shared memory every time.
#pragma once

#include <xquant/backend/cuda/device/query_tile.cuh>

namespace xquant::backend::gpu {
inline namespace XQUANT_ABI_NS {

/// The kernel for heads of up to Size channels.
/// @tparam M  cuda_gpu or emulated_gpu
template <class M, unsigned Size, Products How>
class DecodeAttention {
    using Warp = typename M::Warp;
    template <class T>
    using Lanes = typename M::template Lanes<T>;
    using Pages = PageReader<M, Size, warp_queries, false>;

public:
    static constexpr bool rebuilding = How != Products::none;
    static constexpr unsigned warps = block_warps;
    static constexpr unsigned queries = warp_queries;
    /// Tiles of 16 slots in a warp's strip. Two share the loads of A and of the queries, where registers have room.
    static constexpr unsigned tiles = Size <= 128 ? 2 : 1;
    static constexpr unsigned rounds = 2 / tiles, rows = 16 * tiles;
    using Rebuild = Rebuilder<M, tiles, Size, How == Products::codes>;
    static constexpr unsigned strip_stride = (rebuilding && Size < matrix_rows ? matrix_rows : Size) + 8;
    static constexpr std::size_t strip_halves = warps * rows * strip_stride;
    /// Strips of a warp: where nothing is rebuilt, one for keys and one for values, which are loaded at once.
    static constexpr unsigned strips = rebuilding ? 1 : 2;
    static constexpr std::size_t matrix_halves = rebuilding ? Rebuild::halves : 0;
    static_assert(sizeof(float) * Softmax<M, Size, tiles>::merge_floats <= sizeof(f16) * strips * strip_halves);
    /// Bytes of shared memory that a block takes.
    static constexpr std::size_t shared_bytes =
        sizeof(f16) * (matrix_halves + strips * strip_halves) + Pages::shared_bytes;

    XQUANT_DEVICE_INLINE DecodeAttention(typename M::Block& block, const DeviceTask& task, unsigned first_query,
                                         unsigned most = queries) noexcept
        : block_(block),
          task_(task),
          absorbed_(sums_latents(task.value, task.head_dim)),
          rebuild_(block, reinterpret_cast<f16*>(block.shared())),
          strips_(reinterpret_cast<f16*>(block.shared()) + matrix_halves),
          pages_(block, task, first_query, most, reinterpret_cast<std::byte*>(strips_ + strips * strip_halves)),
          warps_(warps) {}

    /// The partial result of the block's queries, [16] and [16, width], over spans. spans[i] is a TokenSpan;
    /// spans.lag(i) says by how many positions the stored RoPE of its keys lags behind. `rope` is that RoPE.
    template <class Spans>
    XQUANT_DEVICE_INLINE void run(const Spans& spans, const RopeView& rope, Partial partial) noexcept {
        block_.each_warp([&](Warp& warp) { warps_[warp].clear(warp, pages_.asked); });
        pages_.each_page(spans, rope, *this);
        State::merge(block_, warps_, pages_.asked, width(), reinterpret_cast<float*>(strips_), partial);
    }

    /// What the block's queries see of a page (PageReader::each_page).
    XQUANT_DEVICE_INLINE void attend_page(const TokenSpan& span, std::size_t base, std::size_t from,
                                          std::size_t to) noexcept {
        for (unsigned round = 0; round < rounds; ++round) attend(span, {base, from, to, rows, round, 0});
    }

private:
    struct Nothing {};
    struct Rebuilt {
        Product<M, tiles, 8> keys;
        Product<M, 4, 2 * tiles> values;
        Lanes<float> squares[2 * tiles];  ///< of slots lane / 4 + 8 i: for the norm of K
    };
    /// What a warp keeps in registers.
    struct State : Softmax<M, Size, tiles>, std::conditional_t<rebuilding, Rebuilt, Nothing> {};

    /// A warp's strip; which = 1: that of values, where they have one of their own.
    [[nodiscard]] XQUANT_DEVICE_INLINE f16* strip_of(const Warp& warp, unsigned which = 0) const noexcept {
        return strips_ + which * strip_halves + warp.index * rows * strip_stride;
    }
    [[nodiscard]] XQUANT_DEVICE_INLINE static Strip of_warp(Strip slots, const Warp& warp) noexcept {
        slots.warp = warp.index;
        return slots;
    }
    /// Channels of the sums.
    [[nodiscard]] XQUANT_DEVICE_INLINE std::size_t width() const noexcept {
        return absorbed_ ? task_.value.width : task_.head_dim;
    }

    XQUANT_DEVICE_INLINE void attend(const TokenSpan& span, const Strip& slots) noexcept {
        const bool rebuilt = rebuilding && task_.key.matrix != nullptr;
        if constexpr (rebuilding) {
            if (rebuilt) score_rebuilt(span.keys, slots);
        }
        block_.each_warp([&](Warp& warp) {
            State& state = warps_[warp];
            const Strip place = of_warp(slots, warp);
            if (!rebuilt) {
                state.clear_scores(warp);
                warp.sync();
                if constexpr (rebuilding) {
                    decode_rarely<M, tiles>(warp, span.keys, place, task_.key.first,
                                            static_cast<unsigned>(task_.key_channels), strip_of(warp), strip_stride);
                } else {
                    decode(warp, span.keys, place, task_.key.first, task_.key_channels, 0);
                    decode(warp, span.values, place, task_.value.first, task_.value.width, 1);
                }
                warp.wait_for_copies();
                warp.sync();
                const bool whole = task_.key.constant != nullptr || task_.rules.key_norm != nullptr;
                score(warp, place, static_cast<unsigned>(task_.key_channels), whole);
            }
            if (task_.shared_channels > 0) {
                warp.sync();
                decode_rarely<M, tiles>(warp, span.shared, place, 0, static_cast<unsigned>(task_.shared_channels),
                                        strip_of(warp), strip_stride);
                warp.wait_for_copies();
                warp.sync();
                score(warp, place, static_cast<unsigned>(task_.shared_channels), false);
            }
            state.soften(warp, pages_.asked, span, place);
        });
        if constexpr (rebuilding) {
            if (!absorbed_) {
                add_rebuilt(span.values, slots);
                return;
            }
        }
        block_.each_warp([&](Warp& warp) {
            if constexpr (strips == 1) {
                warp.sync();
                decode(warp, span.values, of_warp(slots, warp), task_.value.first, task_.value.width, 0);
                warp.wait_for_copies();
                warp.sync();
            }
            warps_[warp].add_values(warp, strip_of(warp, strips - 1), strip_stride, width());
        });
    }

    /// Channels of a strip's slots into shared memory.
    XQUANT_DEVICE_INLINE void decode(Warp& warp, const StreamView& in, const Strip& place, std::size_t channel,
                                     std::size_t channels, unsigned which) const noexcept {
        decode_strip<M, tiles>(warp, in, place, channel, static_cast<unsigned>(channels), strip_of(warp, which),
                               strip_stride);
    }

    /// Scores += the first channels of the queries times those of the strip.
    XQUANT_DEVICE_INLINE void score(Warp& warp, const Strip& place, unsigned channels, bool whole) noexcept {
        const PackedRope rope_table = pages_.rope_table();
        const bool by_rows = whole || !rope_fits_fragments(rope_table);
        const PackedRope* turned = rope_table.pairs > 0 ? &rope_table : nullptr;
        if (by_rows) finish_strip<M>(warp, task_, turned, place, whole, strip_of(warp), strip_stride);
        score_strip<M, tiles>(warp, {strip_of(warp), strip_stride}, channels, pages_.queries(),
                              by_rows ? nullptr : turned, place, warps_[warp].scores);
    }

    /// Keys are rebuilt and scored, 64 channels at a time.
    XQUANT_DEVICE_INLINE void score_rebuilt(const StreamView& in, const Strip& slots) noexcept {
        block_.each_warp([&](Warp& warp) {
            State& state = warps_[warp];
            state.clear_scores(warp);
            warp.each([&](unsigned lane) {
                XQUANT_UNROLL
                for (auto& square : state.squares) square[lane] = 0;
            });
        });
        for (unsigned set = 0; set < Size / set_channels; ++set) {
            rebuild_.template run<true>(
                in, task_.key, task_.key_matrix, set, [&](const Warp& warp) { return of_warp(slots, warp); },
                [&](const Warp& warp) { return strip_of(warp); },
                strip_stride, [&](const Warp& warp) -> auto& { return warps_[warp].keys; });
            block_.each_warp([&](Warp& warp) {
                State& state = warps_[warp];
                finish_keys<M, tiles>(warp, state.keys, task_, pages_.rope_table(), pages_.order, set,
                                      of_warp(slots, warp), state.squares);
                score_keys<M, tiles>(warp, state.keys, pages_.queries(), pages_.order, set, state.scores);
            });
        }
        if (task_.key_gain == nullptr) return;
        block_.each_warp([&](Warp& warp) {
            State& state = warps_[warp];
            find_norms<M, tiles>(warp, task_, state.squares);
            scale_slots<M, tiles>(warp, state.squares, state.scores);
        });
    }

    /// Values are rebuilt, 64 channels at a time, and added up.
    XQUANT_DEVICE_INLINE void add_rebuilt(const StreamView& in, const Strip& slots) noexcept {
        for (unsigned set = 0; set * set_channels < task_.head_dim; ++set) {
            rebuild_.template run<false>(
                in, task_.value, task_.value_matrix, set, [&](const Warp& warp) { return of_warp(slots, warp); },
                [&](const Warp& warp) { return strip_of(warp); },
                strip_stride, [&](const Warp& warp) -> auto& { return warps_[warp].values; });
            block_.each_warp([&](Warp& warp) { warps_[warp].add_rebuilt(warp, warps_[warp].values, set); });
        }
    }

    typename M::Block& block_;
    const DeviceTask& task_;
    bool absorbed_;  ///< P z is summed
    Rebuild rebuild_;
    f16* strips_;
    Pages pages_;
    typename M::template PerWarp<State> warps_;
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend::gpu
