/// Wrong calls: the right error, a sentence that says what was wrong, and nothing changed.
#include <cmath>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <xquant/xquant.hpp>

#include "support/catch.hpp"
#include "support/complaint.hpp"
#include "support/feed.hpp"
#include "support/model.hpp"

using namespace xquant;
using test::complaint;
using test::contains;
using test::Feed;

namespace {

constexpr std::size_t d = 24, heads = 2 * 8, layer_count = 4;

test::Setup small_model() {
    return {{.width = d, .heads = 2, .kv_heads = 1, .head_dim = 8}, RopePairing::halves, layer_count};
}

/// A thread pool that has ended.
struct Broken {
    template <class F>
    void parallel_for(std::size_t, F&&) const {
        throw std::runtime_error("the pool is gone");
    }
};

struct Buffers {
    explicit Buffers(std::size_t n) : x(n * d, 0.5F), q(n * heads, 0.5F), out(n * heads) {}
    std::vector<float> x, q, out;
};

}  // namespace

TEST_CASE("begin: unknown, dropped, foreign, busy and repeated sequences, and no tokens") {
    const test::Setup setup = small_model();
    const auto cache = test::scheme("x 4").make(setup.model, {}), other = test::scheme("x 4").make(setup.model, {});
    const Sequence a = cache->create(), b = cache->create();
    const Sequence foreign = other->create();
    const Sequence gone = cache->create();
    cache->drop(gone);
    const Sequence again = cache->create();  // takes the place of `gone`
    CHECK_FALSE(again == gone);

    const Bytes before = cache->bytes();
    const auto begin = [&](std::vector<StepPart> parts) {
        return [&cache, parts] { static_cast<void>(cache->begin(parts)); };
    };
    CHECK(contains(complaint<sequence_error>(begin({{Sequence{}, 1}})), "no cache has made it"));
    CHECK(contains(complaint<sequence_error>(begin({{foreign, 1}})), "another cache has made it"));
    CHECK(foreign.id == a.id);  // that of the cache's own first sequence
    CHECK(contains(complaint<sequence_error>(begin({{Sequence{12345, a.cache}, 1}})), "slot 12345"));
    CHECK(contains(complaint<sequence_error>(begin({{gone, 1}})), "was dropped"));
    CHECK(contains(complaint<sequence_error>(begin({{a, 1}, {gone, 1}})), "was dropped"));
    CHECK(contains(complaint<sequence_error>(begin({{a, 1}, {b, 2}, {a, 1}})),
                   "entries 0 and 2 of the list are the same sequence"));
    CHECK(contains(complaint<shape_error>(begin({})), "at least one sequence"));
    CHECK(contains(complaint<shape_error>(begin({{a, 1}, {b, 0}})), "sequence 1 of the list gets no token"));
    CHECK(contains(complaint<shape_error>(begin({{a, std::size_t{1} << 31}})),
                   "fewer than 2^31 tokens; entry 0 of the list asks for 2147483648"));
    CHECK(contains(complaint<shape_error>(begin({{a, 1}, {b, (std::size_t{1} << 31) - 1}})), "fewer than 2^31"));
    for (const Sequence bad : {foreign, gone, Sequence{}}) {
        CHECK_THROWS_AS(static_cast<void>(cache->fork(bad)), sequence_error);
        CHECK_THROWS_AS(cache->truncate(bad, 0), sequence_error);
        CHECK_THROWS_AS(cache->erase(bad, 0, 0), sequence_error);
        CHECK_THROWS_AS(cache->shift(bad, 0, 1), sequence_error);
        CHECK_THROWS_AS(cache->shift(bad, 0, 0, 1), sequence_error);
        CHECK_THROWS_AS(cache->set_next_position(bad, 1), sequence_error);
        CHECK_THROWS_AS(cache->position_of(bad, 0), sequence_error);
        CHECK_THROWS_AS(cache->token_at(bad, 0), sequence_error);
        CHECK_THROWS_AS(cache->shortest_prefix(bad), sequence_error);
        CHECK_THROWS_AS(cache->seal(bad), sequence_error);
        CHECK_THROWS_AS(cache->compact(bad), sequence_error);
        CHECK_THROWS_AS(cache->drop(bad), sequence_error);
        CHECK_THROWS_AS(static_cast<void>(cache->size(bad)), sequence_error);
        CHECK_THROWS_AS(static_cast<void>(cache->next_position(bad)), sequence_error);
        const std::vector<Sequence> list{a, bad};
        const std::vector<std::size_t> parents{0, 0};
        CHECK_THROWS_AS(cache->gather(list, parents), sequence_error);
    }
    CHECK(cache->bytes() == before);
    {
        const auto step = cache->begin({{a, 1}});
        CHECK(step.size() == 1);
        CHECK(contains(complaint<sequence_error>(begin({{a, 1}})), "already part of a step"));
        CHECK(contains(complaint<sequence_error>(begin({{b, 1}, {a, 1}})), "already part of a step"));
        CHECK(contains(complaint<sequence_error>([&] { cache->drop(a); }), "part of a step"));
        CHECK(contains(complaint<sequence_error>([&] { cache->seal(a); }), "part of a step"));
        CHECK(contains(complaint<sequence_error>([&] { cache->compact(a); }), "part of a step"));
        CHECK(cache->size(a) == 0);
        const auto second = cache->begin({{b, 3}});  // b was not left busy
        CHECK(second.size() == 3);
    }
    CHECK_NOTHROW(begin({{a, 1}, {b, 1}, {again, 1}})());
    CHECK_THROWS_AS(cache->drop(gone), sequence_error);
    CHECK_THROWS_AS(cache->seal(gone), sequence_error);
    CHECK_THROWS_AS(static_cast<void>(cache->size(gone)), sequence_error);
    CHECK_THROWS_AS(cache->for_each_page(gone, [](const PageView&) {}), sequence_error);
    CHECK_NOTHROW(cache->drop(a));
    CHECK_THROWS_AS(cache->drop(a), sequence_error);
}

