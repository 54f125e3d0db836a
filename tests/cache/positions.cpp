/// Erasing, shifting and gathering: what is left is what a sequence that never had the rest would hold, at the
/// positions that it should have. Random sequences of operations: random_operations.cpp; where each token stands:
/// token_positions.cpp.
#include <algorithm>
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

/// Rows that are coded by themselves are the same whatever became of their neighbours, unless RoPE was in them.
bool coded_alone(const Scheme& scheme) {
    return !scheme.per_channel && scheme.name != "x in blocks of 4 tokens" && scheme.name.find("q") != 0 &&
           scheme.name != "f16 k and v";
}

}  // namespace

TEST_CASE("a sequence whose middle was erased answers like one that never had it") {
    const test::Setup setup = test::small_model();
    for (const Scheme& scheme : test::schemes()) {
        for (const Options& options : {Options{.sinks = 0, .recent = 0}, {.sinks = 4, .recent = 20}}) {
            INFO(scheme.name << ", recent " << options.recent);
            const double bound = scheme.exact                                 ? 2e-3
                                 : options.recent == 0 && coded_alone(scheme) ? 1e-4
                                                                              : test::tolerance(scheme, setup.model);
            for (const auto& [begin, end] :
                 {std::pair<std::size_t, std::size_t>{0, 10}, {2, 7}, {50, 90}, {120, 140}, {195, 200}}) {
                INFO("erased " << begin << " .. " << end);
                const auto cache = scheme.make(setup.model, options), alone = scheme.make(setup.model, options);
                Feed a{cache->create(), 1}, b{alone->create(), 1};
                test::feed(*cache, setup.model, {{&a, 200}});
                cache->erase(a.sequence, begin, end);
                CHECK(cache->size(a.sequence) == 200 - (end - begin));
                CHECK(cache->next_position(a.sequence) == static_cast<std::int64_t>(200 - (end - begin)));
                if (begin > 0) test::feed(*alone, setup.model, {{&b, begin}});
                b.tokens = end;
                if (end < 200) test::feed(*alone, setup.model, {{&b, 200 - end}});
                for (const std::size_t n : {1, 40}) {
                    test::feed(*cache, setup.model, {{&a, n}});
                    test::feed(*alone, setup.model, {{&b, n}});
                    CHECK(test::relative_distance(a, b, n) < bound);
                }
            }
        }
    }
}

TEST_CASE("tokens that were moved one range at a time answer like those that were put there") {
    const test::Setup setup = test::small_model();
    for (const Scheme& scheme : test::schemes()) {
        for (const Options& options : {Options{.sinks = 0, .recent = 0}, {.sinks = 4, .recent = 20}}) {
            INFO(scheme.name << ", recent " << options.recent);
            const double bound = scheme.exact                                 ? 2e-3
                                 : options.recent == 0 && coded_alone(scheme) ? 1e-4
                                                                              : test::tolerance(scheme, setup.model);
            const auto cache = scheme.make(setup.model, options), alone = scheme.make(setup.model, options);
            Feed a{cache->create(), 1}, b{alone->create(), 1};
            test::feed(*cache, setup.model, {{&a, 200}});
            cache->shift(a.sequence, 80, 60);
            cache->shift(a.sequence, 50, 80, 45);
            cache->shift(a.sequence, 0, 2, -7);
            cache->set_next_position(a.sequence, 300);
            cache->shift(a.sequence, 190, 200, 15);
            cache->erase(a.sequence, 100, 120, Gap::keep);
            CHECK(cache->size(a.sequence) == 180);
            CHECK(cache->next_position(a.sequence) == 300);
            Feed other = a;  // as if its tokens 50 .. 80 had stayed
            other.sequence = cache->fork(a.sequence);
            cache->shift(other.sequence, 50, 80, -45);
            // Rows first .. first + count stand from `position` on.
            const auto put = [&](std::size_t first, std::size_t count, std::int64_t position) {
                alone->set_next_position(b.sequence, position);
                b.tokens = first;
                test::feed(*alone, setup.model, {{&b, count}});
            };
            put(0, 2, -7);
            put(2, 48, 2);
            put(50, 30, 95);
            put(80, 20, 140);
            put(120, 70, 180);
            put(190, 10, 265);
            alone->set_next_position(b.sequence, 300);
            for (const std::size_t n : {1, 40}) {
                test::feed(*cache, setup.model, {{&a, n}});
                test::feed(*alone, setup.model, {{&b, n}});
                CHECK(test::relative_distance(a, b, n) < bound);
            }
            test::feed(*cache, setup.model, {{&other, 41}});
            CHECK(test::distance(a, other, 41) > 1e-4);
        }
    }
}

