// A quantizer of your own: FP4, codes that are tiny floating-point numbers. It is a dozen lines, is checked by the
// shipped contract test, and runs on every kernel of the library.
//
// Source  OCP Microscaling Formats 1.0, E2M1: sign, two bits of exponent, one of mantissa.
#include <xquant/testing/contract.hpp>
#include <xquant/xquant.hpp>

#include <array>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

namespace xq = xquant;

struct Fp4 {
    static constexpr unsigned bits = 4, group = 32;
    static constexpr bool stores_zero = false;  // x ~ scale * levels[code]
    static constexpr float zero_code = 0;
    static constexpr std::array<float, 16> levels{0.0F,  0.5F,  1.0F,  1.5F,  2.0F,  3.0F,  4.0F,  6.0F,
                                                  -0.0F, -0.5F, -1.0F, -1.5F, -2.0F, -3.0F, -4.0F, -6.0F};

    static xq::GroupScale encode(std::span<const float> x, std::span<std::uint8_t> codes) noexcept {
        const float scale = xq::round_to_f16(std::abs(xq::extreme_of(x)) / 6.0F);
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
    xq::testing::check_quantizer<Fp4>();  // throws with a sentence where the policy breaks a rule
    std::printf("Fp4 keeps the contract\n");

    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    std::vector<float> x(256 * 512);
    for (float& value : x) value = normal(random);
    std::printf("root mean square error on normal rows, groups of 32: Fp4 %.4f   Nf4 %.4f   Uniform<4> %.4f\n",
                error_of<Fp4>(x, 256, 512), error_of<xq::Nf4<32>>(x, 256, 512),
                error_of<xq::Uniform<4, 32>>(x, 256, 512));

    // It drops into a cache like any other.
    using Cache = xq::XCache<Fp4, xq::Layout<xq::PerToken>, xq::CrossLayer<xq::Off>, xq::Projection<xq::KeyValue<>>>;
    const std::vector<float> w(64 * 512, 0.01F);
    xq::Model model =
        xq::Model::uniform(1, {.width = 512, .heads = 1, .kv_heads = 1, .head_dim = 64}, xq::Rope::standard(64));
    model.layers[0].w_k = model.layers[0].w_v = xq::MatrixView(w.data(), 64, 512);
    const Cache cache(model);
    std::printf("in a cache: %.0f bits a token and layer\n", cache.bits_per_token_layer(128));
}
