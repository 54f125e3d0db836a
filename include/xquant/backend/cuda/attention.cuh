// Attention of up to 16 queries of a kv head over a range of tiles, by one block of 4 warps: split-KV decoding.
//
//     strip (32 or 16 slots of 128, one warp)   z -> K = z A + c, norm, RoPE -> S = q K^T -> softmax, online -> sum += P z_v
//
// Each warp has a softmax of its own over its strips; the block's four are merged at the end, in order. K goes from the product
// that builds it straight to the one that scores it where RoPE's pairs meet in a lane, else by way of shared memory. V is
// not rebuilt where P z takes no more registers (its latent is no wider than the kernel's heads): A_v is applied once, when
// partial results are merged.
//
// Shapes  as backend/scalar/attention.hpp has them: the same task, the same partial result.
// Error   q, z, A, K and P are rounded to f16 (2^-11 each), products are summed in f32.
// Limit   counted, not measured. f16 rows: memory. Rebuilt keys: remat.cuh.
// Not     A block whose warps share strips and own channels: it would halve the loads of A, but norms and RoPE would need K
//         in shared memory every time. Two tiles of 16 slots where keys of 128 channels are rebuilt: registers spill.
#pragma once

#include <type_traits>

#include <xquant/attention/task.hpp>
#include <xquant/backend/cuda/softmax.cuh>

