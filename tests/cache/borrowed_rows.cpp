/// Layer::rows_of: layers that read rows which another layer stores.
#include <algorithm>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/complaint.hpp"
#include "support/feed.hpp"
#include "support/memory.hpp"
#include "support/model.hpp"
#include "support/statistics.hpp"
#include "support/tolerance.hpp"

using namespace xquant;
using test::complaint;
using test::contains;
using test::Feed;
using test::Scheme;

namespace {

constexpr std::size_t d = 24, heads = 32;  // of small_model

/// The layer whose rows each layer reads.
constexpr std::size_t source[] = {0, 0, 2, 0, 2};

/// Five layers that read these, by other rules. Their own means are others.
test::Setup borrowing_model() {
    test::Setup setup({.width = d, .heads = 4, .kv_heads = 1, .head_dim = 8}, RopePairing::interleaved, 5);
    setup.add_mean();
    for (std::size_t i = 0; i < 5; ++i) {
        if (source[i] != i) setup.model.layers[i].rows_of = source[i];
    }
    setup.model.layers[1].soft_cap = 2;
    setup.model.layers[3].rope.inverse_frequencies.resize(2);
    return setup;
}

/// The same attention of layers that all store what they read.
Model without_borrowing(Model model) {
    for (Layer& layer : model.layers) {
        if (layer.borrows()) layer.mean = model.layers[layer.rows_of].mean;
        layer.rows_of = Layer::itself;
    }
    return model;
}

std::vector<const Scheme*> schemes_of_x() {
    std::vector<const Scheme*> out;
    // Not those that feed errors back: rows are rounded for the weights of the layer that stores them.
    for (const char* name : {"f32 x", "f32 x, rotated", "x 4", "x rotated 4, requantizable to 2", "x per channel 6",
                             "x clipped 2", "x in blocks of 4 tokens"}) {
        out.push_back(&test::scheme(name));
    }
    return out;
}

/// Tokens of a sequence, all layers; behind the last layer, those that borrow once more, as they are stored.
test::Outputs run(test::Cache& cache, const Model& model, const Feed& feed, std::size_t n) {
    auto step = cache.begin({{feed.sequence, n}});
    test::Outputs out;
    const auto attend = [&](std::size_t layer) {
        const test::Rows rows = test::rows_of(model.layers[layer], layer, feed.seed, feed.tokens, n);
        out.emplace_back(n * heads);
        step.attend(layer, MatrixView(rows.q.data(), n, heads), out.back().data());
    };
    for (std::size_t layer = 0; layer < model.layers.size(); ++layer) {
        const std::size_t from = source[layer];
        const test::Rows rows = test::rows_of(model.layers[from], from, feed.seed, feed.tokens, n);
        if (!model.layers[layer].borrows()) step.append(layer, MatrixView(rows.x.data(), n, d));
        attend(layer);
        if (layer == 1 && model.layers[3].borrows()) attend(3);  // layer 2 takes the step's rows from layer 0
    }
    attend(1);
    attend(0);
    step.commit();
    return out;
}

/// Attention without a step, all layers.
test::Outputs ask(test::Cache& cache, const Model& model, Sequence sequence, std::size_t n) {
    test::Outputs out;
    for (std::size_t layer = 0; layer < model.layers.size(); ++layer) {
        const test::Rows rows = test::rows_of(model.layers[layer], layer, 9, 0, n);
        out.emplace_back(n * heads);
        cache.attend(layer, {{sequence, n}}, MatrixView(rows.q.data(), n, heads), out.back().data());
    }
    return out;
}

}  // namespace

