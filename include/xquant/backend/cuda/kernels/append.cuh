// The kernels by which a step's rows reach their pages. Each is a type with run(block, x, y, z, arguments): what one
// block of a grid does. launch.cuh starts them.
//
//     Project   z of a stream           FinishRow   its norms, RoPE, rotation
//     Mix       z = y M of such rows
//     Gather    rows out of pages       Difference  less what layers below added up
//     Encode    rows into pages         EncodeWithFeedback  the same, rounded for a metric
//     Accumulate  what this layer adds
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include <xquant/backend/cuda/device/encode.cuh>
#include <xquant/backend/cuda/device/encode_feedback.cuh>
#include <xquant/backend/cuda/device/tables.cuh>
#include <xquant/backend/cuda/kernels/project.cuh>

namespace xquant::backend::gpu {
inline namespace XQUANT_ABI_NS {

/// x: blocks of 64 channels, y: of 16 rows, z: streams.
struct Project {
    static constexpr unsigned warps = project_warps, at_once = 2;
    template <class M>
    static XQUANT_DEVICE void run(typename M::Block& block, unsigned x, unsigned y, unsigned z, const LayerTable* layer,
                                  StepTable step, DeviceRows input) noexcept {
        const StreamTable& stream = layer->tables[z];
        const std::size_t column = static_cast<std::size_t>(x) * project_columns;
        if (column >= stream.encoder.width) return;
        project_block<M>(block, stream.encoder, input, step.tokens, layer->shape.width,
                         static_cast<std::size_t>(y) * project_rows, column, unmixed_rows_of(step, stream));
    }
};

/// x: rows, y: streams.
struct FinishRow {
    static constexpr unsigned warps = 4, at_once = 2;
    template <class M>
    static XQUANT_DEVICE void run(typename M::Block& block, unsigned x, unsigned y, unsigned, const LayerTable* layer,
                                  StepTable step) noexcept {
        const StreamTable& stream = layer->tables[y];
        finish_row<M>(block, stream.encoder, step.positions[x], layer->rope, layer->shape.head_dim,
                      unmixed_rows_of(step, stream) + x * stream.encoder.width, step.bad);
    }
};

/// x: tiles of mix_tiles, y: blocks of 16 rows, z: streams. Shared memory: project_shared_bytes.
struct Mix {
    static constexpr unsigned warps = project_warps, at_once = 2;
    template <class M>
    static XQUANT_DEVICE void run(typename M::Block& block, unsigned x, unsigned y, unsigned z, const LayerTable* layer,
                                  StepTable step) noexcept {
        const StreamTable& stream = layer->tables[z];
        if (x >= mix_tiles(stream.encoder)) return;
        mix_block<M>(block, stream.encoder, unmixed_rows_of(step, stream), step.tokens,
                     static_cast<std::size_t>(y) * project_rows, x, rows_of(step, stream), step.bad);
    }
};

/// Whether a write stores what a layer adds to the layers below.
XQUANT_DEVICE inline bool is_difference(const LayerTable& layer, const WriteTable& write) noexcept {
    return layer.role == CrossRole::difference && write.kind == PageKind::coded;
}

/// What decoding and adding make of values within f16 may lie beyond (65504 is 65536 in bf16), where encoders would
/// find infinity.
XQUANT_DEVICE inline float within_f16(float value) noexcept {
    return value > f16_max ? f16_max : value < -f16_max ? -f16_max : value;
}

/// Rows of a write that come from several places, side by side. x: writes, y: streams, z: groups of 4 rows.
struct Gather {
    static constexpr unsigned warps = 4, at_once = 2;
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
                for (std::size_t c = lane; c < width; c += lanes) to[c] = within_f16(stored_value<M>(in, row, c));
            });
        });
    }
};

/// Gathered rows become what is coded: z = (y - accumulator) U. x: writes, y: groups of 4 rows.
struct Difference {
    static constexpr unsigned warps = 4, at_once = 2;
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
            warp.each([&](unsigned lane) {
                for (std::size_t c = lane; c < d; c += lanes) {
                    from[c] -= stored_value<M>(sum, write.slot + row, c);
                    if (encoder.latent == nullptr) to[c] = within_f16(from[c]);
                }
            });
            warp.sync();
            warp.each([&](unsigned lane) {
                for (std::size_t j = lane; j < r && encoder.latent != nullptr; j += lanes) {
                    float value = 0;
                    for (std::size_t c = 0; c < d; ++c) {
                        value = std::fma(from[c], weight_at(encoder.latent, c * r + j), value);
                    }
                    to[j] = within_f16(value);
                }
            });
        });
    }
};

/// Finds the scale of a group by a ScaleRule.
struct RuleScale {
    ScaleRule rule;
    float top, zero_code;

