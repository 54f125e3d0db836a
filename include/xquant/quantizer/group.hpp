// One group: the values that share a scale and a zero.
//
//     x ~ zero + scale * level(code)        level(code) = code, or an entry of the policy's table
//
// A quantizer policy turns the values of one group into codes, a scale and a zero. Where the values come from (along a
// token, along a channel) is the layout's business, where the codes go the page's.
#pragma once

#include <algorithm>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

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

namespace detail {

/// The value, which the compiler knows nothing of: what stands before it is not fused with what stands behind it (FMA),
/// and no flag turns a division by it into a product. Cost: a store and a load, so not for every value of a group.
template <std::floating_point T>
constexpr T opaque(T value) noexcept {
    if (std::is_constant_evaluated()) return value;
    XQUANT_OPAQUE T kept = value;
    return kept;
}

/// A part of a sum, which stays a part: -fassociative-math would regroup it. The function begins with
/// XQUANT_KEEPS_ORDER, which does it for clang++. (g++ 12 drops __builtin_assoc_barrier where it vectorizes a loop.)
template <std::floating_point T>
constexpr T in_order(T part) noexcept {
#if defined(__ASSOCIATIVE_MATH__)
    return opaque(part);
#else
    return part;
#endif
}

/// a / b, rounded once, whatever the flags: -freciprocal-math would multiply by 1 / b.
constexpr float divide(float a, float b) noexcept { return opaque(a / opaque(b)); }

/// What is added to round a number to the nearest whole one, ties to even: 1.5 * 2^23, so that the sum has no bits
/// below one. The bits of the sum less those of the offset, as whole numbers, are the result: (x + offset) - offset
/// would be x under -fassociative-math.
inline constexpr float rounding_offset = 12582912.0F;

/// The nearest whole number to a value in [-2^22, 2^22), ties to even, in a form that vectorizes on any machine.
constexpr std::int32_t nearest_whole(float value) noexcept {
    constexpr auto zero = std::bit_cast<std::int32_t>(rounding_offset);
    return std::bit_cast<std::int32_t>(value + rounding_offset) - zero;
}

/// A zero as it is stored: never -0. Which of 0 and -0 is found as the smallest value depends on the machine, and under
/// -fno-signed-zeros a sum with 0 may keep the sign.
constexpr float zero_to_f16(float zero) noexcept {
    const f16 half = to_f16(zero);
    return to_float(half.bits == 0x8000U ? f16{} : half);
}

/// A scale as it is stored: 0 where it is below 0, or -0.
constexpr float scale_to_f16(float scale) noexcept {
    const f16 half = to_f16(scale);
    return to_float((half.bits & 0x8000U) != 0 ? f16{} : half);
}

/// x, or 0 where x is a subnormal f32, which a processor may take for 0 (MXCSR: DAZ).
constexpr float without_subnormals(float x) noexcept {
    const std::uint32_t magnitude = std::bit_cast<std::uint32_t>(x) & 0x7FFFFFFFU;
    return magnitude < 0x00800000U ? 0.0F : x;
}

}  // namespace detail

/// The nearest whole number in [0, top], top below 2^22. No compiler may fuse it with the multiplication before it: the
/// clamp stands between.
constexpr std::int32_t round_clamped(float value, float top) noexcept {
    return detail::nearest_whole((std::min)((std::max)(0.0F, value), top));  // in this order NaN becomes 0
}

/// 1 / scale; 0 in a flat group, whose codes are all 0.
constexpr float inverse_scale(GroupScale group) noexcept {
    return group.scale > 0 ? detail::divide(1, group.scale) : 0.0F;
}

/// clip(rte((x - zero) * inverse_scale), 0, top), all in f32.
///
/// Subtract, then multiply by the inverse: there is nothing a compiler could contract, so every backend finds the same
/// codes. x * inverse - zero * inverse would differ with and without FMA.
constexpr std::int32_t code_of(float x, GroupScale group, float inverse, float top) noexcept {
    return round_clamped((x - group.zero) * inverse, top);
}

/// The codes of a group.
inline void encode_affine(std::span<const float> x, GroupScale group, float top,
                          std::span<std::uint8_t> codes) noexcept {
    const float inverse = inverse_scale(group);
    const float* XQUANT_RESTRICT in = x.data();
    std::uint8_t* XQUANT_RESTRICT out = codes.data();
    for (std::size_t i = 0; i < x.size(); ++i) {
        out[i] = static_cast<std::uint8_t>(code_of(in[i], group, inverse, top));
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
