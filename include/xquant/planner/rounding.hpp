// What a codec's rounding leaves of rows that spread like normal numbers: each channel's mean square error, by encoding
// and decoding numbers that are the same on every machine. Whatever the quantizer: its own function does it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>
#include <span>
#include <vector>

#include <xquant/storage/stream.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// Normal numbers of variance 1, always the same (Box and Muller's).
inline const std::vector<float>& unit_normals() {
    static const std::vector<float> all = [] {
        std::vector<float> out(std::size_t{1} << 14U);
        std::uint64_t state = 1;
        const auto next = [&state] {
            state = state * 6364136223846793005U + 1442695040888963407U;
            return (static_cast<double>(state >> 11U) + 0.5) * 0x1p-53;
        };
        for (std::size_t i = 0; i + 1 < out.size(); i += 2) {
            const double radius = std::sqrt(-2 * std::log(next())), angle = 2 * std::numbers::pi * next();
            out[i] = static_cast<float>(radius * std::cos(angle));
            out[i + 1] = static_cast<float>(radius * std::sin(angle));
        }
        return out;
    }();
    return all;
}

/// Adds the squares of what rounding one group leaves to `errors`, one for each value.
inline void add_group_error(const StreamCodec& codec, std::span<const float> x, const float* levels,
                            std::span<std::uint8_t> codes, double* errors) {
    const GroupScale found = codec.encode(x, codes, levels);
    const float* const table = levels != nullptr ? levels : codec.format.levels;
    for (std::size_t i = 0; i < x.size(); ++i) {
        const float level = table != nullptr ? table[codes[i]] : static_cast<float>(codes[i]);
        const double off = static_cast<double>(found.zero) +
                           static_cast<double>(found.scale) * static_cast<double>(level) - static_cast<double>(x[i]);
        errors[i] += off * off;
    }
}

/// Each channel's mean square error [width] of rows whose channels have these variances [width]; zeros where rows are
/// not quantized. The codec has no outliers.
inline std::vector<double> rounding_errors(const StreamCodec& codec, const std::vector<double>& variances) {
    const StreamFormat& format = codec.format;
    std::vector<double> out(variances.size(), 0.0);
    if (!format.quantized()) return out;
    const std::vector<float>& normals = unit_normals();
    const std::size_t tokens = format.group_tokens;
    std::size_t at = 0;
    const auto errors_of = [&](std::span<const double> of, double* to) {
        // Values of a group, token after token of each channel; as many groups as make 8,192 values.
        const std::size_t n = of.size() * tokens, groups = std::clamp<std::size_t>(8192 / n, 16, 128);
        std::vector<std::vector<float>> drawn(groups, std::vector<float>(n));
        for (std::vector<float>& x : drawn) {
            for (std::size_t i = 0; i < n; ++i) {
                x[i] = normals[at] * static_cast<float>(std::sqrt((std::max)(of[i / tokens], 0.0)));
                at = at + 1 < normals.size() ? at + 1 : 0;
            }
        }
        std::vector<float> levels(codec.learnt_levels());
        if (codec.learn != nullptr) {
            const std::vector<std::span<const float>> views(drawn.begin(), drawn.end());
            codec.learn(views, levels);
        }
        std::vector<std::uint8_t> codes(n);
        std::vector<double> errors(n, 0.0);
        for (const std::vector<float>& x : drawn) {
            add_group_error(codec, x, levels.empty() ? nullptr : levels.data(), codes, errors.data());
        }
        for (std::size_t c = 0; c < of.size(); ++c) {
            double sum = 0;
            for (std::size_t t = 0; t < tokens; ++t) sum += errors[c * tokens + t];
            to[c] = sum / static_cast<double>(groups * tokens);
        }
    };
    if (format.group_channels == 1) {
        // Errors of a channel by itself are in proportion to its variance.
        const double one = 1;
        double share = 0;
        errors_of({&one, 1}, &share);
        for (std::size_t c = 0; c < out.size(); ++c) out[c] = share * variances[c];
        return out;
    }
    for (std::size_t b = 0; b < format.channel_blocks(); ++b) {
        const std::size_t first = b * format.group_channels;
        errors_of({variances.data() + first, format.channels_of(b)}, out.data() + first);
    }
    return out;
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
