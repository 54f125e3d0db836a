// Scalar products of codes with a wide matrix in 8 bits: what layers of a cross-layer cache add to the sums.
//
//     round_spread    the columns of S, 128 at a time, rounded to 8 bits once for all pages
//     spread_codes    rows = z S of some tokens of a page
//
// Error   that of rematerialize_int8 (scalar/int8.hpp). Sums of products are exact, so rows do not depend on which
//         other tokens they are made with.
#pragma once

#include <array>

#include <xquant/backend/scalar/int8.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {

/// S as it is multiplied: columns of head.matrix [head.width, head.head_dim], by codes of this format.
struct SpreadMatrix {
    StreamFormat format;
    HeadDecoder head;
    float* weights;  ///< spread_floats(format, head) floats that a backend fills

    /// How many times 128 columns there are.
    [[nodiscard]] constexpr std::size_t panels() const noexcept {
        return (head.head_dim + width_step - 1) / width_step;
    }
    /// The columns of a panel.
    [[nodiscard]] constexpr Slots columns_of(std::size_t panel) const noexcept {
        const std::size_t first = panel * width_step;
        return {first, (std::min)(width_step, head.head_dim - first)};
    }
    /// Floats of the weights of a panel.
    [[nodiscard]] constexpr std::size_t panel_floats() const noexcept {
        std::size_t floats = 0;
        for_each_int8_block(format, head, [&](std::size_t, std::size_t channels) {
            floats += int8_block_floats(channels, width_step);
        });
        return floats;
    }
    /// Calls f(first channel, channels, their weights) for the blocks of channels of a panel.
    template <class F>
    void for_each_block(std::size_t panel, F&& f) const noexcept {
        float* at = weights + panel * panel_floats();
        for_each_int8_block(format, head, [&](std::size_t c, std::size_t channels) {
            f(c, channels, at);
            at += int8_block_floats(channels, width_step);
        });
    }
};

/// A block of S in f32 [channels, columns.count], from channel c on.
template <class Backend>
void load_spread_block(Backend tag, const SpreadMatrix& matrix, std::size_t c, std::size_t channels, Slots columns,
                       float* out) noexcept {
    for (std::size_t k = 0; k < channels; ++k) {
        load_weights(tag, matrix.head.matrix, {(c + k) * matrix.head.head_dim + columns.first, columns.count},
                     out + k * columns.count);
    }
}

/// Floats of scratch that round_spread and spread_codes need.
constexpr std::size_t spread_scratch() noexcept {
    return int8_channels / 4 * tile_tokens + width_step * (std::max)(int8_channels, tile_tokens);
}

/// Rounds a panel of S. Scratch: spread_scratch() floats.
inline void round_spread(scalar tag, const SpreadMatrix& matrix, std::size_t panel, float* scratch) noexcept {
    const Slots columns = matrix.columns_of(panel);
    std::array<std::int8_t, int8_channels> rounded;
    matrix.for_each_block(panel, [&](std::size_t c, std::size_t channels, float* block) {
        load_spread_block(tag, matrix, c, channels, columns, scratch);
        float* const steps = block;
        float* const shifts = steps + columns.count;
        float* const offsets = shifts + columns.count;
        auto* const weights = reinterpret_cast<std::int8_t*>(offsets + columns.count);  // [columns][channels]
        for (std::size_t j = 0; j < columns.count; ++j) {
            const detail::RoundedColumn column =
                detail::quantize_weights(scratch + j, columns.count, channels, nullptr, int8_top, rounded.data());
            steps[j] = column.step;
            shifts[j] = column.shift(middle_code(matrix.format));
            std::copy_n(rounded.data(), channels, weights + j * channels);
            offsets[j] = 0;
            for (std::size_t k = 0; k < channels; ++k) offsets[j] += scratch[k * columns.count + j];
        }
    });
}

/// z S of at most 128 tokens, a token-major tile [tokens, columns of the panel]; round_spread has rounded the panel.
/// Scratch: spread_scratch() floats.
inline void spread_codes(scalar tag, const StreamView& in, std::size_t token, const SpreadMatrix& matrix,
                         std::size_t panel, Tile out, float* /*scratch*/) noexcept {
    const StreamFormat& format = in.format;
    const float middle = middle_code(format);
    const std::size_t columns = out.channels;
    std::array<std::uint8_t, max_group> codes;
    for (std::size_t t = 0; t < out.tokens; ++t) std::fill_n(out.at(t, 0), columns, 0.0F);
    matrix.for_each_block(panel, [&](std::size_t c, std::size_t channels, const float* scales) {
        const float* const shifts = scales + columns;
        const float* const offsets = shifts + columns;
        const auto* const weights = reinterpret_cast<const std::int8_t*>(offsets + columns);
        const std::size_t channel = matrix.head.first + c, block = channel / format.group_channels;
        for (std::size_t t = 0; t < out.tokens; ++t) {
            const std::size_t at = token + t;
            const GroupScale scale = stored_scale(in, format.group_index(at, block));
            unpack_group(tag, in.codes + format.code_offset(at, block), format.channels_of(block), format.bits,
                         {channel % format.group_channels, channels}, codes.data());
            for (std::size_t j = 0; j < columns; ++j) {
                std::int32_t sum = 0;
                for (std::size_t k = 0; k < channels; ++k) sum += codes[k] * weights[j * channels + k];
                *out.at(t, j) += scale.scale * (static_cast<float>(sum) * scales[j] + shifts[j]) +
                                 (scale.zero + middle * scale.scale) * offsets[j];
            }
        }
    });
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