TEST_CASE("calls out of order are a state_error, and the step goes on") {
    const test::Setup setup = small_model();
    const auto cache = test::scheme("x 4").make(setup.model, {.sinks = 0, .recent = 0});
    const auto alone = test::scheme("x 4").make(setup.model, {.sinks = 0, .recent = 0});
    Feed feed{cache->create()};
    test::feed(*cache, setup.model, {{&feed, 130}});
    Buffers with(2);
    const auto append = [&](auto& step, std::size_t layer) {
        return complaint<state_error>([&] { step.append(layer, MatrixView(with.x.data(), 2, d)); });
    };
    const auto attend = [&](auto& step, std::size_t layer) {
        return complaint<state_error>(
            [&] { step.attend(layer, MatrixView(with.q.data(), 2, heads), with.out.data()); });
    };
    auto step = cache->begin({{feed.sequence, 2}});
    CHECK(contains(attend(step, 0), "no layer has been appended"));
    CHECK(contains(append(step, 1), "layer 1, but layers come in order and the next one is 0"));
    CHECK(contains(complaint<state_error>([&] { step.commit(); }), "0 of 4 layers"));
    test::Outputs out;
    for (std::size_t layer = 0; layer < layer_count; ++layer) {
        test::Rows rows = test::rows_of(setup.model.layers[layer], layer, 1, 130, 2);
        CHECK(
            contains(complaint<state_error>([&] { step.commit(); }), (std::to_string(layer) + " of 4 layers").c_str()));
        step.append(layer, MatrixView(rows.x.data(), 2, d));
        CHECK(contains(append(step, layer), layer + 1 == layer_count ? "all 4 layers have been appended" : "in order"));
        const std::string last = "the layer that was appended last is " + std::to_string(layer);
        CHECK(contains(attend(step, layer + 1), last.c_str()));
        if (layer > 0) CHECK(attend(step, layer - 1).empty());
        out.emplace_back(2 * heads);
        step.attend(layer, MatrixView(rows.q.data(), 2, heads), out.back().data());
    }
    CHECK(contains(append(step, layer_count), "all 4 layers have been appended"));
    step.commit();
    CHECK(contains(append(step, 0), "has ended"));
    CHECK(contains(attend(step, layer_count - 1), "has ended"));
    CHECK(contains(complaint<state_error>([&] { step.commit(); }), "has ended"));
    CHECK(cache->size(feed.sequence) == 132);

    // Nothing of the wrong calls is left: the same as without them.
    const test::Outputs expected = test::outputs_of(*alone, setup.model, {130, 2});
    for (std::size_t layer = 0; layer < layer_count; ++layer) {
        CHECK(test::difference({expected[layer].end() - 2 * heads, expected[layer].end()}, out[layer]) == "");
    }
    auto open = cache->begin({{feed.sequence, 1}});
    auto taken = std::move(open);
    CHECK(contains(append(open, 0), "has ended"));  // NOLINT: what is left of a moved step says so
}