TEST_CASE("a layer that reads another one's rows answers as one that stores the same rows itself, bit for bit") {
    const test::Setup setup = borrowing_model();
    const Model own = without_borrowing(setup.model);
    for (const Scheme* scheme : schemes_of_x()) {
        for (const bool strict : {false, true}) {
            INFO(scheme->name << (strict ? ", strict" : ""));
            const Options options{.sinks = 4, .recent = 40, .strict = strict};
            const auto borrowing = scheme->make(setup.model, options), storing = scheme->make(own, options);
            Feed a{borrowing->create(), 1}, b{storing->create(), 1};
            for (const std::size_t n : {150, 1, 20, 33}) {
                const test::Outputs found = run(*borrowing, setup.model, a, n), wanted = run(*storing, own, b, n);
                // Layers 0, 1, 3, 2, 3 as stored, 4, 1, 0; and 0, 1, 2, 3, 4, 1, 0.
                REQUIRE(found.size() == wanted.size() + 1);
                const std::size_t at[] = {0, 1, 3, 2, 5, 6, 7};
                for (std::size_t i = 0; i < wanted.size(); ++i) {
                    INFO("answer " << i);
                    CHECK(test::difference(wanted[i], found[at[i]]) == "");
                }
                a.tokens = b.tokens += n;
            }
            const auto same = [&](std::size_t n) {
                CHECK(test::difference(ask(*storing, own, b.sequence, n),
                                       ask(*borrowing, setup.model, a.sequence, n)) == "");
            };
            same(3);
            for (const auto& [cache, sequence] : {std::pair{borrowing, a.sequence}, {storing, b.sequence}}) {
                cache->erase(sequence, 10, 60);
                cache->shift(sequence, 100, 5);
                cache->seal(sequence);
                cache->compact(sequence);
                if (scheme->name.find("requantizable") != std::string::npos) {
                    CHECK(cache->requantize(std::vector{sequence}, [](const PageChoice&) { return true; }).pages > 0);
                }
            }
            same(2);
        }
    }
}

TEST_CASE("rows that are rounded for their errors are rounded for all layers that read them") {
    // Layers 0, 2 and 3 read one X, and so does a single layer with the heads of all three.
    constexpr std::size_t readers[] = {0, 2, 3}, n = 200;
    for (const bool measured : {false, true}) {
        for (const bool loads : {false, true}) {
            INFO((measured ? "measured costs" : "costs from weights") << (loads ? ", weights that are loaded" : ""));
            const test::Setup setup({.width = d, .heads = 4, .kv_heads = 1, .head_dim = 8}, RopePairing::interleaved,
                                    4);
            std::vector<LayerStatistics> statistics;
            for (unsigned i = 0; i < 4; ++i) {
                statistics.push_back(test::random_statistics(setup.model.layers[i].shape, i + 1));
                const float weight = i == 3 ? 50.0F : 1.0F;
                for (float& cost : statistics.back().key_cost) cost *= weight;
                for (float& cost : statistics.back().value_cost) cost *= weight;
            }
            Model shared = setup.model, alone = setup.model, stacked = setup.model;
            shared.layers[2].rows_of = shared.layers[3].rows_of = 0;
            std::vector<float> w_k, w_v;
            LayerStatistics all;
            const auto join = [](auto& to, const auto& more) { to.insert(to.end(), more.begin(), more.end()); };
            for (const std::size_t i : readers) {
                const Layer& layer = setup.model.layers[i];
                join(w_k, std::span(static_cast<const float*>(layer.w_k.data), 8 * d));
                join(w_v, std::span(static_cast<const float*>(layer.w_v.data), 8 * d));
                join(all.key_cost, statistics[i].key_cost);
                join(all.value_cost, statistics[i].value_cost);
            }
            stacked.layers = {setup.model.layers[0]};
            stacked.layers[0].shape.heads = 12;
            stacked.layers[0].shape.kv_heads = 3;
            stacked.layers[0].w_k = MatrixView(w_k.data(), 24, d);
            stacked.layers[0].w_v = MatrixView(w_v.data(), 24, d);
            if (measured) {
                for (std::size_t i = 0; i < 4; ++i) {
                    shared.layers[i].statistics = &statistics[i];
                    alone.layers[i].statistics = &statistics[i];
                }
                stacked.layers[0].statistics = &all;
            }
            if (loads) {
                // Weights of one layer at a time: those of the last call are gone.
                auto buffer = std::make_shared<std::vector<float>>();
                shared.load_layer = [buffer, &setup](std::size_t index, Layer& layer) {
                    const Layer& from = setup.model.layers[index];
                    buffer->assign(static_cast<const float*>(from.w_k.data),
                                   static_cast<const float*>(from.w_k.data) + 8 * d);
                    const auto* const v = static_cast<const float*>(from.w_v.data);
                    buffer->insert(buffer->end(), v, v + 8 * d);
                    layer.w_k = MatrixView(buffer->data(), 8, d);
                    layer.w_v = MatrixView(buffer->data() + 8 * d, 8, d);
                };
                for (const std::size_t i : {0, 1, 2, 3}) shared.layers[i].w_k = shared.layers[i].w_v = {};
            }
            const Options options{.sinks = 0, .recent = 0, .weights = WeightType::f32, .strict = true};
            const Scheme& scheme = test::scheme("x rotated 4, feedback");
            const auto found = scheme.make(shared, options), one = scheme.make(stacked, options),
                       own = scheme.make(alone, options);
            const test::Rows rows = test::rows_of(setup.model.layers[0], 0, 1, 0, n);
            const MatrixView x(rows.x.data(), n, d);
            const auto store = [&](test::Cache& cache, std::size_t layers, auto&& stores) {
                const Sequence s = cache.create();
                auto step = cache.begin({{s, n}});
                for (std::size_t layer = 0; layer < layers; ++layer) {
                    if (stores(layer)) step.append(layer, x);
                }
                step.commit();
                return s;
            };
            const Sequence a = store(*found, 4, [](std::size_t layer) { return layer < 2; }),
                           b = store(*one, 1, [](std::size_t) { return true; }),
                           c = store(*own, 4, [](std::size_t) { return true; });
            std::vector<float> queries(n * 96), wanted(n * 96), out(n * heads), other(n * heads);
            for (std::size_t i = 0; i < 3; ++i) {
                for (std::size_t t = 0; t < n; ++t)
                    std::copy_n(rows.q.data() + t * heads, heads, queries.data() + t * 96 + i * heads);
            }
            one->attend(0, {{b, n}}, MatrixView(queries.data(), n, 96), wanted.data());
            for (std::size_t i = 0; i < 3; ++i) {
                const MatrixView q(rows.q.data(), n, heads);
                found->attend(readers[i], {{a, n}}, q, out.data());
                own->attend(readers[i], {{c, n}}, q, other.data());
                std::vector<float> of(n * heads);
                for (std::size_t t = 0; t < n; ++t)
                    std::copy_n(wanted.data() + t * 96 + i * heads, heads, of.data() + t * heads);
                INFO("layer " << readers[i]);
                // A code in some thousands may round the other way, where sums of metrics have another order.
                CHECK(test::relative_distance({out}, {of}) < 2e-3);
                // Rounded for one layer alone, rows are others.
                if (!measured || readers[i] != 3) CHECK(test::relative_distance({other}, {of}) > 1e-2);
            }
        }
    }
}

