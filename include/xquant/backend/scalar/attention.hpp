// Scalar attention over stored streams, tile by tile.
//
//     K = z_k A_k + c_k (RoPE) ;  s = scale q K^T, causal ;  online softmax ;  sum += P z_v ;  out = (sum / total) A_v + c_v
//
// Shapes  tile: up to 128 tokens; K [Dh, tokens]; scores [query rows, tokens]; z_v [tokens, width].
// Limit   the products q K^T and P z_v (FMA) for many query rows, decoding and rematerialization for one.
// Tried   Rebuilding V for every step: Dh times the work of P z_v for one query row. One pass over all rows of a step per
//         tile instead of 32 rows at a time: the scores leave L2.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include <xquant/attention/task.hpp>
#include <xquant/backend/scalar/remat.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {

/// e^x for x <= 0, relative error below 2e-7; 0 below -87. A polynomial, so that loops over it vectorize.
inline float exp_negative(float x) noexcept {
    constexpr float log2_e = 1.44269504F, ln2_high = 0.693359375F, ln2_low = -2.12194440e-4F, magic = 12582912.0F;
    const float clamped = std::max(x, -87.0F);
    const float n = (clamped * log2_e + magic) - magic;
    const float r = (clamped - n * ln2_high) - n * ln2_low;
    float p = 1.9875691500e-4F;
    p = p * r + 1.3981999507e-3F;
    p = p * r + 8.3334519073e-3F;
    p = p * r + 4.1665795894e-2F;
    p = p * r + 1.6666665459e-1F;
    p = p * r + 5.0000001201e-1F;
    const float e = p * (r * r) + r + 1.0F;
    const float power = std::bit_cast<float>((static_cast<std::int32_t>(n) + 127) << 23);
    return x < -87.0F ? 0.0F : e * power;
}

/// Query rows handled together: their scores stay in L2.
inline constexpr std::size_t row_step = 32;

/// Floats of scratch that attend_span needs.
constexpr std::size_t attend_scratch(std::size_t dh, std::size_t group, std::size_t value_width) noexcept {
    const std::size_t queries = row_step * group;
    return rematerialize_scratch(dh) + tile_tokens * dh + tile_tokens * std::max(dh, value_width) +
           queries * (dh + tile_tokens);
}

namespace detail {

/// One softmax update: scores [tokens] become weights, sum [width] is rescaled where the maximum rose.
inline void soften(float* XQUANT_RESTRICT scores, std::size_t visible, std::size_t tokens, float& maximum, float& total,
                   float* XQUANT_RESTRICT sum, std::size_t width) noexcept {
    float highest = scores[0];
    for (std::size_t t = 1; t < visible; ++t) highest = std::max(highest, scores[t]);
    if (highest > maximum) {
        const float factor = total > 0 ? exp_negative(maximum - highest) : 0.0F;
        total *= factor;
        for (std::size_t c = 0; c < width; ++c) sum[c] *= factor;
        maximum = highest;
    }
    for (std::size_t t = 0; t < visible; ++t) scores[t] = exp_negative(scores[t] - maximum);
    for (std::size_t t = 0; t < visible; ++t) total += scores[t];
    for (std::size_t t = visible; t < tokens; ++t) scores[t] = 0;
}

}  // namespace detail

