/// Layers whose engine hands over K and V in place of X.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <xquant/registry_svd.hpp>
#include <xquant/xquant.hpp>

#include "support/catch.hpp"
#include "support/complaint.hpp"
#include "support/feed.hpp"
#include "support/model.hpp"
#include "support/oracle.hpp"

using namespace xquant;
using test::complaint;
using test::contains;

namespace {

constexpr std::size_t tokens = 300;

/// Two layers, with all that stands between X and K; the second has no norm of keys.
struct Engine {
    explicit Engine(std::size_t head_dim = 16)
        : setup({.width = 96, .heads = 4, .kv_heads = 2, .head_dim = head_dim}, RopePairing::halves, 2,
                head_dim / 2 - 2),
          b_k(test::Random(5).rows(2 * head_dim)),
          b_v(test::Random(6).rows(2 * head_dim)),
          norm(test::Random(7).rows(head_dim)) {
        for (float& gain : norm) gain += 1.5F;
        for (Layer& layer : model().layers) {
            layer.b_k = b_k.data();
            layer.b_v = b_v.data();
        }
        model().layers[0].k_norm = norm.data();
        model().layers[0].window = 150;
    }
    Model& model() { return setup.model; }

    /// The model of an engine that hands over K and V: without weights, where the scheme needs none.
    [[nodiscard]] Model given(LayerInput input, bool with_weights) const {
        Model out = setup.model;
        for (Layer& layer : out.layers) {
            layer.input = input;
            layer.w_v = {};
            if (with_weights) continue;
            layer.w_k = {};
            layer.shape.width = 0;
            layer.b_k = layer.b_v = layer.k_norm = nullptr;
        }
        return out;
    }

    /// K and V of X, as an engine computes them.
    [[nodiscard]] std::pair<std::vector<float>, std::vector<float>> rows(std::size_t layer, const std::vector<float>& x,
                                                                         LayerInput input) const {
        Layer of = setup.model.layers[layer];
        if (input == LayerInput::keys_before_rope) of.rope = {};
        const std::vector<double> k = test::oracle_rows(of, x, true), v = test::oracle_rows(of, x, false);
        return {{k.begin(), k.end()}, {v.begin(), v.end()}};
    }

    test::Setup setup;
    std::vector<float> b_k, b_v, norm;
};

/// Attention of a sequence that is fed in steps, and what it stores.
struct Answers {
    std::vector<std::vector<float>> out;  ///< [layers][tokens, H * Dh]
    std::vector<std::vector<std::byte>> pages;
};

Answers answers_of(Cache<>& cache, const Engine& engine, LayerInput input) {
    Answers answers;
    answers.out.resize(2);
    const Sequence s = cache.create();
    std::size_t first = 0;
    for (const std::size_t n : {std::size_t{1}, std::size_t{170}, std::size_t{1}, std::size_t{128}}) {
        auto step = cache.begin({{s, n}});
        for (std::size_t layer = 0; layer < 2; ++layer) {
            const Layer& of = engine.setup.model.layers[layer];
            // All rows up to here, since the oracle counts positions from 0 on.
            const test::Rows rows = test::rows_of(of, layer, 1, 0, first + n);
            const std::size_t r = of.shape.kv_width(), d = of.shape.width, width = of.shape.heads * of.shape.head_dim;
            if (input == LayerInput::x) {
                step.append(layer, MatrixView(rows.x.data() + first * d, n, d));
            } else {
                const auto [k, v] = engine.rows(layer, rows.x, input);
                step.append_kv(layer, MatrixView(k.data() + first * r, n, r), MatrixView(v.data() + first * r, n, r));
            }
            std::vector<float> out(n * width);
            step.attend(layer, MatrixView(rows.q.data() + first * width, n, width), out.data());
            answers.out[layer].insert(answers.out[layer].end(), out.begin(), out.end());
        }
        step.commit();
        first += n;
    }
    REQUIRE(first == tokens);
    cache.for_each_page(s, [&](const PageView& page) {
        if (page.kind == PageKind::coded) answers.pages.emplace_back(page.bytes.begin(), page.bytes.end());
    });
    return answers;
}

struct Case {
    const char* name;
    LayerInput input;
    bool needs_weights = false;
};
constexpr Case cases[] = {
    {"f16", LayerInput::keys_before_rope},
    {"f16", LayerInput::keys_after_rope},
    {"kv8", LayerInput::keys_before_rope},
    {"kv8", LayerInput::keys_after_rope},
    {"kv4", LayerInput::keys_before_rope},
    {"kv4", LayerInput::keys_after_rope},
    {"q8_0", LayerInput::keys_after_rope},
    {"q4_0", LayerInput::keys_after_rope},
    {"nf4", LayerInput::keys_after_rope},
    {"q4_0_hadamard", LayerInput::keys_after_rope},
    {"kivi4", LayerInput::keys_before_rope},
    {"kivi2:group=32", LayerInput::keys_before_rope},
    {"svd_head4", LayerInput::keys_before_rope, true},
    {"svd_head2", LayerInput::keys_before_rope, true},
};

}  // namespace

