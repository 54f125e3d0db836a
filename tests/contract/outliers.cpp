// Outliers and learnt levels, alone and in a cache: what they store, what comes back, what they take.
#include <xquant/xquant.hpp>

#include <cmath>
#include <numeric>
#include <vector>

#include "contract/archetypes.hpp"
#include "support/catch.hpp"
#include "support/model.hpp"

using namespace xquant;

namespace {

constexpr std::size_t rows = 200, width = 150;

/// Rows in -1 .. 1, with a large value in each group of either axis.
std::vector<float> rows_with_outliers() {
    test::Random random(3);
    std::vector<float> x = random.rows(rows * width);
    for (std::size_t t = 0; t < rows; ++t) {
        for (std::size_t c = t % 7; c < width; c += 128) x[t * width + c] = random() < 0 ? -40.0F : 50.0F;
    }
    return x;
}

double rms(const std::vector<float>& a, const std::vector<float>& b) {
    double sum = 0;
    for (std::size_t i = 0; i < a.size(); ++i) sum += std::pow(static_cast<double>(a[i] - b[i]), 2);
    return std::sqrt(sum / static_cast<double>(a.size()));
}

template <class Q, class Axis>
std::vector<float> round_trip(const std::vector<float>& x, const std::vector<float>& calibration = {}) {
    const MatrixView others =
        calibration.empty() ? MatrixView() : MatrixView(calibration.data(), calibration.size() / width, width);
    const QuantizedRows stored = quantize<Q, Axis>(MatrixView(x.data(), x.size() / width, width), others);
    std::vector<float> out(x.size());
    dequantize(stored, out.data());
    return out;
}

}  // namespace

TEST_CASE("outliers come back as f16, and the rest as if they were not there") {
    const std::vector<float> x = rows_with_outliers();
    std::vector<float> inner = x;  // the outliers at the value of their neighbour
    for (std::size_t i = 0; i < inner.size(); ++i) {
        if (std::abs(inner[i]) > 2) inner[i] = x[i % width == 0 ? i + 1 : i - 1];
    }
    const auto check = [&]<class Axis>(Axis, std::size_t most) {
        using Dense = Uniform<4, 128>;
        const std::vector<float> dense = round_trip<Dense, Axis>(x),
                                 sparse = round_trip<WithOutliers<Dense, 2>, Axis>(x);
        std::size_t exact = 0;
        for (std::size_t i = 0; i < x.size(); ++i) {
            exact += sparse[i] == round_to_f16(x[i]) ? 1U : 0U;
            if (std::abs(x[i]) > 2) CHECK(sparse[i] == round_to_f16(x[i]));
        }
        CHECK(exact >= most);
        // Without the outliers' range, 4 bits over -1 .. 1: half a step is 1/15.
        CHECK(rms(sparse, x) < 1.01 / 15 / std::sqrt(3.0));
        CHECK(rms(sparse, x) > 0.7 / 15 / std::sqrt(3.0));
        CHECK(rms(dense, x) > 10 * rms(sparse, x));
    };
    check(PerToken{}, rows * 2);
    // 200 tokens are a group of 128 and one of 72; each channel has up to three outliers, so two are not always enough.
    using Three = WithOutliers<Uniform<4, 64>, 16>;
    const std::vector<float> by_channel = round_trip<Three, PerChannel>(x);
    for (std::size_t i = 0; i < x.size(); ++i) {
        if (std::abs(x[i]) > 2) CHECK(by_channel[i] == round_to_f16(x[i]));
    }
}

TEST_CASE("outliers widen no range, though 0 lies outside of it") {
    std::vector<float> x(2 * 128);
    test::Random random(6);
    for (float& value : x) value = 10.5F + 0.5F * random();
    x[5] = 100;
    x[200] = -70;
    std::vector<float> out(x.size());
    dequantize(quantize<WithOutliers<Uniform<4, 128>, 1>>(MatrixView(x.data(), 2, 128)), out.data());
    CHECK(out[5] == 100);
    CHECK(out[200] == -70);
    // 4 bits over 10 .. 11: half a step is 1/30. Over 0 .. 11, it would be 11/30.
    for (std::size_t i = 0; i < x.size(); ++i) CHECK(std::abs(out[i] - x[i]) < 1.2F / 30);
}

TEST_CASE("outliers of groups of several tokens come back to their places, in a last group that is narrower as well") {
    std::vector<float> x = rows_with_outliers();
    for (std::size_t t = 1; t < rows; t += 4)
        x[t * width + 147] = 60;  // groups of 4 tokens x 16 channels, or 6 at the end
    std::vector<float> out(x.size());
    dequantize(quantize<WithOutliers<Uniform<4, 64>, 4>, FourTokens>(MatrixView(x.data(), rows, width)), out.data());
    for (std::size_t i = 0; i < x.size(); ++i) {
        if (std::abs(x[i]) > 2) CHECK(out[i] == round_to_f16(x[i]));
    }
}

