// Whether this program computes what the stored bytes rely on: a few numbers go through the functions that bytes
// depend on when a cache is made.
//
// Those functions are written so that no flag of the compiler changes what they give. What is left are the processor's
// settings, such as a rounding mode that another library has set, and compilers that do not do as they are told.
#pragma once

#include <array>
#include <cmath>

#include <xquant/backend/scalar/softmax.hpp>
#include <xquant/error.hpp>
#include <xquant/quantizer/uniform.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// What check_arithmetic found wrong, or null. Cost: less than a microsecond.
XQUANT_NOINLINE inline const char* wrong_arithmetic() noexcept {
    // opaque: the compiler must not compute any of it in advance.
    struct Rounded {
        float value;
        std::int32_t whole;
    };
    for (const Rounded& is :
         {Rounded{0.5F, 0}, {1.5F, 2}, {2.5F, 2}, {2.5000002F, 3}, {14.7F, 15}, {-3, 0}, {99, 15}}) {
        if (round_clamped(opaque(is.value), opaque(15.0F)) != is.whole) return "numbers are not rounded to the nearest";
    }
    constexpr auto quotients = [] {
        std::array<float, 64> out{};
        for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<float>(i) / 15;
        return out;
    }();
    for (std::size_t i = 0; i < quotients.size(); ++i) {
        if (divide(opaque(static_cast<float>(i)), 15) != quotients[i])
            return "divisions are not rounded to the nearest";
    }
    for (const float beyond : {not_a_number, std::bit_cast<float>(0x7F800000U), std::bit_cast<float>(0xFF800000U)}) {
        if (is_finite(opaque(beyond)) || fits_f16(opaque(beyond))) return "infinity and NaN are not found";
    }
    for (const std::uint16_t bits : {std::uint16_t{1}, std::uint16_t{0x3FF}}) {
        const float value = to_float(to_f16(opaque(static_cast<float>(bits)) * 0x1p-24F));
        if (value != static_cast<float>(bits) * 0x1p-24F) return "small f16 are taken for 0";
    }
    for (const float x : {-0.3F, -20.3F, -86.5F}) {
        const double exact = std::exp(static_cast<double>(x)), found = backend::exp_negative(opaque(x));
        if (!(std::abs(found - exact) < 1e-6 * exact)) return "sums are regrouped";
    }
    return nullptr;
}

/// Throws state_error where stored bytes or softmax would be wrong.
inline void check_arithmetic() {
    const char* const wrong = wrong_arithmetic();
    if (wrong == nullptr) return;
    raise<state_error>("this program's arithmetic is not that of IEEE 754, on which stored bytes rely: ", wrong,
                       ". The cause is the processor's rounding mode, which another library may have set (fesetround), "
                       "or flags of the compiler, such as -ffast-math, -funsafe-math-optimizations, "
                       "-fassociative-math, -freciprocal-math, -ffinite-math-only or -frounding-math");
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
