/// The closed loop of XQuant-CL: a layer is off by its own rounding alone, however many layers lie below it.
///
/// With W_v the identity and one token that is read from its codes, attention's output is what the layer remembers of
/// X.
#include <xquant/projection/joint_svd.hpp>
#include <xquant/xquant.hpp>

#include <cmath>
#include <vector>

#include "support/catch.hpp"
#include "support/model.hpp"
#include "support/oracle.hpp"

using namespace xquant;

namespace {

constexpr std::size_t layer_count = 30, width = 128;

/// MHA with W_k = W_v = I, so that out = V = X as it was stored.
struct Mirror {
    explicit Mirror(std::size_t layers = layer_count) : eye(width * width, 0.0F) {
        for (std::size_t i = 0; i < width; ++i) eye[i * width + i] = 1;
        model = Model::uniform(layers, {.width = width, .heads = 2, .kv_heads = 2, .head_dim = 64}, Rope{});
        for (Layer& layer : model.layers) layer.w_k = layer.w_v = MatrixView(eye.data(), width, width);
    }
    Model model;
    std::vector<float> eye;
};

/// X of every layer: a walk whose steps are a third of where it started.
std::vector<std::vector<float>> walk(std::size_t layers = layer_count) {
    test::Random random(7);
    std::vector<std::vector<float>> x;
    for (std::size_t i = 0; i < layers; ++i) {
        x.push_back(random.rows(width, i == 0 ? 3.0F : 1.0F));
        for (std::size_t c = 0; c < width && i > 0; ++c) x[i][c] += x[i - 1][c];
    }
    return x;
}

/// What each layer of the cache remembers of its X.
template <class Cache>
std::vector<std::vector<float>> remembered(const Model& model, const std::vector<std::vector<float>>& x) {
    Options options;
    options.sinks = options.recent = 0;
    options.strict = true;
    options.weights = WeightType::f32;
    Cache cache(model, options);
    const Sequence sequence = cache.create();
    auto step = cache.begin({{sequence, 1}});
    const std::vector<float> q(model.layers[0].shape.heads * model.layers[0].shape.head_dim, 0.5F);
    std::vector<std::vector<float>> out;
    for (std::size_t layer = 0; layer < model.layers.size(); ++layer) {
        step.append(layer, MatrixView(x[layer].data(), 1, width));
        out.emplace_back(q.size());
        step.attend(layer, MatrixView(q.data(), 1, q.size()), out.back().data());
    }
    step.commit();
    return out;
}

float largest_error(const std::vector<float>& a, const std::vector<float>& b) {
    double worst = 0;
    for (std::size_t i = 0; i < a.size(); ++i) worst = std::max(worst, test::distance_to(double{a[i]}, b[i]));
    return static_cast<float>(worst);
}

/// Half a step of a quantizer of `bits` over x - below, f16 rounding of scale and zero added.
float own_rounding(const std::vector<float>& x, const std::vector<float>& below, unsigned bits) {
    float low = x[0] - below[0], high = low;
    for (std::size_t c = 0; c < x.size(); ++c) {
        low = std::min(low, x[c] - below[c]);
        high = std::max(high, x[c] - below[c]);
    }
    const float top = static_cast<float>((1U << bits) - 1);
    return (high - low) / top / 2 + (std::abs(low) + (high - low)) * 0x1p-10F;
}

/// Every layer above the base is off by no more than its own rounding.
bool bounded_by_own_rounding(const std::vector<std::vector<float>>& x, const std::vector<std::vector<float>>& kept,
                             unsigned bits) {
    for (std::size_t i = 3; i < x.size(); ++i) {
        if (largest_error(x[i], kept[i]) > own_rounding(x[i], kept[i - 1], bits)) return false;
    }
    return true;
}

template <unsigned Bits, class Projected = Plain, class Accumulator = float>
using Differences =
    XCache<Uniform<Bits>, Layout<PerToken>, CrossLayer<Delta, FourBits, Accumulator>, Projection<Projected>>;

}  // namespace

TEST_CASE("thirty layers, each off by its own rounding and no more") {
    const Mirror mirror;
    const auto x = walk();
    const auto kept = remembered<Differences<3>>(mirror.model, x);
    CHECK(bounded_by_own_rounding(x, kept, 3));
    // And it is a quantized cache: the errors are there, and of that size.
    for (std::size_t i = 3; i < layer_count; ++i) {
        CHECK(largest_error(x[i], kept[i]) > own_rounding(x[i], kept[i - 1], 3) / 2);
    }
}

TEST_CASE("an open loop fails that test") {
    const auto x = walk();
    std::vector<std::vector<float>> kept(x.begin(), x.begin() + 3);
    for (std::size_t i = 3; i < x.size(); ++i) {
        std::vector<float> difference(width), decoded(width);
        for (std::size_t c = 0; c < width; ++c) difference[c] = x[i][c] - x[i - 1][c];  // not against what was kept
        dequantize(quantize<Uniform<3>>(MatrixView(difference.data(), 1, width)), decoded.data());
        for (std::size_t c = 0; c < width; ++c) decoded[c] += kept[i - 1][c];
        kept.push_back(decoded);
    }
    CHECK_FALSE(bounded_by_own_rounding(x, kept, 3));
}