TEST_CASE("moving all tokens changes no answer, and a gap is seen by queries behind it alone") {
    const test::Setup setup = test::small_model();
    for (const Scheme& scheme : test::schemes()) {
        INFO(scheme.name);
        const auto cache = scheme.make(setup.model, {.sinks = 4, .recent = 20});
        Feed a{cache->create(), 1};
        test::feed(*cache, setup.model, {{&a, 200}});
        Feed b = a, c = a;
        b.sequence = cache->fork(a.sequence);
        c.sequence = cache->fork(a.sequence);
        // Queries are given after RoPE, so that a query of position p is another vector for p + 128 where there is a
        // RoPE: what must not change is what a sequence that was moved there and back says.
        cache->shift(b.sequence, 0, 1000);
        cache->shift(b.sequence, 120, 50);
        cache->shift(b.sequence, 120, -50);
        cache->shift(b.sequence, 0, -1000);
        CHECK(cache->next_position(b.sequence) == 200);
        cache->shift(c.sequence, 100, 3);
        CHECK(cache->next_position(c.sequence) == 203);
        for (Feed* feed : {&a, &b, &c}) test::feed(*cache, setup.model, {{feed, 3}});
        CHECK(test::distance(a, b, 3) < rounding);
        CHECK(test::distance(a, c, 3) > 1e-4);
    }
}

TEST_CASE("a gap that new tokens stand behind outlives them") {
    const test::Setup setup = test::small_model();
    for (const Scheme& scheme : test::schemes()) {
        for (const std::size_t before : {10, 0, 150}) {
            INFO(scheme.name << ", " << before << " tokens before the gap");
            const auto cache = scheme.make(setup.model, {.sinks = 2, .recent = 200});  // drafts encode nothing
            Feed a{cache->create(), 1};
            if (before > 0) test::feed(*cache, setup.model, {{&a, before}});
            cache->shift(a.sequence, before, 90);
            const auto next = static_cast<std::int64_t>(before) + 90;
            test::feed(*cache, setup.model, {{&a, 4}});
            CHECK(cache->next_position(a.sequence) == next + 4);
            const Sequence forked = cache->fork(a.sequence, before), partly = cache->fork(a.sequence, before + 3),
                           erased = cache->fork(a.sequence), cut = cache->fork(a.sequence);
            CHECK(cache->next_position(forked) == next);
            CHECK(cache->next_position(partly) == next + 3);
            cache->erase(erased, before, before + 4);
            CHECK(cache->next_position(erased) == next);
            cache->truncate(cut, before);
            CHECK(cache->next_position(cut) == next);
            if (before > 0) {
                // The gap goes with the tokens on both sides of it.
                const Sequence across = cache->fork(a.sequence);
                cache->truncate(across, before - 3);
                CHECK(cache->next_position(across) == static_cast<std::int64_t>(before) - 3);
                cache->drop(across);
            }
            const std::vector<Sequence> list{cut, partly};
            cache->gather(list, std::vector<std::size_t>{0, 0});
            CHECK(cache->next_position(partly) == next);
            // Drafts that were rejected leave no trace.
            cache->truncate(a.sequence, before);
            a.tokens = before;
            Feed b{cache->create(), 1};
            if (before > 0) test::feed(*cache, setup.model, {{&b, before}});
            cache->shift(b.sequence, before, 90);
            for (Feed* feed : {&a, &b}) test::feed(*cache, setup.model, {{feed, 3}});
            CHECK(cache->next_position(a.sequence) == next + 3);
            CHECK(test::distance(a, b, 3) < rounding);
        }
    }
}

