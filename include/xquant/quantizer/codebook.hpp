// Codebook<Table, Group>: codes that stand for entries of a table, scaled by the group's largest magnitude.
//
//     code = nearest entry to x / scale, scale = f16(max |x|)          x ~ scale * table[code]
//
//     Nf4<Group>    the table of QLoRA: quantiles of a normal distribution, -1 .. 1
//
// A table of your own is a struct with `levels`, a rising array of 2, 4 .. 256 floats.
// Error   the larger of half the gap between the neighbouring entries, times scale, and the f16 rounding of scale
//         (2^-11 of it, and 2^-25 at least)
// Source  QLoRA (arXiv 2305.14314), section 3 and appendix E.
#pragma once

#include <array>
#include <bit>
#include <cmath>

#include <xquant/quantizer/group.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {

/// codes [n] = the nearest of `count` rising levels to (x - zero) * (1 / scale); halfway, the lower. A flat group
/// (scale 0) gets the level nearest to 0. Nothing a compiler could fuse: all machines find the same codes. Cost:
/// `count` comparisons a value.
inline void encode_levels(std::span<const float> x, GroupScale group, const float* levels, std::size_t count,
                          std::span<std::uint8_t> codes) noexcept {
    std::array<float, 255> middles;
    for (std::size_t k = 0; k + 1 < count; ++k) middles[k] = (levels[k] + levels[k + 1]) * 0.5F;
    const float inverse = inverse_scale(group);
    for (std::size_t i = 0; i < x.size(); ++i) {
        const float value = (x[i] - group.zero) * inverse;
        unsigned code = 0;
        for (std::size_t k = 0; k + 1 < count; ++k) code += value > middles[k] ? 1U : 0U;
        codes[i] = static_cast<std::uint8_t>(code);
    }
}

/// @tparam Table  a type with `levels`, a rising array of 2, 4 .. 256 floats
/// @tparam Group  values that share a scale: 8 to 4096
template <class Table, unsigned Group = 64>
struct Codebook {
    static_assert(std::has_single_bit(std::size(Table::levels)) && std::size(Table::levels) >= 2 &&
                      std::size(Table::levels) <= 256,
                  "xquant: the table of Codebook has 2, 4, 8 .. 256 levels");
    static_assert(Group >= 8 && Group <= 4096, "xquant: Codebook<Table, Group> takes groups of 8 to 4096 values");

    static constexpr auto levels = Table::levels;                            ///< what codes stand for
    static constexpr unsigned bits = std::bit_width(std::size(levels)) - 1;  ///< of a code
    static constexpr unsigned group = Group;                                 ///< values that share a scale
    static constexpr bool stores_zero = false;                               ///< levels have their sign
    static constexpr float zero_code = 0;                                    ///< so the zero is 0

    /// x [n] -> codes [n], and the scale.
    static GroupScale encode(std::span<const float> x, std::span<std::uint8_t> codes) noexcept {
        const GroupScale found{round_to_f16(std::abs(extreme_of(x))), 0.0F};
        encode_levels(x, found, std::data(levels), std::size(levels), codes);
        return found;
    }
};

/// The NormalFloat levels of QLoRA.
struct NormalFloat4 {
    /// From -1 to 1, rising.
    static constexpr std::array<float, 16> levels{
        -1.0F,       -0.69619280F, -0.52507305F, -0.39491749F, -0.28444138F, -0.18477343F, -0.09105004F, 0.0F,
        0.07958030F, 0.16093020F,  0.24611230F,  0.33791524F,  0.44070983F,  0.56261700F,  0.72295684F,  1.0F};
};

/// 4 bits, in the levels of QLoRA.
template <unsigned Group = 64>
using Nf4 = Codebook<NormalFloat4, Group>;

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