TEST_CASE("rotated, and in every type of accumulator, errors do not pile up") {
    const Mirror mirror;
    const auto x = walk();
    const auto check = [&](const char* name, const std::vector<std::vector<float>>& kept) {
        INFO(name);
        double early = 0, late = 0;
        for (std::size_t i = 3; i < 8; ++i) early += static_cast<double>(largest_error(x[i], kept[i]));
        for (std::size_t i = 25; i < 30; ++i) late += static_cast<double>(largest_error(x[i], kept[i]));
        CHECK(early > 0.05);
        CHECK(late < 1.5 * early);
        CHECK(late > 0.5 * early);
    };
    check("rotated", remembered<Differences<3, Rotated>>(mirror.model, x));
    check("f16", remembered<Differences<3, Plain, f16>>(mirror.model, x));
    check("bf16", remembered<Differences<3, Plain, bf16>>(mirror.model, x));
    check("8 bit", remembered<Differences<3, Rotated, Uniform<8>>>(mirror.model, x));
}

TEST_CASE("a difference beyond 65504 is cut off, and the next layer makes up for it") {
    const Mirror mirror(7);
    std::vector<std::vector<float>> x(7, std::vector<float>(width, 60000.0F));
    for (std::size_t i = 4; i < x.size(); ++i) x[i].assign(width, -60000.0F);
    const auto kept = remembered<
        XCache<Unquantized<float>, Layout<PerToken>, CrossLayer<Delta, Unquantized<float>>, Projection<Plain>>>(
        mirror.model, x);
    CHECK(largest_error(kept[3], x[3]) < 0.01F);
    CHECK(largest_error(kept[4], std::vector<float>(width, 60000.0F - f16_max)) < 0.01F);
    CHECK(largest_error(kept[5], x[5]) < 0.01F);
    CHECK(largest_error(kept[6], x[6]) < 0.01F);
}

TEST_CASE("layers up to the base and the last ones keep the first quantizer's bits") {
    const Mirror mirror;
    Options options;
    options.base_layer = 4;
    options.last_layers = 2;
    const XCache<Uniform<2>, Layout<PerToken>, CrossLayer<Delta, Uniform<8>>, Projection<Plain>> cache(mirror.model,
                                                                                                       options);
    // 5 layers up to the base and the last 2 in 8 bits, 32 bits of scale and zero for each group of 128.
    CHECK(std::abs(cache.bits_per_token_layer(256) - 128.0 * (7 * 8.25 + 23 * 2.25) / 30) < 1e-9);
    options.base_layer = 29;
    options.last_layers = 1;
    CHECK_THROWS_AS((Differences<2>(mirror.model, options)), shape_error);
    options.base_layer = 30;
    options.last_layers = 0;
    CHECK_THROWS_AS((Differences<2>(mirror.model, options)), shape_error);
}

TEST_CASE("sizes are those that the paper states") {
    // 32 layers of MHA: K and V in f16 take 32 bits a channel.
    const Mirror mirror(32);
    const auto compression = [&](const auto& cache) { return 32.0 * width / cache.bits_per_token_layer(1024); };
    CHECK(std::abs(compression(preset::plain_x<4>(mirror.model)) - 7.53) < 0.005);
    CHECK(std::abs(compression(preset::cross_layer_x<3>(mirror.model)) - 9.57) < 0.005);
    const preset::cross_layer_x<2> two(mirror.model);
    CHECK(std::abs(compression(two) - 13.13) < 0.005);
    // With the accumulator of a step counted, one row a token for all layers: in f16 and in 4 bits.
    const double stored = two.bits_per_token_layer(1024);
    CHECK(std::abs(32.0 * width / (stored + 16.0 * width / 32) - 10.9) < 0.05);
    CHECK(std::abs(32.0 * width / (stored + 4.25 * width / 32) - 12.45) < 0.05);
}

TEST_CASE("joint SVD: a layer reads its own subspace back whatever the base was") {
    test::Setup setup({.width = width, .heads = 2, .kv_heads = 1, .head_dim = 32}, RopePairing::halves, 12);
    for (Layer& layer : setup.model.layers) layer.rope = {};
    const auto x = walk(12);
    const auto run = [&]<class Mix, class First>(Mix, First) {
        return remembered<XCache<Unquantized<float>, Layout<PerToken>, CrossLayer<Delta, First>,
                                 Projection<JointSvd<Mix, FullRank>>>>(setup.model, x);
    };
    const auto coarse = run(NoMix{}, Uniform<2>{}), fine = run(NoMix{}, Uniform<8>{});
    const auto turned = run(Hadamard{}, Uniform<2>{});
    const auto exact = remembered<preset::f16_kv>(setup.model, x);
    CHECK(largest_error(coarse[2], fine[2]) > 0.1F);  // the bases differ
    for (std::size_t i = 3; i < x.size(); ++i) {
        CHECK(largest_error(coarse[i], fine[i]) < 1e-4F);
        CHECK(largest_error(coarse[i], turned[i]) < 1e-4F);
        CHECK(largest_error(coarse[i], exact[i]) < 0.02F);  // f16 rounding of values near 10
    }
}
