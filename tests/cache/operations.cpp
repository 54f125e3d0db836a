/// Forking and truncating: what is left is what a sequence that was never touched would hold, and nothing is copied.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/feed.hpp"
#include "support/memory.hpp"
#include "support/model.hpp"
#include "support/tolerance.hpp"

using namespace xquant;
using test::Feed;
using test::Scheme;

namespace {

constexpr double rounding = 2e-5;

Bytes without_index(Bytes bytes) {
    bytes.index = bytes.workspace = 0;
    return bytes;
}

/// What is freed with a sequence is freed with the last one that shares it.
void check_empty(test::Cache& cache, const Bytes& empty) {
    CHECK(without_index(cache.bytes()) == without_index(empty));
}

}  // namespace

TEST_CASE("a fork and its origin share every page, and go on as two sequences that were fed alone") {
    const test::Setup setup = test::small_model();
    for (const Scheme& scheme : test::schemes()) {
        for (const Options& options : {Options{.sinks = 4, .recent = 40},
                                       {.sinks = 0, .recent = 0},
                                       {.sinks = 4, .recent = 10, .strict = true}}) {
            INFO(scheme.name << ", recent " << options.recent << ", strict " << options.strict);
            const auto cache = scheme.make(setup.model, options), alone = scheme.make(setup.model, options);
            const Bytes empty = cache->bytes();
            Feed a{cache->create(), 1};
            test::feed(*cache, setup.model, {{&a, 131}});
            test::feed(*cache, setup.model, {{&a, 7}});
            const Bytes before = cache->bytes();
            Feed b = a, c = a;
            b.sequence = cache->fork(a.sequence);
            c.sequence = cache->fork(b.sequence);
            b.seed = 2;
            c.seed = 3;
            CHECK(cache->size(b.sequence) == 138);
            CHECK(without_index(cache->bytes()) == without_index(before));
            CHECK(test::stored_pages(*cache, b.sequence, scheme, setup.model, options) ==
                  test::stored_pages(*cache, a.sequence, scheme, setup.model, options));

            // Together in one step, and one after the other.
            test::feed(*cache, setup.model, {{&a, 3}, {&b, 5}});
            test::feed(*cache, setup.model, {{&b, 140}});
            test::feed(*cache, setup.model, {{&a, 140}});
            Feed x{alone->create(), 1}, y{alone->create(), 1};
            for (Feed* feed : {&x, &y}) {
                test::feed(*alone, setup.model, {{feed, 131}});
                test::feed(*alone, setup.model, {{feed, 7}});
            }
            y.seed = 2;
            test::feed(*alone, setup.model, {{&x, 3}});
            test::feed(*alone, setup.model, {{&y, 5}});
            test::feed(*alone, setup.model, {{&y, 140}});
            test::feed(*alone, setup.model, {{&x, 140}});
            CHECK(test::distance(a, x, 143) < rounding);
            CHECK(test::distance(b, y, 145) < rounding);

            // The third one outlives both.
            cache->drop(a.sequence);
            cache->drop(b.sequence);
            Feed z{alone->create(), 1};
            test::feed(*alone, setup.model, {{&z, 131}});
            test::feed(*alone, setup.model, {{&z, 7}});
            z.seed = 3;
            test::feed(*cache, setup.model, {{&c, 9}});
            test::feed(*alone, setup.model, {{&z, 9}});
            CHECK(test::distance(c, z, 9) < rounding);
            cache->drop(c.sequence);
            check_empty(*cache, empty);
        }
    }
}

