// One group: the values that share a scale and a zero.
//
//     x ~ zero + scale * level(code)        level(code) = code, or an entry of the policy's table
//
// A quantizer policy turns the values of one group into codes, a scale and a zero. Where the values come from (along a
// token, along a channel) is the layout's business, where the codes go the page's.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

#include <xquant/types.hpp>

namespace xquant {

/// Scale and zero of one group. Both are stored as f16, so a policy hands back values that f16 holds exactly.
struct GroupScale {
    float scale = 0,  ///< what neighbouring levels differ by
        zero = 0;     ///< the value of level 0
};

/// How a quantizer of uniform codes finds the scale of a group, for backends that cannot call a policy's function.
enum class ScaleRule : std::uint8_t { other, min_max, symmetric, min_mse };

inline namespace XQUANT_ABI_NS {

/// Rounds a value in [0, 2^22) to the nearest whole number, ties to even, in a form that vectorizes on any machine and
/// that no compiler may fuse with the multiplication before it (the clamp stands between).
constexpr float round_clamped(float value, float top) noexcept {
    constexpr float magic = 12582912.0F;                             // 1.5 * 2^23: the sum has no bits below one
    const float clamped = (std::min)((std::max)(0.0F, value), top);  // in this order NaN becomes 0
    return (clamped + magic) - magic;
}

/// 1 / scale; 0 in a flat group, whose codes are all 0.
constexpr float inverse_scale(GroupScale group) noexcept { return group.scale > 0 ? 1.0F / group.scale : 0.0F; }

/// clip(rte((x - zero) * inverse_scale), 0, top), all in f32.
///
/// Subtract, then multiply by the inverse: there is nothing a compiler could contract, so every backend finds the same
/// codes. x * inverse - zero * inverse would differ with and without FMA.
constexpr float code_of(float x, GroupScale group, float inverse, float top) noexcept {
    return round_clamped((x - group.zero) * inverse, top);
}

/// The codes of a group.
inline void encode_affine(std::span<const float> x, GroupScale group, float top,
                          std::span<std::uint8_t> codes) noexcept {
    const float inverse = inverse_scale(group);
    const float* XQUANT_RESTRICT in = x.data();
    std::uint8_t* XQUANT_RESTRICT out = codes.data();
    for (std::size_t i = 0; i < x.size(); ++i) {
        out[i] = static_cast<std::uint8_t>(static_cast<int>(code_of(in[i], group, inverse, top)));
    }
}

/// What a group's values span.
struct Range {
    float low,  ///< the smallest value
        high;   ///< the largest value
};

/// Smallest and largest value; x must not be empty.
inline Range range_of(std::span<const float> x) noexcept {
    Range range{x[0], x[0]};
    for (const float value : x) {
        range.low = (std::min)(range.low, value);
        range.high = (std::max)(range.high, value);
    }
    return range;
}

/// The value of largest magnitude (the first of several), with its sign.
inline float extreme_of(std::span<const float> x) noexcept {
    float extreme = 0, magnitude = 0;
    for (const float value : x) {
        const float size = value < 0 ? -value : value;
        if (size > magnitude) {
            magnitude = size;
            extreme = value;
        }
    }
    return extreme;
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