namespace xquant::backend::gpu {
inline namespace XQUANT_ABI_NS {

/// Calls f(size) with the kernel size for a head: 64, 128 or 256, as a compile-time constant.
template <class F>
constexpr void with_size(std::size_t head_dim, F&& f) {
    if (head_dim <= 64) return f(std::integral_constant<unsigned, 64>{});
    if (head_dim <= 128) return f(std::integral_constant<unsigned, 128>{});
    return f(std::integral_constant<unsigned, 256>{});
}

/// Whether P z is summed, and not P V: where that takes no more registers.
XQUANT_DEVICE constexpr bool sums_latents(const HeadDecoder& value, std::size_t head_dim) noexcept {
    return value.matrix == nullptr || value.width <= (head_dim <= 64 ? 64 : head_dim <= 128 ? 128 : 256);
}

/// Whether a task needs the form of the kernel that rebuilds.
XQUANT_DEVICE constexpr bool rebuilds(const AttendTask& task) noexcept {
    return task.key.matrix != nullptr || !sums_latents(task.value, task.head_dim);
}

/// The kernel for heads of up to Size channels.
/// @tparam M         cuda_gpu or emulated_gpu
/// @tparam Rebuilds  keys or values are products with a matrix; false: rows are read as they are, with fewer registers
template <class M, unsigned Size, bool Rebuilds>
class AttendBlock {
    using Warp = typename M::Warp;
    template <class T>
    using Lanes = typename M::template Lanes<T>;

public:
    /// Of 16 slots, in a warp's strip. Two share the loads of A and of the queries, as long as they fit into registers.
    static constexpr unsigned tiles = Size <= 64 || (Size <= 128 && !Rebuilds) ? 2 : 1;
    static constexpr unsigned rounds = 2 / tiles, rows = 16 * tiles;
    static constexpr unsigned query_stride = Size + 8;
    static constexpr unsigned strip_stride = (Rebuilds && Size < matrix_rows ? matrix_rows : Size) + 8;
    static constexpr std::size_t strip_halves = block_warps * rows * strip_stride;
    static constexpr std::size_t matrix_halves = Rebuilds ? MatrixStage<M, Size>::halves : 0;
    static_assert(sizeof(float) * Softmax<M, Size, tiles>::merge_floats <= sizeof(f16) * strip_halves);
    /// Of shared memory.
    static constexpr std::size_t shared_bytes =
        sizeof(f16) * (block_queries * query_stride + matrix_halves + strip_halves) + sizeof(float) * Size +
        sizeof(TokenSpan);

    XQUANT_DEVICE AttendBlock(typename M::Block& block, const AttendTask& task, unsigned first_query) noexcept
        : block_(block),
          task_(task),
          asked_(task, first_query),
          absorbed_(sums_latents(task.value, task.head_dim)),
          queries_(reinterpret_cast<f16*>(block.shared())),
          matrix_(queries_ + block_queries * query_stride),
          strips_(queries_ + block_queries * query_stride + matrix_halves),
          cosines_(reinterpret_cast<float*>(strips_ + strip_halves)),
          sines_(cosines_ + Size / 2),
          span_(reinterpret_cast<TokenSpan*>(sines_ + Size / 2)),
          warps_(block_warps) {}

    /// The partial result of the block's queries, [16] and [16, width], over spans: spans[i] is a TokenSpan, spans.lag(i) the
    /// positions by which its keys are turned too little, by `rope`.
    template <class Spans>
    XQUANT_DEVICE void run(const Spans& spans, const RopeView& rope, Partial partial) noexcept {
        block_.each_warp([&](Warp& warp) { warps_[warp].clear(warp, asked_); });
        std::int64_t lag = 0;
        std::size_t tile = 0;
        for (std::uint32_t i = 0; i < spans.size(); ++i) {
            // In shared memory: it would fill the registers of every lane.
            block_.barrier();
            block_.each_thread([&](unsigned thread) {
                if (thread == 0) *span_ = spans[i];
            });
            block_.barrier();
            const TokenSpan& span = *span_;
            if (i == 0 || lag != spans.lag(i)) {
                lag = spans.lag(i);
                load_queries(rope, lag);
            }
            for (std::size_t first = span.begin; first < span.end; first += page_slots, ++tile) {
                if (tile < task_.first_tile || tile - task_.first_tile >= task_.tiles) continue;
                const std::size_t last = first + page_slots < span.end ? first + page_slots : span.end;
                // Slots lie in pages of 128: a range that does not begin with one may reach into the next.
                for (std::size_t base = first / page_slots * page_slots; base < last; base += page_slots) {
                    const std::size_t from = first > base ? first : base;
                    const std::size_t to = last < base + page_slots ? last : base + page_slots;
                    if (asked_.see(span, from, to)) attend_slots(span, base, from, to);
                }
            }
        }
        State::merge(block_, warps_, asked_, width(), reinterpret_cast<float*>(strips_), partial);
    }

private:
    /// What a warp keeps in registers.
    struct State : Softmax<M, Size, tiles> {
        std::conditional_t<Rebuilds, Product<M, Size, tiles>, Warp*> product;
    };

    [[nodiscard]] XQUANT_DEVICE f16* strip_of(const Warp& warp) const noexcept {
        return strips_ + warp.index * rows * strip_stride;
    }
    [[nodiscard]] XQUANT_DEVICE Angles angles() const noexcept { return {task_.rope, cosines_, sines_}; }

    /// Channels of the sums.
    [[nodiscard]] XQUANT_DEVICE std::size_t width() const noexcept {
        return absorbed_ ? task_.value.width : task_.head_dim;
    }

    /// Queries into shared memory, turned back by `lag` positions: q . R(m) k = (R(-m) q) . k.
    XQUANT_DEVICE void load_queries(const RopeView& rope, std::int64_t lag) noexcept {
        block_.barrier();
        block_.each_thread([&](unsigned thread) {
            for (unsigned i = thread; i < block_queries * Size / 2; i += block_warps * lanes) {
                const unsigned query = i / (Size / 2), c = 2 * (i % (Size / 2));
                float value[2] = {0, 0};
                if (query < asked_.count) {
                    const std::size_t at = asked_.first + query;
                    const float* q = task_.q + at / task_.group * task_.q_stride + at % task_.group * task_.head_dim;
                    for (unsigned h = 0; h < 2; ++h) {
                        if (c + h >= task_.head_dim) continue;
                        const float turned = lag == 0 ? q[c + h] : turned_back(rope, lag, q, c + h);
                        value[h] = turned * task_.rules.scale;
                    }
                }
                detail::put(queries_, query_stride, query, c, M::pack(value[0], value[1]));
            }
        });
        block_.barrier();
    }

    /// Channel c of a head, turned back.
    XQUANT_DEVICE static float turned_back(const RopeView& rope, std::int64_t lag, const float* head,
                                           unsigned c) noexcept {
        if (c >= 2 * rope.pairs) return head[c];
        const std::size_t j = rope.pairing == RopePairing::interleaved ? c / 2 : c % rope.pairs;
        const std::size_t first = rope.first(j), second = rope.second(j);
        float cosine = 1, sine = 0;
        find_angle<M>(rope, j, lag, cosine, sine);
        return c == first ? head[first] * cosine + head[second] * sine : head[second] * cosine - head[first] * sine;
    }

    XQUANT_DEVICE void turn_to(std::int64_t position) noexcept {
        if (has_angles_ && position == angles_of_) return;
        has_angles_ = true;
        angles_of_ = position;
        block_.barrier();
        find_angles<M>(block_, task_.rope, position, cosines_, sines_);
        block_.barrier();
    }

    /// Channels of a strip's slots into shared memory.
    XQUANT_DEVICE void decode(Warp& warp, const StreamView& in, const Strip& place, std::size_t channel,
                              std::size_t channels) const noexcept {
        warp.sync();
        decode_strip<M>(warp, in, place, channel, static_cast<unsigned>(channels), strip_of(warp), strip_stride);
        warp.wait_for_copies();
        warp.sync();
    }

    /// state.product = z A for the slots of each warp.
    XQUANT_DEVICE void rebuild(const StreamView& in, const HeadDecoder& head, const Strip& slots) noexcept {
        block_.each_warp([&](Warp& warp) { warps_[warp].product.clear(warp); });
        for (unsigned first = 0; first < head.width; first += matrix_rows) {
            matrix_.load(block_, head, task_.head_dim, first);
            const auto left = static_cast<unsigned>(head.width) - first;
            const unsigned channels = left < matrix_rows ? left : matrix_rows;
            block_.each_warp([&](Warp& warp) {
                decode(warp, in, of_warp(slots, warp), head.first + first, channels);
                warps_[warp].product.add(warp, strip_of(warp), strip_stride, channels, matrix_);
            });
        }
    }

    [[nodiscard]] XQUANT_DEVICE static Strip of_warp(Strip slots, const Warp& warp) noexcept {
        slots.warp = warp.index;
        return slots;
    }

    XQUANT_DEVICE void attend_slots(const TokenSpan& span, std::size_t base, std::size_t from,
                                    std::size_t to) noexcept {
        if (task_.rope.pairs > 0) turn_to(position_of(span, base));
        for (unsigned round = 0; round < rounds; ++round) {
            const Strip slots{base, from, to, rows, round, 0};
            const bool rebuilt = Rebuilds && task_.key.matrix != nullptr;
            if constexpr (Rebuilds) {
                if (rebuilt) rebuild(span.keys, task_.key, slots);
            }
            block_.each_warp([&](Warp& warp) {
                const Strip place = of_warp(slots, warp);
                if (!rebuilt || !score_rebuilt(warp, place)) score_strip(warp, span, place, rebuilt);
                warps_[warp].soften(warp, asked_, span, place);
            });
            if constexpr (Rebuilds) {
                if (!absorbed_) {
                    rebuild(span.values, task_.value, slots);
                    block_.each_warp(
                        [&](Warp& warp) { warps_[warp].product.store(warp, strip_of(warp), strip_stride); });
                }
            }
            block_.each_warp([&](Warp& warp) {
                if (absorbed_) decode(warp, span.values, of_warp(slots, warp), task_.value.first, task_.value.width);
                warps_[warp].add_values(warp, strip_of(warp), strip_stride, width());
            });
        }
    }

    /// Finishes rebuilt keys and scores them in registers; false: they are in the strip, and not turned.
    XQUANT_DEVICE bool score_rebuilt(const Warp& warp, const Strip& place) noexcept {
        if constexpr (Rebuilds) {
            State& state = warps_[warp];
            auto& keys = state.product;
            if (task_.key.constant != nullptr) keys.add_constant(warp, task_.key.constant, task_.head_dim);
            if (task_.rules.key_norm != nullptr) {
                keys.normalize(warp, task_.rules.key_norm, task_.rules.key_norm_epsilon, task_.head_dim);
            }
            if (task_.shared_channels > 0 || !keys.holds_pairs(task_.rope)) {
                keys.store(warp, strip_of(warp), strip_stride);
                return false;
            }
            if (task_.rope.pairs > 0) keys.turn(warp, angles(), place);
            // C of 16 slots and 16 channels is B of 16 channels and two times 8 slots.
            state.clear_scores(warp);
            XQUANT_UNROLL
            for (unsigned k = 0; k < Size / 16; ++k) {
                Lanes<std::uint32_t> a[4];
                detail::load_rows<M>(warp, a, queries_, query_stride, k);
                XQUANT_UNROLL
                for (unsigned tile = 0; tile < tiles; ++tile) {
                    Lanes<std::uint32_t> b[2][2];
                    warp.each([&](unsigned lane) {
                        XQUANT_UNROLL
                        for (unsigned i = 0; i < 4; ++i) {
                            const auto& c = keys.at[tile][2 * k + i % 2];
                            const unsigned r = 2 * (i / 2);
                            b[i / 2][i % 2][lane] = M::pack(c[r][lane], c[r + 1][lane]);
                        }
                    });
                    warp.multiply(state.scores[tile][0], a, b[0]);
                    warp.multiply(state.scores[tile][1], a, b[1]);
                }
            }
            return true;
        } else {
            static_cast<void>(place);
            return false;
        }
    }

    /// Scores keys by way of the strip: rebuilt ones, which are there, or stored ones.
    XQUANT_DEVICE void score_strip(Warp& warp, const TokenSpan& span, const Strip& place, bool rebuilt) noexcept {
        State& state = warps_[warp];
        f16* strip = strip_of(warp);
        if (!rebuilt) decode(warp, span.keys, place, task_.key.first, task_.head_dim);
        if (task_.shared_channels > 0) {
            put_shared<M>(warp, span.shared, static_cast<unsigned>(task_.shared_channels), place, strip, strip_stride);
        }
        const bool whole = !rebuilt && (task_.key.constant != nullptr || task_.rules.key_norm != nullptr);
        if (whole || task_.rope.pairs > 0) {
            finish_strip<M>(warp, task_, angles(), place, whole, strip, strip_stride);
        }
        state.clear_scores(warp);
        for (unsigned k = 0; k < (task_.head_dim + 15) / 16; ++k) {
            Lanes<std::uint32_t> a[4];
            detail::load_rows<M>(warp, a, queries_, query_stride, k);
            XQUANT_UNROLL
            for (unsigned tile = 0; tile < tiles; ++tile) {
                Lanes<std::uint32_t> b[2][2];
                detail::load_across<M>(warp, b, strip + 16 * tile * strip_stride, strip_stride, k);
                warp.multiply(state.scores[tile][0], a, b[0]);
                warp.multiply(state.scores[tile][1], a, b[1]);
            }
        }
        warp.sync();
    }

    typename M::Block& block_;
    const AttendTask& task_;
    Queries asked_;
    bool absorbed_;  ///< P z is summed
    f16* queries_;
    MatrixStage<M, Size> matrix_;
    f16* strips_;
    float *cosines_, *sines_;
    TokenSpan* span_;  ///< that is read
    typename M::template PerWarp<State> warps_;
    std::int64_t angles_of_ = 0;
    bool has_angles_ = false;
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend::gpu