TEST_CASE("wrong shapes are a shape_error, and the step goes on") {
    const test::Setup setup = small_model();
    const auto cache = test::scheme("head svd 4").make(setup.model, {});
    const auto alone = test::scheme("head svd 4").make(setup.model, {});
    Feed feed{cache->create()};
    Buffers with(5);
    auto step = cache->begin({{feed.sequence, 3}});
    const auto refused = [&](const std::string& words, auto call) {
        INFO(words);
        const std::string said = complaint<shape_error>(call);
        INFO(said);
        CHECK(contains(said, words.c_str()));
    };
    const float* x = with.x.data();
    const float* q = with.q.data();
    const std::string wide = std::to_string(d), queries = std::to_string(heads);
    const std::string expected_x = "expected [tokens of the step, width] = [3, " + wide + "]";
    const std::string expected_q = "expected [tokens of the step, heads * head_dim] = [3, " + queries + "]";
    refused("x is [2, " + wide + "]; " + expected_x, [&] { step.append(0, MatrixView(x, 2, d)); });
    refused("x is [4, " + wide + "]; " + expected_x, [&] { step.append(0, MatrixView(x, 4, d)); });
    refused(expected_x, [&] { step.append(0, MatrixView(x, 3, d - 1)); });
    refused("x is [0, 0] without data", [&] { step.append(0, MatrixView()); });
    refused("with stride " + std::to_string(d - 1), [&] { step.append(0, MatrixView(x, 3, d, d - 1)); });
    refused("without data", [&] { step.append(0, MatrixView(static_cast<const float*>(nullptr), 3, d)); });
    const test::Rows rows = test::rows_of(setup.model.layers[0], 0, 1, 0, 3);
    step.append(0, MatrixView(rows.x.data(), 3, d));
    float* out = with.out.data();
    refused("q is [2, " + queries + "]; " + expected_q, [&] { step.attend(0, MatrixView(q, 2, heads), out); });
    refused(expected_q, [&] { step.attend(0, MatrixView(q, 3, heads + 1), out); });
    refused("with stride", [&] { step.attend(0, MatrixView(q, 3, heads, heads - 1), out); });
    refused("out_stride is " + std::to_string(heads - 1),
            [&] { step.attend(0, MatrixView(q, 3, heads), out, heads - 1); });
    refused("out is null", [&] { step.attend(0, MatrixView(q, 3, heads), nullptr); });
    std::vector<float> found(3 * heads);
    step.attend(0, MatrixView(rows.q.data(), 3, heads), found.data());
    const test::Outputs expected = test::outputs_of(*alone, setup.model, {3});
    CHECK(test::difference(expected[0], found) == "");
}