TEST_CASE("rows stay as long as a layer that borrows them sees them") {
    for (const auto& [window, borrowed] : {std::pair<std::size_t, std::size_t>{10, 0}, {10, 30}, {30, 10}, {0, 10}}) {
        INFO("a window of " << window << ", and one of " << borrowed << " that borrows");
        test::Setup setup = borrowing_model();
        for (Layer& layer : setup.model.layers) layer.window = layer.borrows() ? borrowed : window;
        const Model own = without_borrowing(setup.model);
        const Options options{.sinks = 4, .recent = 8, .rows = DType::f32};
        const auto borrowing = test::scheme("f32 x").make(setup.model, options),
                   storing = test::scheme("f32 x").make(own, options);
        Feed a{borrowing->create(), 1}, b{storing->create(), 1};
        for (const std::size_t n : {200, 1, 20}) {
            static_cast<void>(run(*borrowing, setup.model, a, n));
            static_cast<void>(run(*storing, own, b, n));
            a.tokens = b.tokens += n;
        }
        CHECK(test::relative_distance(ask(*borrowing, setup.model, a.sequence, 1), ask(*storing, own, b.sequence, 1)) <
              1e-5);
        CHECK((borrowing->shortest_prefix(a.sequence) == 0) == (window == 0 || borrowed == 0));
    }
}