TEST_CASE("K and V that an engine hands over are stored like those that X gives") {
    Engine engine;
    for (const Case& of : cases) {
        INFO(of.name << (of.input == LayerInput::keys_after_rope ? ", keys after RoPE" : ", keys before RoPE"));
        const Model given = engine.given(of.input, of.needs_weights);
        const Options options{.recent = 32, .weights = WeightType::f32};
        const auto from_x = make_cache(of.name, engine.model(), options);
        const auto from_kv = make_cache(of.name, given, options);
        const Answers a = answers_of(*from_x, engine, LayerInput::x), b = answers_of(*from_kv, engine, of.input);
        // What a code of rounding does: one product may round the other way, and take a code with it.
        double worst = 0, largest = 0, square = 0;
        for (std::size_t layer = 0; layer < 2; ++layer) {
            REQUIRE(a.out[layer].size() == b.out[layer].size());
            for (std::size_t i = 0; i < a.out[layer].size(); ++i) {
                const double difference = double{a.out[layer][i]} - double{b.out[layer][i]};
                worst = std::max(worst, std::isfinite(difference) ? std::abs(difference) : 1e9);
                largest = std::max(largest, std::abs(double{a.out[layer][i]}));
                square += difference * difference;
            }
        }
        CHECK(largest > 0.5);
        CHECK(worst < 0.02);
        CHECK(std::sqrt(square / static_cast<double>(2 * a.out[0].size())) < 4e-4);
        REQUIRE(a.pages.size() == b.pages.size());
        REQUIRE(a.pages.size() >= 2);
        std::size_t bytes = 0, others = 0;
        for (std::size_t page = 0; page < a.pages.size(); ++page) {
            REQUIRE(a.pages[page].size() == b.pages[page].size());
            for (std::size_t i = 0; i < a.pages[page].size(); ++i)
                others += a.pages[page][i] != b.pages[page][i] ? 1 : 0;
            bytes += a.pages[page].size();
        }
        CHECK(others * 100 < bytes);
        // Nothing of D channels is kept, and predict knows.
        CHECK(from_kv->bytes().weights < from_x->bytes().weights / 2);
        CHECK(from_kv->bytes().weights == predict(of.name, given, options, tokens).weights);
        CHECK(from_x->bytes().weights == predict(of.name, engine.model(), options, tokens).weights);
    }
}