TEST_CASE("rows that cannot be stored are a value_error that names layer and row, and the step goes on") {
    const test::Setup setup = small_model();
    const float infinity = std::numeric_limits<float>::infinity();
    for (const test::Scheme& scheme : test::schemes()) {
        INFO(scheme.name);
        const Options options{.sinks = 1, .recent = 2};
        const auto cache = scheme.make(setup.model, options), alone = scheme.make(setup.model, options);
        Feed feed{cache->create()};
        test::feed(*cache, setup.model, {{&feed, 140}});
        const auto stored = [&] { return test::stored_pages(*cache, feed.sequence, scheme, setup.model, options); };
        const auto before = stored();
        auto step = cache->begin({{feed.sequence, 5}});
        for (std::size_t layer = 0; layer < layer_count; ++layer) {
            test::Rows rows = test::rows_of(setup.model.layers[layer], layer, 1, 140, 5);
            const MatrixView view(rows.x.data(), 5, d);
            const float good = rows.x[3 * d + 7];
            for (const float bad : {std::numeric_limits<float>::quiet_NaN(), infinity, -infinity, 1e30F, -1e9F}) {
                rows.x[3 * d + 7] = bad;
                const std::string said = complaint<value_error>([&] { step.append(layer, view); });
                CHECK(contains(said, ("layer " + std::to_string(layer) + ": row 3").c_str()));
                try {
                    step.append(layer, view);
                } catch (const value_error& problem) {
                    CHECK(problem.layer == layer);
                    CHECK(problem.row == 3);
                }
            }
            rows.x[3 * d + 7] = good;
            step.append(layer, view);
        }
        step.commit();
        feed.tokens += 5;
        // As if nothing had happened.
        const auto steps = std::vector<std::size_t>{140, 5, 1};
        const test::Outputs expected = test::outputs_of(*alone, setup.model, steps);
        const auto kept = stored();
        CHECK(kept.size() >= before.size());
        feed.out.clear();
        test::feed(*cache, setup.model, {{&feed, 1}});
        for (std::size_t layer = 0; layer < layer_count; ++layer) {
            const std::vector<float> last(expected[layer].end() - heads, expected[layer].end());
            CHECK(test::difference(last, feed.out[layer]) == "");
        }
    }
}

TEST_CASE("the largest f16 can be stored, the next f32 cannot") {
    const test::Setup setup = small_model();
    const auto cache = test::scheme("x 4").make(setup.model, {});
    const Sequence sequence = cache->create();
    std::vector<float> x(d, 1.0F);
    for (const float sign : {1.0F, -1.0F}) {
        auto step = cache->begin({{sequence, 1}});
        x[5] = sign * std::nextafter(f16_max, 1e9F);
        CHECK_THROWS_AS(step.append(0, MatrixView(x.data(), 1, d)), value_error);
        x[5] = sign * f16_max;
        CHECK_NOTHROW(step.append(0, MatrixView(x.data(), 1, d)));
    }
}

TEST_CASE("a layer whose rows gave way to those of a refused append is not attended to") {
    const test::Setup setup = small_model();
    for (const test::Scheme& scheme : test::schemes()) {
        INFO(scheme.name);
        const auto cache = scheme.make(setup.model, {.sinks = 1, .recent = 2}),
                   alone = scheme.make(setup.model, {.sinks = 1, .recent = 2});
        const Sequence sequence = cache->create();
        test::Outputs out;
        auto step = cache->begin({{sequence, 3}});
        for (std::size_t layer = 0; layer < layer_count; ++layer) {
            test::Rows rows = test::rows_of(setup.model.layers[layer], layer, 1, 0, 3);
            const MatrixView x(rows.x.data(), 3, d), q(rows.q.data(), 3, heads);
            const float good = rows.x[d + 7];
            if (layer > 0) {
                rows.x[d + 7] = std::numeric_limits<float>::quiet_NaN();
                CHECK_THROWS_AS(step.append(layer, x), value_error);
                std::vector<float> untouched(3 * heads, 42.0F);
                const std::string said = complaint<state_error>([&] { step.attend(layer - 1, q, untouched.data()); });
                CHECK(contains(said, ("append layer " + std::to_string(layer) + " first").c_str()));
                CHECK(untouched == std::vector<float>(3 * heads, 42.0F));
                rows.x[d + 7] = good;
            }
            step.append(layer, x);
            out.emplace_back(3 * heads);
            step.attend(layer, q, out.back().data());
        }
        step.commit();
        const test::Outputs expected = test::outputs_of(*alone, setup.model, {3});
        for (std::size_t layer = 0; layer < layer_count; ++layer) {
            CHECK(test::difference(expected[layer], out[layer]) == "");
        }
    }
}