TEST_CASE("borrowed rows are stored once, and counted once") {
    const test::Setup setup = borrowing_model();
    Model alone = setup.model;  // those that store
    alone.layers = {setup.model.layers[0], setup.model.layers[2]};
    for (const Scheme* scheme : schemes_of_x()) {
        INFO(scheme->name);
        test::CountingMemory memory;
        const Options options{.sinks = 4, .recent = 40, .memory = &memory};
        const auto cache = scheme->make(setup.model, options), two = scheme->make(alone, {.sinks = 4, .recent = 40});
        Feed a{cache->create(), 1}, b{two->create(), 1};
        static_cast<void>(run(*cache, setup.model, a, 300));
        test::feed(*two, alone, {{&b, 300}});
        const Bytes found = cache->bytes(), wanted = two->bytes();
        CHECK(found.total() == memory.bytes());
        CHECK(found == scheme->predict(setup.model, options, 300));
        CHECK(found.codes == wanted.codes);
        CHECK(found.scales == wanted.scales);
        CHECK(found.tail == wanted.tail);
        CHECK(found.sinks == wanted.sinks);
        CHECK(cache->bits_per_token_layer(256) == two->bits_per_token_layer(256) * 2 / 5);
    }
}

TEST_CASE("rows that cannot be borrowed, and calls for such layers, are refused") {
    const auto refused = [](const char* scheme, auto&& change) {
        test::Setup setup = borrowing_model();
        change(setup.model.layers);
        const std::string said =
            complaint<shape_error>([&] { static_cast<void>(test::scheme(scheme).make(setup.model, {})); });
        if (scheme[0] == 'x') {
            const auto predict = [&] { static_cast<void>(test::scheme(scheme).predict(setup.model, {}, 10)); };
            CHECK(complaint<shape_error>(predict) == said);
        }
        return said;
    };
    using Layers = std::vector<Layer>;
    const auto nothing = [](Layers&) {};
    CHECK(contains(refused("x 4", [](Layers& l) { l[1].rows_of = 1; }),
                   "layer 1: rows_of is 1; expected a layer before"));
    CHECK(contains(refused("x 4", [](Layers& l) { l[3].rows_of = 1; }),
                   "layer 3: rows_of is 1, which reads the rows of layer 0"));
    CHECK(contains(refused("x 4", [](Layers& l) { l[1].input = LayerInput::keys_before_rope; }),
                   "rows_of is 0, and the engine hands over K and V"));
    CHECK(contains(refused("x 4", [](Layers& l) { l[3].shape.width = 25; }),
                   "layer 3: width is 25, and rows_of names layer 0, whose rows have 24 channels"));
    CHECK(contains(refused("head svd 4", nothing), "layer 1: rows_of is 0, and the rows of one of the two are no X"));
    CHECK(contains(refused("f32 k and v", nothing), "layer 1: rows_of is 0, and the rows of one of the two are no X"));
    CHECK(contains(refused("cross-layer x 3", nothing), "layer 1: rows_of is 0, and CrossLayer<Delta> stores"));

    const test::Setup setup = borrowing_model();
    const auto cache = test::scheme("x 4").make(setup.model, {});
    const Sequence s = cache->create();
    auto step = cache->begin({{s, 2}});
    const test::Rows rows = test::rows_of(setup.model.layers[0], 0, 1, 0, 2);
    const MatrixView x(rows.x.data(), 2, d), q(rows.q.data(), 2, heads);
    std::vector<float> out(2 * heads);
    const auto says = [&](auto&& call) { return complaint<state_error>(call); };
    CHECK(contains(says([&] { step.attend(1, q, out.data()); }), "no layer has been appended"));
    step.append(0, x);
    CHECK(contains(says([&] { step.append(1, x); }), "append: layer 1 reads the rows of layer 0, as Layer::rows_of"));
    CHECK(contains(says([&] { step.append(3, x); }), "append: layer 3 reads the rows of layer 0, as Layer::rows_of"));
    CHECK(contains(says([&] { step.attend(2, q, out.data()); }), "the layer that was appended last is 0"));
    CHECK(contains(says([&] { step.commit(); }), "layers were appended"));
    step.append(2, x);
    CHECK(contains(says([&] { step.append(2, x); }), "all 5 layers have been appended"));
    step.commit();
    CHECK(cache->size(s) == 2);
}
