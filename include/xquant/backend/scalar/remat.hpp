// Scalar products: project rows on writing, rematerialize keys and values on reading.
//
//     project          z [n, R] = rotate(rope(norm((x - mean) T + b)))
//     rematerialize    y [tokens, Dh] = z A + c
//     normalize_keys   an RMS norm of each token's key, for models that have one
//
// Limit   the product, by FMA throughput: 2 * width * Dh operations a token and head. Four rows of C share one pass over B;
//         64 columns at a time stay in registers on AVX-512, in L1 elsewhere.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>

#include <xquant/backend/scalar/codec.hpp>
#include <xquant/backend/scalar/rope.hpp>
#include <xquant/projection/rotation.hpp>
#include <xquant/storage/plan.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {

/// A matrix whose entry (i, k) lies at data[i * row_step + k * column_step].
struct Operand {
    const float* data;
    std::size_t row_step, column_step;
};

namespace detail {

/// C [Rows, Columns] = (or +=) A [Rows, depth] B [depth, Columns]. Each entry is summed over k in order, whatever the
/// blocking, so a row's result does not depend on its neighbours.
template <std::size_t Rows, std::size_t Columns>
void multiply_block(std::size_t depth, Operand a, const float* XQUANT_RESTRICT b, std::size_t b_stride,
                    float* XQUANT_RESTRICT c, std::size_t c_stride, bool add) noexcept {
    std::array<std::array<float, Columns>, Rows> sum;
    for (std::size_t i = 0; i < Rows; ++i) {
        for (std::size_t j = 0; j < Columns; ++j) sum[i][j] = add ? c[i * c_stride + j] : 0.0F;
    }
    for (std::size_t k = 0; k < depth; ++k) {
        const float* XQUANT_RESTRICT row = b + k * b_stride;
        for (std::size_t i = 0; i < Rows; ++i) {
            const float factor = a.data[i * a.row_step + k * a.column_step];
            for (std::size_t j = 0; j < Columns; ++j) sum[i][j] += factor * row[j];
        }
    }
    for (std::size_t i = 0; i < Rows; ++i) {
        for (std::size_t j = 0; j < Columns; ++j) c[i * c_stride + j] = sum[i][j];
    }
}

template <std::size_t Columns>
void multiply_rows(std::size_t rows, std::size_t depth, Operand a, const float* b, std::size_t b_stride, float* c,
                   std::size_t c_stride, bool add) noexcept {
    std::size_t i = 0;
    for (; i + 4 <= rows; i += 4) {
        const Operand from{a.data + i * a.row_step, a.row_step, a.column_step};
        multiply_block<4, Columns>(depth, from, b, b_stride, c + i * c_stride, c_stride, add);
    }
    for (; i < rows; ++i) {
        const Operand from{a.data + i * a.row_step, a.row_step, a.column_step};
        multiply_block<1, Columns>(depth, from, b, b_stride, c + i * c_stride, c_stride, add);
    }
}

}  // namespace detail

/// C [rows, columns] = (or +=) A [rows, depth] B [depth, columns].
inline void multiply(scalar, std::size_t rows, std::size_t columns, std::size_t depth, Operand a, const float* b,
                     std::size_t b_stride, float* c, std::size_t c_stride, bool add) noexcept {
    std::size_t j = 0;
    for (; j + 64 <= columns; j += 64) detail::multiply_rows<64>(rows, depth, a, b + j, b_stride, c + j, c_stride, add);
    for (; j + 16 <= columns; j += 16) detail::multiply_rows<16>(rows, depth, a, b + j, b_stride, c + j, c_stride, add);
    for (; j + 4 <= columns; j += 4) detail::multiply_rows<4>(rows, depth, a, b + j, b_stride, c + j, c_stride, add);
    for (; j < columns; ++j) detail::multiply_rows<1>(rows, depth, a, b + j, b_stride, c + j, c_stride, add);
}

/// Floats of scratch that project needs.
constexpr std::size_t project_scratch(std::size_t d, std::size_t width, std::size_t n) noexcept {
    return n * d + std::max(d, width);
}

/// An RMS norm with gain over a head [Dh]. Source: arXiv 1910.07467.
inline void normalize_head(scalar, const float* gain, float epsilon, std::size_t dh, float* head) noexcept {
    float sum = 0;
    for (std::size_t c = 0; c < dh; ++c) sum += head[c] * head[c];
    const float inverse = 1.0F / std::sqrt(sum / static_cast<float>(dh) + epsilon);
    for (std::size_t c = 0; c < dh; ++c) head[c] *= inverse * gain[c];
}

