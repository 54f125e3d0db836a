/// Many sequences in one cache, and steps that come to nothing: each sequence is what it is alone, bit for bit.
#include <algorithm>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/feed.hpp"
#include "support/model.hpp"
#include "support/tolerance.hpp"

using namespace xquant;
using test::Feed;
using test::Scheme;

namespace {

std::vector<Options> some_options() {
    return {{.sinks = 4, .recent = 40}, {.sinks = 0, .recent = 0}, {.sinks = 4, .recent = 10, .strict = true}};
}

}  // namespace

TEST_CASE("sequences that share steps are each what they are alone") {
    const test::Setup setup = test::small_model();
    for (const Scheme& scheme : test::schemes()) {
        for (const Options& options : some_options()) {
            INFO(scheme.name << ", recent " << options.recent << ", strict " << options.strict);
            const auto together = scheme.make(setup.model, options);
            Feed a{together->create(), 1}, b{together->create(), 2}, c{together->create(), 3};
            test::feed(*together, setup.model, {{&a, 1}});
            test::feed(*together, setup.model, {{&b, 20}, {&a, 3}});
            test::feed(*together, setup.model, {{&c, 130}, {&a, 1}, {&b, 1}});
            test::feed(*together, setup.model, {{&a, 90}, {&b, 110}});
            test::feed(*together, setup.model, {{&c, 1}, {&b, 1}, {&a, 40}});

            const auto alone = scheme.make(setup.model, options);
            CHECK(test::difference(test::outputs_of(*alone, setup.model, {1, 3, 1, 90, 40}, 1), a.out) == "");
            CHECK(test::difference(test::outputs_of(*alone, setup.model, {20, 1, 110, 1}, 2), b.out) == "");
            CHECK(test::difference(test::outputs_of(*alone, setup.model, {130, 1}, 3), c.out) == "");
        }
    }
}

TEST_CASE("forty sequences that come and go are each what they are alone") {
    const test::Setup setup = test::small_model();
    const Options options{.sinks = 2, .recent = 5};
    for (const char* name : {"head svd 4", "x rotated 3", "cross-layer svd 3", "q4_0, Hadamard", "mixed"}) {
        INFO(name);
        const Scheme& scheme = test::scheme(name);
        const auto cache = scheme.make(setup.model, options);
        std::vector<Feed> feeds;
        for (std::uint32_t i = 0; i < 40; ++i) feeds.push_back({cache->create(), i + 1});
        std::vector<std::vector<std::size_t>> steps(feeds.size());
        test::Random random(1);
        for (int round = 0; round < 6; ++round) {
            std::vector<test::NewTokens> parts;
            for (std::size_t i = 0; i < feeds.size(); ++i) {
                if (random.below(3) == 0) continue;
                steps[i].push_back(1 + random.below(round == 1 ? 40 : 3));
                parts.push_back({&feeds[i], steps[i].back()});
            }
            test::feed(*cache, setup.model, parts);
            // One is dropped, and another takes its place.
            const std::size_t gone = random.below(feeds.size());
            cache->drop(feeds[gone].sequence);
            CHECK_THROWS_AS(static_cast<void>(cache->size(feeds[gone].sequence)), sequence_error);
            feeds[gone] = {cache->create(), static_cast<std::uint32_t>(100 + round)};
            steps[gone].clear();
        }
        for (std::size_t i = 0; i < feeds.size(); ++i) {
            if (steps[i].empty()) continue;
            const auto alone = scheme.make(setup.model, options);
            REQUIRE(test::difference(test::outputs_of(*alone, setup.model, steps[i], feeds[i].seed), feeds[i].out) ==
                    "");
            REQUIRE(cache->size(feeds[i].sequence) == feeds[i].tokens);
        }
    }
}

TEST_CASE("a step that is not committed changes nothing, however far it came") {
    const test::Setup setup = test::small_model();
    for (const Scheme& scheme : test::schemes()) {
        for (const Options& options : some_options()) {
            INFO(scheme.name << ", recent " << options.recent << ", strict " << options.strict);
            const auto with = scheme.make(setup.model, options), without = scheme.make(setup.model, options);
            Feed a{with->create()}, b{without->create()}, other{with->create(), 9};
            test::feed(*with, setup.model, {{&other, 30}});
            const auto stored = [&](const Feed& one) {
                return test::stored_pages(*with, one.sequence, scheme, setup.model, options);
            };
            const auto others = stored(other);
            for (const std::size_t n : {3, 1, 60, 80, 1}) {
                const auto before = stored(a);
                Bytes bytes = with->bytes();
                const test::Outputs early = test::feed_and_abandon(*with, setup.model, {{&a, n}, {&other, 2}});
                test::feed_and_abandon(*with, setup.model, {{&other, 90}, {&a, n + 70}});
                // Begun only; and stopped after some layers, with other rows.
                { const auto step = with->begin({{a.sequence, 5}}); }
                {
                    auto step = with->begin({{a.sequence, 2}});
                    const test::Rows rows = test::rows_of(setup.model.layers[0], 0, 77, 0, 2);
                    step.append(0, MatrixView(rows.x.data(), 2, 24));
                    auto moved = std::move(step);
                    moved.append(1, MatrixView(rows.x.data(), 2, 24));
                }
                CHECK(with->size(a.sequence) == a.tokens);
                CHECK(stored(a) == before);
                CHECK(stored(other) == others);
                bytes.workspace = with->bytes().workspace;  // buffers are kept for the next step
                CHECK(with->bytes() == bytes);

                test::feed(*with, setup.model, {{&a, n}});
                test::feed(*without, setup.model, {{&b, n}});
                // What the abandoned step said was true: the same rows, the same answer.
                for (std::size_t layer = 0; layer < early.size(); ++layer) {
                    const std::size_t heads = 4 * 8;
                    const std::vector<float> said(early[layer].begin(),
                                                  early[layer].begin() + static_cast<std::ptrdiff_t>(n * heads));
                    const std::vector<float> now(a.out[layer].end() - static_cast<std::ptrdiff_t>(n * heads),
                                                 a.out[layer].end());
                    CHECK(test::difference(said, now) == "");
                }
            }
            CHECK(test::difference(b.out, a.out) == "");
            CHECK(stored(a) == test::stored_pages(*without, b.sequence, scheme, setup.model, options));
        }
    }
}

