// Scalar products: project rows on writing, rematerialize keys and values on reading.
//
//     project          z [n, R] = rotate(rope(norms((x - mean) T + b)))
//     rematerialize    y [tokens, Dh] = z A + c; the tag int8<...> has it done with 8-bit products where codes allow
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
#include <xquant/projection/plan.hpp>
#include <xquant/projection/rotation.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {

/// The channels of a latent that are decoded and multiplied at a time.
inline constexpr std::size_t width_step = 128;
/// The tokens of a tile, and of a page.
inline constexpr std::size_t tile_tokens = 128;

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

/// out [rows] = A [rows, depth] x; rows of A are `stride` floats apart.
inline void multiply_vector(scalar, const float* a, std::size_t stride, std::size_t rows, std::size_t depth,
                            const float* x, float* out) noexcept {
    for (std::size_t i = 0; i < rows; ++i) {
        out[i] = 0;
        for (std::size_t c = 0; c < depth; ++c) out[i] += a[i * stride + c] * x[c];
    }
}

/// in [rows, columns] -> out [columns, rows], strides in floats from row to row.
inline void transpose_tile(scalar, const float* XQUANT_RESTRICT in, std::size_t in_stride, std::size_t rows,
                           std::size_t columns, float* XQUANT_RESTRICT out, std::size_t out_stride) noexcept {
    for (std::size_t i = 0; i < rows; ++i) {
        for (std::size_t j = 0; j < columns; ++j) out[j * out_stride + i] = in[i * in_stride + j];
    }
}

/// Floats of scratch that project needs.
constexpr std::size_t project_scratch(std::size_t d, std::size_t width, std::size_t n) noexcept {
    return n * d + std::max(d, width);
}

/// An RMS norm with gain over a head [Dh], or a row. Source: arXiv 1910.07467.
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
template <class Backend>
void project(Backend tag, const StreamEncoder& encoder, const float* x, std::size_t n, std::size_t d,
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
    for (std::size_t i = 0; i < n * r && encoder.norm != nullptr; i += encoder.norm_width) {
        normalize_head(tag, encoder.norm, encoder.norm_epsilon, encoder.norm_width, out + i);
    }
    for (std::size_t i = 0; i < n && encoder.rope; ++i) turn_row(tag, out + i * r, r, head_dim, positions[i], rope);
    for (std::size_t i = 0; i < n && encoder.rotate != 0; ++i) {
        rotate_blocks(out + i * r, r, encoder.rotate, encoder.dct, scratch + n * d);
    }
}

/// 8-bit products. Codes are small whole numbers already, so only A is rounded: in blocks of up to 128 channels,
///
///     sum over c of (zero_c + scale_c code_c) A[c][j]  ~  step_j * sum of code_c w[c][j]  +  sum of zero_c A[c][j]
///     w[c][j] = rte(scale_c A[c][j] / step_j),  step_j = max over c of |scale_c A[c][j]| / 127
///
/// with scale_c taken into A where a channel's tokens share it, and multiplied afterwards where a token's channels do.
/// Error   |scale_c A[c][j]| / 254 at most for each product, before it is multiplied by a code. The sums of products are
///         exact, and the same on every machine.
inline constexpr std::size_t int8_channels = 128;

inline constexpr float int8_top = 127.0F;
/// Rounding A costs about as much as codes of 6 bits do: beyond this, products stay in f32.
inline constexpr unsigned int8_most_bits = 5;

/// Channels of the next block, from `channel` of the stream on, `left` to go.
constexpr std::size_t int8_block(const StreamFormat& format, std::size_t channel, std::size_t left) noexcept {
    const std::size_t most = std::min(int8_channels, left);
    return format.group_channels == 1 ? most : std::min(most, format.group_channels - channel % format.group_channels);
}

/// Whether a head can be rebuilt so: its codes stand for themselves, and blocks hold whole words of 4 channels.
constexpr bool fits_int8(const StreamFormat& format, const HeadDecoder& head) noexcept {
    const bool by_channel = format.group_channels == 1 && format.group_tokens <= tile_tokens;
    const bool by_token = format.group_tokens == 1 && format.group_channels % 4 == 0;
    return head.matrix != nullptr && format.quantized() && format.outliers == 0 && format.bits <= int8_most_bits &&
           format.levels == nullptr && head.first % 4 == 0 && head.width % 4 == 0 && (by_channel || by_token);
}