TEST_CASE("any tile of a stream with outliers is a part of the whole") {
    const std::vector<float> x = rows_with_outliers();
    const auto check = [&]<class Axis>(Axis) {
        const QuantizedRows stored = quantize<WithOutliers<Uniform<3, 64>, 3>, Axis>(MatrixView(x.data(), rows, width));
        std::vector<float> whole(x.size());
        dequantize(stored, whole.data());
        test::Random random(9);
        for (int round = 0; round < 60; ++round) {
            const std::size_t token = random.below(rows), tokens = 1 + random.below(rows - token);
            const std::size_t channel = random.below(width), channels = 1 + random.below(width - channel);
            std::vector<float> by_token(tokens * channels), by_channel(tokens * channels);
            decode_tile(backend::best{}, stored.view(), token, channel,
                        backend::Tile{by_token.data(), tokens, channels, channels, backend::TileOrder::token_major});
            decode_tile(backend::best{}, stored.view(), token, channel,
                        backend::Tile{by_channel.data(), tokens, channels, tokens, backend::TileOrder::channel_major});
            bool same = true;
            for (std::size_t t = 0; t < tokens; ++t) {
                for (std::size_t c = 0; c < channels; ++c) {
                    const float value = whole[(token + t) * width + channel + c];
                    same = same && by_token[t * channels + c] == value && by_channel[c * tokens + t] == value;
                }
            }
            CHECK(same);
        }
    };
    check(PerToken{});
    check(PerChannel{});
}

TEST_CASE("a place that its group does not have changes nothing, its own group or another") {
    const std::vector<float> x = rows_with_outliers();
    const auto check = [&]<class Axis>(Axis) {
        QuantizedRows stored = quantize<WithOutliers<Uniform<4, 64>>, Axis>(MatrixView(x.data(), rows, width));
        const MutableStreamView view = stored.view();
        std::vector<float> codes(x.size()), found(x.size());
        // What the codes alone give.
        StreamView bare = read_only(view);
        bare.format.outliers = 0;
        decode_tile(backend::best{}, bare, 0, 0,
                    backend::Tile{codes.data(), rows, width, width, backend::TileOrder::token_major});
        for (const int place : {64, 130, 255}) {
            std::fill_n(view.indices, view.format.outlier_count(rows), static_cast<std::byte>(place));
            dequantize(stored, found.data());
            const bool same = found == codes;
            CHECK(same);
        }
    };
    check(PerToken{});
    check(PerChannel{});
}

TEST_CASE("groups of fewer values than outliers keep all of them") {
    const std::vector<float> x{3.0F, -7.5F, 100.0F};
    const QuantizedRows stored = quantize<WithOutliers<Uniform<2, 16>, 8>>(MatrixView(x.data(), 1, 3));
    std::vector<float> out(3);
    dequantize(stored, out.data());
    CHECK(out == x);
    CHECK(stored.bytes() == 2 + 4 + 8 * 3);  // codes of 3 values, padded to 8; a scale and a zero; 8 outliers
}

TEST_CASE("levels learnt are no worse than even ones on their own rows, and better where values crowd") {
    test::Random random(5);
    std::vector<float> x(rows * width), others(rows * width);
    for (std::vector<float>* all : {&x, &others}) {
        for (float& value : *all) value = std::pow(random(), 5.0F);  // crowded around 0
    }
    const auto check = [&]<unsigned Bits>(std::integral_constant<unsigned, Bits>) {
        const double even = rms(round_trip<Uniform<Bits>, PerToken>(x), x);
        const double learnt = rms(round_trip<NonUniform<Bits>, PerToken>(x, others), x);
        INFO(Bits << " bits: even " << even << ", learnt " << learnt);
        CHECK(learnt < 0.8 * even);
        CHECK(learnt > 0.1 * even);
    };
    check(std::integral_constant<unsigned, 2>{});
    check(std::integral_constant<unsigned, 3>{});
    check(std::integral_constant<unsigned, 4>{});
}

TEST_CASE("k-means finds the levels that are there") {
    // Every group holds 0, 0.25, 0.5 and 1 times its range, shifted.
    std::vector<std::vector<float>> groups;
    for (int i = 1; i <= 20; ++i) {
        const float scale = static_cast<float>(i);
        groups.push_back({0.0F, scale, 0.25F * scale, 0.5F * scale, 0.25F * scale, 0.0F, scale, 0.5F * scale});
        for (float& value : groups.back()) value -= 8;
    }
    std::vector<std::span<const float>> views(groups.begin(), groups.end());
    std::vector<float> levels(4);
    NonUniform<2, 8>::learn(views, levels);
    const std::vector<float> expected{0.0F, 0.25F, 0.5F, 1.0F};
    for (std::size_t i = 0; i < 4; ++i) CHECK(std::abs(levels[i] - expected[i]) < 1e-6F);
}

