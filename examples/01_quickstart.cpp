// A cache for one attention layer: 1,060 tokens in, attention out, and what it took.
#include <xquant/xquant.hpp>

#include <cstdio>
#include <random>
#include <vector>

int main() {
    namespace xq = xquant;
    using Cache = xq::XCache<xq::Uniform<4, 128>, xq::Layout<xq::PerToken>>;  // X rotated, 4 bits, per token

    const xq::LayerShape shape{.width = 512, .heads = 8, .kv_heads = 8, .head_dim = 64};
    const std::size_t n = 1060;
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    const auto matrix = [&](std::size_t size, float scale) {
        std::vector<float> values(size);
        for (float& value : values) value = scale * normal(random);
        return values;
    };
    const std::vector<float> w_k = matrix(512 * 512, 0.04F), w_v = matrix(512 * 512, 0.04F);  // [Hkv * Dh, D]
    const std::vector<float> x = matrix(n * 512, 1.0F),
                             q = matrix(n * 512, 1.0F);  // inputs after the norm, queries after RoPE
    std::vector<float> out(n * 512);

    xq::Model model = xq::Model::uniform(1, shape, xq::Rope::standard(64));
    model.layers[0].w_k = xq::MatrixView(w_k.data(), 512, 512);
    model.layers[0].w_v = xq::MatrixView(w_v.data(), 512, 512);

    Cache cache(model, {.sinks = 4, .recent = 32});
    const xq::Sequence sequence = cache.create();
    auto step = cache.begin({{sequence, n}});
    step.append(0, xq::MatrixView(x.data(), n, 512));
    step.attend(0, xq::MatrixView(q.data(), n, 512), out.data());
    step.commit();

    const xq::Bytes bytes = cache.bytes();
    std::printf("%zu tokens in %zu bytes; K and V in f16 take %zu\n", cache.size(sequence), bytes.stored(), n * 2048);
    std::printf("codes %zu  scales %zu  sinks %zu  tail %zu  index %zu\n", bytes.codes, bytes.scales, bytes.sinks,
                bytes.tail, bytes.index);
    std::printf("4-bit rows: %.0f bits a token and layer\n", cache.bits_per_token_layer(1024));
}