/// Adds one span's tokens first .. first + tokens (at most 128) to the partial result.
template <class Backend>
void attend_tile(Backend tag, const AttendTask& task, const TokenSpan& span, std::size_t first, std::size_t tokens,
                 Partial partial, float* scratch) noexcept {
    const std::size_t dh = task.head_dim, group = task.group;
    const std::int64_t start = span.first_position + static_cast<std::int64_t>(first - span.begin);
    // Rows before the tile's first token see nothing of it.
    const std::int64_t skip =
        std::clamp<std::int64_t>(start - task.first_position, 0, static_cast<std::int64_t>(task.rows));
    if (skip == static_cast<std::int64_t>(task.rows)) return;

    const bool absorbed = absorbs_values(task.value, task.rows * group, dh);
    const std::size_t width = absorbed ? task.value.width : dh;
    float* keys = scratch;
    float* values = keys + tile_tokens * dh;
    float* queries = values + tile_tokens * std::max(dh, task.value.width);
    float* scores = queries + row_step * group * dh;
    float* inner = scores + row_step * group * tile_tokens;

    rematerialize(tag, span.keys, task.key, first, tokens, dh, keys, tile_tokens, TileOrder::channel_major, inner);
    std::array<float, max_pairs> cosines, sines;
    if (task.rope.pairs > 0) {
        turn_tile(tag, task.rope, keys, tile_tokens, tokens);
        rope_angles(task.rope, start, cosines.data(), sines.data());
    }
    if (absorbed) {
        for (std::size_t c = 0; c < width; c += width_step) {
            decode_tile(tag, span.values, first, tokens, task.value.first + c, std::min(width_step, width - c),
                        values + c, width, TileOrder::token_major);
        }
    } else {
        // c_v is added once, at the end.
        HeadDecoder value = task.value;
        value.constant = nullptr;
        rematerialize(tag, span.values, value, first, tokens, dh, values, dh, TileOrder::token_major, inner);
    }

    for (auto row = static_cast<std::size_t>(skip); row < task.rows; row += row_step) {
        const std::size_t rows = std::min(row_step, task.rows - row), count = rows * group;
        for (std::size_t i = 0; i < count; ++i) {
            const float* q = task.q + (row + i / group) * task.q_stride + i % group * dh;
            for (std::size_t c = 0; c < dh; ++c) queries[i * dh + c] = q[c] * task.scale;
            if (task.rope.pairs > 0) {
                turn_head(tag, task.rope, cosines.data(), sines.data(), -1.0F, queries + i * dh);
            }
        }
        multiply(tag, count, tokens, dh, {queries, dh, 1}, keys, tile_tokens, scores, tile_tokens, false);
        float* sums = partial.sum + row * group * width;
        for (std::size_t i = 0; i < count; ++i) {
            const auto last = task.first_position + static_cast<std::int64_t>(row + i / group);
            const auto visible =
                static_cast<std::size_t>(std::min<std::int64_t>(static_cast<std::int64_t>(tokens), last - start + 1));
            const std::size_t at = row * group + i;
            detail::soften(scores + i * tile_tokens, visible, tokens, partial.maximum[at], partial.total[at],
                           sums + i * width, width);
        }
        multiply(tag, count, width, tokens, {scores, tile_tokens, 1}, values, width, sums, width, true);
    }
}

/// An empty partial result.
inline void clear_partial(scalar, Partial partial, std::size_t queries, std::size_t width) noexcept {
    std::fill_n(partial.sum, queries * width, 0.0F);
    std::fill_n(partial.maximum, queries, -std::numeric_limits<float>::infinity());
    std::fill_n(partial.total, queries, 0.0F);
}

/// Adds `from` to `into`: both relative to the larger maximum.
inline void merge_partial(scalar, Partial into, Partial from, std::size_t queries, std::size_t width) noexcept {
    for (std::size_t i = 0; i < queries; ++i) {
        if (from.total[i] == 0) continue;
        const float highest = std::max(into.maximum[i], from.maximum[i]);
        const float keep = into.total[i] == 0 ? 0.0F : exp_negative(into.maximum[i] - highest);
        const float factor = exp_negative(from.maximum[i] - highest);
        into.total[i] = into.total[i] * keep + from.total[i] * factor;
        into.maximum[i] = highest;
        for (std::size_t c = 0; c < width; ++c) {
            into.sum[i * width + c] = into.sum[i * width + c] * keep + from.sum[i * width + c] * factor;
        }
    }
}

/// out = (sum / total) A_v + c_v. Shape out: [rows][out_stride], the group's heads side by side. sum is overwritten.
inline void finish_partial(scalar tag, const AttendTask& task, Partial partial, float* out,
                           std::size_t out_stride) noexcept {
    const std::size_t dh = task.head_dim, queries = task.rows * task.group;
    const bool absorbed = absorbs_values(task.value, queries, dh);
    const std::size_t width = absorbed ? task.value.width : dh;
    for (std::size_t i = 0; i < queries; ++i) {
        float* XQUANT_RESTRICT sum = partial.sum + i * width;
        const float inverse = 1.0F / partial.total[i];
        for (std::size_t c = 0; c < width; ++c) sum[c] *= inverse;
        float* XQUANT_RESTRICT target = out + i / task.group * out_stride + i % task.group * dh;
        if (absorbed && task.value.matrix != nullptr) {
            multiply(tag, 1, dh, width, {sum, width, 1}, task.value.matrix, dh, target, dh, false);
        } else {
            std::copy_n(sum, dh, target);
        }
        for (std::size_t c = 0; c < dh && task.value.constant != nullptr; ++c) target[c] += task.value.constant[c];
    }
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
