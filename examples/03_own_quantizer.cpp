// A quantizer of your own: NF4, sixteen levels placed where a normal distribution puts its values. It is a dozen lines, is
// checked by the shipped contract test, and runs on every kernel of the library.
//
// Source  QLoRA (arXiv 2305.14314), section 3: the levels are quantiles of N(0, 1), scaled to [-1, 1].
#include <xquant/testing/contract.hpp>
#include <xquant/xquant.hpp>

#include <array>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

namespace xq = xquant;

struct Nf4 {
    static constexpr unsigned bits = 4, group = 64;
    static constexpr bool stores_zero = false;  // x ~ scale * levels[code]
    static constexpr float zero_code = 0;
    static constexpr std::array<float, 16> levels{
        -1.0F,      -0.6961928F, -0.5250731F, -0.3949175F, -0.2844414F, -0.1847734F, -0.0910500F, 0.0F,
        0.0795803F, 0.1609302F,  0.2461123F,  0.3379152F,  0.4407098F,  0.5626170F,  0.7229568F,  1.0F};

    static xq::GroupScale encode(std::span<const float> x, std::span<std::uint8_t> codes) noexcept {
        const float scale = xq::round_to_f16(std::abs(xq::extreme_of(x)));
        for (std::size_t i = 0; i < x.size(); ++i) {
            std::uint8_t best = 0;
            for (std::uint8_t c = 1; c < 16; ++c) {
                if (std::abs(scale * levels[c] - x[i]) < std::abs(scale * levels[best] - x[i])) best = c;
            }
            codes[i] = best;
        }
        return {scale, 0.0F};
    }
};

template <class Quantizer>
double error_of(const std::vector<float>& x, std::size_t n, std::size_t width) {
    const xq::QuantizedRows rows = xq::quantize<Quantizer>(xq::MatrixView(x.data(), n, width));
    std::vector<float> back(x.size());
    xq::dequantize(rows, back.data());
    double sum = 0;
    for (std::size_t i = 0; i < x.size(); ++i) sum += std::pow(static_cast<double>(back[i] - x[i]), 2);
    return std::sqrt(sum / static_cast<double>(x.size()));
}

int main() {
    xq::testing::check_quantizer<Nf4>();  // throws with a sentence where the policy breaks a rule
    std::printf("Nf4 keeps the contract\n");

    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    std::vector<float> x(256 * 512);
    for (float& value : x) value = normal(random);
    std::printf("root mean square error on normal rows, groups of 64: Nf4 %.4f   Quantizer<4, 64> %.4f\n",
                error_of<Nf4>(x, 256, 512), error_of<xq::Quantizer<4, 64>>(x, 256, 512));

    // It drops into a cache like any other.
    using Cache = xq::XCache<Nf4, xq::Layout<xq::PerToken>, xq::CrossLayer<xq::Off>, xq::Projection<xq::KeyValue<>>>;
    const std::vector<float> w(64 * 512, 0.01F);
    xq::Model model =
        xq::Model::uniform(1, {.width = 512, .heads = 1, .kv_heads = 1, .head_dim = 64}, xq::Rope::standard(64));
    model.layers[0].w_k = model.layers[0].w_v = xq::MatrixView(w.data(), 64, 512);
    const Cache cache(model);
    std::printf("in a cache: %.0f bits a token and layer\n", cache.bits_per_token_layer(128));
}
