// Scalar 8-bit products. Codes are small whole numbers already, so only A is rounded: in blocks of up to 128 channels,
//
//     sum over c of (zero_c + scale_c code_c) A[c][j]
//         ~  step_j * sum of (code_c - middle) w[c][j]  +  sum of (zero_c + scale_c middle) A[c][j]
//     w[c][j] = rte(scale_c A[c][j] / step_j),  step_j = max over c of |scale_c A[c][j]| / 127
//     middle = (2^bits - 1) / 2
//
// Where a channel's tokens share a scale, scale_c is folded into A; where a token's channels do, it is multiplied
// afterwards. The middle costs nothing, as the sum of w is known beforehand.
// Error   |scale_c A[c][j]| / 254 at most for each product, times code - middle. The sums of products are exact, and
//         they are equal on every machine.
// Tried   Codes from 0 on, without the middle: three times the error, as codes are far from 0 and near to their middle.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include <xquant/backend/scalar/codec.hpp>
#include <xquant/backend/scalar/weights.hpp>
#include <xquant/projection/plan.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {

/// The most channels whose weights share a step.
inline constexpr std::size_t int8_channels = 128;

/// The largest weight.
inline constexpr float int8_top = 127.0F;
/// Rounding A costs about as much as codes of 6 bits do: beyond this, products stay in f32.
inline constexpr unsigned int8_most_bits = 5;

/// Channels of the next block, from `channel` of the stream on, `left` to go.
constexpr std::size_t int8_block(const StreamFormat& format, std::size_t channel, std::size_t left) noexcept {
    const std::size_t most = (std::min)(int8_channels, left);
    return format.group_channels == 1 ? most
                                      : (std::min)(most, format.group_channels - channel % format.group_channels);
}

/// Whether a head's codes can meet weights in 8 bits: they stand for themselves, and blocks hold whole words of 4
/// channels. Codes that are finer than products are have at most `rough_bits`, and belong to rows that are rough.
constexpr bool fits_products(const StreamFormat& format, const HeadDecoder& head, unsigned rough_bits = 8) noexcept {
    const bool by_channel = format.group_channels == 1 && format.group_tokens <= tile_tokens;
    const bool by_token = format.group_tokens == 1 && format.group_channels % 4 == 0;
    const unsigned most_bits = format.rough ? rough_bits : int8_most_bits;
    return format.quantized() && format.outliers == 0 && format.bits <= most_bits && format.levels == nullptr &&
           head.first % 4 == 0 && head.width % 4 == 0 && (by_channel || by_token);
}

/// Whether a head can be rebuilt by 8-bit products with A.
constexpr bool fits_int8(const StreamFormat& format, const HeadDecoder& head, unsigned rough_bits = 8) noexcept {
    return head.matrix != nullptr && fits_products(format, head, rough_bits);
}

/// Floats of a block of A [channels, Dh] in 8 bits, with what else a backend keeps of its columns, whatever its
/// registers.
constexpr std::size_t int8_block_floats(std::size_t channels, std::size_t dh) noexcept {
    return (channels / 4 + 3) * (dh + 15);
}

/// Between the least and the largest code.
constexpr float middle_code(const StreamFormat& format) noexcept {
    return static_cast<float>((1U << format.bits) - 1U) / 2.0F;
}

/// Calls f(first, channels) for the blocks of channels of a head that share a scale.
template <class F>
constexpr void for_each_int8_block(const StreamFormat& format, const HeadDecoder& head, F&& f) {
    for (std::size_t c = 0; c < head.width;) {
        const std::size_t channels = int8_block(format, head.first + c, head.width - c);
        f(c, channels);
        c += channels;
    }
}

namespace detail {

/// What a column of weights is multiplied by, and their sum.
struct RoundedColumn {
    float step;
    std::int32_t sum;