TEST_CASE("an executor that throws while rows are projected: the layer before is not attended to") {
    const test::Setup setup = small_model();
    const auto cache = test::scheme("x 4").make(setup.model, {});
    const Sequence sequence = cache->create();
    Buffers with(2);
    const MatrixView x(with.x.data(), 2, d), q(with.q.data(), 2, heads);
    auto step = cache->begin({{sequence, 2}});
    step.append(0, x);
    CHECK_THROWS_AS(step.append(1, x, Broken{}), std::runtime_error);
    CHECK_THROWS_AS(step.attend(0, q, with.out.data()), state_error);
}

TEST_CASE("a cache that was moved from, destroyed or assigned to") {
    const test::Setup setup = small_model();
    using Best = XCache<Uniform<4, 128>>;
    Best cache(setup.model, {});
    const Sequence sequence = cache.create();
    Buffers with(1);
    const MatrixView x(with.x.data(), 1, d), q(with.q.data(), 1, heads);
    auto step = cache.begin({{sequence, 1}});
    step.append(0, x);
    Best moved(std::move(cache));
    step.append(1, x);  // the step follows it
    // NOLINTBEGIN(bugprone-use-after-move): what is left of a moved cache says so
    const auto refused = [](auto call) { CHECK(contains(complaint<state_error>(call), "the cache was moved from")); };
    refused([&] { static_cast<void>(cache.create()); });
    refused([&] { cache.drop(sequence); });
    refused([&] { static_cast<void>(cache.fork(sequence)); });
    refused([&] { cache.truncate(sequence, 0); });
    refused([&] { cache.erase(sequence, 0, 0); });
    refused([&] { cache.shift(sequence, 0, 1); });
    refused([&] { cache.shift(sequence, 0, 0, 1); });
    refused([&] { cache.set_next_position(sequence, 1); });
    refused([&] { static_cast<void>(cache.position_of(sequence, 0)); });
    refused([&] { static_cast<void>(cache.token_at(sequence, 0)); });
    refused([&] { static_cast<void>(cache.shortest_prefix(sequence)); });
    refused([&] { cache.gather(std::vector<Sequence>{}, std::vector<std::size_t>{}); });
    refused([&] { static_cast<void>(cache.size(sequence)); });
    refused([&] { static_cast<void>(cache.next_position(sequence)); });
    refused([&] { static_cast<void>(cache.begin({{sequence, 1}})); });
    refused([&] { cache.seal(sequence); });
    refused([&] { cache.compact(sequence); });
    refused([&] { static_cast<void>(cache.requantize(std::vector<Sequence>{sequence})); });
    refused([&] { static_cast<void>(cache.bits_per_token_layer(1)); });
    refused([&] { static_cast<void>(cache.options()); });
    refused([&] { cache.for_each_page(sequence, [](const PageView&) {}); });
    CHECK(cache.bytes() == Bytes{});
    CHECK(cache.peak_accumulator_bytes() == 0);
    // NOLINTEND(bugprone-use-after-move)

    const auto orphaned = [&](auto& of) {
        const auto gone = [](auto call) {
            CHECK(contains(complaint<state_error>(call), "cache was destroyed or assigned to"));
        };
        gone([&] { of.append(2, x); });
        gone([&] { of.attend(1, q, with.out.data()); });
        gone([&] { of.commit(); });
    };
    moved = Best(setup.model, {});
    orphaned(step);
    CHECK_THROWS_AS(moved.size(sequence), sequence_error);  // of another cache
    auto short_lived = std::make_unique<Best>(setup.model, Options{});
    auto survivor = short_lived->begin({{short_lived->create(), 1}});
    survivor.append(0, x);
    survivor.append(1, x);
    short_lived.reset();
    orphaned(survivor);
}