/// The same over every token of a tile of keys [Dh, tokens] (channel-major, `stride` floats a channel), tokens <= 128.
inline void normalize_keys(scalar, const float* gain, float epsilon, std::size_t dh, float* keys, std::size_t stride,
                           std::size_t tokens) noexcept {
    std::array<float, 128> factor{};
    for (std::size_t c = 0; c < dh; ++c) {
        const float* XQUANT_RESTRICT row = keys + c * stride;
        for (std::size_t t = 0; t < tokens; ++t) factor[t] += row[t] * row[t];
    }
    for (std::size_t t = 0; t < tokens; ++t) factor[t] = 1.0F / std::sqrt(factor[t] / static_cast<float>(dh) + epsilon);
    for (std::size_t c = 0; c < dh; ++c) {
        float* XQUANT_RESTRICT row = keys + c * stride;
        for (std::size_t t = 0; t < tokens; ++t) row[t] *= factor[t] * gain[c];
    }
}

/// Rows of one stream from x [n, D]. positions [n] and rope are read where keys are stored after RoPE; a head of those has
/// head_dim channels. Shape out: [n, R].
inline void project(scalar tag, const StreamEncoder& encoder, const float* x, std::size_t n, std::size_t d,
                    const std::int64_t* positions, const RopeView& rope, std::size_t head_dim, float* out,
                    float* scratch) noexcept {
    const std::size_t r = encoder.width;
    const float* rows = x;
    if (encoder.mean != nullptr) {
        for (std::size_t i = 0; i < n; ++i) {
            for (std::size_t c = 0; c < d; ++c) scratch[i * d + c] = x[i * d + c] - encoder.mean[c];
        }
        rows = scratch;
    }
    if (encoder.matrix != nullptr) {
        multiply(tag, n, r, d, {rows, d, 1}, encoder.matrix, r, out, r, false);
    } else {
        std::copy_n(rows, n * d, out);
    }
    for (std::size_t i = 0; i < n && encoder.bias != nullptr; ++i) {
        for (std::size_t c = 0; c < r; ++c) out[i * r + c] += encoder.bias[c];
    }
    for (std::size_t i = 0; i < n * r && encoder.norm != nullptr; i += head_dim) {
        normalize_head(tag, encoder.norm, encoder.norm_epsilon, head_dim, out + i);
    }
    for (std::size_t i = 0; i < n && encoder.rope; ++i) turn_row(tag, out + i * r, r, head_dim, positions[i], rope);
    for (std::size_t i = 0; i < n && encoder.rotate != 0; ++i) {
        rotate_blocks(out + i * r, r, encoder.rotate, encoder.dct, scratch + n * d);
    }
}

/// The channels of a latent that are decoded and multiplied at a time.
inline constexpr std::size_t width_step = 128;
/// The tokens of a tile, and of a page.
inline constexpr std::size_t tile_tokens = 128;

/// Tokens token .. + tokens (at most 128) of a stream -> the first `columns` channels of y = z A + c of one head, in the
/// order asked for.
/// Shape   out: [tokens, columns] or [columns, tokens], `stride` floats from row to row.
/// Scratch rematerialize_scratch(Dh) floats.
template <class Backend>
void rematerialize(Backend tag, const StreamView& in, const HeadDecoder& head, std::size_t token, std::size_t tokens,
                   std::size_t dh, std::size_t columns, float* out, std::size_t stride, TileOrder order,
                   float* scratch) noexcept {
    const bool by_channel = order == TileOrder::channel_major;
    if (head.matrix == nullptr) {
        decode_tile(tag, in, token, tokens, head.first, columns, out, stride, order);
    } else if (by_channel && in.format.group_tokens > 1) {
        // The codes of a channel lie together: y^T = A^T z^T, and no value has to change places.
        for (std::size_t c = 0; c < head.width; c += width_step) {
            const std::size_t channels = std::min(width_step, head.width - c);
            decode_tile(tag, in, token, tokens, head.first + c, channels, scratch, tile_tokens, order);
            multiply(tag, columns, tokens, channels, {head.matrix + c * dh, 1, dh}, scratch, tile_tokens, out, stride,
                     c > 0);
        }
    } else {
        float* rows = by_channel ? scratch + width_step * tile_tokens : out;
        const std::size_t row_stride = by_channel ? columns : stride;
        for (std::size_t c = 0; c < head.width; c += width_step) {
            const std::size_t channels = std::min(width_step, head.width - c);
            decode_tile(tag, in, token, tokens, head.first + c, channels, scratch, width_step, TileOrder::token_major);
            multiply(tag, tokens, columns, channels, {scratch, width_step, 1}, head.matrix + c * dh, dh, rows,
                     row_stride, c > 0);
        }
        for (std::size_t t = 0; t < tokens && by_channel; ++t) {
            for (std::size_t i = 0; i < columns; ++i) out[i * stride + t] = rows[t * columns + i];
        }
    }
    if (head.constant == nullptr) return;
    for (std::size_t i = 0; i < (by_channel ? columns : tokens); ++i) {
        float* XQUANT_RESTRICT row = out + i * stride;
        for (std::size_t j = 0; j < (by_channel ? tokens : columns); ++j) row[j] += head.constant[by_channel ? i : j];
    }
}

/// Floats of scratch that rematerialize needs.
constexpr std::size_t rematerialize_scratch(std::size_t dh) noexcept {
    return width_step * tile_tokens + tile_tokens * dh;
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
