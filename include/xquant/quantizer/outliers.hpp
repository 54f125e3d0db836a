// WithOutliers<Quantizer, N>: N values of each group are kept in f16, with their index in the group; the others are
// quantized as if the group had no outliers.
//
//     WithOutliers<Uniform<4>>             1 of 128: 3 bytes a group, 0.19 bits a value
//     WithOutliers<NonUniform<3>, 2>         2 of 128
//
// Chosen are the values farthest from the group's mean.
// Source  KVQuant (arXiv 2401.18079), section 3.4: dense-and-sparse, 1 % of each vector. SqueezeLLM (arXiv 2306.07629)
//         did it for weights.
// Error   of the outliers: f16 rounding. Of the others: Quantizer's, over a narrower range.
#pragma once

#include <algorithm>

#include <xquant/quantizer/group.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {

/// @tparam Quantizer  any quantizer policy
/// @tparam Count      outliers of a group; by default 1 % of it, rounded, at least one
template <class Quantizer, unsigned Count = (std::max)(1U, (Quantizer::group + 50) / 100)>
struct WithOutliers : Quantizer {
    static_assert(Quantizer::group <= 256,
                  "xquant: WithOutliers takes groups of at most 256 values: a place is one byte");
    static_assert(Count >= 1 && 2 * Count <= Quantizer::group,
                  "xquant: WithOutliers keeps at least one value, and at most half of a group");

    static constexpr unsigned outliers = Count;  ///< of each group

    /// x [n] -> the indices [outliers or n] of the values farthest from the mean; of equal ones, the first. Subnormal
    /// values count as 0. Cost: a pass for each.
    static void choose(std::span<const float> x, std::span<std::uint8_t> indices) noexcept {
        XQUANT_KEEPS_ORDER
        double sum = 0;
        for (const float value : x)
            sum = detail::in_order(sum + static_cast<double>(detail::without_subnormals(value)));
        const double mean = sum / static_cast<double>(x.size());
        for (std::size_t k = 0; k < indices.size(); ++k) {
            const auto chosen = indices.first(k);
            double farthest = -1;
            for (std::size_t i = 0; i < x.size(); ++i) {
                const double off = static_cast<double>(detail::without_subnormals(x[i])) - mean;
                const double distance = off < 0 ? -off : off;
                if (distance <= farthest || std::find(chosen.begin(), chosen.end(), i) != chosen.end()) continue;
                farthest = distance;
                indices[k] = static_cast<std::uint8_t>(i);
            }
        }
    }
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