TEST_CASE("NF4 holds a normal distribution better than even levels") {
    test::Random random(11);
    std::vector<float> x(rows * width);
    for (float& value : x) {
        value = 0;
        for (int i = 0; i < 12; ++i) value += random();
    }
    const double nf4 = rms(round_trip<Nf4<64>, PerToken>(x), x);
    const double even = rms(round_trip<Uniform<4, 64, Symmetric>, PerToken>(x), x);
    CHECK(nf4 < 0.9 * even);
    CHECK(nf4 > 0.4 * even);
}

TEST_CASE("a cache without the calibration rows that it needs is refused") {
    test::Setup setup({.width = 64, .heads = 2, .kv_heads = 2, .head_dim = 32}, RopePairing::halves);
    try {
        const preset::kvquant<4> cache(setup.model);
        FAIL("constructed");
    } catch (const shape_error& e) {
        CHECK(std::string(e.what()).find("Layer::calibration is empty") != std::string::npos);
    }
    const std::vector<float> narrow(63 * 10);
    setup.model.layers[0].calibration = MatrixView(narrow.data(), 10, 63);
    CHECK_THROWS_AS(preset::kvquant<4>(setup.model), shape_error);
    std::vector<float> bad(64 * 10, 1.0F);
    bad[70] = std::numeric_limits<float>::quiet_NaN();
    setup.model.layers[0].calibration = MatrixView(bad.data(), 10, 64);
    CHECK_THROWS_AS(preset::kvquant<4>(setup.model), value_error);
}

TEST_CASE("kvquant: sizes by hand, as predicted, as allocated; attention near the exact one") {
    test::Setup setup({.width = 96, .heads = 4, .kv_heads = 2, .head_dim = 32}, RopePairing::halves, 2);
    test::Random random(4);
    const std::vector<float> calibration = random.rows(300 * 96);
    for (Layer& layer : setup.model.layers) layer.calibration = MatrixView(calibration.data(), 300, 96);
    Options options;
    options.sinks = 4;
    options.recent = 0;
    constexpr std::size_t n = 4 + 2 * 128 + 5;
    const std::vector<float> x = random.rows(n * 96), q = random.rows(n * 128, 2);
    std::size_t codes = 0;
    const auto run = [&]<class Cache>(std::type_identity<Cache>, double& bits) {
        Cache cache(setup.model, options);
        const Sequence sequence = cache.create();
        std::vector<float> out(n * 128);
        for (std::size_t done = 0; done < n;) {
            const std::size_t some = done == 0 ? n - 1 : 1;  // the last token reads what the others left
            auto step = cache.begin({{sequence, some}});
            for (std::size_t layer = 0; layer < 2; ++layer) {
                step.append(layer, MatrixView(x.data() + done * 96, some, 96));
                step.attend(layer, MatrixView(q.data() + done * 128, some, 128), out.data() + done * 128);
            }
            step.commit();
            done += some;
        }
        const Bytes predicted = Cache::predict(setup.model, options, n), bytes = cache.bytes();
        CHECK(predicted.codes == bytes.codes);
        CHECK(predicted.scales == bytes.scales);
        CHECK(predicted.weights == bytes.weights);
        CHECK(predicted.stored() == bytes.stored());
        codes = bytes.codes;
        bits = cache.bits_per_token_layer(256);
        out.erase(out.begin(), out.end() - 128);
        return out;
    };
    double exact_bits = 0, bits = 0, kivi_bits = 0;
    const auto exact = run(std::type_identity<preset::f16_kv>{}, exact_bits);
    const auto found = run(std::type_identity<preset::kvquant<4>>{}, bits);
    // Two pages of two layers. K: 64 channels of 64 bytes and an outlier of 3; V: 128 tokens of 32 bytes and one of 3.
    CHECK(codes == 2 * 2 * (64 * (64 + 3) + 128 * (32 + 3)));
    const auto coarse = run(std::type_identity<preset::kvquant<2>>{}, kivi_bits);
    run(std::type_identity<preset::kivi<4>>{}, kivi_bits);
    // K: 64 channels of 128 tokens; V: a group of 64 for each token. 24 bits for an outlier.
    CHECK(kivi_bits == 64 * (4 + 32.0 / 128) + 64 * 4 + 32);
    CHECK(bits == kivi_bits + 64 * 24.0 / 128 + 24);
    CHECK(rms(found, exact) > 1e-4);
    CHECK(rms(found, exact) < 0.05);
    CHECK(rms(coarse, exact) > 2 * rms(found, exact));
}
