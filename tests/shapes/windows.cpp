/// Sliding windows: pages that no query can see any more are freed, layer by layer.
#include <xquant/xquant.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

#include "support/catch.hpp"
#include "support/model.hpp"
#include "support/oracle.hpp"

using namespace xquant;

namespace {

constexpr LayerShape shape{.width = 64, .heads = 2, .kv_heads = 1, .head_dim = 32};
using Cache = XCache<Uniform<4, 32>, Layout<PerToken>, CrossLayer<Off>, Projection<Rotated>>;

/// Bytes of codes after `tokens` tokens, fed 50 at a time.
std::size_t coded_bytes(const Model& model, std::size_t tokens, std::size_t& pages) {
    Options options;
    options.recent = 0;
    options.sinks = 4;
    Cache cache(model, options);
    const Sequence sequence = cache.create();
    test::Random random(1);
    for (std::size_t done = 0; done < tokens; done += 50) {
        const std::vector<float> x = random.rows(50 * shape.width), q = random.rows(50 * shape.heads * shape.head_dim);
        std::vector<float> out(q.size());
        auto step = cache.begin({{sequence, 50}});
        for (std::size_t layer = 0; layer < model.layers.size(); ++layer) {
            step.append(layer, MatrixView(x.data(), 50, shape.width));
            step.attend(layer, MatrixView(q.data(), 50, shape.heads * shape.head_dim), out.data());
        }
        step.commit();
    }
    CHECK(cache.size(sequence) == tokens);
    pages = 0;
    cache.for_each_page(sequence,
                        [&](const PageView& page) { pages += purpose_of(page.kind) == Purpose::codes ? 1 : 0; });
    return cache.bytes().codes;
}

}  // namespace

TEST_CASE("pages outside every window are freed, those that a layer still sees are not") {
    test::Setup all(shape, RopePairing::halves, 6), none(shape, RopePairing::halves, 6),
        some(shape, RopePairing::halves, 6);
    for (std::size_t i = 0; i < 6; ++i) {
        all.model.layers[i].window = 200;
        some.model.layers[i].window = i == 5 ? 0 : 200;
    }
    std::size_t all_pages = 0, none_pages = 0, some_pages = 0;
    const std::size_t windowed = coded_bytes(all.model, 2000, all_pages);
    const std::size_t whole = coded_bytes(none.model, 2000, none_pages);
    const std::size_t mixed = coded_bytes(some.model, 2000, some_pages);
    CHECK(none_pages == 16);  // 1,996 tokens behind the sinks
    CHECK(all_pages == 3);    // the last step's first query, at 1,950, sees 1,751 and later: slots 1,664 ..
    CHECK(some_pages == 16 + 3);
    CHECK(windowed == whole * 3 / 16);
    CHECK(mixed == whole / 6 + windowed * 5 / 6);
}

TEST_CASE("windows may be as long as a whole sequence, or shorter than a step") {
    for (const std::size_t window : {std::size_t{1}, std::size_t{30}, std::size_t{5000}}) {
        test::Setup setup(shape, RopePairing::halves, 2);
        for (Layer& layer : setup.model.layers) layer.window = window;
        std::size_t pages = 0;
        coded_bytes(setup.model, 500, pages);
        CHECK(pages == (window == 5000 ? 4 : 1));
    }
}

TEST_CASE("pages of a window are kept to the last token that sees their last row, token by token") {
    // Pages of 128 coded rows and of 32 that are not; each of their last rows is at some step the first that is seen.
    for (const std::size_t recent : {std::size_t{0}, std::size_t{100}}) {
        test::Setup setup({.width = 24, .heads = 2, .kv_heads = 1, .head_dim = 8}, RopePairing::halves);
        setup.model.layers[0].window = 37;
        const Layer& layer = setup.model.layers[0];
        constexpr std::size_t tokens = 300;
        test::Random random(5);
        const std::vector<float> x = random.rows(tokens * 24), q = random.rows(tokens * 16, 2);
        const std::vector<double> exact = test::oracle_attention(layer, x, q);
        XCache<Unquantized<float>, Layout<PerToken>, CrossLayer<Off>, Projection<Rotated>> cache(
            setup.model, {.sinks = 0, .recent = recent, .rows = DType::f32});
        const Sequence sequence = cache.create();
        double worst = 0;
        for (std::size_t t = 0; t < tokens; ++t) {
            std::vector<float> out(16);
            auto step = cache.begin({{sequence, 1}});
            step.append(0, MatrixView(x.data() + t * 24, 1, 24));
            step.attend(0, MatrixView(q.data() + t * 16, 1, 16), out.data());
            step.commit();
            for (std::size_t c = 0; c < 16; ++c) worst = std::max(worst, std::abs(exact[t * 16 + c] - double{out[c]}));
        }
        CHECK(worst < 1e-5);
    }
}
