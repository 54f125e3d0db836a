// A layout of your own: groups of 4 tokens and a fourth as many channels. Neighbouring tokens are alike, so a group
// sees fewer channels with their different sizes; and rows need not wait for 128 of their kind, as they must with
// PerChannel.
#include <xquant/testing/contract.hpp>
#include <xquant/xquant.hpp>

#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

namespace xq = xquant;

struct Tiles {
    static constexpr xq::GroupShape group_shape(unsigned n) noexcept { return {4, n / 4}; }  // tokens must divide 128
};

constexpr std::size_t tokens = 512, width = 256;

/// Rows that drift slowly from token to token, in channels of different sizes.
std::vector<float> make_rows() {
    std::mt19937 random(5);
    std::normal_distribution<float> normal;
    std::vector<float> x(tokens * width);
    for (std::size_t c = 0; c < width; ++c) {
        const float size = std::exp(normal(random));
        float value = 0;
        for (std::size_t t = 0; t < tokens; ++t) {
            value = 0.95F * value + 0.3F * normal(random);
            x[t * width + c] = size * value;
        }
    }
    return x;
}

template <class Axis>
void show(const char* name, const std::vector<float>& x) {
    const xq::QuantizedRows stored = xq::quantize<xq::Uniform<4, 128>, Axis>(xq::MatrixView(x.data(), tokens, width));
    std::vector<float> back(x.size());
    xq::dequantize(stored, back.data());
    double error = 0, size = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
        error += std::pow(static_cast<double>(back[i] - x[i]), 2);
        size += std::pow(static_cast<double>(x[i]), 2);
    }
    std::printf("%-12s %6zu bytes   error %5.2f %%\n", name, stored.bytes(), 100 * std::sqrt(error / size));
}

int main() {
    xq::testing::check_layout<Tiles>();  // throws with a sentence where the layout breaks a rule
    std::printf("Tiles keeps the contract\n");

    const std::vector<float> x = make_rows();
    show<xq::PerToken>("PerToken", x);
    show<Tiles>("Tiles", x);
    show<xq::PerChannel>("PerChannel", x);

    // It drops into a cache like any other; each stream may have its own.
    using Cache = xq::XCache<xq::Uniform<4, 128>, xq::Layout<xq::PerChannel, Tiles>, xq::CrossLayer<xq::Off>,
                             xq::Projection<xq::KeyValue<>>>;
    const std::vector<float> w(64 * width, 0.01F);
    xq::Model model =
        xq::Model::uniform(1, {.width = width, .heads = 1, .kv_heads = 1, .head_dim = 64}, xq::Rope::standard(64));
    model.layers[0].w_k = model.layers[0].w_v = xq::MatrixView(w.data(), 64, width);
    const Cache cache(model);
    std::printf("in a cache: %.0f bits a token and layer\n", cache.bits_per_token_layer(128));
}