TEST_CASE("exact rows of K and V give the attention of their formulas, whatever X would have been") {
    Engine engine;
    const std::size_t r = 32, width = 64;
    using Exact = XCache<Unquantized<float>, Layout<PerToken>, CrossLayer<Off>, Projection<KeyValue<AfterRope>>>;
    using Latents = XCache<Unquantized<float>, Layout<PerToken>, CrossLayer<Off>, Projection<HeadSvd>>;
    const auto check = [&](auto&& cache, std::size_t layer, double tolerance) {
        const Layer& of = engine.model().layers[layer];
        const test::Rows rows = test::rows_of(of, layer, 3, 0, 40);
        const auto [k, v] = engine.rows(layer, rows.x, LayerInput::keys_before_rope);
        const std::vector<double> expected = test::oracle_attention(of, rows.x, rows.q);
        const Sequence s = cache.create();
        auto step = cache.begin({{s, 40}});
        std::vector<float> out(40 * width);
        // As f16 and as rows that lie apart, too.
        std::vector<float> apart(40 * 50, std::numeric_limits<float>::quiet_NaN());
        for (std::size_t i = 0; i < 40; ++i) std::copy_n(k.data() + i * r, r, apart.data() + i * 50);
        step.append_kv(0, MatrixView(apart.data(), 40, r, 50), MatrixView(v.data(), 40, r));
        step.attend(0, MatrixView(rows.q.data(), 40, width), out.data());
        step.commit();
        double worst = 0;
        for (std::size_t i = 0; i < out.size(); ++i) worst = std::max(worst, test::distance_to(expected[i], out[i]));
        CHECK(worst < tolerance);
    };
    for (const std::size_t layer : {0U, 1U}) {
        Model one;
        one.layers = {engine.given(LayerInput::keys_before_rope, true).layers[layer]};
        const Options options{.rows = DType::f32, .weights = WeightType::f32};
        check(Exact(one, options), layer, 2e-5);
        check(Latents(one, options), layer, 2e-4);
    }
}

TEST_CASE("keys that were handed over after RoPE move exactly") {
    Engine engine;
    const Model given = engine.given(LayerInput::keys_after_rope, false);
    const auto moved = make_cache("f16", given, {.rows = DType::f32}),
               fresh = make_cache("f16", given, {.rows = DType::f32});
    const Layer& of = engine.model().layers[1];
    const std::size_t r = 32, width = 64;
    // Layer 1 serves for both layers. Tokens 10 to 30 are erased in one cache, and never were in the other.
    const test::Rows all = test::rows_of(of, 1, 4, 0, 60);
    const auto feed = [&](Cache<>& cache, Sequence s, const std::vector<float>& x, std::size_t first, std::size_t n) {
        const auto [k, v] = engine.rows(1, x, LayerInput::keys_after_rope);
        std::vector<float> out(n * width);
        auto step = cache.begin({{s, n}});
        for (std::size_t layer = 0; layer < 2; ++layer) {
            step.append_kv(layer, MatrixView(k.data() + first * r, n, r), MatrixView(v.data() + first * r, n, r));
            step.attend(layer, MatrixView(all.q.data(), n, width), out.data());
        }
        step.commit();
        return out;
    };
    const std::size_t d = of.shape.width;
    std::vector<float> kept(all.x.begin(), all.x.begin() + 10 * d);
    kept.insert(kept.end(), all.x.begin() + 30 * d, all.x.end());
    const Sequence a = moved->create(), b = fresh->create();
    feed(*moved, a, all.x, 0, 59);
    moved->erase(a, 10, 30);
    feed(*fresh, b, kept, 0, 39);
    const std::vector<float> x = feed(*moved, a, kept, 39, 1), y = feed(*fresh, b, kept, 39, 1);
    double worst = 0, largest = 0;
    for (std::size_t i = 0; i < width; ++i) {
        worst = std::max(worst, test::distance_to(double{x[i]}, y[i]));
        largest = std::max(largest, std::abs(double{y[i]}));
    }
    CHECK(largest > 0.1);
    CHECK(worst < 1e-5);
}