    XQUANT_DEVICE RuleScale(ScaleRule by, const StreamFormat& format) noexcept
        : rule(by),
          top(format.quantized() ? static_cast<float>((1U << format.bits) - 1) : 0.0F),
          zero_code(format.zero_code) {}
    /// The scale of n values x(i) that span `range`.
    template <class X>
    XQUANT_DEVICE GroupScale operator()(Range range, std::size_t n, X&& x) const noexcept {
        if (rule == ScaleRule::symmetric) return symmetric_scale(range, zero_code);
        if (rule == ScaleRule::min_mse) return min_mse_scale(range, top, n, x);
        return min_max_scale(range, top);
    }
};

/// Rows [count, width] of a write, as they go into its page.
struct WrittenRows {
    const float* data;
    std::size_t width;
};
XQUANT_DEVICE inline WrittenRows rows_of_write(const LayerTable& layer, const StepTable& step, const WriteTable& write,
                                               std::size_t stream, std::size_t widest,
                                               std::size_t widest_coded) noexcept {
    const StreamTable& table = layer.tables[stream];
    const std::size_t place = static_cast<std::size_t>(write.gathered) * layer.streams + stream;
    const std::size_t width = table.encoder.width;
    if (is_difference(layer, write)) {
        return {step.differences + place * page_slots * widest_coded, table.encoder.coded_width};
    }
    if (write.direct) return {rows_of(step, table) + step.pieces[write.first_piece].begin * width, width};
    return {step.gathered + place * page_slots * widest, width};
}

/// Whether a write's rows are rounded for the metric of their stream.
XQUANT_DEVICE inline bool feeds_back(const StreamTable& stream, const WriteTable& write) noexcept {
    return stream.feeds_back && write.kind == PageKind::coded;
}

/// x: writes, y: streams, z: shares of a write's parts.
struct Encode {
    static constexpr unsigned warps = 4, at_once = 2;
    template <class M>
    static XQUANT_DEVICE void run(typename M::Block& block, unsigned x, unsigned y, unsigned z, const LayerTable* layer,
                                  StepTable step, std::size_t widest, std::size_t widest_coded,
                                  unsigned shares) noexcept {
        const WriteTable& write = step.writes[x];
        const StreamTable& stream = layer->tables[y];
        if (feeds_back(stream, write)) return;
        const WrittenRows rows = rows_of_write(*layer, step, write, y, widest, widest_coded);
        const MutableStreamView out = view_of(stream, write.kind, write.page);
        const std::size_t parts = encode_parts(out.format, write.count);
        const RuleScale scale(stream.rule, out.format);
        block.each_warp([&](typename M::Warp& warp) {
            for (std::size_t part = z * warps + warp.index; part < parts; part += shares * warps) {
                encode_part<M>(warp, part, rows.data, rows.width, write.slot, write.count, out, scale);
            }
        });
    }
};

/// x: writes, y: streams, z: shares of a write's parts. Shared memory: feedback_shared_bytes. Each block has `floats`
/// floats of scratch.
struct EncodeWithFeedback {
    static constexpr unsigned warps = feedback_warps, at_once = 2;
    template <class M>
    static XQUANT_DEVICE void run(typename M::Block& block, unsigned x, unsigned y, unsigned z, const LayerTable* layer,
                                  StepTable step, std::size_t widest, std::size_t widest_coded, unsigned shares,
                                  std::size_t floats) noexcept {
        const WriteTable& write = step.writes[x];
        const StreamTable& stream = layer->tables[y];
        if (!feeds_back(stream, write)) return;
        const WrittenRows rows = rows_of_write(*layer, step, write, y, widest, widest_coded);
        const MutableStreamView out = view_of(stream, write.kind, write.page);
        const FeedbackView& feedback = stream.encoder.feedback;
        const std::size_t parts = feedback_parts(out.format, feedback, write.count);
        const std::size_t number = (static_cast<std::size_t>(x) * layer->streams + y) * shares + z;
        const RuleScale scale(stream.rule, out.format);
        FeedbackEncoder<M, RuleScale> encoder(block, feedback, rows.data, rows.width, write.slot, write.count, out,
                                              scale, step.feedback + number * floats);
        for (std::size_t part = z; part < parts; part += shares) encoder.encode(part);
    }
};

/// accumulator = z, or += z U^T, for the coded slots that a step touches. x: pages, y: groups of 4 slots.
/// Shared memory: 4 D floats.
struct Accumulate {
    static constexpr unsigned warps = 4, at_once = 2;
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
                            const float back = weight_at(encoder.spread, k * d + c);
                            value = std::fma(stored_value<M>(coded, slot, k), back, value);
                        }
                    }
                    row[c] = within_f16(value);
                }
            });
            warp.sync();
            for (std::size_t part = 0; part < encode_parts(sum.format, 1); ++part) {
                encode_part<M>(warp, part, row, d, slot, 1, sum, scale);
            }
        });
    }
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend::gpu