TEST_CASE("every number of a layer has a range") {
    const test::Setup setup = small_model();
    const auto said = [&](auto change) {
        test::Setup changed = small_model();
        change(changed.model.layers[2]);
        try {
            static_cast<void>(test::scheme("x 4").make(changed.model, {}));
        } catch (const error& refused) {
            return std::string(refused.what());
        }
        return std::string("served");
    };
    constexpr double infinity = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
    const auto range = [&](auto member, const std::string& name, double least, double most) {
        for (const double good : {least, most}) CHECK(said([&](Layer& layer) { member(layer) = good; }) == "served");
        for (const double bad : {least - std::abs(least) / 8, most + most / 8, infinity, -infinity, nan}) {
            const std::string words = said([&](Layer& layer) { member(layer) = bad; });
            INFO(words);
            CHECK(contains(words, ("layer 2: " + name + " is ").c_str()));
            CHECK(contains(words, "expected "));
        }
    };
    range([](Layer& layer) -> double& { return layer.softmax_scale; }, "softmax_scale", 1e-6, 1e6);
    range([](Layer& layer) -> double& { return layer.soft_cap; }, "soft_cap", 1e-3, 1e9);
    range([](Layer& layer) -> double& { return layer.rope.factor; }, "rope.factor", 1e-4, 1e4);
    range([](Layer& layer) -> double& { return layer.rope.inverse_frequencies[1]; }, "a frequency of rope", -10, 10);
    const std::vector<float> gain(8, 1.0F);
    range(
        [&](Layer& layer) -> double& {
            layer.k_norm = gain.data();
            return layer.k_norm_epsilon;
        },
        "k_norm_epsilon", 1e-30, 1);
    for (const auto& [good, bad] : {std::pair{1e6F, 1.1e6F}, {-1e6F, -1.1e6F}}) {
        std::vector<float> slopes{0.5F, good};
        CHECK(said([&](Layer& layer) { layer.alibi_slopes = slopes.data(); }) == "served");
        slopes[1] = bad;
        CHECK(contains(said([&](Layer& layer) { layer.alibi_slopes = slopes.data(); }), "a slope of alibi_slopes is"));
        std::vector<float> logits{0.5F, good * 0.99e24F};
        CHECK(said([&](Layer& layer) { layer.sink_logits = logits.data(); }) == "served");
        logits[1] = bad * 1e24F;
        CHECK(contains(said([&](Layer& layer) { layer.sink_logits = logits.data(); }), "a logit of sink_logits is"));
    }
    // "None" is 0. What other libraries mean by it would not fit a position.
    constexpr std::size_t most = std::size_t{1} << 48U;
    CHECK(said([&](Layer& layer) { layer.window = most; }) == "served");
    for (const std::size_t window : {most + 1, static_cast<std::size_t>(std::numeric_limits<std::int64_t>::max()),
                                     std::numeric_limits<std::size_t>::max()}) {
        CHECK(contains(said([&](Layer& layer) { layer.window = window; }),
                       ("window is " + std::to_string(window) + "; expected 2^48 or less, or 0").c_str()));
    }
    CHECK(contains(said([](Layer& layer) { layer.rope.pairing = static_cast<RopePairing>(2); }), "rope.pairing is 2"));
    CHECK(contains(said([](Layer& layer) { layer.w_k.type = static_cast<DType>(3); }), "unknown type, 3"));
    CHECK_THROWS_AS(test::scheme("x 4").make(setup.model, {.rows = static_cast<DType>(3)}), shape_error);

    // A window that is wider than the sequence changes nothing.
    test::Setup wide = small_model();
    for (Layer& layer : wide.model.layers) layer.window = most;
    const auto with = test::scheme("x 4").make(wide.model, {}), without = test::scheme("x 4").make(setup.model, {});
    const test::Outputs a = test::outputs_of(*with, wide.model, {150, 1}),
                        b = test::outputs_of(*without, setup.model, {150, 1});
    for (std::size_t layer = 0; layer < layer_count; ++layer) CHECK(test::difference(a[layer], b[layer]) == "");
}

