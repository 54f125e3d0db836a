// Scalar steps of encoding with feedback (backend/feedback.hpp), for some tokens at a time: targets [channels][tokens].
//
//     find_scales     the scale and zero of each token's group
//     round_channel   the codes of one channel, and the errors that they leave
//     feed_back       t_c -= F_ci e_i for the channels i of a panel and the channels c behind it
//
// Each step of a sum is one fma, in the order of the channels: what is stored has the same bytes on every machine. On
// one without the instruction, std::fma is a function, and slow.
//
// Limit   feed_back: FMA.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include <xquant/backend/scalar/codec.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {

/// The scale of each token's group.
struct TokenScalesOf {
    float *scales, *zeros, *inverses;  ///< [tokens]
};

/// The scales of the groups of n channels whose targets these are, [n][tokens]; tokens of a token block share one.
inline void find_scales(scalar, const StreamCodec& codec, const float* targets, std::size_t n, std::size_t tokens,
                        const TokenScalesOf& out) noexcept {
    std::array<float, max_group> values;  // token by token, as encoders see them
    std::array<std::uint8_t, max_group> codes;
    const std::size_t block = codec.format.group_tokens;
    for (std::size_t t = 0; t < tokens; t += block) {
        const std::size_t some = (std::min)(block, tokens - t);
        for (std::size_t k = 0; k < some; ++k) {
            for (std::size_t i = 0; i < n; ++i) values[k * n + i] = targets[i * tokens + t + k];
        }
        const GroupScale scale = codec.encode({values.data(), some * n}, {codes.data(), some * n}, codec.format.levels);
        std::fill_n(out.scales + t, some, scale.scale);
        std::fill_n(out.zeros + t, some, scale.zero);
        std::fill_n(out.inverses + t, some, inverse_scale(scale));
    }
}

namespace detail {

/// The code whose level is nearest to (x - zero) / scale; of two, the lower.
inline std::uint8_t nearest_level(float x, GroupScale group, const float* levels, std::size_t count) noexcept {
    std::size_t best = 0;
    float least = std::abs(std::fma(group.scale, levels[0], group.zero) - x);
    for (std::size_t i = 1; i < count; ++i) {
        const float off = std::abs(std::fma(group.scale, levels[i], group.zero) - x);
        if (off < least) {
            least = off;
            best = i;
        }
    }
    return static_cast<std::uint8_t>(best);
}

}  // namespace detail

/// codes [tokens] of one channel's targets [tokens], and errors [tokens] = what is stored - values [tokens].
inline void round_channel(scalar, const StreamFormat& format, const float* targets, const float* values,
                          std::size_t tokens, const TokenScalesOf& by, std::uint8_t* codes, float* errors) noexcept {
    const std::size_t count = std::size_t{1} << format.bits;
    const auto top = static_cast<float>(count - 1);
    for (std::size_t k = 0; k < tokens; ++k) {
        const GroupScale group{by.scales[k], by.zeros[k]};
        if (format.levels != nullptr) {
            codes[k] = detail::nearest_level(targets[k], group, format.levels, count);
            errors[k] = std::fma(group.scale, format.levels[codes[k]], group.zero) - values[k];
        } else {
            const std::int32_t code = code_of(targets[k], group, by.inverses[k], top);
            codes[k] = static_cast<std::uint8_t>(code);
            // The product is exact, so it does not matter whether it is fused.
            errors[k] = group.zero + group.scale * static_cast<float>(code) - values[k];
        }
    }
}

/// Channels whose errors are fed back together: a panel.
inline constexpr std::size_t feedback_panel = 8;

/// Columns of F and the errors of the channels they are of, in the order of the channels.
struct FeedbackPanel {
    std::array<const float*, feedback_panel> columns;  ///< [count], of each the entries of the targets
    const float* errors;                               ///< [count][tokens]
    std::size_t count;                                 ///< 1 to feedback_panel
};

/// targets [n][tokens] -= columns [n, count] x errors [count, tokens], one channel's errors after the other.
inline void feed_back(scalar, const FeedbackPanel& panel, std::size_t n, std::size_t tokens, float* targets) noexcept {
    for (std::size_t c = 0; c < n; ++c) {
        for (std::size_t i = 0; i < panel.count; ++i) {
            const float factor = -panel.columns[i][c];
            const float* const errors = panel.errors + i * tokens;
            for (std::size_t k = 0; k < tokens; ++k) {
                targets[c * tokens + k] = std::fma(factor, errors[k], targets[c * tokens + k]);
            }
        }
    }
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
