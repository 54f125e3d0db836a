// The kernels of a step, over the tables of a cache. Each is a type with run(block, x, y, z, arguments): what one block of a grid
// does. launch.cuh starts them.
//
//     Project   z of a stream           FinishRow   its norms, RoPE, rotation           (append)
//     Gather    rows out of pages       Difference  less what layers below added up     (append)
//     Encode    rows into pages         Accumulate  what this layer adds                (append)
//     Attend    partial results         Finish      splits merged, A_v, out             (attend)
#pragma once

#include <cstddef>
#include <cstdint>

#include <xquant/backend/cuda/attention.cuh>
#include <xquant/backend/cuda/encode.cuh>
#include <xquant/backend/cuda/project.cuh>
#include <xquant/backend/cuda/tables.cuh>

namespace xquant::backend::gpu {
inline namespace XQUANT_ABI_NS {

/// What all kernels of a step read.
struct StepTable {
    const SpanTable* spans = nullptr;
    const WriteTable* writes = nullptr;
    const PieceTable* pieces = nullptr;
    const BlockTable* blocks = nullptr;
    const SumTable* sums = nullptr;
    const std::int64_t* positions = nullptr;  ///< [n] for which keys are turned that are stored so
    float* rows = nullptr;                    ///< the layer's rows of all streams: [n, R] of each
    float* gathered = nullptr;                ///< [indirect writes][streams][128, widest R]
    float* differences = nullptr;             ///< the same, [128, widest coded row]
    float* partials = nullptr;                ///< [blocks][kv heads][16 (Size + 2)]
    std::uint32_t* bad = nullptr;             ///< set where a row is not finite
    std::size_t tokens = 0;                   ///< n
};

XQUANT_DEVICE inline float* rows_of(const StepTable& step, const StreamTable& stream) noexcept {
    return step.rows + step.tokens * stream.first_float;
}

/// x: blocks of 64 channels, y: of 16 rows, z: streams.
struct Project {
    static constexpr unsigned warps = project_warps;
    template <class M>
    static XQUANT_DEVICE void run(typename M::Block& block, unsigned x, unsigned y, unsigned z, const LayerTable* layer,
                                  StepTable step, DeviceRows input) noexcept {
        const StreamTable& stream = layer->tables[z];
        const std::size_t column = static_cast<std::size_t>(x) * project_columns;
        if (column >= stream.encoder.width) return;
        project_block<M>(block, stream.encoder, input, step.tokens, layer->shape.width,
                         static_cast<std::size_t>(y) * project_rows, column, rows_of(step, stream));
    }
};

/// x: rows, y: streams.
struct FinishRow {
    static constexpr unsigned warps = 4;
    template <class M>
    static XQUANT_DEVICE void run(typename M::Block& block, unsigned x, unsigned y, unsigned, const LayerTable* layer,
                                  StepTable step) noexcept {
        const StreamTable& stream = layer->tables[y];
        finish_row<M>(block, stream.encoder, step.positions[x], layer->rope, layer->shape.head_dim,
                      rows_of(step, stream) + x * stream.encoder.width, step.bad);
    }
};

/// Whether a write stores what a layer adds to the layers below.
XQUANT_DEVICE inline bool is_difference(const LayerTable& layer, const WriteTable& write) noexcept {
    return layer.role == CrossRole::difference && write.kind == PageKind::coded;
}

/// Rows of a write that come from several places, side by side. x: writes, y: streams, z: groups of 4 rows.
struct Gather {
    static constexpr unsigned warps = 4;
    template <class M>
    static XQUANT_DEVICE void run(typename M::Block& block, unsigned x, unsigned y, unsigned z, const LayerTable* layer,
                                  StepTable step, std::size_t widest) noexcept {
        const WriteTable& write = step.writes[x];
        if (write.direct) return;
        const StreamTable& stream = layer->tables[y];
        const std::size_t width = stream.encoder.width;
        float* gathered =
            step.gathered + (static_cast<std::size_t>(write.gathered) * layer->streams + y) * page_slots * widest;
        block.each_warp([&](typename M::Warp& warp) {
            std::uint32_t row = z * warps + warp.index;
            if (row >= write.count) return;
            float* to = gathered + row * width;
            const PieceTable* piece = step.pieces + write.first_piece;
            while (row >= piece->count) row -= (piece++)->count;
            row += piece->begin;
            const StreamView in = piece->page == nullptr
                                      ? view_rows(rows_of(step, stream), static_cast<std::uint32_t>(width))
                                      : view_of(stream, piece->kind, piece->page);
            warp.each([&](unsigned lane) {
                for (std::size_t c = lane; c < width; c += lanes) to[c] = stored_value<M>(in, row, c);
            });
        });
    }
};

/// Gathered rows become what is coded: z = (y - accumulator) U. x: writes, y: groups of 4 rows.
struct Difference {
    static constexpr unsigned warps = 4;
    template <class M>
    static XQUANT_DEVICE void run(typename M::Block& block, unsigned x, unsigned y, unsigned, const LayerTable* layer,
                                  StepTable step, std::size_t widest, std::size_t widest_coded) noexcept {
        const WriteTable& write = step.writes[x];
        if (!is_difference(*layer, write)) return;
        const StreamEncoder& encoder = layer->tables[0].encoder;
        const std::size_t d = encoder.width, r = encoder.coded_width;
        const StreamView sum = view_of(layer->sum, write.sum);
        block.each_warp([&](typename M::Warp& warp) {
            const std::uint32_t row = y * warps + warp.index;
            if (row >= write.count) return;
            float* from = step.gathered + static_cast<std::size_t>(write.gathered) * page_slots * widest + row * d;
            float* to =
                step.differences + static_cast<std::size_t>(write.gathered) * page_slots * widest_coded + row * r;
            const auto within = [](float value) {
                return value > f16_max ? f16_max : value < -f16_max ? -f16_max : value;
            };
            warp.each([&](unsigned lane) {
                for (std::size_t c = lane; c < d; c += lanes) {
                    from[c] -= stored_value<M>(sum, write.slot + row, c);
                    if (encoder.latent == nullptr) to[c] = within(from[c]);
                }
            });
            warp.sync();
            warp.each([&](unsigned lane) {
                for (std::size_t j = lane; j < r && encoder.latent != nullptr; j += lanes) {
                    float value = 0;
                    for (std::size_t c = 0; c < d; ++c) value = std::fma(from[c], encoder.latent[c * r + j], value);
                    to[j] = within(value);
                }
            });
        });
    }
};

/// How a quantizer of a rule finds the scale of a group.
struct RuleScale {
    ScaleRule rule;
    float top, zero_code;

    XQUANT_DEVICE RuleScale(ScaleRule by, const StreamFormat& format) noexcept
        : rule(by), top(static_cast<float>((1U << format.bits) - 1)), zero_code(format.zero_code) {}
    /// Of n values x(i) between these.
    template <class X>
    XQUANT_DEVICE GroupScale operator()(Range range, std::size_t n, X&& x) const noexcept {
        if (rule == ScaleRule::symmetric) return symmetric_scale(range, zero_code);
        if (rule == ScaleRule::min_mse) return min_mse_scale(range, top, n, x);
        return min_max_scale(range, top);
    }
};

/// x: writes, y: streams, z: shares of a write's parts.
struct Encode {
    static constexpr unsigned warps = 4;
    template <class M>
    static XQUANT_DEVICE void run(typename M::Block& block, unsigned x, unsigned y, unsigned z, const LayerTable* layer,
                                  StepTable step, std::size_t widest, std::size_t widest_coded,
                                  unsigned shares) noexcept {
        const WriteTable& write = step.writes[x];
        const StreamTable& stream = layer->tables[y];
        const std::size_t place = static_cast<std::size_t>(write.gathered) * layer->streams + y;
        std::size_t width = stream.encoder.width;
        const float* rows = step.gathered + place * page_slots * widest;
        if (write.direct) rows = rows_of(step, stream) + step.pieces[write.first_piece].begin * width;
        if (is_difference(*layer, write)) {
            rows = step.differences + place * page_slots * widest_coded;
            width = stream.encoder.coded_width;
        }
        const MutableStreamView out = view_of(stream, write.kind, write.page);
        const std::size_t parts = encode_parts(out.format, write.count);
        const RuleScale scale(stream.rule, out.format);
        block.each_warp([&](typename M::Warp& warp) {
            for (std::size_t part = z * warps + warp.index; part < parts; part += shares * warps) {
                encode_part<M>(warp, part, rows, width, write.slot, write.count, out, scale);
            }
        });
    }
};

/// accumulator = z, or += z U^T, for the coded slots that a step touches. x: pages, y: groups of 4 slots.
/// Shared memory: 4 D floats.
struct Accumulate {
    static constexpr unsigned warps = 4;
    template <class M>
    static XQUANT_DEVICE void run(typename M::Block& block, unsigned x, unsigned y, unsigned, const LayerTable* layer,
                                  StepTable step) noexcept {
        const SumTable& about = step.sums[x];
        const StreamTable& stream = layer->tables[0];
        const StreamEncoder& encoder = stream.encoder;
        const std::size_t d = encoder.width, r = encoder.coded_width;
        const StreamView coded = view_of(stream, PageKind::coded, about.page);
        const MutableStreamView sum = view_of(layer->sum, about.sum);
        const StreamView before = view_of(layer->sum, static_cast<const std::byte*>(about.sum));
        const RuleScale scale(layer->sum_rule, sum.format);
        block.each_warp([&](typename M::Warp& warp) {
            const std::size_t slot = y * warps + warp.index;
            if (slot < about.begin || slot >= about.end) return;
            float* row = reinterpret_cast<float*>(block.shared()) + warp.index * d;
            warp.each([&](unsigned lane) {
                for (std::size_t c = lane; c < d; c += lanes) {
                    const bool difference = layer->role == CrossRole::difference;
                    float value = difference ? stored_value<M>(before, slot, c) : 0.0F;
                    if (encoder.spread == nullptr) {
                        value += stored_value<M>(coded, slot, c);
                    } else {
                        for (std::size_t k = 0; k < r; ++k) {
                            value = std::fma(stored_value<M>(coded, slot, k), encoder.spread[k * d + c], value);
                        }
                    }
                    row[c] = value;
                }
            });
            warp.sync();
            for (std::size_t part = 0; part < encode_parts(sum.format, 1); ++part) {
                encode_part<M>(warp, part, row, d, slot, 1, sum, scale);
            }
        });
    }
};

/// The spans of a block as attention reads them.
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
    /// Positions by which keys of the span are turned too little.
    [[nodiscard]] XQUANT_DEVICE std::int64_t lag(std::uint32_t i) const noexcept {
        return layer_.keys_turned && layer_.rope.pairs > 0 ? step_.spans[block_.first_span + i].moved : 0;
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
    float* at = step.partials + (block * kv_heads + head) * block_queries * (Size + 2);
    return {at, at + block_queries * Size, at + block_queries * (Size + 1)};
}

/// The task of a block for one kv head.
XQUANT_DEVICE inline AttendTask task_of(const LayerTable& layer, const BlockTable& block, std::size_t head,
                                        const float* q, std::size_t q_stride) noexcept {
    AttendTask task;
    task.key = layer.keys[head];
    task.value = layer.values[head];
    if (!layer.keys_turned) task.rope = layer.rope;
    task.head_dim = layer.shape.head_dim;
    task.tiles = static_cast<std::size_t>(-1);
    task.rows = block.rows;
    task.group = layer.shape.heads / layer.shape.kv_heads;
    task.first_position = block.first_position;
    task.q = q + block.part_row * q_stride + head * task.group * task.head_dim;
    task.q_stride = q_stride;
    task.shared_channels = layer.shared_channels;
    task.rules = layer.rules;
    if (task.rules.slopes != nullptr) task.rules.slopes += head * task.group;
    if (task.rules.sink_logits != nullptr) task.rules.sink_logits += head * task.group;
    return task;
}

/// Queries of any element type to f32. x: rows.
struct Convert {
    static constexpr unsigned warps = 4;
    template <class M>
    static XQUANT_DEVICE void run(typename M::Block& block, unsigned x, unsigned, unsigned, DeviceRows input,
                                  std::size_t width, float* out) noexcept {
        block.each_thread([&](unsigned thread) {
            for (std::size_t c = thread; c < width; c += warps * lanes) out[x * width + c] = input.at(x, c);
        });
    }
};

/// x: blocks of the step, y: kv heads.
template <unsigned Size, bool Rebuilds>
struct Attend {
    static constexpr unsigned warps = block_warps;
    template <class M>
    static XQUANT_DEVICE void run(typename M::Block& block, unsigned x, unsigned y, unsigned, const LayerTable* layer,
                                  StepTable step, const float* q, std::size_t q_stride) noexcept {
        const BlockTable& about = step.blocks[x];
        // Cut for layers of the stack that have more queries.
        if (about.first_query >= about.rows * layer->shape.heads / layer->shape.kv_heads) return;
        using Kernel = AttendBlock<M, Size, Rebuilds>;
        // Behind the kernel's own shared memory, as its span is.
        auto* task = reinterpret_cast<AttendTask*>(block.shared() + Kernel::shared_bytes);
        block.each_thread([&](unsigned thread) {
            if (thread == 0) *task = task_of(*layer, about, y, q, q_stride);
        });
        block.barrier();
        Kernel attention(block, *task, about.first_query);
        attention.run(SpanReader(*layer, step, about), layer->rope,
                      partial_of<Size>(step, x, y, layer->shape.kv_heads));
    }
};

/// out = (sum / total) A_v + c_v, splits merged in order. x: blocks of the step, y: kv heads, z: the block's queries.
template <unsigned Size>
struct Finish {
    static constexpr unsigned warps = 4;
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
                    sum = std::fma(sums[k], value.matrix[k * dh + c], sum);
                }
                target[c] = value.constant != nullptr ? sum + value.constant[c] * share : sum;
            }
        });
    }
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend::gpu
