// The formats of ggml's caches, q8_0 and q4_0: blocks of 32, one f16 scale d, no zero. Here as the baselines to beat.
//
//     q8_0   d = max |x| / 127     code = round half away from zero(x / d)      x ~ f16(d) * code
//     q4_0   d = extreme / -8      code = min(15, trunc(x / d + 8.5))           x ~ f16(d) * (code - 8)
//
// Codes are found with the unrounded d, as in ggml. q8_0's signed codes are stored as code + 128.
#pragma once

#include <cmath>

#include <xquant/quantizer/group.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// 1 / d; 0 where d is 0 or so small that 1 / d is beyond f32, so that all codes stand for 0.
inline float inverse_of(float d) noexcept {
    const float inverse = 1.0F / d;
    return std::isfinite(inverse) ? inverse : 0.0F;
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
        const float d = std::abs(extreme_of(x)) / 127.0F;
        const float inverse = detail::inverse_of(d);
        for (std::size_t i = 0; i < x.size(); ++i) {
            const float scaled = x[i] * inverse;
            codes[i] = static_cast<std::uint8_t>(static_cast<int>(std::round(scaled)) + 128);
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
        const float d = extreme_of(x) / -8.0F;
        const float inverse = detail::inverse_of(d);
        for (std::size_t i = 0; i < x.size(); ++i) {
            // Rounded to f32 before the 8.5 is added, as a product in f64 that is exact: the same with and without FMA.
            const auto scaled = static_cast<float>(static_cast<double>(x[i]) * static_cast<double>(inverse));
            codes[i] = static_cast<std::uint8_t>((std::min)(15, static_cast<int>(scaled + 8.5F)));
        }
        const float scale = round_to_f16(d);
        return {scale, -zero_code * scale};
    }
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