namespace detail {

/// One column of a block of A [channels, Dh]: the weights [channels], and their step. Factors [channels] or null: 1.
inline float quantize_weights(const float* a, std::size_t dh, std::size_t channels, const float* factors, float top,
                              std::int8_t* weights) noexcept {
    const auto scaled = [&](std::size_t c) { return factors != nullptr ? factors[c] * a[c * dh] : a[c * dh]; };
    float largest = 0;
    for (std::size_t c = 0; c < channels; ++c) largest = std::max(largest, std::abs(scaled(c)));
    const float inverse = largest > 0 ? top / largest : 0.0F;
    for (std::size_t c = 0; c < channels; ++c) {
        // Not so where a factor is not finite, as in damaged bytes, or `largest` has no inverse: then no weight would help.
        const float weight = std::nearbyint(scaled(c) * inverse);
        weights[c] = std::abs(weight) <= top ? static_cast<std::int8_t>(weight) : std::int8_t{0};
    }
    return largest / top;
}

}  // namespace detail

/// Tokens token .. + tokens (at most 128) of a stream -> the first `columns` channels of z A of one head. fits_int8 holds.
/// Shape   out: [columns, tokens], `stride` floats from row to row. Scratch rematerialize_scratch(Dh) floats.
inline void rematerialize_int8(scalar tag, const StreamView& in, const HeadDecoder& head, std::size_t token,
                               std::size_t tokens, std::size_t dh, std::size_t columns, float* out, std::size_t stride,
                               float*) noexcept {
    const StreamFormat& format = in.format;
    const bool by_channel = format.group_channels == 1;
    std::array<std::array<std::uint8_t, tile_tokens>, int8_channels> codes;  // [channel][token]
    std::array<std::uint8_t, max_group> group;
    for (std::size_t t = 0; t < tokens;) {
        const std::size_t in_block = (token + t) % format.group_tokens, token_block = (token + t) / format.group_tokens;
        const std::size_t some = by_channel ? std::min(format.group_tokens - in_block, tokens - t) : tokens;
        for (std::size_t first = 0; first < head.width;) {
            const std::size_t channel = head.first + first;
            const std::size_t channels = int8_block(format, channel, head.width - first);
            std::array<float, std::max(int8_channels, tile_tokens)> scales, zeros;  // of channels, or of tokens
            for (std::size_t i = 0; i < (by_channel ? channels : some); ++i) {
                const std::size_t row = by_channel ? token_block : token + t + i;
                const std::size_t block = by_channel ? channel + i : channel / format.group_channels;
                const std::size_t n = format.group_tokens * format.channels_of(block);
                const GroupScale scale = stored_scale(in, format.group_index(row, block));
                scales[i] = scale.scale;
                zeros[i] = scale.zero;
                unpack_group(tag, in.codes + format.code_offset(row, block), n, format.bits,
                             by_channel ? in_block : channel % format.group_channels, by_channel ? some : channels,
                             group.data());
                for (std::size_t k = 0; k < (by_channel ? some : channels); ++k) {
                    (by_channel ? codes[i][k] : codes[k][i]) = group[k];
                }
            }
            for (std::size_t j = 0; j < columns; ++j) {
                const float* a = head.matrix + first * dh + j;
                std::array<std::int8_t, int8_channels> weights;
                const float step = detail::quantize_weights(a, dh, channels, by_channel ? scales.data() : nullptr,
                                                            int8_top, weights.data());
                float offset = 0;
                for (std::size_t c = 0; c < channels; ++c) offset += by_channel ? zeros[c] * a[c * dh] : a[c * dh];
                for (std::size_t i = 0; i < some; ++i) {
                    std::int32_t sum = 0;
                    for (std::size_t c = 0; c < channels; ++c) sum += codes[c][i] * weights[c];
                    const float product = static_cast<float>(sum) * step;
                    float& to = out[j * stride + t + i];
                    const float before = first == 0 ? 0.0F : to;
                    to = by_channel ? product + offset + before : scales[i] * product + before + zeros[i] * offset;
                }
            }
            first += channels;
        }
        t += some;
    }
}

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
    } else if (Backend::int8_products && by_channel && fits_int8(in.format, head)) {
        rematerialize_int8(tag, in, head, token, tokens, dh, columns, out, stride, scratch);
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
        if (by_channel) transpose_tile(tag, rows, columns, tokens, columns, out, stride);
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