TEST_CASE("a truncated sequence goes on like one that never had the rest") {
    const test::Setup setup = test::small_model();
    for (const Scheme& scheme : test::schemes()) {
        for (const Options& options : {Options{.sinks = 4, .recent = 0}, {.sinks = 3, .recent = 20}}) {
            INFO(scheme.name << ", recent " << options.recent);
            // Rows that were encoded stay so, where the other sequence has them in f16 still.
            const bool same = options.recent == 0 && !scheme.per_channel;
            const double bound = same ? rounding : scheme.exact ? 1e-3 : test::tolerance(scheme, setup.model);
            for (const std::size_t kept : {0, 1, 3, 5, 100, 131, 132, 133, 159, 160}) {
                INFO("kept " << kept);
                const auto cache = scheme.make(setup.model, options), alone = scheme.make(setup.model, options);
                Feed a{cache->create(), 1}, x{alone->create(), 1};
                test::feed(*cache, setup.model, {{&a, 160}});
                cache->truncate(a.sequence, kept);
                CHECK(cache->size(a.sequence) == kept);
                a.tokens = kept;
                if (kept > 0) test::feed(*alone, setup.model, {{&x, kept}});
                a.seed = x.seed = 2;
                for (const std::size_t n : {1, 6, 150}) {
                    test::feed(*cache, setup.model, {{&a, n}});
                    test::feed(*alone, setup.model, {{&x, n}});
                    CHECK(cache->size(a.sequence) == alone->size(x.sequence));
                    CHECK(test::relative_distance(a, x, n) < bound);
                }
            }
        }
    }
}

TEST_CASE("drafts that are taken back again and again take no room") {
    const test::Setup setup = test::small_model();
    for (const Scheme& scheme : test::schemes()) {
        INFO(scheme.name);
        const auto cache = scheme.make(setup.model, {.sinks = 4, .recent = 8});
        Feed a{cache->create(), 1};
        test::feed(*cache, setup.model, {{&a, 200}});
        Bytes first{};
        for (int round = 0; round < 60; ++round) {
            test::feed(*cache, setup.model, {{&a, 5}});
            cache->truncate(a.sequence, 200);
            a.tokens = 200;
            Bytes bytes = cache->bytes();
            bytes.workspace = 0;
            if (round == 4) first = bytes;
            if (round > 4) REQUIRE(bytes == first);
        }
    }
}

TEST_CASE("truncating a fork leaves its origin alone") {
    const test::Setup setup = test::small_model();
    const Options options{.sinks = 4, .recent = 8};
    for (const Scheme& scheme : test::schemes()) {
        INFO(scheme.name);
        const auto cache = scheme.make(setup.model, options);
        Feed a{cache->create(), 1};
        test::feed(*cache, setup.model, {{&a, 150}});
        const auto before = test::stored_pages(*cache, a.sequence, scheme, setup.model, options);
        Feed b = a;
        b.sequence = cache->fork(a.sequence);
        b.seed = 2;
        for (const std::size_t kept : {145, 130, 64, 2}) {
            cache->truncate(b.sequence, kept);
            b.tokens = kept;
            test::feed(*cache, setup.model, {{&b, 11}});
        }
        CHECK(test::stored_pages(*cache, a.sequence, scheme, setup.model, options) == before);
    }
}

TEST_CASE("operations refuse what they cannot do, and nothing has changed") {
    test::Setup setup = test::small_model();
    setup.model.layers[1].window = 30;
    const auto cache = test::scheme("head svd 4").make(setup.model, {.sinks = 4, .recent = 8});
    Feed a{cache->create(), 1};
    test::feed(*cache, setup.model, {{&a, 299}});
    test::feed(*cache, setup.model, {{&a, 1}});  // rows outside the window go when the next step comes
    const auto refused = [&](std::size_t kept, const std::string& text) {
        try {
            cache->truncate(a.sequence, kept);
            FAIL("truncate to " << kept << " was not refused");
        } catch (const error& problem) {
            INFO(problem.what());
            CHECK(std::string(problem.what()).find(text) != std::string::npos);
        }
        CHECK(cache->size(a.sequence) == 300);
    };
    refused(301, "truncate: 301 tokens, but the sequence has 300");
    refused(20, "sliding window");
    {
        auto step = cache->begin({{a.sequence, 1}});
        CHECK_THROWS_AS(cache->truncate(a.sequence, 299), sequence_error);
        CHECK_THROWS_AS(static_cast<void>(cache->fork(a.sequence)), sequence_error);
    }
    cache->truncate(a.sequence, 299);
    CHECK(cache->size(a.sequence) == 299);
    cache->drop(a.sequence);
    CHECK_THROWS_AS(cache->truncate(a.sequence, 0), sequence_error);
    CHECK_THROWS_AS(static_cast<void>(cache->fork(a.sequence)), sequence_error);
}

