// A cache written out in the words of papers, used as documentation promises.
#include <xquant/xquant.hpp>

#include <cmath>
#include <memory>
#include <type_traits>
#include <vector>

#include "support/catch.hpp"
#include "support/model.hpp"

namespace {

using Cache =
    xquant::XCache<xquant::Quantizer<4, 128>, xquant::Layout<xquant::PerToken>, xquant::CrossLayer<xquant::Delta>>;

}  // namespace

TEST_CASE("a cache of quantizer, layout and cross-layer rule runs, behind the type of all caches as well") {
    static_assert(std::is_same_v<xquant::Quantizer<4, 128>, xquant::Uniform<4, 128>>);
    constexpr std::size_t layers = 4, tokens = 5, width = 128;
    const xquant::LayerShape shape{.width = width, .heads = 4, .kv_heads = 4, .head_dim = 32};
    test::Random random(1);
    std::vector<std::vector<float>> weights;
    for (std::size_t i = 0; i < 2 * layers; ++i) weights.push_back(random.rows(width * width, 0.1F));
    xquant::Model model = xquant::Model::uniform(layers, shape, xquant::Rope::standard(32));
    for (std::size_t i = 0; i < layers; ++i) {
        model.layers[i].w_k = xquant::MatrixView(weights[2 * i].data(), width, width);
        model.layers[i].w_v = xquant::MatrixView(weights[2 * i + 1].data(), width, width);
    }
    const std::vector<float> x = random.rows(tokens * width), q = random.rows(tokens * width);
    const auto run = [&](auto& cache) {
        const xquant::Sequence sequence = cache.create();
        std::vector<float> out(layers * tokens * width);
        auto step = cache.begin({{sequence, tokens}});
        for (std::size_t i = 0; i < layers; ++i) {
            step.append(i, xquant::MatrixView(x.data(), tokens, width));
            step.attend(i, xquant::MatrixView(q.data(), tokens, width), out.data() + i * tokens * width);
        }
        step.commit();
        CHECK(cache.size(sequence) == tokens);
        return out;
    };

    Cache cache(model, {.sinks = 1, .recent = 0});
    const std::unique_ptr<xquant::Cache<>> any =
        std::make_unique<Cache>(model, xquant::Options{.sinks = 1, .recent = 0});
    const std::vector<float> out = run(cache);
    CHECK(run(*any) == out);
    CHECK(any->bytes().stored() == cache.bytes().stored());
    for (const float value : out) REQUIRE(std::isfinite(value));
}
