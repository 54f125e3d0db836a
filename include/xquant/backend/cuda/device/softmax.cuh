// The softmax of a warp: scores of 16 queries against its strip, and what was summed so far, all in registers.
//
//     scores [16 x 16 Tiles] -> weights P, relative to the highest score so far ;  sum = sum * factor + P V
//
// Limit   exponentials: 16 for each lane and tile of 16 slots and 16 queries, even where there are fewer queries.
#pragma once

#include <limits>

#include <xquant/backend/cuda/device/scores.cuh>

namespace xquant::backend::gpu {
inline namespace XQUANT_ABI_NS {

/// Queries of a warp: rows of the fragments that meet keys.
inline constexpr unsigned warp_queries = 16;

XQUANT_DEVICE inline std::int64_t position_of(const TokenSpan& span, std::size_t slot) noexcept {
    return span.first_position + static_cast<std::int64_t>(slot) - static_cast<std::int64_t>(span.begin);
}

/// Some (query row, head) of a task, from number `first` on.
struct Queries {
    const AttendTask& task;
    unsigned first, count;

    XQUANT_DEVICE_INLINE Queries(const AttendTask& of, unsigned from, unsigned most = warp_queries) noexcept
        : task(of), first(from), count(0) {
        const auto all = static_cast<unsigned>(of.rows * of.queries_per_kv);
        if (from < all) count = all - from < most ? all - from : most;
    }
    [[nodiscard]] XQUANT_DEVICE_INLINE std::int64_t position(unsigned query) const noexcept {
        return task.first_position + static_cast<std::int64_t>((first + query) / task.queries_per_kv);
    }
    /// Whether any of these queries sees any of the slots from .. to.
    [[nodiscard]] XQUANT_DEVICE_INLINE bool see(const TokenSpan& span, std::size_t from,
                                                std::size_t to) const noexcept {
        if (count == 0 || position_of(span, from) > position(count - 1)) return false;
        return task.rules.window == 0 ||
               position_of(span, to - 1) > position(0) - static_cast<std::int64_t>(task.rules.window);
    }
};

/// Heads of up to Size channels, Tiles x 16 slots a strip.
template <class M, unsigned Size, unsigned Tiles>
struct Softmax {
    using Warp = typename M::Warp;
    template <class T>
    using Lanes = typename M::template Lanes<T>;
    static constexpr float nothing = -std::numeric_limits<float>::infinity();
    static constexpr unsigned merge_floats = warp_queries * (2 * block_warps + Size);

    Lanes<std::int64_t> positions[2];   ///< of queries lane / 4 and lane / 4 + 8
    Lanes<float> sum[Size / 8][4];      ///< C of the queries and 8 channels each
    Lanes<float> maximum[2], total[2];  ///< of queries lane / 4 and lane / 4 + 8
    Lanes<float> scores[Tiles][2][4];   ///< C of the queries and 8 slots each

    XQUANT_DEVICE_INLINE void clear(const Warp& warp, const Queries& queries) noexcept {
        warp.each([&](unsigned lane) {
            XQUANT_UNROLL
            for (auto& column : sum) {
                XQUANT_UNROLL
                for (auto& element : column) element[lane] = 0;
            }
            XQUANT_UNROLL
            for (unsigned r = 0; r < 2; ++r) {
                positions[r][lane] = queries.position(lane / 4 + 8 * r);
                maximum[r][lane] = nothing;
                total[r][lane] = 0;
            }
        });
    }

    XQUANT_DEVICE_INLINE void clear_scores(const Warp& warp) noexcept {
        warp.each([&](unsigned lane) {
            XQUANT_UNROLL
            for (auto& tile : scores) {
                XQUANT_UNROLL
                for (auto& column : tile) {
                    XQUANT_UNROLL
                    for (auto& element : column) element[lane] = 0;
                }
            }
        });
    }

    /// Scores become weights; what was summed before is scaled to the new maximum.
    XQUANT_DEVICE_INLINE void soften(const Warp& warp, const Queries& queries, const TokenSpan& span,
                                     const Strip& place) noexcept {
        const ScoreRules& rules = queries.task.rules;
        XQUANT_UNROLL
        for (unsigned r = 0; r < 2; ++r) {
            Lanes<float> highest, weights, factor;
            warp.each([&](unsigned lane) {
                const unsigned query = lane / 4 + 8 * r;
                const float slope = rules.slopes != nullptr
                                        ? rules.slopes[(queries.first + query) % queries.task.queries_per_kv]
                                        : 0.0F;
                // Slots from .. to of the page are visible; both within 0 .. 128.
                const std::int64_t ahead =
                    position_of(span, place.base) - positions[r][lane];  // of the page's first slot
                const auto within = [](std::int64_t n) {
                    return static_cast<int>(n < 0 ? 0 : n > page_slots ? page_slots : n);
                };
                const int end = within(static_cast<std::int64_t>(place.end - place.base)), last = within(1 - ahead);
                const int to = query >= queries.count ? 0 : last < end ? last : end;
                int from = static_cast<int>(place.begin - place.base);
                if (rules.window > 0) {
                    const int first = within(1 - ahead - static_cast<std::int64_t>(rules.window));
                    from = first > from ? first : from;
                }
                highest[lane] = nothing;
                XQUANT_UNROLL
                for (unsigned i = 0; i < 4 * Tiles; ++i) {
                    const auto offset = static_cast<int>(place.offset(8 * (i / 2) + 2 * (lane % 4) + i % 2));
                    float& score = scores[i / 4][i / 2 % 2][2 * r + i % 2][lane];
                    if (rules.soft_cap > 0) score = rules.soft_cap * M::tanh(score / rules.soft_cap);
                    if (slope != 0) score += slope * static_cast<float>(ahead + offset);
                    if (offset < from || offset >= to) score = nothing;
                    highest[lane] = score > highest[lane] ? score : highest[lane];
                }
            });
            XQUANT_UNROLL
            for (unsigned mask = 1; mask < 4; mask *= 2) {
                const Lanes<float> other = warp.exchange(highest, mask);
                warp.each(
                    [&](unsigned lane) { highest[lane] = other[lane] > highest[lane] ? other[lane] : highest[lane]; });
            }
            warp.each([&](unsigned lane) {
                const float before = maximum[r][lane];
                const float now = highest[lane] > before ? highest[lane] : before;
                factor[lane] = before == nothing ? 0.0F : M::exp(before - now);
                maximum[r][lane] = now;
                weights[lane] = 0;
                XQUANT_UNROLL
                for (unsigned i = 0; i < 4 * Tiles; ++i) {
                    float& score = scores[i / 4][i / 2 % 2][2 * r + i % 2][lane];
                    score = score == nothing ? 0.0F : M::exp(score - now);
                    weights[lane] += score;
                }
            });
            weights = detail::sum_of_four<M>(warp, weights);
            warp.each([&](unsigned lane) {
                total[r][lane] = total[r][lane] * factor[lane] + weights[lane];
                XQUANT_UNROLL
                for (auto& column : sum) {
                    column[2 * r][lane] *= factor[lane];
                    column[2 * r + 1][lane] *= factor[lane];
                }
            });
        }
    }

    /// Weights of a tile as the left side of P V.
    XQUANT_DEVICE_INLINE void pack_weights(const Warp& warp, unsigned tile,
                                           Lanes<std::uint32_t> (&a)[4]) const noexcept {
        warp.each([&](unsigned lane) {
            XQUANT_UNROLL
            for (unsigned i = 0; i < 4; ++i) {
                const auto& c = scores[tile][i / 2];
                const unsigned r = 2 * (i % 2);
                a[i][lane] = M::pack(c[r][lane], c[r + 1][lane]);
            }
        });
    }

    /// sum += P V: C of 16 queries and two times 8 slots is A of 16 queries and 16 slots.
    XQUANT_DEVICE_INLINE void add_values(const Warp& warp, const f16* strip, unsigned stride,
                                         std::size_t width) noexcept {
        XQUANT_UNROLL
        for (unsigned tile = 0; tile < Tiles; ++tile) {
            Lanes<std::uint32_t> a[4];
            pack_weights(warp, tile, a);
            XQUANT_UNROLL
            for (unsigned j = 0; j < Size / 8; j += 2) {
                if (8 * j >= width) break;
                Lanes<std::uint32_t> b[2][2];
                detail::load_columns<M>(warp, b, strip + 16 * tile * stride, stride, j);
                warp.multiply(sum[j], a, b[0]);
                warp.multiply(sum[j + 1], a, b[1]);
            }
        }
        warp.sync();
    }

    /// sum += P V for one set of rebuilt values: C of 16 channels and two times 8 slots is twice B of 16 slots and 8
    /// channels.
    XQUANT_DEVICE_INLINE void add_rebuilt(const Warp& warp, const Product<M, 4, 2 * Tiles>& values,
                                          unsigned set) noexcept {
        XQUANT_UNROLL
        for (unsigned tile = 0; tile < Tiles; ++tile) {
            Lanes<std::uint32_t> a[4];
            pack_weights(warp, tile, a);
            XQUANT_UNROLL
            for (unsigned j = 0; j < Size / 8; ++j) {
                if (j / 8 != set) continue;
                Lanes<std::uint32_t> b[2];
                warp.each([&](unsigned lane) {
                    XQUANT_UNROLL
                    for (unsigned i = 0; i < 2; ++i) {
                        const auto& c = values.at[j % 8 / 2][2 * tile + i];
                        const unsigned r = 2 * (j % 2);
                        b[i][lane] = M::pack(c[r][lane], c[r + 1][lane]);
                    }
                });
                warp.multiply(sum[j], a, b);
            }
        }
    }

    /// The warp's own result, queries from number `first` of the partial result on.
    XQUANT_DEVICE_INLINE void write(const Warp& warp, const Queries& queries, unsigned first, std::size_t width,
                                    Partial partial) const noexcept {
        warp.each([&](unsigned lane) {
            XQUANT_UNROLL
            for (unsigned r = 0; r < 2; ++r) {
                const unsigned query = lane / 4 + 8 * r;
                if (query >= queries.count) continue;
                float* to = partial.sum + (first + query) * width;
                XQUANT_UNROLL
                for (unsigned i = 0; i < Size / 4; ++i) {
                    const unsigned c = 8 * (i / 2) + 2 * (lane % 4) + i % 2;
                    if (c < width) to[c] = sum[i / 2][2 * r + i % 2][lane];
                }
                if (lane % 4 != 0) continue;
                partial.maximum[first + query] = maximum[r][lane];
                partial.total[first + query] = total[r][lane];
            }
        });
    }

    /// The four warps' results become one, in order.
    /// @param memory  merge_floats of shared memory
    template <class States>
    XQUANT_DEVICE_INLINE static void merge(typename M::Block& block, States& states, const Queries& queries,
                                           std::size_t width, float* memory, Partial partial) noexcept {
        float* maxima = memory;
        // [4][16] maxima and totals, then [16][Size] sums.
        float* totals = maxima + block_warps * warp_queries;
        float* sums = totals + block_warps * warp_queries;
        block.barrier();
        block.each_warp([&](Warp& warp) {
            const Softmax& state = states[warp];
            warp.each([&](unsigned lane) {
                XQUANT_UNROLL
                for (unsigned r = 0; r < 2; ++r) {
                    if (lane % 4 != 0) continue;
                    maxima[warp.index * warp_queries + lane / 4 + 8 * r] = state.maximum[r][lane];
                    totals[warp.index * warp_queries + lane / 4 + 8 * r] = state.total[r][lane];
                }
            });
        });
        block.barrier();
        const auto highest_of = [&](unsigned query) {
            float highest = nothing;
            for (unsigned w = 0; w < block_warps; ++w) {
                const float maximum = maxima[w * warp_queries + query];
                highest = maximum > highest ? maximum : highest;
            }
            return highest;
        };
        const auto factor_of = [&](unsigned warp, unsigned query) {
            const float own = maxima[warp * warp_queries + query];
            return own == nothing ? 0.0F : M::exp(own - highest_of(query));
        };
        for (unsigned turn = 0; turn < block_warps; ++turn) {
            block.each_warp([&](Warp& warp) {
                if (warp.index != turn) return;
                const Softmax& state = states[warp];
                warp.each([&](unsigned lane) {
                    XQUANT_UNROLL
                    for (unsigned r = 0; r < 2; ++r) {
                        const unsigned query = lane / 4 + 8 * r;
                        const float factor = factor_of(turn, query);
                        XQUANT_UNROLL
                        for (unsigned i = 0; i < Size / 4; ++i) {
                            float& to = sums[query * Size + 8 * (i / 2) + 2 * (lane % 4) + i % 2];
                            const float add = state.sum[i / 2][2 * r + i % 2][lane] * factor;
                            to = turn == 0 ? add : to + add;
                        }
                    }
                });
            });
            block.barrier();
        }
        block.each_thread([&](unsigned thread) {
            for (std::size_t i = thread; i < queries.count * width; i += block_warps * lanes) {
                const std::size_t query = i / width, c = i % width;
                partial.sum[query * width + c] = sums[query * Size + c];
            }
            if (thread >= queries.count) return;
            float total = 0;
            for (unsigned w = 0; w < block_warps; ++w) {
                total += totals[w * warp_queries + thread] * factor_of(w, thread);
            }
            partial.maximum[thread] = highest_of(thread);
            partial.total[thread] = total;
        });
    }
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend::gpu
