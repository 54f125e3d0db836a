// Scalar softmax, one tile of scores after another.
//
//     maximum' = max(maximum, scores)     sum' = sum e^(maximum - maximum') + sum over tokens of e^(score - maximum') v
//
// Source  online softmax (arXiv 1805.02867).
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include <xquant/attention/task.hpp>
#include <xquant/backend/backend.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {

/// e^x for x <= 0, relative error below 2e-7; 0 below -87; NaN of NaN. A polynomial without branches, so that loops
/// over it vectorize: with (std::max)(x, -87) g++ makes a branch of its own for all that is then constant.
inline float exp_negative(float x) noexcept {
    XQUANT_KEEPS_ORDER
    constexpr float log2_e = 1.44269504F, ln2_high = 0.693359375F, ln2_low = -2.12194440e-4F;
    constexpr auto lowest = std::bit_cast<std::int32_t>(-87.0F);
    const std::int32_t below = -static_cast<std::int32_t>(x < -87.0F);  // all bits, or none
    const auto clamped = std::bit_cast<float>((std::bit_cast<std::int32_t>(x) & ~below) | (lowest & below));
    const std::int32_t whole = xquant::detail::nearest_whole(clamped * log2_e);
    const auto n = static_cast<float>(whole);
    const float r = xquant::detail::in_order(clamped - n * ln2_high) - n * ln2_low;  // the first difference is exact
    float p = 1.9875691500e-4F;
    p = p * r + 1.3981999507e-3F;
    p = p * r + 8.3334519073e-3F;
    p = p * r + 4.1665795894e-2F;
    p = p * r + 1.6666665459e-1F;
    p = p * r + 5.0000001201e-1F;
    const float e = p * (r * r) + r + 1.0F;
    const float power = std::bit_cast<float>((whole + 127) << 23);
    return std::bit_cast<float>(std::bit_cast<std::int32_t>(e * power) & ~below);
}

/// Applies soft cap and ALiBi to the scores of one query row. `ahead` = position of token 0 - position of the query.
inline void adjust_scores(scalar, const ScoreRules& rules, float slope, float ahead, std::size_t tokens,
                          float* XQUANT_RESTRICT scores) noexcept {
    for (std::size_t t = 0; t < tokens && rules.soft_cap > 0; ++t) {
        scores[t] = rules.soft_cap * std::tanh(scores[t] / rules.soft_cap);
    }
    for (std::size_t t = 0; t < tokens && slope != 0; ++t) scores[t] += slope * (ahead + static_cast<float>(t));
}

/// The tokens of a tile that one query row sees: begin .. end of `tokens`.
struct VisibleTokens {
    std::size_t begin, end, tokens;
};

/// The state of one query row's softmax after the tiles so far.
struct SoftmaxRow {
    float& maximum;
    float& total;
    float* sum;         ///< [width]
    std::size_t width;  ///< channels of V, or of its latent
};

/// One update of the softmax: scores of visible tokens become weights, scores of other tokens 0; row.sum is rescaled
/// where the maximum rose.
inline void online_softmax(scalar, float* XQUANT_RESTRICT scores, VisibleTokens seen, SoftmaxRow row) noexcept {
    if (seen.begin < seen.end) {
        float highest = scores[seen.begin];
        for (std::size_t t = seen.begin + 1; t < seen.end; ++t) highest = (std::max)(highest, scores[t]);
        if (highest > row.maximum) {
            const float factor = row.total > 0 ? exp_negative(row.maximum - highest) : 0.0F;
            row.total *= factor;
            float* XQUANT_RESTRICT sum = row.sum;
            for (std::size_t c = 0; c < row.width; ++c) sum[c] *= factor;
            row.maximum = highest;
        }
        const float maximum = row.maximum;
        for (std::size_t t = seen.begin; t < seen.end; ++t) scores[t] = exp_negative(scores[t] - maximum);
        float total = row.total;
        for (std::size_t t = seen.begin; t < seen.end; ++t) total += scores[t];
        row.total = total;
    }
    for (std::size_t t = 0; t < (std::min)(seen.begin, seen.end); ++t) scores[t] = 0;
    for (std::size_t t = seen.end; t < seen.tokens; ++t) scores[t] = 0;
}

/// An empty partial result.
inline void clear_partial(scalar, Partial partial, std::size_t queries, std::size_t width) noexcept {
    std::fill_n(partial.sum, queries * width, 0.0F);
    std::fill_n(partial.maximum, queries, -std::numeric_limits<float>::infinity());
    std::fill_n(partial.total, queries, 0.0F);
}

/// Adds `from` to `into`: both relative to the larger maximum.
inline void merge_partial(scalar, Partial into, Partial from, std::size_t queries, std::size_t width) noexcept {
    for (std::size_t i = 0; i < queries; ++i) {
        if (from.total[i] == 0) continue;
        const float highest = (std::max)(into.maximum[i], from.maximum[i]);
        const float keep = into.total[i] == 0 ? 0.0F : exp_negative(into.maximum[i] - highest);
        const float factor = exp_negative(from.maximum[i] - highest);
        into.total[i] = into.total[i] * keep + from.total[i] * factor;
        into.maximum[i] = highest;
        for (std::size_t c = 0; c < width; ++c) {
            into.sum[i * width + c] = into.sum[i * width + c] * keep + from.sum[i * width + c] * factor;
        }
    }
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