TEST_CASE("sequences may be created and dropped while a step of others is open") {
    const test::Setup setup = test::small_model();
    const Scheme& scheme = test::scheme("head svd 4");
    const Options options{.sinks = 1, .recent = 3};
    const auto cache = scheme.make(setup.model, options), alone = scheme.make(setup.model, options);
    Feed a{cache->create(), 5};
    test::feed(*cache, setup.model, {{&a, 140}});
    auto step = cache->begin({{a.sequence, 7}});
    std::vector<Sequence> more;
    for (int i = 0; i < 50; ++i) more.push_back(cache->create());
    for (const Sequence sequence : more) cache->drop(sequence);
    const test::Outputs out = test::run_layers(step, setup.model, {{&a, 7}}, Serial{});
    step.commit();
    const test::Outputs expected = test::outputs_of(*alone, setup.model, {140, 7}, 5);
    for (std::size_t layer = 0; layer < out.size(); ++layer) {
        const std::vector<float> last(expected[layer].end() - static_cast<std::ptrdiff_t>(out[layer].size()),
                                      expected[layer].end());
        CHECK(test::difference(last, out[layer]) == "");
    }
}

TEST_CASE("two steps of different sequences may be open at once") {
    const test::Setup setup = test::small_model();
    for (const char* name : {"x 4", "cross-layer x 3", "kivi 2"}) {
        INFO(name);
        const Options options{.sinks = 0, .recent = 4};
        const auto cache = test::scheme(name).make(setup.model, options),
                   alone = test::scheme(name).make(setup.model, options);
        Feed a{cache->create(), 1}, b{cache->create(), 2};
        auto first = cache->begin({{a.sequence, 150}});
        auto second = cache->begin({{b.sequence, 9}});
        const test::Outputs of_b = test::run_layers(second, setup.model, {{&b, 9}}, Serial{});
        const test::Outputs of_a = test::run_layers(first, setup.model, {{&a, 150}}, Serial{});
        second.commit();
        first.commit();
        CHECK(test::difference(test::outputs_of(*alone, setup.model, {150}, 1), of_a) == "");
        CHECK(test::difference(test::outputs_of(*alone, setup.model, {9}, 2), of_b) == "");
    }
}

TEST_CASE("a sealed sequence holds no rows outside its window, and goes on") {
    const test::Setup setup = test::small_model();
    for (const Scheme& scheme : test::schemes()) {
        INFO(scheme.name);
        const Options options{.sinks = 4, .recent = 6};
        const auto cache = scheme.make(setup.model, options);
        Feed a{cache->create()};
        cache->seal(a.sequence);  // empty
        CHECK(cache->size(a.sequence) == 0);
        for (const std::size_t n : {50, 1, 130}) {
            test::feed(*cache, setup.model, {{&a, n}});
            cache->seal(a.sequence);
            std::size_t sinks = 0, coded = 0, rows = 0, next = 0;
            cache->for_each_page(a.sequence, [&](const PageView& page) {
                CHECK(page.first_position == static_cast<std::int64_t>(next));
                next += page.end - page.begin;
                (purpose_of(page.kind) == Purpose::sinks   ? sinks
                 : purpose_of(page.kind) == Purpose::codes ? coded
                                                           : rows) += page.end - page.begin;
            });
            CHECK(sinks == 4);
            CHECK(rows == 6);
            CHECK(coded == a.tokens - 10);
            cache->seal(a.sequence);  // again: nothing is left to do
            CHECK(cache->size(a.sequence) == a.tokens);
        }
        // What it says now is what it would say of the same rows in one piece, to quantization.
        const auto whole = scheme.make(setup.model, options);
        const test::Outputs expected = test::outputs_of(*whole, setup.model, {50, 1, 130});
        const double off = test::relative_distance(a.out, expected);
        CHECK(off < (scheme.exact ? 1e-3 : test::tolerance(scheme, setup.model)));  // sinks and window are in f16
        if (!scheme.per_channel) CHECK(off == 0);
    }
}
