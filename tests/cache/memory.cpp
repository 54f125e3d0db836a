/// bytes() is what the memory resource was asked for, at every moment; predict() says it beforehand; and a resource
/// that fails at any moment leaves the cache as it was.
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/feed.hpp"
#include "support/memory.hpp"
#include "support/model.hpp"

using namespace xquant;
using test::Feed;
using test::Scheme;

namespace {

constexpr std::size_t layer_count = 4;

test::Setup small_model() {
    return {{.width = 24, .heads = 2, .kv_heads = 1, .head_dim = 8}, RopePairing::halves, layer_count};
}

/// One step, with a look at the books after every call.
template <class Look>
void watched_step(test::Cache& cache, const Model& model, const std::vector<test::NewTokens>& parts, bool commit,
                  Look look) {
    auto step = cache.begin(test::step_parts(parts));
    look();
    for (std::size_t layer = 0; layer < model.layers.size(); ++layer) {
        const LayerShape& shape = model.layers[layer].shape;
        const std::size_t heads = shape.heads * shape.head_dim;
        test::Rows all;
        for (const test::NewTokens& part : parts) {
            const test::Rows rows =
                test::rows_of(model.layers[layer], layer, part.feed->seed, part.feed->tokens, part.count);
            all.x.insert(all.x.end(), rows.x.begin(), rows.x.end());
            all.q.insert(all.q.end(), rows.q.begin(), rows.q.end());
        }
        std::vector<float> out(all.q.size());
        step.append(layer, MatrixView(all.x.data(), step.size(), shape.width));
        look();
        step.attend(layer, MatrixView(all.q.data(), step.size(), heads), out.data());
        look();
    }
    if (!commit) return;
    step.commit();
    look();
    for (const test::NewTokens& part : parts) part.feed->tokens += part.count;
}

/// Rows alone, no attention.
void append_only(test::Cache& cache, const Model& model, Feed& feed, std::size_t n) {
    auto step = cache.begin({{feed.sequence, n}});
    for (std::size_t layer = 0; layer < model.layers.size(); ++layer) {
        const test::Rows rows = test::rows_of(model.layers[layer], layer, feed.seed, feed.tokens, n);
        step.append(layer, MatrixView(rows.x.data(), n, model.layers[layer].shape.width));
    }
    step.commit();
    feed.tokens += n;
}

Bytes without_workspace(Bytes bytes) {
    bytes.workspace = 0;
    return bytes;
}

}  // namespace

TEST_CASE("bytes() adds up to what was asked of the memory resource, after every call") {
    const test::Setup setup = small_model();
    for (const Scheme& scheme : test::schemes()) {
        for (Options options : {Options{.sinks = 4, .recent = 40}, Options{.sinks = 0, .recent = 0, .strict = true}}) {
            INFO(scheme.name << ", strict " << options.strict);
            test::CountingMemory memory;
            options.memory = &memory;
            {
                const auto cache = scheme.make(setup.model, options);
                const auto look = [&] { REQUIRE(cache->bytes().total() == memory.bytes()); };
                look();
                Feed a{cache->create(), 1}, b{cache->create(), 2};
                look();
                const auto run = [&](const std::vector<test::NewTokens>& parts, bool commit = true) {
                    watched_step(*cache, setup.model, parts, commit, look);
                    look();
                };
                run({{&a, 3}});
                run({{&b, 140}, {&a, 1}});
                run({{&a, 200}, {&b, 1}}, false);
                run({{&a, 150}});
                cache->seal(b.sequence);
                look();
                run({{&b, 2}, {&a, 2}});
                std::vector<Sequence> more;
                for (int i = 0; i < 20; ++i) more.push_back(cache->create());
                look();
                cache->drop(a.sequence);
                look();
                run({{&b, 30}});
                cache->drop(b.sequence);
                look();
                const Bytes empty = cache->bytes();
                CHECK(empty.codes + empty.scales + empty.tail + empty.sinks + empty.accumulator == 0);
                CHECK(empty.weights > 0);
            }
            CHECK(memory.bytes() == 0);
            CHECK_FALSE(memory.misused());
        }
    }
}

