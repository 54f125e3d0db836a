// The contract of a quantizer policy: see contract.hpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include <xquant/concepts.hpp>
#include <xquant/core/learn.hpp>
#include <xquant/core/make_codec.hpp>
#include <xquant/testing/violation.hpp>

namespace xquant::testing {

/// What a quantizer promises beyond the common rules.
struct QuantizerPromise {
    bool negative_scale = false;  ///< scales below 0 are part of the format, as in ggml's q4_0
    float (*max_error)(GroupScale) =
        nullptr;  ///< the largest |x - decoded|, f16 rounding aside; null: the group's range
};

inline namespace XQUANT_ABI_NS {
namespace detail {

/// One group, and what to call it in a sentence.
struct Sample {
    std::string name;
    std::vector<float> x;
};

inline std::vector<Sample> samples(std::size_t group) {
    std::vector<Sample> all;
    Numbers numbers(20250810);
    for (const std::size_t n : {std::size_t{1}, std::size_t{7}, std::size_t{8}, group - 1, group}) {
        const std::string size = std::to_string(n) + " values";
        const auto add = [&](const char* kind, std::vector<float> x) {
            all.push_back({size + ", " + kind, std::move(x)});
        };
        for (int i = 0; i < 8; ++i) add("uniform in -1 .. 1", numbers.row(n, 1));
        add("far from zero", numbers.row(n, 1, 100));
        add("far below zero", numbers.row(n, 0.125F, -3000));
        add("all zero", std::vector<float>(n, 0.0F));
        for (const float value : {1.0F, -5.0F, 0.1F, -1234.567F, 65504.0F, -65504.0F, 1e-6F}) {
            add("constant", std::vector<float>(n, value));
        }
        for (const float outlier : {1e4F, -1e4F}) {
            std::vector<float> x = numbers.row(n, 1);
            x[numbers.below(n)] = outlier;
            add("an outlier of 1e4", std::move(x));
        }
        // Below 6e-5 f16 is subnormal: groups whose scales, or zeros, are so as well.
        for (const float reach : {1e-2F, 1e-3F, 1e-4F, 1e-5F, 1e-6F, 1e-7F, 1e-8F}) add("small", numbers.row(n, reach));
        add("f32 denormals", numbers.row(n, 1e-41F));
        add("near the limits of f16", numbers.row(n, 65000));
        std::vector<float> limits = numbers.row(n, 65504);
        limits[0] = 65504;
        limits[n - 1] = -65504;
        add("at the limits of f16", std::move(limits));
    }
    return all;
}

struct Encoded {
    std::vector<std::uint8_t> codes;
    GroupScale scale;
    bool beyond = false;  ///< something was written outside the codes
};

/// What is put before and behind a group, in values.
inline constexpr std::size_t margin = 64;

/// x with `around` before and behind it.
inline std::vector<float> between(const std::vector<float>& x, float around) {
    std::vector<float> out(margin, around);
    out.insert(out.end(), x.begin(), x.end());
    out.insert(out.end(), margin, around);
    return out;
}

/// Encodes x with `around` before and behind it.
template <quantizer_policy Q>
Encoded encode_between(const std::vector<float>& x, float around, const float* levels) {
    constexpr std::uint8_t canary = 0xA5;
    const std::vector<float> values = between(x, around);
    std::vector<std::uint8_t> bytes(x.size() + 2 * margin, canary);
    Encoded out;
    out.scale =
        xquant::detail::encode_group<Q>({values.data() + margin, x.size()}, {bytes.data() + margin, x.size()}, levels);
    out.codes.assign(bytes.begin() + margin, bytes.end() - margin);
    for (std::size_t i = 0; i < margin; ++i) {
        out.beyond = out.beyond || bytes[i] != canary || bytes[bytes.size() - 1 - i] != canary;
    }
    return out;
}

inline float level(const float* levels, std::size_t code) noexcept {
    return levels != nullptr ? levels[code] : static_cast<float>(code);
}

/// What codes stand for: from the policy's table, learnt from the samples, or (empty) the codes themselves.
template <quantizer_policy Q>
std::vector<float> levels_of(const std::vector<Sample>& samples) {
    std::vector<float> levels;
    if constexpr (learning_policy<Q>) {
        std::vector<std::span<const float>> groups;
        for (const Sample& sample : samples) groups.emplace_back(sample.x);
        levels.assign(std::size_t{1} << Q::bits, std::numeric_limits<float>::quiet_NaN());
        std::vector<float> again(levels.size(), -1.0F);
        Q::learn(groups, levels);
        Q::learn(groups, again);
        for (std::size_t i = 0; i < levels.size(); ++i) {
            holds(xquant::detail::is_finite(levels[i]), "a level that was learnt is not finite");
            holds(levels[i] == again[i], "the same groups give different levels");
        }
    } else if constexpr (requires { Q::levels; }) {
        static_assert(std::size(Q::levels) == (1U << Q::bits), "xquant: levels needs 2^bits entries");
        levels.assign(std::begin(Q::levels), std::end(Q::levels));
        for (const float value : levels) holds(xquant::detail::is_finite(value), "an entry of levels is not finite");
    }
    return levels;
}

/// The outliers that a policy chooses: indices in the group, each once, whatever lies beside it.
template <outlier_policy Q>
std::vector<std::uint8_t> check_choice(const Sample& sample) {
    constexpr std::uint8_t canary = 0xA5;
    const std::string on = " (on " + sample.name + ")";
    const std::size_t n = sample.x.size(), count = std::min<std::size_t>(Q::outliers, n);
    const auto choose = [&](float around) {
        const std::vector<float> values = between(sample.x, around);
        std::vector<std::uint8_t> indices(count + 2 * margin, canary);
        Q::choose({values.data() + margin, n}, {indices.data() + margin, count});
        for (std::size_t i = 0; i < margin; ++i) {
            holds(indices[i] == canary && indices[indices.size() - 1 - i] == canary,
                  "choose writes beyond its indices" + on);
        }
        return std::vector<std::uint8_t>(indices.begin() + margin, indices.end() - margin);
    };
    std::vector<std::uint8_t> indices = choose(0);
    holds(indices == choose(1e30F),
          "choose reads values beyond its group, or is not the same for the same values" + on);
    for (std::size_t i = 0; i < count; ++i) {
        holds(indices[i] < n, "an outlier index is beyond the group: " + std::to_string(indices[i]) + on);
        holds(std::count(indices.begin(), indices.end(), indices[i]) == 1,
              "an outlier index is chosen twice: " + std::to_string(indices[i]) + on);
    }
    return indices;
}

/// The code that stands for 0, where no zero is stored.
template <quantizer_policy Q>
constexpr float zero_code() noexcept {
    if constexpr (Q::stores_zero) {
        return 0;
    } else {
        return Q::zero_code;
    }
}

/// How far a value of a constant group may be from what comes back, relative to it and f16 rounding aside.
template <quantizer_policy Q>
constexpr float constant_error() noexcept {
    if constexpr (requires { requires !Q::exact_constant; }) {
        static_assert(
            requires {
                requires Q::constant_error >
                0 && Q::constant_error < 1;
            },
            "xquant: a quantizer whose exact_constant is false needs static constexpr float constant_error, between 0 "
            "and 1");
        return Q::constant_error;
    } else {
        return 0;
    }
}

inline bool same(float a, float b) noexcept {
    return a == b || std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b);
}

/// Exactly a finite f16. -0 counts as 0.
inline bool is_f16(float value) noexcept { return xquant::detail::fits_f16(value) && round_to_f16(value) == value; }

template <quantizer_policy Q>
void check_sample(const Sample& sample, const float* levels, const QuantizerPromise& promise) {
    const std::string on = " (on " + sample.name + ")";
    const std::vector<float>& x = sample.x;
    const Encoded encoded = encode_between<Q>(x, 0, levels), again = encode_between<Q>(x, 0, levels);
    const Encoded other = encode_between<Q>(x, std::numeric_limits<float>::quiet_NaN(), levels);
    const Encoded large = encode_between<Q>(x, 1e30F, levels);
    const auto equal = [](const Encoded& a, const Encoded& b) {
        return a.codes == b.codes && same(a.scale.scale, b.scale.scale) && same(a.scale.zero, b.scale.zero);
    };
    holds(!encoded.beyond && !other.beyond, "encode writes beyond its codes" + on);
    holds(equal(encoded, again), "encode gives different codes or scales for the same values" + on);
    holds(equal(encoded, other) && equal(encoded, large), "encode reads values beyond its group" + on);

    const GroupScale scale = encoded.scale;
    for (const std::uint8_t code : encoded.codes) {
        holds(code < (1U << Q::bits), "a code is not below 2^bits: " + std::to_string(code) + on);
    }
    holds(is_f16(scale.scale), "the scale is not a finite f16: " + std::to_string(scale.scale) + on);
    holds(promise.negative_scale || scale.scale >= 0, "the scale is negative: " + std::to_string(scale.scale) + on);
    if constexpr (Q::stores_zero) {
        holds(is_f16(scale.zero), "the zero is not a finite f16: " + std::to_string(scale.zero) + on);
    } else {
        holds(scale.zero == -zero_code<Q>() * scale.scale,
              "no zero is stored, and zero is not -zero_code * scale" + on);
    }

    // What f16 may add: its rounding of the scale, times the largest level, and of the zero. That is half a unit in the
    // last place: 2^-11 of a number, and 2^-25 where it is subnormal. Twice as much is allowed: a policy may round
    // to either side.
    float reach = std::abs(zero_code<Q>());
    for (unsigned code = 0; code < (1U << Q::bits); ++code) {
        reach = (std::max)(reach, std::abs(level(levels, code)));
    }
    const Range range = range_of(x);
    float largest = std::abs(scale.zero) + reach * std::abs(scale.scale), span = range.high - range.low;
    largest = (std::max)(largest, (std::max)(std::abs(range.low), std::abs(range.high)));
    if constexpr (!Q::stores_zero) span = (std::max)(range.high, 0.0F) - (std::min)(range.low, 0.0F);
    const float rounding = largest * 0x1p-10F + (reach + 1) * 0x1p-24F;
    const bool constant = range.low == range.high;
    for (std::size_t i = 0; i < x.size(); ++i) {
        const float decoded = scale.zero + scale.scale * level(levels, encoded.codes[i]);
        const float error = std::abs(x[i] - decoded);
        const std::string what = ": " + std::to_string(x[i]) + " came back as " + std::to_string(decoded) + on;
        const float allowed = constant_error<Q>() * std::abs(x[i]);
        holds(!constant || error <= allowed + rounding,
              (allowed > 0 ? "a constant group does not come back within constant_error"
                           : "a constant group does not come back within f16 rounding") +
                  what);
        holds(error <= span + rounding, "a value is off by more than the range of its group" + what);
        holds(promise.max_error == nullptr || error <= promise.max_error(scale) + rounding,
              "a value is off by more than the promised error" + what);
    }
}

}  // namespace detail

/// Checks a quantizer policy on about a hundred groups: sizes 1, 7, 8, group - 1 and group; constant, zero, small (1e-2
/// to 1e-8: f16 scales are subnormal), at the limits of f16, with an outlier of 1e4.
///
/// Rules: codes below 2^bits; scale (and zero) finite and exact in f16; scale not negative unless promised; a zero that
/// is not stored is -zero_code * scale; constant groups come back within f16 rounding, or within constant_error where
/// exact_constant is false, others within the group's range or the promised error; the same values give the same
/// codes; nothing beyond the group is read or written. Levels that are learnt are finite, and the same for the same
/// groups. Outliers are indices of the group, each named once.
template <class Q>
void check_quantizer(const QuantizerPromise& promise = {}) {
    static_assert(
        quantizer_policy<Q>,
        "xquant: a quantizer needs bits (1 to 8), group (8 to 4096), stores_zero, zero_code if no zero is stored, "
        "and a noexcept encode; see concepts.hpp");
    const std::vector<detail::Sample> samples = detail::samples(Q::group);
    const std::vector<float> levels = detail::levels_of<Q>(samples);
    for (detail::Sample sample : samples) {
        const float* known = levels.empty() ? nullptr : levels.data();
        detail::check_sample<Q>(sample, known, promise);
        if constexpr (outlier_policy<Q>) {
            const std::vector<std::uint8_t> indices = detail::check_choice<Q>(sample);
            // The rest, as encode sees it: the outliers' indices filled up.
            const auto chosen = [&](std::size_t i) {
                return std::find(indices.begin(), indices.end(), i) != indices.end();
            };
            std::size_t stays = 0;
            while (stays < sample.x.size() && chosen(stays)) ++stays;
            for (const std::uint8_t place : indices) {
                sample.x[place] = stays < sample.x.size() ? sample.x[stays] : 0.0F;
            }
            sample.name += ", outliers taken out";
            detail::check_sample<Q>(sample, known, promise);
        }
    }
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::testing
