// The formats of ggml's caches, q8_0 and q4_0: blocks of 32, one f16 scale d, no zero. Here as the baselines to beat.
//
//     q8_0   d = max |x| / 127     code = round half away from zero(x / d)      x ~ f16(d) * code
//     q4_0   d = extreme / -8      code = min(15, trunc(x / d + 8.5))           x ~ f16(d) * (code - 8)
//
// Error   q8_0: d / 2 + 127 f16 rounding of d; q4_0: d + 8 f16 rounding of d (2^-11 of it, and 2^-25 at least)
//
// Codes are found with the unrounded d, as in ggml. q8_0's signed codes are stored as code + 128. Groups whose |d| is
// below 2^-100 are stored as zeros, which is what f16(d) = 0 makes of them in any case: the codes of such groups would
// depend on what the processor makes of subnormal floats.
#pragma once

#include <cmath>

#include <xquant/quantizer/group.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// d, or 0 where it is so small that the group is stored as zeros.
inline float known_step(float d) noexcept { return std::abs(d) < 0x1p-100F ? 0.0F : d; }

/// 1 / d; 0 where d is 0, so that all codes stand for 0.
inline float inverse_of(float d) noexcept { return d != 0 ? divide(1, d) : 0.0F; }

/// x / d, within -most .. most, which it leaves by rounding alone. No compiler may fuse the product with what follows.
inline float scaled_by(float inverse, float x, float most) noexcept {
    return (std::min)((std::max)(x * inverse, -most), most);
}

}  // namespace detail

/// ggml's q8_0.
struct GgmlQ8_0 {
    static constexpr unsigned bits = 8;         ///< of a code
    static constexpr unsigned group = 32;       ///< values that share a scale
    static constexpr bool stores_zero = false;  ///< the scale alone is stored
    static constexpr float zero_code = 128;     ///< the code that stands for 0

    /// x [n] -> codes [n], and the scale; n is 32 or less.
    static GroupScale encode(std::span<const float> x, std::span<std::uint8_t> codes) noexcept {
        const float d = detail::known_step(detail::divide(std::abs(extreme_of(x)), 127));
        const float inverse = detail::inverse_of(d);
        for (std::size_t i = 0; i < x.size(); ++i) {
            const float scaled = detail::scaled_by(inverse, x[i], 127);
            // Half away from zero. What truncation leaves is exact; std::round is a call, or wrong in the last bit.
            const int whole = static_cast<int>(scaled);
            const float rest = scaled - static_cast<float>(whole);
            codes[i] = static_cast<std::uint8_t>(whole + (rest >= 0.5F ? 1 : 0) - (rest <= -0.5F ? 1 : 0) + 128);
        }
        const float scale = round_to_f16(d);
        return {scale, -zero_code * scale};
    }
};

/// ggml's q4_0.
struct GgmlQ4_0 {
    static constexpr unsigned bits = 4;         ///< of a code
    static constexpr unsigned group = 32;       ///< values that share a scale
    static constexpr bool stores_zero = false;  ///< the scale alone is stored
    static constexpr float zero_code = 8;       ///< the code that stands for 0

    /// x [n] -> codes [n], and the scale; n is 32 or less.
    static GroupScale encode(std::span<const float> x, std::span<std::uint8_t> codes) noexcept {
        const float d = detail::known_step(detail::divide(extreme_of(x), 8));
        const float inverse = detail::inverse_of(d);
        for (std::size_t i = 0; i < x.size(); ++i) {
            const float scaled = detail::scaled_by(inverse, x[i], 8);
            codes[i] = static_cast<std::uint8_t>((std::min)(15, static_cast<int>(8.5F - scaled)));
        }
        const float scale = -round_to_f16(d);  // -0 where the group is stored as zeros, as in ggml
        return {scale, -zero_code * scale};
    }
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
