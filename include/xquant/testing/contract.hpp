// Contract tests for policies of your own: call one in a test; it throws contract_violation, with a sentence that says what
// was broken, or returns.
//
//     check_quantizer<MyQuantizer>()         codes, scales, error, and that nothing beyond the group is touched
//     check_layout<MyAxis>()                 groups of the stated shape, and any tile decodes like the whole
//     check_projection<MyProjection>(layer)  footprint, and exact rows give K and V back
//
// Needs no test framework. Rows are seeded, so a failure repeats.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include <xquant/detail/prepared.hpp>
#include <xquant/quantizer/uniform.hpp>
#include <xquant/stages.hpp>

namespace xquant::testing {

/// A policy breaks its contract.
struct contract_violation : std::logic_error {
    using std::logic_error::logic_error;
};

/// What a quantizer promises beyond the common rules.
struct QuantizerPromise {
    bool negative_scale = false;  ///< scales below 0 are part of the format, as in ggml's q4_0
    float (*max_error)(GroupScale) =
        nullptr;  ///< the largest |x - decoded|, f16 rounding aside; null: the group's range
};

inline namespace XQUANT_ABI_NS {
namespace detail {

inline void holds(bool rule, const std::string& sentence) {
    if (!rule) throw contract_violation("xquant contract: " + sentence);
}

/// Uniform numbers from integers: the same on every machine.
class Numbers {
public:
    explicit Numbers(std::uint32_t seed) : random_(seed) {}
    /// In [-1, 1), a multiple of 2^-23.
    float signed_unit() {
        return static_cast<float>(static_cast<std::int32_t>(random_() >> 8U) - (1 << 23)) * 0x1p-23F;
    }
    std::size_t below(std::size_t n) { return random_() % n; }
    std::vector<float> row(std::size_t n, float scale, float offset = 0) {
        std::vector<float> out(n);
        for (float& value : out) value = offset + scale * signed_unit();
        return out;
    }

private:
    std::mt19937 random_;
};

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
        add("f16 denormals", numbers.row(n, 1e-6F));
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

/// Encodes x with `around` before and behind it.
template <quantizer_policy Q>
Encoded encode_between(const std::vector<float>& x, float around) {
    constexpr std::size_t margin = 64;
    constexpr std::uint8_t canary = 0xA5;
    std::vector<float> values(x.size() + 2 * margin, around);
    std::copy(x.begin(), x.end(), values.begin() + margin);
    std::vector<std::uint8_t> bytes(x.size() + 2 * margin, canary);
    Encoded out;
    out.scale = Q::encode({values.data() + margin, x.size()}, {bytes.data() + margin, x.size()});
    out.codes.assign(bytes.begin() + margin, bytes.end() - margin);
    for (std::size_t i = 0; i < margin; ++i) {
        out.beyond = out.beyond || bytes[i] != canary || bytes[bytes.size() - 1 - i] != canary;
    }
    return out;
}

template <quantizer_policy Q>
float level(std::uint8_t code) noexcept {
    if constexpr (requires { Q::levels; }) {
        return Q::levels[code];
    } else {
        return static_cast<float>(code);
    }
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

inline bool same(float a, float b) noexcept { return a == b || (std::isnan(a) && std::isnan(b)); }

/// Exactly a finite f16. -0 counts as 0.
inline bool is_f16(float value) noexcept { return std::abs(value) <= f16_max && round_to_f16(value) == value; }

template <quantizer_policy Q>
void check_sample(const Sample& sample, const QuantizerPromise& promise) {
    const std::string on = " (on " + sample.name + ")";
    const std::vector<float>& x = sample.x;
    const Encoded encoded = encode_between<Q>(x, 0), again = encode_between<Q>(x, 0);
    const Encoded other = encode_between<Q>(x, std::numeric_limits<float>::quiet_NaN());
    const Encoded large = encode_between<Q>(x, 1e30F);
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

    // What f16 may add: half an ulp of the scale, times the largest level, and of the zero.
    float reach = std::abs(zero_code<Q>());
    for (unsigned code = 0; code < (1U << Q::bits); ++code) {
        reach = std::max(reach, std::abs(level<Q>(static_cast<std::uint8_t>(code))));
    }
    const Range range = range_of(x);
    float largest = std::abs(scale.zero) + reach * std::abs(scale.scale), span = range.high - range.low;
    largest = std::max(largest, std::max(std::abs(range.low), std::abs(range.high)));
    if constexpr (!Q::stores_zero) span = std::max(range.high, 0.0F) - std::min(range.low, 0.0F);
    const float rounding = largest * 0x1p-10F + (reach + 1) * 0x1p-24F;
    const bool constant = range.low == range.high;
    for (std::size_t i = 0; i < x.size(); ++i) {
        const float decoded = scale.zero + scale.scale * level<Q>(encoded.codes[i]);
        const float error = std::abs(x[i] - decoded);
        const std::string what = ": " + std::to_string(x[i]) + " came back as " + std::to_string(decoded) + on;
        holds(!constant || error <= rounding, "a constant group does not come back within f16 rounding" + what);
        holds(error <= span + rounding, "a value is off by more than the range of its group" + what);
        holds(promise.max_error == nullptr || error <= promise.max_error(scale) + rounding,
              "a value is off by more than the promised error" + what);
    }
}

}  // namespace detail

/// Checks a quantizer policy on about a hundred groups: sizes 1, 7, 8, group - 1 and group; constant, zero, denormal, at the
/// limits of f16, with an outlier of 1e4.
///
/// Rules: codes below 2^bits; scale (and zero) finite and exact in f16; scale not negative unless promised; a zero that is
/// not stored is -zero_code * scale; constant groups come back within f16 rounding, others within the group's range or the
/// promised error; the same values give the same codes; nothing beyond the group is read or written.
template <class Q>
void check_quantizer(const QuantizerPromise& promise = {}) {
    static_assert(
        quantizer_policy<Q>,
        "xquant: a quantizer needs bits (1 to 8), group (8 to 4096), stores_zero, zero_code if no zero is stored, "
        "and a noexcept encode; see concepts.hpp");
    if constexpr (requires { Q::levels; }) {
        static_assert(std::size(Q::levels) == (1U << Q::bits), "xquant: levels needs 2^bits entries");
        for (const float value : Q::levels) detail::holds(std::isfinite(value), "an entry of levels is not finite");
    }
    for (const detail::Sample& sample : detail::samples(Q::group)) detail::check_sample<Q>(sample, promise);
}

/// Checks an axis policy, with groups of 32, 64 and 128 values: tokens * channels values a group, tokens a divisor of 128,
/// and rows that are stored this way hold each value once, in the group of its place.
template <class Axis>
void check_layout() {
    const auto check = []<class Q>(Q) {
        const GroupShape shape = Axis::group_shape(Q::group);
        const std::string of = " for groups of " + std::to_string(Q::group);
        detail::holds(shape.tokens >= 1 && shape.channels >= 1 && shape.tokens * shape.channels == Q::group,
                      "group_shape: tokens * channels is not the size of the group" + of);
        detail::holds(128 % shape.tokens == 0, "group_shape: the tokens of a group do not divide 128" + of);
        if constexpr (128 % Axis::group_shape(Q::group).tokens == 0) {
            constexpr std::size_t rows = 133, width = 150;
            detail::Numbers numbers(7);
            const std::vector<float> x = numbers.row(rows * width, 1);
            const QuantizedRows stored = quantize<Q, Axis>(MatrixView(x.data(), rows, width));
            std::vector<float> whole(rows * width), group(Q::group);
            dequantize(stored, whole.data());
            for (std::size_t t = 0; t < rows; t += shape.tokens) {
                for (std::size_t c = 0; c < width; c += shape.channels) {
                    const std::size_t tokens = std::min<std::size_t>(shape.tokens, rows - t);
                    const std::size_t channels = std::min<std::size_t>(shape.channels, width - c);
                    std::vector<std::uint8_t> codes(tokens * channels);
                    for (std::size_t i = 0; i < codes.size(); ++i) {
                        group[i] = x[(t + i / channels) * width + c + i % channels];
                    }
                    const GroupScale scale = Q::encode({group.data(), codes.size()}, codes);
                    for (std::size_t i = 0; i < codes.size(); ++i) {
                        const float expected = scale.zero + scale.scale * static_cast<float>(codes[i]);
                        const float found = whole[(t + i / channels) * width + c + i % channels];
                        detail::holds(std::abs(found - expected) <= 0x1p-20F,
                                      "a value is not in the group of its place" + of);
                    }
                }
            }
        }
    };
    check(Quantizer<8, 32>{});
    check(Quantizer<4, 64>{});
    check(Quantizer<3, 128>{});
}

/// Checks a projection policy on one layer, whose weights must be of ordinary size: the footprint states the widths and the
/// floats of the plan, and rows that are stored exactly give K = X W_k^T and V = X W_v^T back (keys turned by RoPE where the
/// plan says that they are stored so), to f32 rounding.
template <class P>
void check_projection(const Layer& layer, double tolerance = 2e-5) {
    static_assert(projection_policy<P>, "xquant: a projection needs streams, footprint(layer) and prepare(layer)");
    namespace core = xquant::detail;
    core::check_layer(layer);
    const auto footprint = P::footprint(layer);
    LayerPlan plan = P::prepare(layer);
    detail::holds(plan.streams.size() == P::streams, "the plan has " + std::to_string(plan.streams.size()) +
                                                         " streams, the policy says " + std::to_string(P::streams));
    std::size_t floats = 0;
    for (std::size_t i = 0; i < P::streams; ++i) {
        const StreamPlan& stream = plan.streams[i];
        detail::holds(stream.width == footprint.widths[i], "footprint: width of stream " + std::to_string(i) + " is " +
                                                               std::to_string(footprint.widths[i]) +
                                                               ", the plan's is " + std::to_string(stream.width));
        floats += stream.mean.size() + stream.matrix.size() + stream.bias.size();
        if (stream.rotate != 0) floats += dct_size(stream.rotate) * dct_size(stream.rotate);
    }
    for (const auto* heads : {&plan.keys, &plan.values}) {
        for (const HeadPlan& head : *heads) floats += head.matrix.size() + head.constant.size();
    }
    detail::holds(floats == footprint.weight_floats, "footprint: weight_floats is " +
                                                         std::to_string(footprint.weight_floats) + ", the plan has " +
                                                         std::to_string(floats));
    core::Ledger ledger(nullptr);
    const bool turned = plan.keys_turned;
    const auto prepared = [&] {
        try {
            return core::PreparedLayer(ledger, layer, std::move(plan), CrossRole::none, 0);
        } catch (const shape_error& e) {
            throw contract_violation("xquant contract: the plan does not fit the layer: " + std::string(e.what()));
        }
    }();

    // Rows at positions far apart.
    constexpr std::size_t n = 9;
    const std::size_t d = layer.shape.width, dh = layer.shape.head_dim;
    detail::Numbers numbers(11);
    const std::vector<float> x = numbers.row(n * d, 1);
    std::vector<std::int64_t> positions(n);
    for (std::size_t i = 0; i < n; ++i) positions[i] = static_cast<std::int64_t>(37 * i);
    const core::RopeTable table(ledger, layer.rope, n);
    const RopeView rope = table.view();

    std::vector<std::vector<float>> stored;
    for (const StreamEncoder& encoder : prepared.encoders) {
        std::vector<float> rows(n * encoder.width), scratch(backend::project_scratch(d, encoder.width, n));
        backend::project(backend::best{}, encoder, x.data(), n, d, positions.data(), rope, dh, rows.data(),
                         scratch.data());
        stored.push_back(std::move(rows));
    }
    std::vector<float> found(n * dh), scratch(backend::rematerialize_scratch(dh)), weights(d), cosines(rope.pairs),
        sines(rope.pairs);
    for (const bool key : {true, false}) {
        const MatrixView& weight = key ? layer.w_k : layer.w_v;
        for (std::size_t head = 0; head < layer.shape.kv_heads; ++head) {
            const HeadDecoder& decoder = key ? prepared.keys[head] : prepared.values[head];
            const std::vector<float>& rows = stored[decoder.stream];
            backend::rematerialize(backend::best{}, view_rows(rows.data(), static_cast<std::uint32_t>(rows.size() / n)),
                                   decoder, 0, n, dh, dh, found.data(), dh, backend::TileOrder::token_major,
                                   scratch.data());
            if (key && turned) {
                for (std::size_t t = 0; t < n; ++t) {
                    rope_angles(rope, positions[t], cosines.data(), sines.data());
                    backend::turn_head(backend::best{}, rope, cosines.data(), sines.data(), -1.0F,
                                       found.data() + t * dh);
                }
            }
            double largest = 0, worst = 0;
            for (std::size_t i = 0; i < dh; ++i) {
                load_row(weight.row(head * dh + i), weight.type, d, weights.data());
                for (std::size_t t = 0; t < n; ++t) {
                    double exact = 0;
                    for (std::size_t c = 0; c < d; ++c) {
                        exact += static_cast<double>(x[t * d + c]) * static_cast<double>(weights[c]);
                    }
                    largest = std::max(largest, std::abs(exact));
                    worst = std::max(worst, std::abs(exact - static_cast<double>(found[t * dh + i])));
                }
            }
            detail::holds(worst <= tolerance * largest,
                          std::string(key ? "K" : "V") + " of head " + std::to_string(head) +
                              " does not come back from exact rows: off by " + std::to_string(worst) +
                              " where values reach " + std::to_string(largest));
        }
    }
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::testing