TEST_CASE("keys in place answer like keys after RoPE, and tokens cannot move") {
    Engine engine;
    Model given = engine.given(LayerInput::keys_in_place, false);
    CHECK(contains(complaint<shape_error>([&] { static_cast<void>(make_cache("f16", given)); }),
                   "layer 0: rope has 6 pairs, and input is keys_in_place"));
    for (Layer& layer : given.layers) layer.rope = {};
    const auto placed = make_cache("kv4", given, {.recent = 32}),
               turned = make_cache("kv4", engine.given(LayerInput::keys_after_rope, false), {.recent = 32});
    const Answers a = answers_of(*placed, engine, LayerInput::keys_after_rope),
                  b = answers_of(*turned, engine, LayerInput::keys_after_rope);
    CHECK(a.out == b.out);
    CHECK(a.pages == b.pages);

    const Sequence s = placed->create();
    const std::vector<float> row(20 * 32, 0.5F);
    {
        auto step = placed->begin({{s, 20}});
        for (std::size_t layer = 0; layer < 2; ++layer) {
            step.append_kv(layer, MatrixView(row.data(), 20, 32), MatrixView(row.data(), 20, 32));
        }
        step.commit();
    }
    const Bytes before = placed->bytes();
    CHECK(
        contains(complaint<state_error>([&] { placed->erase(s, 3, 5); }), "tokens 5 .. 20 would move by -2 positions"));
    CHECK(
        contains(complaint<state_error>([&] { placed->shift(s, 5, 2); }), "tokens 5 .. 20 would move by 2 positions"));
    CHECK(placed->bytes() == before);
    CHECK(placed->size(s) == 20);
    CHECK_NOTHROW(placed->erase(s, 18, 20));
    CHECK_NOTHROW(placed->erase(s, 3, 5, Gap::keep));
    CHECK_NOTHROW(placed->shift(s, 16, 4));  // the next token alone
    CHECK(placed->next_position(s) == 22);
    CHECK(placed->position_of(s, 3) == 5);
    for (const char* name : {"kivi4", "svd_head4"}) {
        CHECK(contains(complaint<shape_error>([&] {
                           Model with_weights = engine.given(LayerInput::keys_in_place, true);
                           for (Layer& layer : with_weights.layers) layer.rope = {};
                           static_cast<void>(make_cache(name, with_weights));
                       }),
                       "hand over K before RoPE"));
    }
}

