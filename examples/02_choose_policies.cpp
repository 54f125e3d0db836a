// The same layer under different policies: what each takes, and how far its attention is from the exact one.
//
// The rows are made like those of real models: a few channels are large for every token.
#include <xquant/projection/svd.hpp>
#include <xquant/xquant.hpp>

#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

namespace xq = xquant;

namespace {

constexpr std::size_t d = 256, heads = 8, kv_heads = 2, dh = 32,
                      n = 512;  // GQA: X is twice as wide as K and V together

struct Data {
    std::vector<float> w_k, w_v, x, q;
    xq::Model model;

    Data() : model(xq::Model::uniform(1, {d, heads, kv_heads, dh}, xq::Rope::standard(dh))) {
        std::mt19937 random(7);
        std::normal_distribution<float> normal;
        const auto fill = [&](std::vector<float>& values, std::size_t size, float scale) {
            values.resize(size);
            for (float& value : values) value = scale * normal(random);
        };
        fill(w_k, kv_heads * dh * d, 0.06F);
        fill(w_v, kv_heads * dh * d, 0.06F);
        fill(x, n * d, 1.0F);
        fill(q, n * heads * dh, 1.0F);
        for (std::size_t t = 0; t < n; ++t) {
            for (const std::size_t c : {3U, 90U, 200U}) x[t * d + c] += 12.0F;
        }
        model.layers[0].w_k = xq::MatrixView(w_k.data(), kv_heads * dh, d);
        model.layers[0].w_v = xq::MatrixView(w_v.data(), kv_heads * dh, d);
    }
};

/// Attention of all rows in one step, every row but the sinks read from codes.
template <class Cache>
std::vector<float> attend(const Data& data, double& bits) {
    Cache cache(data.model, {.sinks = 4, .recent = 0, .strict = true});
    auto step = cache.begin({{cache.create(), n}});
    std::vector<float> out(n * heads * dh);
    step.append(0, xq::MatrixView(data.x.data(), n, d));
    step.attend(0, xq::MatrixView(data.q.data(), n, heads * dh), out.data());
    bits = cache.bits_per_token_layer(n - 4);
    return out;
}

template <class Cache>
void show(const char* name, const Data& data, const std::vector<float>& exact) {
    double bits = 0, difference = 0, size = 0;
    const std::vector<float> out = attend<Cache>(data, bits);
    for (std::size_t i = 0; i < out.size(); ++i) {
        difference += std::pow(static_cast<double>(out[i] - exact[i]), 2);
        size += std::pow(static_cast<double>(exact[i]), 2);
    }
    std::printf("%-44s %6.0f bits   error %6.2f %%\n", name, bits, 100 * std::sqrt(difference / size));
}

}  // namespace

int main() {
    using namespace xq;
    const Data data;
    double bits = 0;
    const auto exact =
        attend<XCache<Unquantized<float>, Layout<PerToken>, CrossLayer<Off>, Projection<Plain>>>(data, bits);
    std::printf("%-44s %6.0f bits\n", "exact, X in f32", bits);

    show<preset::f16_kv>("K and V in f16", data, exact);
    show<preset::plain_x<4>>("X, 4 bits per token", data, exact);
    show<preset::rotated_x<4>>("X rotated, 4 bits per token", data, exact);
    show<preset::kivi<4>>("K per channel, V per token, 4 bits", data, exact);
    show<preset::q4_0>("K and V, ggml q4_0", data, exact);
    show<preset::split_svd<4>>("latents of W_k and W_v, 4 bits", data, exact);
    show<preset::head_svd<4>>("a latent for each key head, V rotated, 4 bits", data, exact);
    show<XCache<Uniform<4, 32>, Layout<PerChannel, PerToken>, CrossLayer<Off>, Projection<HeadSvd>>>(
        "  the same in groups of 32", data, exact);
    show<XCache<PerStream<Uniform<5>, Uniform<3>>, Layout<PerChannel, PerToken>, CrossLayer<Off>, Projection<HeadSvd>>>(
        "  keys in 5 bits, values in 3", data, exact);
    show<XCache<Uniform<2, 32, MinMse>, Layout<PerChannel, PerToken>, CrossLayer<Off>, Projection<HeadSvd>>>(
        "  2 bits, groups of 32, scales by least error", data, exact);
}