TEST_CASE("predict() is bytes() of one sequence, to the byte") {
    const test::Setup setup = small_model();
    for (const Scheme& scheme : test::schemes()) {
        for (const Options& options :
             {Options{}, Options{.sinks = 0, .recent = 0},
              Options{.sinks = 5, .recent = 1, .rows = DType::f32, .weights = WeightType::q8},
              Options{.sinks = 4, .recent = 33, .rows = DType::bf16, .weights = WeightType::bf16, .strict = true}}) {
            INFO(scheme.name << ", sinks " << options.sinks << ", recent " << options.recent);
            const auto cache = scheme.make(setup.model, options);
            Feed feed{cache->create()};
            CHECK(without_workspace(cache->bytes()) == scheme.predict(setup.model, options, 0));
            for (const std::size_t n : {1, 2, 1, 27, 1, 95, 1, 1, 127, 2, 500, 13}) {
                append_only(*cache, setup.model, feed, n);
                INFO(feed.tokens << " tokens");
                CHECK(without_workspace(cache->bytes()) == scheme.predict(setup.model, options, feed.tokens));
            }
            // Whatever the steps.
            const auto other = scheme.make(setup.model, options);
            Feed whole{other->create()};
            append_only(*other, setup.model, whole, feed.tokens);
            CHECK(without_workspace(other->bytes()) == without_workspace(cache->bytes()));
            cache->drop(feed.sequence);
            CHECK(without_workspace(cache->bytes()) == scheme.predict(setup.model, options, 0));
        }
    }
}

TEST_CASE("predict_accumulator() is what a step takes for the tokens that it reads and writes as codes") {
    const test::Setup setup = small_model();
    for (const Scheme& scheme : test::schemes()) {
        INFO(scheme.name);
        const Options options{.sinks = 2, .recent = 0};
        const auto cache = scheme.make(setup.model, options);
        Feed feed{cache->create()};
        CHECK((scheme.predict_accumulator(setup.model, options, 100) > 0) == scheme.cross_layer);
        for (const std::size_t n : {128 + 2, 128, 1}) {
            {
                const auto step = cache->begin({{feed.sequence, n}});
                const std::size_t coded = feed.tokens + n - options.sinks;
                // Rows that wait for their group are not among them.
                const std::size_t read = scheme.per_channel ? coded / 128 * 128 : coded;
                CHECK(cache->bytes().accumulator == scheme.predict_accumulator(setup.model, options, read));
            }
            CHECK(cache->bytes().accumulator == 0);
            append_only(*cache, setup.model, feed, n);
        }
    }
}

TEST_CASE("memory that runs out at any moment of a step leaves the cache as it was, and in working order") {
    const test::Setup setup = small_model();
    for (const char* name :
         {"head svd 4", "x rotated 3", "cross-layer x rotated 8, f16 sums", "cross-layer svd 3", "mixed"}) {
        for (const bool strict : {false, true}) {
            INFO(name << ", strict " << strict);
            const Scheme& scheme = test::scheme(name);
            test::CountingMemory memory;
            const Options options{.sinks = 1, .recent = 2, .strict = strict, .memory = &memory};
            // 130 tokens, then 3 and 2 more: tails leave the window, a page is filled and another begun.
            test::Outputs expected;
            {
                const auto cache = scheme.make(setup.model, options);
                Feed a{cache->create(), 1}, b{cache->create(), 2};
                append_only(*cache, setup.model, a, 130);
                test::feed(*cache, setup.model, {{&a, 3}, {&b, 2}});
                expected = a.out;
            }
            std::size_t k = 1;
            for (bool failed = true; failed; ++k) {
                const auto cache = scheme.make(setup.model, options);
                Feed a{cache->create(), 1}, b{cache->create(), 2};
                append_only(*cache, setup.model, a, 130);
                const auto stored = [&] {
                    return test::stored_pages(*cache, a.sequence, scheme, setup.model, options);
                };
                const auto before = stored();
                const Bytes bytes = without_workspace(cache->bytes());
                memory.fail_at(k);
                failed = false;
                try {
                    test::feed(*cache, setup.model, {{&a, 3}, {&b, 2}});
                } catch (const std::bad_alloc&) {
                    failed = true;
                }
                REQUIRE(failed != memory.armed());
                memory.fail_at(0);
                if (failed) {
                    REQUIRE(a.tokens == 130);
                    REQUIRE(cache->size(a.sequence) == 130);
                    REQUIRE(cache->size(b.sequence) == 0);
                    REQUIRE(stored() == before);
                    REQUIRE(without_workspace(cache->bytes()) == bytes);
                    REQUIRE(cache->bytes().total() == memory.bytes());
                    test::feed(*cache, setup.model, {{&a, 3}, {&b, 2}});
                }
                REQUIRE(test::difference(expected, a.out) == "");
            }
            CHECK(k > 20);
            CHECK(memory.bytes() == 0);
            CHECK_FALSE(memory.misused());
        }
    }
}

