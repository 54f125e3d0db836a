/// Sliding windows: pages that no query can see any more are freed, layer by layer.
#include <xquant/xquant.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
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

void make_cache_of(const Model& model) { const Cache cache(model); }

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

TEST_CASE("chunks free pages as a window of as many tokens does, and share pages with such a window") {
    test::Setup chunks(shape, RopePairing::halves, 6), windows(shape, RopePairing::halves, 6),
        both(shape, RopePairing::halves, 6);
    for (std::size_t i = 0; i < 6; ++i) {
        chunks.model.layers[i].chunk = 200;
        windows.model.layers[i].window = 200;
        if (i < 3) both.model.layers[i].chunk = 200;
        if (i >= 3) both.model.layers[i].window = 200;
    }
    std::size_t chunk_pages = 0, window_pages = 0, both_pages = 0;
    const std::size_t bytes = coded_bytes(windows.model, 2000, window_pages);
    CHECK(coded_bytes(chunks.model, 2000, chunk_pages) == bytes);
    CHECK(coded_bytes(both.model, 2000, both_pages) == bytes);
    CHECK(window_pages == 3);
    CHECK(chunk_pages == 3);
    CHECK(both_pages == 3);
}

TEST_CASE("a layer has a window or chunks, and neither is longer than 2^48") {
    const auto said = [](std::size_t window, std::size_t chunk) -> std::string {
        test::Setup setup(shape, RopePairing::halves);
        setup.model.layers[0].window = window;
        setup.model.layers[0].chunk = chunk;
        try {
            make_cache_of(setup.model);
        } catch (const shape_error& wrong) {
            return wrong.what();
        }
        return "served";
    };
    constexpr std::size_t most = std::size_t{1} << 48U;
    CHECK(said(0, most) == "served");
    CHECK(said(0, most + 1) ==
          "xquant: layer 0: chunk is 281474976710657; expected 2^48 or less, or 0, which means that there "
          "are no chunks");
    CHECK(said(20, 30) == "xquant: layer 0: window is 20 and chunk is 30; at most one of them may be set");
}

TEST_CASE("chunks are counted from position 0 on, for tokens that were shifted below it, too") {
    test::Setup setup({.width = 24, .heads = 2, .kv_heads = 1, .head_dim = 8}, RopePairing::halves, 1, 0);
    setup.model.layers[0].chunk = 8;
    constexpr std::size_t tokens = 30;
    test::Random random(5);
    const std::vector<float> x = random.rows(tokens * 24), q = random.rows(tokens * 16, 2);
    for (const std::int64_t begins : {-12, -8, -3, 5}) {
        XCache<Unquantized<float>, Layout<PerToken>, CrossLayer<Off>, Projection<Rotated>> cache(
            setup.model, {.sinks = 0, .recent = 0, .rows = DType::f32, .weights = WeightType::f32});
        const Sequence sequence = cache.create();
        cache.shift(sequence, 0, begins);
        double worst = 0;
        std::size_t first = 0;  // token of the chunk that is being filled
        for (std::size_t t = 0; t < tokens; ++t) {
            const std::int64_t position = begins + static_cast<std::int64_t>(t);
            if ((position + 800) % 8 == 0) first = t;
            std::vector<float> out(16);
            auto step = cache.begin({{sequence, 1}});
            step.append(0, MatrixView(x.data() + t * 24, 1, 24));
            step.attend(0, MatrixView(q.data() + t * 16, 1, 16), out.data());
            step.commit();
            // Without RoPE a token's answer depends on the tokens of its chunk alone.
            Layer alone = setup.model.layers[0];
            alone.chunk = 0;
            const std::vector<float> seen(x.begin() + static_cast<std::ptrdiff_t>(first * 24),
                                          x.begin() + static_cast<std::ptrdiff_t>((t + 1) * 24));
            const std::vector<float> asks(q.begin() + static_cast<std::ptrdiff_t>(first * 16),
                                          q.begin() + static_cast<std::ptrdiff_t>((t + 1) * 16));
            const std::vector<double> exact = test::oracle_attention(alone, seen, asks, t - first);
            for (std::size_t c = 0; c < 16; ++c) {
                worst = std::max(worst, test::distance_to(exact[(t - first) * 16 + c], out[c]));
            }
        }
        INFO("begins at " << begins);
        CHECK(worst < 1e-5);
    }
}

TEST_CASE("pages of a window or a chunk are kept to the last token that sees their last row, token by token") {
    // Pages of 128 coded rows and of 32 that are not; each of their last rows is at some step the first that is seen.
    for (const std::size_t recent : {std::size_t{0}, std::size_t{100}, std::size_t{1}, std::size_t{101}}) {
        test::Setup setup({.width = 24, .heads = 2, .kv_heads = 1, .head_dim = 8}, RopePairing::halves);
        const bool chunks = recent % 2 == 1;
        (chunks ? setup.model.layers[0].chunk : setup.model.layers[0].window) = 37;
        const Layer& layer = setup.model.layers[0];
        constexpr std::size_t tokens = 300;
        test::Random random(5);
        const std::vector<float> x = random.rows(tokens * 24), q = random.rows(tokens * 16, 2);
        const std::vector<double> exact = test::oracle_attention(layer, x, q);
        XCache<Unquantized<float>, Layout<PerToken>, CrossLayer<Off>, Projection<Rotated>> cache(
            setup.model, {.sinks = 0, .recent = recent, .rows = DType::f32, .weights = WeightType::f32});
        const Sequence sequence = cache.create();
        double worst = 0;
        for (std::size_t t = 0; t < tokens; ++t) {
            std::vector<float> out(16);
            auto step = cache.begin({{sequence, 1}});
            step.append(0, MatrixView(x.data() + t * 24, 1, 24));
            step.attend(0, MatrixView(q.data() + t * 16, 1, 16), out.data());
            step.commit();
            for (std::size_t c = 0; c < 16; ++c) worst = std::max(worst, test::distance_to(exact[t * 16 + c], out[c]));
        }
        CHECK(worst < 1e-5);
    }
}