TEST_CASE("an endless conversation: the oldest tokens but the first four go, one for each that comes") {
    const test::Setup setup = test::small_model();
    for (const char* name : {"x rotated 3", "head svd 4", "q4_0, Hadamard", "cross-layer svd rotated 4"}) {
        INFO(name);
        const Options options{.sinks = 4, .recent = 40};
        const auto cache = test::scheme(name).make(setup.model, options);
        // What a sequence takes that grows through all that a group can wait for.
        const auto grown = test::scheme(name).make(setup.model, options);
        Feed a{cache->create(), 1}, b{grown->create(), 1};
        test::feed(*grown, setup.model, {{&b, 300}});
        std::size_t most = 0;
        for (int i = 0; i < 128; ++i) {
            test::feed(*grown, setup.model, {{&b, 1}});
            most = std::max(most, grown->bytes().stored());
        }
        test::feed(*cache, setup.model, {{&a, 300}});
        for (int i = 0; i < 1200; ++i) {
            cache->erase(a.sequence, 4, 5);
            test::feed(*cache, setup.model, {{&a, 1}});
            REQUIRE(cache->bytes().stored() <= most + most / 8);
        }
        CHECK(cache->size(a.sequence) == 300);
        CHECK(cache->next_position(a.sequence) == 300);
    }
}

TEST_CASE("gather makes each sequence what its parent was") {
    const test::Setup setup = test::small_model();
    for (const Scheme& scheme : test::schemes()) {
        INFO(scheme.name);
        const auto cache = scheme.make(setup.model, {.sinks = 4, .recent = 8});
        std::vector<Feed> feeds;
        for (std::uint32_t i = 0; i < 3; ++i) feeds.push_back({cache->create(), i + 1});
        test::feed(*cache, setup.model, {{&feeds[0], 150}, {&feeds[1], 40}, {&feeds[2], 131}});
        std::vector<Sequence> handles;
        std::vector<std::vector<test::StoredPage>> pages;
        const Options options{.sinks = 4, .recent = 8};
        for (const Feed& feed : feeds) {
            handles.push_back(feed.sequence);
            pages.push_back(test::stored_pages(*cache, feed.sequence, scheme, setup.model, options));
        }
        const std::vector<std::size_t> parents{2, 2, 0};
        cache->gather(handles, parents);
        for (std::size_t i = 0; i < 3; ++i) {
            CHECK(test::stored_pages(*cache, handles[i], scheme, setup.model, options) == pages[parents[i]]);
        }
        // They go on apart.
        Feed a = feeds[2], b = feeds[2];
        a.sequence = handles[0];
        b.sequence = handles[1];
        b.seed = 9;
        test::feed(*cache, setup.model, {{&a, 9}, {&b, 140}});
        CHECK(cache->size(handles[0]) == 140);
        CHECK(cache->size(handles[2]) == 150);
    }
}

