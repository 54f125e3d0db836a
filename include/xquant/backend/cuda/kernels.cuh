// The kernels of a step, over the tables of a cache. Each is a type with run(block, x, y, z, arguments): what one block of a grid
// does. launch.cuh starts them.
//
//     Project   z of a stream           FinishRow   its norms, RoPE, rotation           (append)
//     Gather    rows out of pages       Encode      rows into pages                     (append)
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
    const std::int64_t* positions = nullptr;  ///< [n] for which keys are turned that are stored so
    float* rows = nullptr;                    ///< the layer's rows of all streams: [n, R] of each
    float* gathered = nullptr;                ///< [indirect writes][streams][128, widest R]
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

/// Whether a write takes its rows straight from the step's.
XQUANT_DEVICE inline bool is_direct(const WriteTable& write, const PieceTable* pieces) noexcept {
    return write.pieces == 1 && pieces[write.first_piece].page == nullptr;
}

/// Rows of a write that come from several places, side by side. x: writes, y: streams, z: groups of 4 rows.
struct Gather {
    static constexpr unsigned warps = 4;
    template <class M>
    static XQUANT_DEVICE void run(typename M::Block& block, unsigned x, unsigned y, unsigned z, const LayerTable* layer,
                                  StepTable step, std::size_t widest) noexcept {
        const WriteTable& write = step.writes[x];
        if (is_direct(write, step.pieces)) return;
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
            const StreamView in = piece->page == nullptr ? view_of_rows(rows_of(step, stream), width)
                                                         : view_of(stream, piece->kind, piece->page);
            warp.each([&](unsigned lane) {
                for (std::size_t c = lane; c < width; c += lanes) to[c] = stored_value<M>(in, row, c);
            });
        });
    }
};

/// x: writes, y: streams, z: shares of a write's parts.
struct Encode {
    static constexpr unsigned warps = 4;
    template <class M>
    static XQUANT_DEVICE void run(typename M::Block& block, unsigned x, unsigned y, unsigned z, const LayerTable* layer,
                                  StepTable step, std::size_t widest, unsigned shares) noexcept {
        const WriteTable& write = step.writes[x];
        const StreamTable& stream = layer->tables[y];
        const std::size_t width = stream.encoder.width;
        const MutableStreamView out = view_of(stream, write.kind, write.page);
        const float* rows =
            is_direct(write, step.pieces)
                ? rows_of(step, stream) + step.pieces[write.first_piece].begin * width
                : step.gathered + (static_cast<std::size_t>(write.gathered) * layer->streams + y) * page_slots * widest;
        const std::size_t parts = encode_parts(out.format, write.count);
        const float top = static_cast<float>((1U << out.format.bits) - 1);
        const ScaleRule rule = stream.rule;
        const auto scale_of = [=](Range range) {
            return rule == ScaleRule::symmetric ? symmetric_scale(range, out.format.zero_code)
                                                : min_max_scale(range, top);
        };
        block.each_warp([&](typename M::Warp& warp) {
            for (std::size_t part = z * warps + warp.index; part < parts; part += shares * warps) {
                encode_part<M>(warp, part, rows, width, write.slot, write.count, out, scale_of);
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
        if (span.page != nullptr) return view_of(table, span.kind, span.page);
        return view_of_rows(rows_of(step_, table) + block_.part_row * table.encoder.width, table.encoder.width);
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
        const AttendTask task = task_of(*layer, about, y, q, q_stride);
        AttendBlock<M, Size, Rebuilds> attention(block, task, about.first_query);
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