TEST_CASE("each kind of rows has its own call, and a scheme says what it takes") {
    Engine engine;
    const Model before = engine.given(LayerInput::keys_before_rope, false);
    const auto from_x = make_cache("kv4", engine.model()), from_kv = make_cache("kv4", before);
    const std::vector<float> x(96, 0.5F), k(32, 0.5F);
    const MatrixView xs(x.data(), 1, 96), ks(k.data(), 1, 32);
    {
        const Sequence s = from_x->create();
        auto step = from_x->begin({{s, 1}});
        CHECK(contains(complaint<state_error>([&] { step.append_kv(0, ks, ks); }), "layer 0 takes X"));
        CHECK_NOTHROW(step.append(0, xs));
    }
    {
        const Sequence s = from_kv->create();
        auto step = from_kv->begin({{s, 1}});
        CHECK(contains(complaint<state_error>([&] { step.append(0, xs); }), "layer 0 takes K and V"));
        CHECK(contains(complaint<shape_error>([&] { step.append_kv(0, xs, ks); }),
                       "k is [1, 96]; expected [tokens of the step, kv_heads * head_dim] = [1, 32]"));
        CHECK(contains(complaint<shape_error>([&] { step.append_kv(0, ks, xs); }), "v is [1, 96]"));
        CHECK(contains(complaint<state_error>([&] { step.append_kv(1, ks, ks); }),
                       "append_kv: layer 1, but layers come"));
        std::vector<float> bad = k;
        bad[7] = std::numeric_limits<float>::infinity();
        const std::string said = complaint<value_error>([&] { step.append_kv(0, ks, MatrixView(bad.data(), 1, 32)); });
        CHECK(contains(said, "append_kv, layer 0: row 0"));
        CHECK_NOTHROW(step.append_kv(0, ks, ks));
        CHECK_NOTHROW(step.append_kv(1, ks, ks));
        CHECK_NOTHROW(step.commit());
    }
    Model four = engine.given(LayerInput::keys_before_rope, true);  // cross-layer caches have more than two layers
    four.layers.insert(four.layers.end(), 2, Layer(four.layers.back()));
    for (const char* name : {"x4", "x4_rot", "cl_x4", "cl_svd4", "svd_joint4"}) {
        CHECK(contains(complaint<shape_error>([&] { static_cast<void>(make_cache(name, four)); }), "hand over X"));
        CHECK(contains(complaint<shape_error>([&] { static_cast<void>(predict(name, four, {}, 10)); }), "hand over X"));
    }
    CHECK(contains(complaint<shape_error>([&] {
                       static_cast<void>(make_cache("kivi4", engine.given(LayerInput::keys_after_rope, false)));
                   }),
                   "hand over K before RoPE"));
    CHECK(contains(complaint<shape_error>([&] {
                       static_cast<void>(make_cache("svd_head4", engine.given(LayerInput::keys_after_rope, true)));
                   }),
                   "hand over K before RoPE"));
    CHECK(contains(complaint<shape_error>([&] { static_cast<void>(make_cache("svd_head4", before)); }),
                   "Layer::w_k, which is empty"));
    using Cut = XCache<Uniform<4>, Layout<PerChannel, PerToken>, CrossLayer<Off>, Projection<HeadSvdOf<Rank<9>>>>;
    CHECK(contains(complaint<shape_error>([&] { Cut(engine.given(LayerInput::keys_before_rope, true)); }),
                   "keeps 9 of 16 directions and stores keys before k_norm"));
    Model odd = before;
    odd.layers[1].input = static_cast<LayerInput>(9);
    CHECK(contains(complaint<shape_error>([&] { static_cast<void>(make_cache("kv4", odd)); }), "layer 1: input is 9"));
    Model wrong = before;
    wrong.layers[0].w_k = xs;
    CHECK(contains(complaint<shape_error>([&] { static_cast<void>(make_cache("kv4", wrong)); }), "w_k is [1, 96]"));
}

TEST_CASE("levels are learnt from rows of K beside V") {
    Engine engine;
    const std::vector<float> x = test::Random(8).rows(256 * 96);
    Model from_x = engine.model();
    Model given = engine.given(LayerInput::keys_before_rope, false);
    std::vector<std::vector<float>> beside;
    for (std::size_t layer = 0; layer < 2; ++layer) {
        from_x.layers[layer].calibration = MatrixView(x.data(), 256, 96);
        const auto [k, v] = engine.rows(layer, x, LayerInput::keys_before_rope);
        beside.emplace_back();
        for (std::size_t i = 0; i < 256; ++i) {
            beside.back().insert(beside.back().end(), k.begin() + static_cast<std::ptrdiff_t>(i * 32),
                                 k.begin() + static_cast<std::ptrdiff_t>(i * 32 + 32));
            beside.back().insert(beside.back().end(), v.begin() + static_cast<std::ptrdiff_t>(i * 32),
                                 v.begin() + static_cast<std::ptrdiff_t>(i * 32 + 32));
        }
        given.layers[layer].calibration = MatrixView(beside.back().data(), 256, 64);
    }
    const auto a = make_cache("kvquant4", from_x), b = make_cache("kvquant4", given);
    const Answers u = answers_of(*a, engine, LayerInput::x), w = answers_of(*b, engine, LayerInput::keys_before_rope);
    double worst = 0;
    for (std::size_t layer = 0; layer < 2; ++layer) {
        for (std::size_t i = 0; i < u.out[layer].size(); ++i) {
            worst = std::max(worst, test::distance_to(double{u.out[layer][i]}, w.out[layer][i]));
        }
    }
    CHECK(worst < 0.02);
    given.layers[0].calibration = MatrixView(x.data(), 256, 96);
    CHECK(contains(complaint<shape_error>([&] { static_cast<void>(make_cache("kvquant4", given)); }),
                   "calibration is [256, 96]; expected [one or more rows, 2 * kv_heads * head_dim]"));
}
