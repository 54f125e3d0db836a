// Attention of up to 128 queries of a kv head (64 where heads have more than 128 channels): prompts, and drafts to be
// verified.
//
//     keys [slots][Size], values [slots][Size]   rebuilt or decoded once, 16 slots by each warp, into shared memory for
//                                                all of them
//     queries                                    16 of each warp, which meet all slots
//
// A key is rebuilt once for 128 queries; decode_attention.cuh rebuilds it once for 16. The page is read whole, or by
// halves where heads have more than 128 channels. Shapes and errors are those of decode_attention.cuh.
// Limit   counted, not measured: tensor cores, 2 Dh (1 + 1 + R / 128) operations for a query and slot whose key has a
//         latent of R channels; one block on a multiprocessor, for its shared memory.
#pragma once

#include <xquant/backend/cuda/device/query_tile.cuh>

namespace xquant::backend::gpu {
inline namespace XQUANT_ABI_NS {

/// Warps of a block of PrefillAttention, and its queries.
constexpr unsigned prefill_warps(unsigned size) noexcept { return block_warps * (size <= 128 ? 2 : 1); }
constexpr unsigned prefill_queries(unsigned size) noexcept { return prefill_warps(size) * warp_queries; }

/// As DecodeAttention.
template <class M, unsigned Size, Products How>
class PrefillAttention {
    using Warp = typename M::Warp;
    template <class T>
    using Lanes = typename M::template Lanes<T>;

public:
    static constexpr bool rebuilding = How != Products::none;
    /// Tiles of 16 slots that a warp's queries meet at a time; shared memory holds four times as many.
    static constexpr unsigned tiles = Size <= 128 ? 2 : 1, rounds = 2 / tiles, chunks = block_warps;
    static constexpr unsigned warps = prefill_warps(Size), queries = prefill_queries(Size);
    static_assert(warps == chunks * tiles);
    using Pages = PageReader<M, Size, queries, true>;
    using Rebuild = Rebuilder<M, 1, Size, How == Products::codes>;
    static constexpr unsigned stride = Size + 8, strip_stride = matrix_rows + 8;
    static constexpr unsigned slots = 16 * warps;
    static constexpr std::size_t strip_halves = rebuilding ? warps * 16 * strip_stride : 0;
    static constexpr std::size_t matrix_halves = rebuilding ? Rebuild::halves : 0;
    /// Bytes of shared memory that a block takes.
    static constexpr std::size_t shared_bytes =
        sizeof(f16) * (matrix_halves + strip_halves + 2 * slots * stride) + sizeof(float) * slots + Pages::shared_bytes;

    XQUANT_DEVICE_INLINE PrefillAttention(typename M::Block& block, const DeviceTask& task, unsigned first_query,
                                          unsigned most = queries) noexcept
        : block_(block),
          task_(task),
          absorbed_(sums_latents(task.value, task.head_dim)),
          rebuild_(block, reinterpret_cast<f16*>(block.shared())),
          strips_(reinterpret_cast<f16*>(block.shared()) + matrix_halves),
          keys_(strips_ + strip_halves),
          values_(keys_ + slots * stride),
          norms_(reinterpret_cast<float*>(values_ + slots * stride)),
          pages_(block, task, first_query, most, reinterpret_cast<std::byte*>(norms_ + slots)),
          warps_(warps) {}

    template <class Spans>
    XQUANT_DEVICE_INLINE void run(const Spans& spans, const RopeView& rope, Partial partial) noexcept {
        block_.each_warp([&](Warp& warp) { warps_[warp].clear(warp, queries_of(warp)); });
        pages_.each_page(spans, rope, *this);
        const std::size_t width = absorbed_ ? task_.value.width : task_.head_dim;
        block_.each_warp(
            [&](Warp& warp) { warps_[warp].write(warp, queries_of(warp), warp_queries * warp.index, width, partial); });
    }

    /// What the block's queries see of a page (PageReader::each_page).
    XQUANT_DEVICE_INLINE void attend_page(const TokenSpan& span, std::size_t base, std::size_t from,
                                          std::size_t to) noexcept {
        for (unsigned round = 0; round < rounds; ++round) {
            const Strip page{base, from, to, 16, round, 0};
            block_.barrier();
            find_keys(span, page);
            find_values(span, page);
            block_.each_warp([&](Warp& warp) { warp.wait_for_copies(); });
            block_.barrier();
            block_.each_warp([&](Warp& warp) { attend(warp, span, page); });
        }
    }

private:
    struct Nothing {};
    struct Rebuilt {
        Product<M, 1, 8> keys;
        Product<M, 4, 2> values;
        Lanes<float> squares[2];
    };
    struct State : Softmax<M, Size, tiles>, std::conditional_t<rebuilding, Rebuilt, Nothing> {};

    [[nodiscard]] XQUANT_DEVICE_INLINE Queries queries_of(const Warp& warp) const noexcept {
        const unsigned first = warp_queries * warp.index, all = pages_.asked.count;
        const unsigned left = all > first ? all - first : 0;
        return {task_, pages_.asked.first + first, left < warp_queries ? left : warp_queries};
    }
    /// The slots that a warp loads, and where they lie among the slots in shared memory.
    [[nodiscard]] XQUANT_DEVICE_INLINE static Strip of_warp(Strip page, const Warp& warp) noexcept {
        page.round += warp.index / chunks;
        page.warp = warp.index % chunks;
        return page;
    }
    [[nodiscard]] XQUANT_DEVICE_INLINE static unsigned first_row(const Warp& warp) noexcept {
        return 16 * (tiles * (warp.index % chunks) + warp.index / chunks);
    }
    [[nodiscard]] XQUANT_DEVICE_INLINE f16* strip_of(const Warp& warp) const noexcept {
        return strips_ + warp.index * 16 * strip_stride;
    }

    XQUANT_DEVICE_INLINE void find_keys(const TokenSpan& span, const Strip& page) noexcept {
        const bool rebuilt = rebuilding && task_.key.matrix != nullptr;
        if constexpr (rebuilding) {
            if (rebuilt) rebuild_keys(span.keys, page);
        }
        const bool shared = task_.shared_channels > 0;
        if (rebuilt && !shared) return;
        block_.each_warp([&](Warp& warp) {
            const Strip place = of_warp(page, warp);
            f16* rows = keys_ + first_row(warp) * stride;
            if (!rebuilt) {
                const auto channels = static_cast<unsigned>(task_.key_channels);
                if constexpr (rebuilding) {
                    decode_rarely<M, 1>(warp, span.keys, place, task_.key.first, channels, rows, stride);
                } else {
                    decode_strip<M, 1>(warp, span.keys, place, task_.key.first, channels, rows, stride);
                }
                warp.wait_for_copies();
                warp.sync();
            }
            if (shared) {
                warp.sync();
                put_shared<M>(warp, span.shared, static_cast<unsigned>(task_.shared_channels), place, rows, stride);
            }
            const PackedRope rope_table = pages_.rope_table();
            const bool whole = !rebuilt && (task_.key.constant != nullptr || task_.rules.key_norm != nullptr);
            if (!whole && rope_table.pairs == 0) return;
            finish_strip<M>(warp, task_, rope_table.pairs > 0 ? &rope_table : nullptr, place, whole, rows, stride);
        });
    }

    XQUANT_DEVICE_INLINE void rebuild_keys(const StreamView& in, const Strip& page) noexcept {
        block_.each_warp([&](Warp& warp) {
            warp.each([&](unsigned lane) {
                XQUANT_UNROLL
                for (auto& square : warps_[warp].squares) square[lane] = 0;
            });
        });
        for (unsigned set = 0; set < Size / set_channels; ++set) {
            rebuild_.template run<true>(
                in, task_.key, task_.key_matrix, set, [&](const Warp& warp) { return of_warp(page, warp); },
                [&](const Warp& warp) { return strip_of(warp); },
                strip_stride, [&](const Warp& warp) -> auto& { return warps_[warp].keys; });
            block_.each_warp([&](Warp& warp) {
                State& state = warps_[warp];
                finish_keys<M, 1>(warp, state.keys, task_, pages_.rope_table(), pages_.order, set, of_warp(page, warp),
                                  state.squares);
                f16* rows = keys_ + first_row(warp) * stride;
                state.keys.each(warp, [&](unsigned, unsigned row, unsigned column, float& a, float& b) {
                    detail::put(rows, stride, row, pages_.order.place(set, column), M::pack(a, b));
                });
                warp.sync();
            });
        }
        if (task_.key_gain == nullptr) return;
        block_.each_warp([&](Warp& warp) {
            State& state = warps_[warp];
            find_norms<M, 1>(warp, task_, state.squares);
            warp.each([&](unsigned lane) {
                XQUANT_UNROLL
                for (unsigned i = 0; i < 2; ++i) {
                    if (lane % 4 == 0) norms_[first_row(warp) + lane / 4 + 8 * i] = state.squares[i][lane];
                }
            });
        });
    }

    XQUANT_DEVICE_INLINE void find_values(const TokenSpan& span, const Strip& page) noexcept {
        if constexpr (rebuilding) {
            if (!absorbed_) {
                rebuild_values(span.values, page);
                return;
            }
        }
        block_.each_warp([&](Warp& warp) {
            decode_strip<M, 1>(warp, span.values, of_warp(page, warp), task_.value.first,
                               static_cast<unsigned>(task_.value.width), values_ + first_row(warp) * stride, stride);
        });
    }

    XQUANT_DEVICE_INLINE void rebuild_values(const StreamView& in, const Strip& page) noexcept {
        for (unsigned set = 0; set * set_channels < task_.head_dim; ++set) {
            rebuild_.template run<false>(
                in, task_.value, task_.value_matrix, set, [&](const Warp& warp) { return of_warp(page, warp); },
                [&](const Warp& warp) { return strip_of(warp); },
                strip_stride, [&](const Warp& warp) -> auto& { return warps_[warp].values; });
            block_.each_warp([&](Warp& warp) {
                f16* to = values_ + first_row(warp) * stride + set * set_channels;
                warps_[warp].values.each(warp, [&](unsigned, unsigned channel, unsigned slot, float& a, float& b) {
                    to[slot * stride + channel] = M::to_half(a);
                    to[(slot + 1) * stride + channel] = M::to_half(b);
                });
            });
        }
    }

    /// A warp's queries meet the slots that are in shared memory.
    XQUANT_DEVICE_INLINE void attend(const Warp& warp, const TokenSpan& span, const Strip& page) noexcept {
        State& state = warps_[warp];
        const Queries asked = queries_of(warp);
        if (!asked.see(span, page.begin, page.end)) return;
        const bool rebuilt = rebuilding && task_.key.matrix != nullptr;
        const unsigned channels = rebuilt ? Size : static_cast<unsigned>(task_.key_channels);
        const Operand rows = pages_.queries(warp_queries * warp.index);
        for (unsigned chunk = 0; chunk < chunks; ++chunk) {
            const Strip place{page.base, page.begin, page.end, 16 * tiles, page.round, chunk};
            const unsigned row = 16 * tiles * chunk;
            state.clear_scores(warp);
            score_strip<M, tiles>(warp, {keys_ + row * stride, stride}, channels, rows, nullptr, place, state.scores);
            if (rebuilt && task_.key_gain != nullptr) {
                warp.each([&](unsigned lane) {
                    XQUANT_UNROLL
                    for (unsigned i = 0; i < 8 * tiles; ++i) {
                        const unsigned slot = 8 * (i / 4) + 2 * (lane % 4) + i % 2;
                        state.scores[i / 8][i / 4 % 2][i % 4][lane] *= norms_[row + slot];
                    }
                });
            }
            state.soften(warp, asked, span, place);
            state.add_values(warp, values_ + row * stride, stride, absorbed_ ? task_.value.width : task_.head_dim);
        }
    }

    typename M::Block& block_;
    const DeviceTask& task_;
    bool absorbed_;  ///< P z is summed
    Rebuild rebuild_;
    f16 *strips_, *keys_, *values_;
    float* norms_;  ///< factors of slots
    Pages pages_;
    typename M::template PerWarp<State> warps_;
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend::gpu