TEST_CASE("a fork or a truncation that runs out of memory changes nothing") {
    const test::Setup setup = test::small_model();
    test::CountingMemory memory;
    const auto cache = test::scheme("head svd 4").make(setup.model, {.sinks = 4, .recent = 8, .memory = &memory});
    std::vector<Feed> feeds;
    for (std::uint32_t i = 0; i < 16; ++i) feeds.push_back({cache->create(), i + 1});  // the next one needs room
    test::feed(*cache, setup.model, {{&feeds[0], 300}});
    const auto fails = [&](auto&& operation) {
        std::size_t failures = 0;
        for (std::size_t k = 1;; ++k) {
            memory.fail_at(k);
            try {
                operation();
                memory.fail_at(0);
                break;
            } catch (const std::bad_alloc&) {
                memory.fail_at(0);
                ++failures;
                CHECK(cache->size(feeds[0].sequence) == 300);
            }
        }
        CHECK(failures > 0);
    };
    Sequence made;
    fails([&] { made = cache->fork(feeds[0].sequence); });
    CHECK(cache->size(made) == 300);
    cache->drop(made);
    fails([&] { cache->truncate(feeds[0].sequence, 170); });
    CHECK(cache->size(feeds[0].sequence) == 170);
}

TEST_CASE("the slot of the newest coded token is used again once it is erased, whenever that happens") {
    const test::Setup setup = test::small_model();
    for (const Scheme& scheme : test::schemes()) {
        if (scheme.per_channel) continue;  // groups of 128 tokens stay as they are
        INFO(scheme.name);
        constexpr std::size_t recent = 8;
        const auto cache = scheme.make(setup.model, {.sinks = 4, .recent = recent}),
                   fresh = scheme.make(setup.model, {.sinks = 4, .recent = recent});
        Feed a{cache->create(), 1}, x{fresh->create(), 1};
        test::feed(*cache, setup.model, {{&a, 200}});
        for (std::size_t i = 0; i < 100; ++i) {
            const std::size_t newest = cache->size(a.sequence) - recent - 1;
            cache->erase(a.sequence, newest, newest + 1);
            test::feed(*cache, setup.model, {{&a, 2}});
        }
        test::feed(*fresh, setup.model, {{&x, 300}});
        CHECK(cache->size(a.sequence) == 300);
        const Bytes found = cache->bytes(), expected = fresh->bytes();
        CHECK(found.codes == expected.codes);
        CHECK(found.scales == expected.scales);
        CHECK(found.tail <= 2 * expected.tail);
    }
}

TEST_CASE("sinks that are erased one by one while a sequence is short do not open pages") {
    const test::Setup setup = test::small_model();
    const auto cache = test::scheme("x 4").make(setup.model, {.sinks = 40, .recent = 8});
    Feed a{cache->create(), 1};
    test::feed(*cache, setup.model, {{&a, 20}});
    const std::size_t one_page = cache->bytes().sinks;
    for (std::size_t i = 0; i < 200; ++i) {
        cache->erase(a.sequence, 5 + i % 7, 6 + i % 7);
        test::feed(*cache, setup.model, {{&a, 1}});
    }
    CHECK(cache->size(a.sequence) == 20);
    // 20 tokens and the slots of those that were erased before them: a page is freed when none of its tokens is left.
    CHECK(cache->bytes().sinks <= 7 * one_page);
}
