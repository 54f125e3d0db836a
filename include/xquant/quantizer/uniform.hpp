// Uniform<Bits, Group, Scale>: evenly spaced codes, an f16 scale and (unless symmetric) an f16 zero for each group.
//
//     codes = clip(rte((x - zero) * (1 / scale)), 0, 2^Bits - 1)        x ~ zero + scale * code
//
// Source  XQuant (arXiv 2508.10395), section 4.1: asymmetric uniform, groups of 128. The paper does not say what a
//         scale is stored in; its published sizes (0.25 bits per value above Bits) leave only two 16-bit numbers per
//         group.
// Error   |x - decoded| is at most the largest of scale / 2, the f16 rounding of zero, and what the rounding of a small
//         scale takes off the top code, (2^bits - 1) 2^-25: 4.5e-7 at 4 bits, 7.6e-6 at 8. The last is the largest for
//         groups that span less than (2^bits - 1)^2 2^-24: 1.3e-5 at 4 bits, 0.0039 at 8. f16 rounding is 2^-11 of a
//         number, and 2^-25 below 2^-14, where f16 is subnormal. A scale below 2^-25 becomes 0, and all values of the
//         group its smallest. Symmetric: 2^(bits - 1) - 1 in place of 2^bits - 1, and no zero. MinMse: a quarter of the
//         range more, for values that it clips.
#pragma once

#include <type_traits>

#include <xquant/quantizer/group.hpp>

namespace xquant {

/// Scale rule: the group's smallest value has code 0 and its largest the top code.
struct MinMax {};

/// Scale rule: scale = max |x| / (2^(Bits-1) - 1), and code 2^(Bits-1) stands for zero, so that only the scale is
/// stored. The lowest code is not used.
struct Symmetric {};

/// Scale rule: MinMax with the range narrowed around its middle by the factor in 1, 0.95 .. 0.5 that leaves the least
/// squared error; what falls outside is clipped. Helps at 2 bits and for cross-layer deltas, hurts keys per channel at
/// 3 and 4 bits (it cuts off the tokens that matter). Cost: eleven times MinMax's.
struct MinMse {};

inline namespace XQUANT_ABI_NS {

/// MinMax's scale and zero; `top` is the highest code.
constexpr GroupScale min_max_scale(Range range, float top) noexcept {
    const float zero = detail::zero_to_f16(range.low);
    return {detail::scale_to_f16(detail::divide(range.high - zero, top)), zero};
}

/// Symmetric's; `zero_code` stands for zero.
constexpr GroupScale symmetric_scale(Range range, float zero_code) noexcept {
    const float most = range.high > -range.low ? range.high : -range.low;
    const float scale = detail::scale_to_f16(detail::divide(most, zero_code - 1));
    return {scale, -zero_code * scale};
}

/// MinMse's, for n values x(i) between those of the range.
template <class X>
constexpr GroupScale min_mse_scale(Range full, float top, std::size_t n, X&& x) noexcept {
    XQUANT_KEEPS_ORDER
    GroupScale best;
    double least = -1;
    for (int percent = 100; percent >= 50; percent -= 5) {
        Range range = full;
        if (percent < 100) {
            const float factor = detail::divide(static_cast<float>(percent), 100);
            const float middle = (full.low + full.high) / 2, half = (full.high - full.low) / 2;
            const float reach = detail::opaque(half * factor);  // not fused with the sums below
            range = {middle - reach, middle + reach};
        }
        const GroupScale trial = min_max_scale(range, top);
        const float inverse = inverse_scale(trial);
        // f16 times an 8-bit code is exact in f32, and the square of an f32 is exact in f64: the sum is equal with and
        // without fusing.
        double error = 0;
        for (std::size_t i = 0; i < n; ++i) {
            const auto code = static_cast<float>(code_of(x(i), trial, inverse, top));
            const double difference = detail::in_order(trial.zero + trial.scale * code) - x(i);
            error = detail::in_order(error + difference * difference);
        }
        if (least < 0 || error < least) {
            least = error;
            best = trial;
        }
    }
    return best;
}

/// @tparam Bits   of a code: 2, 3, 4, 5, 6 or 8
/// @tparam Group  values that share a scale: 8 to 4096
/// @tparam Scale  MinMax, Symmetric or MinMse
template <unsigned Bits, unsigned Group = 128, class Scale = MinMax>
struct Uniform {
    static_assert(Bits == 2 || Bits == 3 || Bits == 4 || Bits == 5 || Bits == 6 || Bits == 8,
                  "xquant: Uniform<Bits, Group> takes 2, 3, 4, 5, 6 or 8 bits");
    static_assert(Group >= 8 && Group <= 4096, "xquant: Uniform<Bits, Group> takes groups of 8 to 4096 values");
    static_assert(std::is_same_v<Scale, MinMax> || std::is_same_v<Scale, Symmetric> || std::is_same_v<Scale, MinMse>,
                  "xquant: the scale rule of Uniform is MinMax, Symmetric or MinMse");

    static constexpr unsigned bits = Bits;                                    ///< of a code
    static constexpr unsigned group = Group;                                  ///< values that share a scale
    static constexpr bool stores_zero = !std::is_same_v<Scale, Symmetric>;    ///< beside the scale
    static constexpr float zero_code = static_cast<float>(1U << (Bits - 1));  ///< read only where no zero is stored
    /// The scale rule, for backends that cannot call encode.
    static constexpr ScaleRule scale_rule = std::is_same_v<Scale, MinMax>      ? ScaleRule::min_max
                                            : std::is_same_v<Scale, Symmetric> ? ScaleRule::symmetric
                                                                               : ScaleRule::min_mse;

    /// The scale and zero of a group whose smallest and largest value are these.
    static constexpr GroupScale scale_of(Range range) noexcept requires(!std::is_same_v<Scale, MinMse>) {
        if constexpr (std::is_same_v<Scale, MinMax>) return min_max_scale(range, top);
        return symmetric_scale(range, zero_code);
    }

    /// x [n] -> codes [n], and the scale and zero they go with; n is Group or less, x finite and within f16.
    static GroupScale encode(std::span<const float> x, std::span<std::uint8_t> codes) noexcept {
        if constexpr (std::is_same_v<Scale, MinMse>) {
            const GroupScale found = min_mse_scale(range_of(x), top, x.size(), [x](std::size_t i) { return x[i]; });
            encode_affine(x, found, top, codes);
            return found;
        } else {
            const GroupScale found = scale_of(range_of(x));
            encode_affine(x, found, top, codes);
            return found;
        }
    }

private:
    static constexpr float top = static_cast<float>((1U << Bits) - 1);
};

/// The name that Uniform has in papers about quantized caches.
template <unsigned Bits, unsigned Group = 128, class Scale = MinMax>
using Quantizer = Uniform<Bits, Group, Scale>;

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