TEST_CASE("positions stay below 2^48") {
    const test::Setup setup = small_model();
    const auto cache = test::scheme("x 4").make(setup.model, {});
    const Sequence sequence = cache->create();
    cache->shift(sequence, 0, largest_position - 11);
    const Bytes before = cache->bytes();
    CHECK(contains(complaint<shape_error>([&] {
                       static_cast<void>(cache->begin({{sequence, 11}}));
                   }),
                   "to position 281474976710656; positions stay below 2^48"));
    CHECK(cache->bytes() == before);
    CHECK_NOTHROW(static_cast<void>(cache->begin({{sequence, 10}})));
}

TEST_CASE("predictions of what cannot be served are refused") {
    const test::Setup setup = small_model();
    using Cached = XCache<Uniform<4, 128>>;
    CHECK_THROWS_AS(Cached::predict(setup.model, {.sinks = 4097}, 100), shape_error);
    CHECK_THROWS_AS(Cached::predict(setup.model, {}, std::numeric_limits<std::size_t>::max()), shape_error);
    Model model = setup.model;
    model.layers[1].shape.kv_heads = 0;
    CHECK_THROWS_AS(Cached::predict(model, {}, 100), shape_error);
}

TEST_CASE("models and options that cannot be served are refused when a cache is made") {
    test::Setup setup = small_model();
    const test::Scheme& scheme = test::scheme("x 4");
    CHECK_THROWS_AS(scheme.make(Model{}, {}), shape_error);
    CHECK_THROWS_AS(scheme.make(setup.model, {.sinks = 4097}), shape_error);
    CHECK_THROWS_AS(scheme.make(setup.model, {.recent = (std::size_t{1} << 20) + 1}), shape_error);
    CHECK_NOTHROW(scheme.make(setup.model, {.sinks = 4096}));
    for (const char* name : {"cross-layer x 3", "cross-layer svd 3"}) {
        CHECK_THROWS_AS(test::scheme(name).make(setup.model, {.base_layer = 4}), shape_error);
        CHECK_THROWS_AS(test::scheme(name).make(setup.model, {.base_layer = 2, .last_layers = 2}), shape_error);
        CHECK_NOTHROW(test::scheme(name).make(setup.model, {.base_layer = 2, .last_layers = 1}));
    }
    const test::Setup wide({.width = 16, .heads = 2, .kv_heads = 2, .head_dim = 16}, RopePairing::halves, 3);
    CHECK_THROWS_AS(test::scheme("joint svd 4").make(wide.model, {}), shape_error);
    CHECK_THROWS_AS(test::scheme("split svd 4").make(wide.model, {}), shape_error);
    CHECK_NOTHROW(test::scheme("head svd 4").make(wide.model, {}));
    std::vector<float> weights(8 * d, 1.0F);
    weights[33] = std::numeric_limits<float>::quiet_NaN();
    setup.model.layers[1].w_k = MatrixView(weights.data(), 8, d);
    for (const test::Scheme& one : test::schemes()) CHECK_THROWS_AS(one.make(setup.model, {}), value_error);
}

TEST_CASE("x and q may be of any type and stride") {
    const test::Setup setup = small_model();
    const auto cache = test::scheme("f32 x").make(setup.model, {}), other = test::scheme("f32 x").make(setup.model, {});
    const Sequence a = cache->create(), b = other->create();
    auto one = cache->begin({{a, 3}}), two = other->begin({{b, 3}});
    for (std::size_t layer = 0; layer < layer_count; ++layer) {
        const test::Rows rows = test::rows_of(setup.model.layers[layer], layer, 1, 0, 3);
        // Exact in f16, and every second row padded.
        std::vector<f16> x(3 * (d + 5), to_f16(99.0F)), q(3 * (heads + 1), to_f16(99.0F));
        std::vector<float> x32(3 * d), q32(3 * heads), narrow(3 * heads), wide(3 * (heads + 7), -1.0F);
        for (std::size_t i = 0; i < 3 * d; ++i) {
            x[i / d * (d + 5) + i % d] = to_f16(rows.x[i]);
            x32[i] = round_to_f16(rows.x[i]);
        }
        for (std::size_t i = 0; i < 3 * heads; ++i) {
            q[i / heads * (heads + 1) + i % heads] = to_f16(rows.q[i]);
            q32[i] = round_to_f16(rows.q[i]);
        }
        one.append(layer, MatrixView(x.data(), 3, d, d + 5));
        two.append(layer, MatrixView(x32.data(), 3, d));
        one.attend(layer, MatrixView(q.data(), 3, heads, heads + 1), wide.data(), heads + 7);
        two.attend(layer, MatrixView(q32.data(), 3, heads), narrow.data());
        for (std::size_t i = 0; i < 3; ++i) {
            for (std::size_t c = 0; c < heads; ++c) CHECK(wide[i * (heads + 7) + c] == narrow[i * heads + c]);
            for (std::size_t c = heads; c < heads + 7; ++c) CHECK(wide[i * (heads + 7) + c] == -1.0F);
        }
    }
}