TEST_CASE("erase, shift and gather refuse what they cannot do, and change nothing when memory runs out") {
    test::Setup setup = test::small_model();
    setup.model.layers[1].window = 30;
    test::CountingMemory memory;
    const auto cache = test::scheme("head svd 4").make(setup.model, {.sinks = 4, .recent = 8, .memory = &memory});
    Feed a{cache->create(), 1}, b{cache->create(), 2};
    test::feed(*cache, setup.model, {{&a, 299}, {&b, 20}});
    test::feed(*cache, setup.model, {{&a, 1}});
    const auto text = [](auto&& f) {
        try {
            f();
        } catch (const error& problem) {
            return std::string(problem.what());
        }
        return std::string();
    };
    const auto has = [](const std::string& whole, const char* part) { return whole.find(part) != std::string::npos; };
    CHECK(has(text([&] { cache->erase(a.sequence, 250, 301); }), "erase: tokens 250 .. 301, but the sequence has 300"));
    CHECK(has(text([&] { cache->erase(a.sequence, 30, 20); }), "erase: tokens 30 .. 20"));
    CHECK(has(text([&] { cache->erase(a.sequence, 280, 300); }), "sliding window"));
    CHECK(has(text([&] { cache->shift(a.sequence, 301, 1); }), "shift: from token 301 on, but the sequence has 300"));
    CHECK(has(text([&] { cache->shift(a.sequence, 290, -1); }),
              "token 290 would move to position 289, and the token before it stands at 289"));
    CHECK(has(text([&] { cache->shift(a.sequence, 0, std::int64_t{1} << 60); }), "between -2^48 and 2^48"));
    CHECK(has(text([&] { cache->shift(a.sequence, 0, largest_position - 100); }),
              "tokens would move to positions 281474976710556 .. 281474976710856; positions lie between"));
    CHECK(has(text([&] { cache->shift(a.sequence, 20, 10, 1); }), "shift: tokens 20 .. 10, but the sequence has 300"));
    CHECK(has(text([&] { cache->shift(a.sequence, 20, 301, 1); }), "shift: tokens 20 .. 301, but the sequence has"));
    CHECK(has(text([&] { cache->shift(a.sequence, 290, 295, -1); }),
              "token 290 would move to position 289, and the token before it stands at 289"));
    CHECK(has(text([&] { cache->shift(a.sequence, 290, 295, 3); }),
              "token 294 would move to position 297, and the token behind it stands at 295"));
    CHECK(has(text([&] { cache->shift(a.sequence, 290, 300, 1); }),
              "token 299 would move to position 300, and the token behind it stands at 300"));
    CHECK(has(text([&] { cache->set_next_position(a.sequence, 299); }),
              "set_next_position: 299, and the last token stands at 299"));
    CHECK(has(text([&] { cache->set_next_position(a.sequence, largest_position); }), "between -2^48 and 2^48"));
    CHECK(has(text([&] { static_cast<void>(cache->position_of(a.sequence, 301)); }),
              "position_of: token 301, but the sequence has 300"));
    const std::vector<Sequence> both{a.sequence, b.sequence}, twice{a.sequence, a.sequence};
    const std::vector<std::size_t> parents{1, 0}, beyond{0, 2};
    CHECK(has(text([&] { cache->gather(twice, parents); }), "entries 0 and 1 of the list are the same sequence"));
    CHECK(has(text([&] { cache->gather(both, beyond); }), "parents[1] is 2; expected a number below 2"));
    CHECK(has(text([&] { static_cast<void>(cache->fork(a.sequence, 301)); }),
              "fork: 301 tokens, but the sequence has 300"));
    CHECK(has(text([&] { static_cast<void>(cache->fork(a.sequence, 20)); }), "sliding window"));
    {
        auto step = cache->begin({{a.sequence, 1}});
        CHECK_THROWS_AS(cache->erase(a.sequence, 0, 1), sequence_error);
        CHECK_THROWS_AS(cache->shift(a.sequence, 0, 1), sequence_error);
        CHECK_THROWS_AS(cache->shift(a.sequence, 0, 1, -1), sequence_error);
        CHECK_THROWS_AS(cache->set_next_position(a.sequence, 400), sequence_error);
        CHECK(cache->position_of(a.sequence, 300) == 300);
        CHECK_THROWS_AS(cache->gather(both, parents), sequence_error);
    }
    CHECK(cache->size(a.sequence) == 300);

    const auto fails = [&](auto&& operation) {
        const Bytes before = cache->bytes();
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
                CHECK(cache->bytes() == before);
                CHECK(cache->size(a.sequence) == 300);
                CHECK(cache->next_position(a.sequence) == 300);
            }
        }
        CHECK(failures > 0);
    };
    fails([&] { cache->gather(both, std::vector<std::size_t>{0, 0}); });
    CHECK(cache->size(b.sequence) == 300);
    fails([&] { cache->shift(a.sequence, 0, 5); });
    CHECK(cache->next_position(a.sequence) == 305);
    cache->shift(a.sequence, 0, -5);
    fails([&] { cache->shift(a.sequence, 0, 100, -3); });
    CHECK(cache->position_of(a.sequence, 0) == -3);
    cache->shift(a.sequence, 0, 100, 3);
    fails([&] { cache->erase(a.sequence, 100, 110); });
    CHECK(cache->size(a.sequence) == 290);
    CHECK_FALSE(memory.misused());
}
