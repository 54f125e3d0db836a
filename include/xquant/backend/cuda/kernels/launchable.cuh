// The kernels of attention, as launch.cuh starts them: like the kernels of append.cuh, they read a step's tables.
//
//     Convert   queries to f32          Absorb      or q A^T
//     Attend    partial results         Finish      splits merged, A_v, out
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

#include <xquant/backend/cuda/device/tables.cuh>
#include <xquant/backend/cuda/kernels/decode_attention.cuh>
#include <xquant/backend/cuda/kernels/prefill_attention.cuh>

namespace xquant::backend::gpu {
inline namespace XQUANT_ABI_NS {

/// The spans of a block, as TokenSpans.
class SpanReader {
public:
    XQUANT_DEVICE SpanReader(const LayerTable& layer, const StepTable& step, const BlockTable& block) noexcept
        : layer_(layer), step_(step), block_(block) {}
    [[nodiscard]] XQUANT_DEVICE std::uint32_t size() const noexcept { return block_.spans; }
    [[nodiscard]] XQUANT_DEVICE TokenSpan operator[](std::uint32_t i) const noexcept {
        const SpanTable& span = step_.spans[block_.first_span + i];
        TokenSpan out;
        out.keys = view(span, layer_.key_stream);
        out.values = view(span, layer_.value_stream);
        out.begin = span.begin;
        out.end = span.end;
        out.first_position = span.first_position;
        if (layer_.shared_channels > 0) out.shared = view(span, layer_.shared_stream);
        return out;
    }
    /// By how many positions the stored RoPE of the span's keys lags behind.
    [[nodiscard]] XQUANT_DEVICE std::int64_t lag(std::uint32_t i) const noexcept {
        return layer_.keys_after_rope && layer_.rope.pairs > 0 ? step_.spans[block_.first_span + i].rope_lag : 0;
    }

private:
    [[nodiscard]] XQUANT_DEVICE StreamView view(const SpanTable& span, std::uint32_t stream) const noexcept {
        const StreamTable& table = layer_.tables[stream];
        if (layer_.role != CrossRole::none && span.sum != nullptr) return view_of(layer_.sum, span.sum);
        if (span.page != nullptr) return view_of(table, span.kind, span.page);
        const auto width = static_cast<std::uint32_t>(table.encoder.width);
        return view_rows(rows_of(step_, table) + std::size_t{block_.part_row} * width, width);
    }

    const LayerTable& layer_;
    const StepTable& step_;
    const BlockTable& block_;
};

/// Where a block's partial result lies.
template <unsigned Size>
XQUANT_DEVICE Partial partial_of(const StepTable& step, std::size_t block, std::size_t head,
                                 std::size_t kv_heads) noexcept {
    float* at = step.partials + (block * kv_heads + head) * step.queries * (Size + 2);
    return {at, at + step.queries * Size, at + step.queries * (Size + 1)};
}

/// The task of a block for one kv head.
XQUANT_DEVICE inline DeviceTask task_of(const LayerTable& layer, const BlockTable& block, std::size_t head,
                                        const float* q, std::size_t q_stride, const DeviceRows& given) noexcept {
    DeviceTask task;
    task.key = layer.keys[head];
    task.value = layer.values[head];
    if (!layer.keys_after_rope) {
        task.rope = layer.rope;
        task.rope_table = packed_rope_of(layer.rope, layer.rope_table);
    }
    task.key_matrix = layer.key_matrices[head];
    task.value_matrix = layer.value_matrices[head];
    task.key_gain = layer.key_gain;
    task.head_dim = task.key_channels = layer.shape.head_dim;
    task.tiles = static_cast<std::size_t>(-1);
    task.rows = block.rows;
    task.queries_per_kv = layer.shape.heads / layer.shape.kv_heads;
    task.first_position = block.first_position;
    if (layer.absorbs_queries) absorb(task);
    task.given = given.from(block.part_row);
    task.given_channel = head * task.queries_per_kv * task.head_dim;
    task.q = q + block.part_row * q_stride + head * task.queries_per_kv * task.key_channels;
    task.q_stride = q_stride;
    task.shared_channels = layer.shared_channels;
    task.rules = layer.rules;
    if (task.rules.slopes != nullptr) task.rules.slopes += head * task.queries_per_kv;
    if (task.rules.sink_logits != nullptr) task.rules.sink_logits += head * task.queries_per_kv;
    return task;
}

/// Queries of any element type to f32. x: rows.
struct Convert {
    static constexpr unsigned warps = 4, at_once = 2;
    template <class M>
    static XQUANT_DEVICE void run(typename M::Block& block, unsigned x, unsigned, unsigned, DeviceRows input,
                                  std::size_t width, float* out) noexcept {
        block.each_thread([&](unsigned thread) {
            for (std::size_t c = thread; c < width; c += warps * lanes) out[x * width + c] = input.at(x, c);
        });
    }
};

/// q A^T, where A is taken into the queries: [n][H * width]. x: rows, y: heads.
struct Absorb {
    static constexpr unsigned warps = 4, at_once = 2;
    template <class M>
    static XQUANT_DEVICE void run(typename M::Block& block, unsigned x, unsigned y, unsigned, const LayerTable* layer,
                                  DeviceRows input, float* out) noexcept {
        const std::size_t dh = layer->shape.head_dim;
        const HeadDecoder& key = layer->keys[y / (layer->shape.heads / layer->shape.kv_heads)];
        float* to = out + (x * layer->shape.heads + y) * key.width;
        block.each_warp([&](typename M::Warp& warp) {
            for (std::size_t k = warp.index; k < key.width; k += warps) {
                typename M::template Lanes<float> sum;
                warp.each([&](unsigned lane) {
                    sum[lane] = 0;
                    for (std::size_t c = lane; c < dh; c += lanes) {
                        sum[lane] = std::fma(input.at(x, y * dh + c), weight_at(key.matrix, k * dh + c), sum[lane]);
                    }
                });
                XQUANT_UNROLL
                for (unsigned mask = 1; mask < lanes; mask *= 2) {
                    const typename M::template Lanes<float> other = warp.exchange(sum, mask);
                    warp.each([&](unsigned lane) { sum[lane] += other[lane]; });
                }
                warp.each([&](unsigned lane) {
                    if (lane == 0) to[k] = sum[lane];
                });
            }
        });
    }
};

/// x: blocks of the step, y: kv heads.
/// @tparam Prefill  by PrefillAttention
template <unsigned Size, Products How, bool Prefill>
struct Attend {
    template <class M>
    using On = std::conditional_t<Prefill, PrefillAttention<M, Size, How>, DecodeAttention<M, Size, How>>;
    static constexpr unsigned warps = Prefill ? prefill_warps(Size) : block_warps;
    static constexpr unsigned at_once = Prefill ? 1 : How != Products::none || Size > 128 ? 2 : 3;
    template <class M>
    static XQUANT_DEVICE_INLINE void run(typename M::Block& block, unsigned x, unsigned y, unsigned,
                                         const LayerTable* layer, StepTable step, const float* q, std::size_t q_stride,
                                         DeviceRows given) noexcept {
        const BlockTable& about = step.blocks[x];
        // Cut for layers of the page group that have more queries.
        if (about.first_query >= about.rows * layer->shape.heads / layer->shape.kv_heads) return;
        // Behind the kernel's own shared memory, as its span is.
        auto* task = reinterpret_cast<DeviceTask*>(block.shared() + On<M>::shared_bytes);
        block.each_thread([&](unsigned thread) {
            if (thread == 0) *task = task_of(*layer, about, y, q, q_stride, given);
        });
        block.barrier();
        On<M>(block, *task, about.first_query, step.queries)
            .run(SpanReader(*layer, step, about), layer->rope, partial_of<Size>(step, x, y, layer->shape.kv_heads));
    }
};

/// Shared memory of a block of Attend.
template <class M, unsigned Size, Products How, bool Prefill>
inline constexpr std::size_t attend_bytes = Attend<Size, How, Prefill>::template On<M>::shared_bytes +
                                            sizeof(DeviceTask);

/// out = (sum / total) A_v + c_v, splits merged in order. x: blocks of the step, y: kv heads, z: the block's queries.
template <unsigned Size>
struct Finish {
    static constexpr unsigned warps = 4, at_once = 2;
    template <class M>
    static XQUANT_DEVICE void run(typename M::Block& block, unsigned x, unsigned y, unsigned z, const LayerTable* layer,
                                  StepTable step, float* out, std::size_t out_stride) noexcept {
        const BlockTable& about = step.blocks[x];
        const std::size_t group = layer->shape.heads / layer->shape.kv_heads, dh = layer->shape.head_dim;
        const std::size_t query = about.first_query + z;
        if (about.splits == 0 || query >= about.rows * group) return;
        const HeadDecoder& value = layer->values[y];
        const bool absorbed = sums_latents(value, dh);
        const std::size_t width = absorbed ? value.width : dh, kv_heads = layer->shape.kv_heads;
        constexpr float nothing = -std::numeric_limits<float>::infinity();
        float highest = nothing, total = 0, sink = 0;
        for (unsigned i = 0; i < about.splits; ++i) {
            const float maximum = partial_of<Size>(step, x + i, y, kv_heads).maximum[z];
            highest = maximum > highest ? maximum : highest;
        }
        if (layer->rules.sink_logits != nullptr) {
            const float logit = layer->rules.sink_logits[y * group + query % group];
            highest = logit > highest ? logit : highest;
            sink = M::exp(logit - highest);
        }
        const auto factor_of = [&](const Partial& partial) {
            return partial.maximum[z] == nothing ? 0.0F : M::exp(partial.maximum[z] - highest);
        };
        for (unsigned i = 0; i < about.splits; ++i) {
            const Partial partial = partial_of<Size>(step, x + i, y, kv_heads);
            total += partial.total[z] * factor_of(partial);
        }
        const float inverse = 1.0F / (total + sink), share = total * inverse;
        auto* sums = reinterpret_cast<float*>(block.shared());
        block.each_thread([&](unsigned thread) {
            for (std::size_t c = thread; c < width; c += warps * lanes) {
                float sum = 0;
                for (unsigned i = 0; i < about.splits; ++i) {
                    const Partial partial = partial_of<Size>(step, x + i, y, kv_heads);
                    sum += partial.sum[z * width + c] * factor_of(partial);
                }
                sums[c] = sum * inverse;
            }
        });
        block.barrier();
        float* target = out + (about.part_row + query / group) * out_stride + (y * group + query % group) * dh;
        block.each_thread([&](unsigned thread) {
            for (std::size_t c = thread; c < dh; c += warps * lanes) {
                float sum = absorbed && value.matrix != nullptr ? 0.0F : sums[c];
                for (std::size_t k = 0; k < width && absorbed && value.matrix != nullptr; ++k) {
                    sum = std::fma(sums[k], weight_at(value.matrix, k * dh + c), sum);
                }
                target[c] = value.constant != nullptr ? sum + value.constant[c] * share : sum;
            }
        });
    }
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend::gpu