TEST_CASE("a value_error of a model has the layer and the row of the value") {
    test::Setup setup = small_model();
    const auto refused = [&](std::size_t layer, std::size_t row) {
        try {
            static_cast<void>(test::scheme("x 4").make(setup.model, {}));
            FAIL("it is not refused");
        } catch (const value_error& problem) {
            CHECK(problem.layer == layer);
            CHECK(problem.row == row);
        }
    };
    Model& model = setup.model;
    std::vector<float> weights(8 * d, 0.5F);
    weights[5 * d + 3] = std::numeric_limits<float>::quiet_NaN();
    const MatrixView good = model.layers[2].w_v;
    model.layers[2].w_v = MatrixView(weights.data(), 8, d);
    refused(2, 5);
    model.layers[2].w_v = good;
    model.layers[3].softmax_scale = -1;
    refused(3, value_error::none);
    model.layers[3].softmax_scale = 0;
    const std::vector<float> rows{1, 2, 3, 1e9F};
    try {
        static_cast<void>(quantize<Uniform<4>>(MatrixView(rows.data(), 2, 2)));
        FAIL("it is not refused");
    } catch (const value_error& problem) {
        CHECK(problem.layer == value_error::none);
        CHECK(problem.row == 1);
    }
}

TEST_CASE("long lists of sequences: one that is named twice is found wherever it stands, and the list can be used") {
    const test::Setup setup = small_model();
    const auto cache = test::scheme("x 4").make(setup.model, {});
    std::vector<Sequence> all;
    for (std::size_t i = 0; i < 100; ++i) all.push_back(cache->create());
    for (const auto& [i, j] : {std::pair<std::size_t, std::size_t>{0, 1}, {0, 99}, {40, 41}, {98, 99}, {17, 60}}) {
        const std::string said = "entries " + std::to_string(i) + " and " + std::to_string(j);
        std::vector<Sequence> list = all;
        list[j] = list[i];
        std::vector<StepPart> parts;
        for (const Sequence s : list) parts.push_back({s, 1});
        CHECK(contains(complaint<sequence_error>([&] { static_cast<void>(cache->begin(parts)); }), said.c_str()));
        const std::vector<std::size_t> parents(100, 0);
        CHECK(contains(complaint<sequence_error>([&] { cache->gather(list, parents); }), said.c_str()));
        // No mark is left.
        CHECK_NOTHROW(cache->gather(all, parents));
        for (std::size_t k = 0; k < 100; ++k) parts[k].sequence = all[k];
        CHECK_NOTHROW(cache->begin(parts));
    }
    // Slots that were dropped are used again, each once.
    const std::size_t taken = cache->bytes().index;
    for (std::size_t round = 0; round < 3; ++round) {
        for (std::size_t i = round; i < 100; i += 2) cache->drop(all[i]);
        for (std::size_t i = round; i < 100; i += 2) all[i] = cache->create();
        std::vector<StepPart> parts;
        for (const Sequence s : all) parts.push_back({s, 1});
        CHECK_NOTHROW(cache->begin(parts));
    }
    CHECK(cache->bytes().index == taken);
}
