// RoPE for contexts longer than a model was first trained on. Each function takes the RoPE of the first training and
// returns the RoPE to use.
//
//     scale_linear     position interpolation: f / s (arXiv 2306.15595)
//     scale_ntk        a larger base: f_j s^(-j / (pairs - 1)) ("NTK-aware", bloc97, 2023)
//     scale_yarn       f for fast pairs, f / s for slow ones, a ramp between; cosines times 0.1 ln s + 1
//                      (arXiv 2309.00071)
//     scale_llama3     YaRN's idea with a ramp over wavelengths (Llama 3.1's rope_scaling)
//     scale_longrope   f_j / factor_j, found by search for short and long contexts; cosines times a factor
//                      (arXiv 2402.13753)
//
//     layer.rope = xquant::scale_llama3(xquant::Rope::standard(128, 500000.0),
//                                       {.factor = 8, .original_context = 8192});
//
// f_j is an inverse frequency, s the factor by which the context grows. The engine turns its queries by the same Rope,
// Rope::factor included.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>

#include <xquant/model.hpp>

namespace xquant {

/// Parameters of scale_yarn, under the names that checkpoints use, with their defaults.
struct YarnScaling {
    double factor = 1;                 ///< s
    std::size_t original_context = 0;  ///< tokens of the first training
    double beta_fast = 32;             ///< pairs that turn more often than this within original_context are left alone
    double beta_slow = 1;              ///< pairs that turn less often are interpolated
    double attention_factor = 0;       ///< of cosines and sines; 0: 0.1 ln(factor) + 1
    bool truncate = true;              ///< the ends of the ramp are whole pairs
};

/// Parameters of scale_llama3, under the names that checkpoints use, with their defaults.
struct Llama3Scaling {
    double factor = 8;            ///< s
    double low_freq_factor = 1;   ///< pairs that turn less often than this within original_context are interpolated
    double high_freq_factor = 4;  ///< pairs that turn more often are left alone
    std::size_t original_context = 8192;  ///< tokens of the first training
};

/// Parameters of scale_longrope, under the names that checkpoints use.
struct LongRopeScaling {
    std::span<const double> short_factor,  ///< [pairs] for sequences up to original_context
        long_factor;                       ///< [pairs] for longer ones
    std::size_t original_context = 0,      ///< tokens of the first training
        max_context = 0;                   ///< tokens that the model serves in the end
    double attention_factor = 0;           ///< 0: sqrt(1 + ln(max_context / original_context) / ln(original_context))
};

inline namespace XQUANT_ABI_NS {

/// Positions are squeezed by s. Throws shape_error unless factor >= 1.
inline Rope scale_linear(Rope rope, double factor) {
    detail::expects(factor >= 1, "scale_linear: factor is ", factor, "; expected 1 or more");
    for (double& f : rope.inverse_frequencies) f /= factor;
    return rope;
}

/// The base is multiplied by s^(d / (d - 2)), d = 2 pairs: the fastest pair stays, the slowest is squeezed by s.
/// Throws shape_error unless factor >= 1 and there are two pairs.
inline Rope scale_ntk(Rope rope, double factor) {
    const std::size_t pairs = rope.inverse_frequencies.size();
    detail::expects(factor >= 1, "scale_ntk: factor is ", factor, "; expected 1 or more");
    detail::expects(pairs >= 2, "scale_ntk: the RoPE has ", pairs, " pairs; expected two or more");
    for (std::size_t j = 0; j < pairs; ++j) {
        rope.inverse_frequencies[j] *= std::pow(factor, -static_cast<double>(j) / static_cast<double>(pairs - 1));
    }
    return rope;
}

/// "NTK by parts" with its attention factor, as the method's own code has it: the ramp runs over the pairs, between
/// those that turn beta_fast and beta_slow times within the original context. (The paper's text has it run over the
/// number of turns; checkpoints are trained with the code.) Frequencies must be those of Rope::standard.
inline Rope scale_yarn(Rope rope, const YarnScaling& yarn) {
    std::vector<double>& f = rope.inverse_frequencies;
    detail::expects(f.size() >= 2 && f[0] == 1 && f[1] < 1,
                    "scale_yarn: the RoPE is not Rope::standard: its first two frequencies of ", f.size(),
                    " must be 1 and less than 1");
    detail::expects(
        yarn.factor >= 1 && yarn.original_context > 0 && yarn.beta_fast > yarn.beta_slow && yarn.beta_slow > 0,
        "scale_yarn: factor ", yarn.factor, ", original_context ", yarn.original_context, ", beta_fast ",
        yarn.beta_fast, ", beta_slow ", yarn.beta_slow,
        "; expected factor >= 1, original_context > 0, beta_fast > beta_slow > 0");
    // f_j = f_1^j, so this is the j of the pair that turns `times` times within the original context.
    const auto pair_turning = [&](double times) {
        constexpr double two_pi = 6.283185307179586;
        return std::log(static_cast<double>(yarn.original_context) / (times * two_pi)) / -std::log(f[1]);
    };
    double first = pair_turning(yarn.beta_fast), last = pair_turning(yarn.beta_slow);
    if (yarn.truncate) first = std::floor(first), last = std::ceil(last);
    first = (std::max)(first, 0.0);
    last = (std::min)(last, static_cast<double>(2 * f.size() - 1));
    if (first == last) last += 0.001;
    for (std::size_t j = 0; j < f.size(); ++j) {
        const double slow = std::clamp((static_cast<double>(j) - first) / (last - first), 0.0, 1.0);
        f[j] = f[j] / yarn.factor * slow + f[j] * (1 - slow);
    }
    rope.factor = yarn.attention_factor > 0 ? yarn.attention_factor : 0.1 * std::log(yarn.factor) + 1;
    return rope;
}

/// Llama 3.1's rope_scaling: slow pairs are interpolated, with a ramp over wavelengths. Throws shape_error for
/// parameters that make no ramp.
inline Rope scale_llama3(Rope rope, const Llama3Scaling& scaling) {
    detail::expects(scaling.factor >= 1 && scaling.original_context > 0 &&
                        scaling.high_freq_factor > scaling.low_freq_factor && scaling.low_freq_factor > 0,
                    "scale_llama3: factor ", scaling.factor, ", original_context ", scaling.original_context,
                    ", high_freq_factor ", scaling.high_freq_factor, ", low_freq_factor ", scaling.low_freq_factor,
                    "; expected factor >= 1, original_context > 0, high_freq_factor > low_freq_factor > 0");
    for (double& f : rope.inverse_frequencies) {
        const double turns = static_cast<double>(scaling.original_context) * f / 6.283185307179586;
        const double fast = std::clamp(
            (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor), 0.0, 1.0);
        f = f / scaling.factor * (1 - fast) + f * fast;
    }
    return rope;
}

/// LongRoPE. `longest` is the most tokens that a sequence of the cache will have; if it is more than original_context,
/// the long factors are taken for all tokens. Throws shape_error if there is not one factor for each pair.
inline Rope scale_longrope(Rope rope, const LongRopeScaling& scaling, std::size_t longest) {
    std::vector<double>& f = rope.inverse_frequencies;
    detail::expects(scaling.original_context > 1 && scaling.max_context >= scaling.original_context,
                    "scale_longrope: max_context ", scaling.max_context, ", original_context ",
                    scaling.original_context, "; expected max_context >= original_context > 1");
    const std::span<const double> factors =
        longest > scaling.original_context ? scaling.long_factor : scaling.short_factor;
    detail::expects(factors.size() == f.size(), "scale_longrope: ", factors.size(), " factors for ", f.size(),
                    " pairs");
    for (std::size_t j = 0; j < f.size(); ++j) {
        detail::expects(factors[j] > 0, "scale_longrope: factor ", j, " is ", factors[j], "; expected more than 0");
        f[j] /= factors[j];
    }
    const auto original = static_cast<double>(scaling.original_context);
    rope.factor =
        scaling.attention_factor > 0
            ? scaling.attention_factor
            : std::sqrt(1 + std::log(static_cast<double>(scaling.max_context) / original) / std::log(original));
    return rope;
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