TEST_CASE("a call that ran out of memory may be made again, or says that the step is lost; it never answers wrongly") {
    const test::Setup setup = small_model();
    for (const char* name : {"x 4", "kivi 2", "cross-layer x 3", "cross-layer svd 3"}) {
        INFO(name);
        const Scheme& scheme = test::scheme(name);
        test::CountingMemory memory;
        const Options options{.sinks = 0, .recent = 0, .memory = &memory};
        test::Outputs expected;
        std::size_t lost = 0, repeated = 0;
        constexpr std::size_t n = 150;
        for (std::size_t k = 0;; ++k) {
            const auto cache = scheme.make(setup.model, options);
            Feed a{cache->create()};
            auto step = cache->begin({{a.sequence, n}});
            memory.fail_at(k);
            test::Outputs out;
            bool usable = true;
            // Every call is made until it works.
            const auto insist = [&](auto call) {
                try {
                    call();
                } catch (const std::bad_alloc&) {
                    try {
                        call();
                        ++repeated;
                    } catch (const state_error& e) {
                        CHECK(std::string(e.what()).find("ran out of memory") != std::string::npos);
                        CHECK_THROWS_AS(step.commit(), state_error);
                        ++lost;
                        usable = false;
                    }
                }
            };
            for (std::size_t layer = 0; layer < layer_count && usable; ++layer) {
                const test::Rows rows = test::rows_of(setup.model.layers[layer], layer, 1, 0, n);
                insist([&] { step.append(layer, MatrixView(rows.x.data(), n, 24)); });
                out.emplace_back(n * 16);
                // Attention takes buffers that later layers would find: only the last layer attends.
                if (!usable || layer + 1 < layer_count) continue;
                insist([&] { step.attend(layer, MatrixView(rows.q.data(), n, 16), out.back().data()); });
            }
            const bool reached = !memory.armed();
            memory.fail_at(0);
            if (k == 0) expected = out;
            if (usable) REQUIRE(test::difference(expected, out) == "");
            if (k > 0 && !reached) break;
        }
        // Where no sums are kept and no groups are put together, storing takes no memory.
        CHECK((lost > 0) == scheme.cross_layer);
        CHECK(repeated > 0);
    }
}

TEST_CASE("memory that runs out while a cache is made, a sequence created or sealed leaks nothing") {
    const test::Setup setup = small_model();
    for (const char* name : {"head svd 4", "cross-layer svd rotated 4", "mixed"}) {
        INFO(name);
        const Scheme& scheme = test::scheme(name);
        test::CountingMemory memory;
        const Options options{.sinks = 1, .recent = 0, .memory = &memory};
        for (std::size_t k = 1;; ++k) {
            memory.fail_at(k);
            try {
                const auto cache = scheme.make(setup.model, options);
                Feed a{cache->create()};
                REQUIRE(cache->bytes().total() == memory.bytes());
                break;
            } catch (const std::bad_alloc&) {
                REQUIRE(memory.bytes() == 0);
            }
        }
        memory.fail_at(0);
        const auto cache = scheme.make(setup.model, options);
        Feed a{cache->create()};
        append_only(*cache, setup.model, a, 100);
        const auto stored = [&] { return test::stored_pages(*cache, a.sequence, scheme, setup.model, options); };
        const auto before = stored();
        std::size_t failures = 0;
        for (std::size_t k = 1;; ++k) {
            memory.fail_at(k);
            try {
                cache->seal(a.sequence);
                break;
            } catch (const std::bad_alloc&) {
                ++failures;
                REQUIRE(stored() == before);
                REQUIRE(cache->bytes().total() == memory.bytes());
            }
        }
        memory.fail_at(0);
        CHECK(failures > 0);
        CHECK((stored() != before) == scheme.per_channel);
        CHECK_FALSE(memory.misused());
    }
}

TEST_CASE("layers with windows of their own are counted to the byte, too") {
    test::Setup setup = small_model();
    setup.model.layers[1].window = 30;
    setup.model.layers[3].window = 30;
    for (const char* name : {"x 4", "kivi 2", "f16 k and v"}) {
        INFO(name);
        const Scheme& scheme = test::scheme(name);
        test::CountingMemory memory;
        const Options options{.sinks = 4, .recent = 10, .memory = &memory};
        const auto cache = scheme.make(setup.model, options);
        Feed a{cache->create()};
        for (const std::size_t n : {5, 60, 1, 200, 1}) {
            watched_step(*cache, setup.model, {{&a, n}}, true,
                         [&] { REQUIRE(cache->bytes().total() == memory.bytes()); });
            const Bytes most = scheme.predict(setup.model, options, a.tokens);
            const Bytes now = without_workspace(cache->bytes());
            CHECK(now.codes <= most.codes);
            CHECK(now.tail <= most.tail);
            CHECK(now.total() <= most.total());
            CHECK(now.weights == most.weights);
        }
    }
}
