// What all attention kernels do: keep a block's queries in shared memory, and go through its spans page by page.
//
//     queries [Count][Size + 8] halves, scaled; turned back by the position of a page's first slot (or by what stored
//             keys lag behind)
#pragma once

#include <xquant/backend/cuda/device/softmax.cuh>
#include <xquant/backend/cuda/device/weights_through_shared.cuh>

namespace xquant::backend::gpu {
inline namespace XQUANT_ABI_NS {

/// Calls f(size) with the kernel size for a head: 64, 128 or 256, as a compile-time constant, and no larger than
/// machine M has kernels for.
template <class M, class F>
constexpr void with_size(std::size_t head_dim, F&& f) {
    if constexpr (M::largest_head > 64) {
        if constexpr (M::largest_head > 128) {
            if (head_dim > 128) return f(std::integral_constant<unsigned, 256>{});
        }
        if (head_dim > 64) return f(std::integral_constant<unsigned, 128>{});
    }
    return f(std::integral_constant<unsigned, 64>{});
}

/// The kernel size for a head, as a number.
XQUANT_DEVICE_INLINE constexpr unsigned size_of_head(std::size_t head_dim) noexcept {
    return head_dim <= 64 ? 64 : head_dim <= 128 ? 128 : 256;
}

/// Whether a kernel sums P z, and not P V. It does where P z takes no more registers.
XQUANT_DEVICE_INLINE constexpr bool sums_latents(const HeadDecoder& value, std::size_t head_dim) noexcept {
    return value.matrix == nullptr || value.width <= size_of_head(head_dim);
}

/// Whether A is folded into the queries, once for all keys: s = (q A^T) z. It is where nothing is applied to K after
/// the product with A, as for keys that were stored after RoPE and a rotation. `rope`: applied to keys that are read.
constexpr bool absorbs_queries(const HeadDecoder& key, std::size_t head_dim, const RopeView& rope,
                               const ScoreRules& rules, std::size_t shared_channels) noexcept {
    return key.matrix != nullptr && key.constant == nullptr && key.width <= size_of_head(head_dim) && rope.pairs == 0 &&
           rules.key_norm == nullptr && shared_channels == 0;
}

/// Which products a kernel needs. Each kind is a kernel of its own, so that none takes registers that it does not use.
enum class Products : unsigned char {
    none,    ///< rows are read as they are
    halves,  ///< keys or values are products with A, of halves
    codes    ///< keys or values are products of codes and 8-bit weights, or of halves
};

/// What the kernels make of a task whose queries have absorbed A.
XQUANT_DEVICE inline void absorb(DeviceTask& task) noexcept {
    task.absorbed = task.key.matrix;
    task.key.matrix = nullptr;
    task.key_channels = task.key.width;
}

namespace detail {

/// Channel c of a head q(channel), turned back by the angles of one position.
template <class Q>
XQUANT_DEVICE_INLINE float undo_rope(const RopeView& rope, const float* cosines, const float* sines, const Q& q,
                                     unsigned c) noexcept {
    if (c >= 2 * rope.pairs) return q(c);
    const std::size_t j = rope.pairing == RopePairing::interleaved ? c / 2 : c % rope.pairs;
    const std::size_t first = rope.first(j), second = rope.second(j);
    return c == first ? q(first) * cosines[j] + q(second) * sines[j] : q(second) * cosines[j] - q(first) * sines[j];
}

/// Channel c of q A^T, where q is turned back first: RoPE of keys that lag behind was applied before their product with
/// A^T. (Nothing of the caller's is passed by its address: all of it would move from registers to memory.)
XQUANT_DEVICE_COLD inline float absorbed_query(const DeviceTask& task, const RopeView& rope, const float* cosines,
                                               const float* sines, unsigned row, unsigned head, unsigned c) noexcept {
    const std::size_t first = task.given_channel + head * task.head_dim;
    const auto q = [&](std::size_t i) { return task.given.at(row, first + i); };
    float sum = 0;
    for (unsigned i = 0; i < task.head_dim; ++i) {
        sum += undo_rope(rope, cosines, sines, q, i) * weight_at(task.absorbed, c * task.head_dim + i);
    }
    return sum;
}

}  // namespace detail

/// @tparam Count      queries of a block
/// @tparam RopeOnKeys  keys are turned by their page's position, too; false: queries are turned back by it
template <class M, unsigned Size, unsigned Count, bool RopeOnKeys>
class PageReader {
public:
    static constexpr unsigned query_stride = Size + 8;
    /// Bytes of shared memory that it takes.
    static constexpr std::size_t shared_bytes =
        sizeof(f16) * Count * query_stride + sizeof(float) * Size + sizeof(TokenSpan);

    /// @param most  queries of the block, Count at most
    XQUANT_DEVICE_INLINE PageReader(typename M::Block& block, const DeviceTask& task, unsigned first_query,
                                    unsigned most, std::byte* memory) noexcept
        : asked(task, first_query, most),
          order(order_of(task)),
          block_(block),
          task_(task),
          queries_(reinterpret_cast<f16*>(memory)),
          cosines_(reinterpret_cast<float*>(queries_ + Count * query_stride)),
          sines_(cosines_ + Size / 2),
          span_(reinterpret_cast<TokenSpan*>(sines_ + Size / 2)) {}

    /// Calls attention.attend_page(span, base, from, to) for every page of 128 slots, from `base` on, of which slots
    /// from .. to are among those that queries see. Keys lag spans.lag(i) positions of `rope` behind.
    template <class Spans, class Attention>
    XQUANT_DEVICE_INLINE void each_page(const Spans& spans, const RopeView& rope, Attention& attention) noexcept {
        std::size_t tile = 0;
        for (std::uint32_t i = 0; i < spans.size(); ++i) {
            // In shared memory: it would fill the registers of every lane.
            block_.barrier();
            block_.each_thread([&](unsigned thread) {
                if (thread == 0) *span_ = spans[i];
            });
            block_.barrier();
            const TokenSpan& span = *span_;
            for (std::size_t first = span.begin; first < span.end; first += page_slots, ++tile) {
                if (tile < task_.first_tile || tile - task_.first_tile >= task_.tiles) continue;
                const std::size_t last = first + page_slots < span.end ? first + page_slots : span.end;
                // Slots lie in pages of 128: a range that does not begin with one may reach into the next.
                for (std::size_t base = first / page_slots * page_slots; base < last; base += page_slots) {
                    const std::size_t from = first > base ? first : base;
                    const std::size_t to = last < base + page_slots ? last : base + page_slots;
                    if (!asked.see(span, from, to)) continue;
                    if (task_.rope.pairs == 0) {
                        load_queries(rope, spans.lag(i));
                    } else if constexpr (RopeOnKeys) {
                        load_queries(rope, 0);
                        find_angles(rope, position_of(span, base));
                    } else {
                        load_queries(task_.rope, position_of(span, base));
                    }
                    attention.attend_page(span, base, from, to);
                }
            }
        }
    }

    /// Rows of 16 queries, from number `first` on.
    [[nodiscard]] XQUANT_DEVICE_INLINE Operand queries(unsigned first = 0) const noexcept {
        return {queries_ + first * query_stride, query_stride};
    }
    /// How RoPE is applied to the keys of the page.
    [[nodiscard]] XQUANT_DEVICE_INLINE PackedRope rope_table() const noexcept {
        PackedRope rope_table = task_.rope_table;
        rope_table.cosines = RopeOnKeys ? cosines_ : nullptr;
        rope_table.sines = RopeOnKeys ? sines_ : nullptr;
        return rope_table;
    }

    Queries asked;
    ChannelOrder order;  ///< of queries and rebuilt keys

private:
    XQUANT_DEVICE_INLINE static ChannelOrder order_of(const DeviceTask& task) noexcept {
        if (task.key.matrix == nullptr) return {Size, static_cast<unsigned>(task.key_channels), 0, true};
        return key_order(Size, task.head_dim, task.rope, task.shared_channels);
    }

    XQUANT_DEVICE_INLINE void find_angles(const RopeView& rope, std::int64_t position) noexcept {
        if (angles_of_ == position) return;
        angles_of_ = position;
        block_.barrier();
        gpu::find_angles<M>(block_, rope, position, cosines_, sines_);
        block_.barrier();
    }

    /// Loads the queries, scaled and turned back by `position`: q . R(m) k = (R(-m) q) . k. What f16 does not hold
    /// becomes NaN, and so does all that the query's attention gives: with infinity, some scores would be those of
    /// slots that nobody sees.
    XQUANT_DEVICE_INLINE void load_queries(const RopeView& rope, std::int64_t back) noexcept {
        if (back_ == back) return;
        const bool begins = back_ == unknown;
        back_ = back;
        block_.barrier();
        if (back != 0 && rope.pairs > 0) find_angles(rope, back);
        block_.each_thread([&](unsigned thread) {
            const unsigned rows = begins ? Count : asked.count;  // those beyond stay 0
            for (unsigned i = thread; i < rows * Size / 2; i += block_.warps() * lanes) {
                const unsigned query = i / (Size / 2), place = 2 * (i % (Size / 2));
                float value[2] = {0, 0};
                if (query < asked.count) {
                    XQUANT_UNROLL
                    for (unsigned h = 0; h < 2; ++h) {
                        const unsigned c = order.channel(place + h);
                        if (c >= task_.key_channels) continue;
                        const float given = query_at(rope, asked.first + query, c, back != 0) * task_.rules.scale;
                        value[h] = xquant::detail::fits_f16(given) ? given : xquant::detail::not_a_number;
                    }
                }
                detail::put(queries_, query_stride, query, place, M::pack(value[0], value[1]));
            }
        });
        block_.barrier();
    }

    /// Channel c of a query, turned back by the angles that are there.
    XQUANT_DEVICE_INLINE float query_at(const RopeView& rope, unsigned number, unsigned c, bool turned) const noexcept {
        const auto group = static_cast<unsigned>(task_.queries_per_kv);
        const unsigned row = number / group, head = number % group;
        if (turned && task_.absorbed != nullptr) {
            return detail::absorbed_query(task_, rope, cosines_, sines_, row, head, c);
        }
        const float* q = task_.q + row * task_.q_stride + head * task_.key_channels;
        return turned ? detail::undo_rope(
                            rope, cosines_, sines_, [&](std::size_t i) { return q[i]; }, c)
                      : q[c];
    }

    static constexpr std::int64_t unknown = (std::numeric_limits<std::int64_t>::min)();

    typename M::Block& block_;
    const DeviceTask& task_;
    f16* queries_;
    float *cosines_, *sines_;  ///< of pairs at one position
    TokenSpan* span_;          ///< that is read
    std::int64_t angles_of_ = unknown, back_ = unknown;
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend::gpu