    /// What is added where codes count from their middle on.
    [[nodiscard]] float shift(float middle) const noexcept { return -(middle * static_cast<float>(sum)) * step; }
};

/// One column of a block of A [channels, Dh]: the weights [channels]. Factors [channels] or null: 1.
inline RoundedColumn quantize_weights(const float* a, std::size_t dh, std::size_t channels, const float* factors,
                                      float top, std::int8_t* weights) noexcept {
    const auto scaled = [&](std::size_t c) { return factors != nullptr ? factors[c] * a[c * dh] : a[c * dh]; };
    float largest = 0;
    for (std::size_t c = 0; c < channels; ++c) largest = (std::max)(largest, std::abs(scaled(c)));
    const float inverse = largest > 0 ? top / largest : 0.0F;
    std::int32_t sum = 0;
    for (std::size_t c = 0; c < channels; ++c) {
        // Beyond `top` only where a factor is not finite, as in damaged bytes, or `largest` has no inverse: no weight
        // would help then.
        const float weight = std::nearbyint(scaled(c) * inverse);
        weights[c] = std::abs(weight) <= top ? static_cast<std::int8_t>(weight) : std::int8_t{0};
        sum += weights[c];
    }
    return {largest / top, sum};
}

}  // namespace detail

/// The first out.channels channels of z A of one head, for a tile of at most 128 tokens from `token` on; out is
/// channel-major. fits_int8 holds. Scratch: rematerialize_scratch(Dh) floats.
inline void rematerialize_int8(scalar tag, const StreamView& in, const HeadDecoder& head, std::size_t token, Tile out,
                               float* scratch) noexcept {
    const StreamFormat& format = in.format;
    const std::size_t dh = head.head_dim;
    const bool by_channel = format.group_channels == 1;
    const float middle = middle_code(format);
    std::array<std::array<std::uint8_t, tile_tokens>, int8_channels> codes;  // [channel][token]
    std::array<std::uint8_t, max_group> group;
    for (std::size_t t = 0; t < out.tokens;) {
        const std::size_t in_block = (token + t) % format.group_tokens, token_block = (token + t) / format.group_tokens;
        const std::size_t some = by_channel ? (std::min)(format.group_tokens - in_block, out.tokens - t) : out.tokens;
        for (std::size_t first = 0; first < head.width;) {
            const std::size_t channel = head.first + first;
            const std::size_t channels = int8_block(format, channel, head.width - first);
            std::array<float, (std::max)(int8_channels, tile_tokens)> scales, centers;  // of channels, or of tokens
            for (std::size_t i = 0; i < (by_channel ? channels : some); ++i) {
                const std::size_t row = by_channel ? token_block : token + t + i;
                const std::size_t block = by_channel ? channel + i : channel / format.group_channels;
                const std::size_t n = format.group_tokens * format.channels_of(block);
                const GroupScale scale = stored_scale(in, format.group_index(row, block));
                scales[i] = scale.scale;
                centers[i] = scale.zero + middle * scale.scale;
                const Slots part =
                    by_channel ? Slots{in_block, some} : Slots{channel % format.group_channels, channels};
                unpack_group(tag, in.codes + format.code_offset(row, block), n, format.bits, part, group.data());
                for (std::size_t k = 0; k < part.count; ++k) (by_channel ? codes[i][k] : codes[k][i]) = group[k];
            }
            const float* const block = weights_as_floats(tag, head.matrix, {first * dh, channels * dh}, scratch);
            for (std::size_t j = 0; j < out.channels; ++j) {
                const float* a = block + j;
                std::array<std::int8_t, int8_channels> weights;
                const detail::RoundedColumn column = detail::quantize_weights(
                    a, dh, channels, by_channel ? scales.data() : nullptr, int8_top, weights.data());
                float offset = 0;
                for (std::size_t c = 0; c < channels; ++c) offset += by_channel ? centers[c] * a[c * dh] : a[c * dh];
                for (std::size_t i = 0; i < some; ++i) {
                    std::int32_t sum = 0;
                    for (std::size_t c = 0; c < channels; ++c) sum += codes[c][i] * weights[c];
                    const float product = static_cast<float>(sum) * column.step + column.shift(middle);
                    float& to = *out.at(t + i, j);
                    const float before = first == 0 ? 0.0F : to;
                    to = by_channel ? product + offset + before : scales[i] * product + before + centers[i] * offset;
                }
            }
            first += channels;
        }
        t += some;
    }
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
