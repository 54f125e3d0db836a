/// Strict caches, and slots that are used again.
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/feed.hpp"
#include "support/model.hpp"
#include "support/tolerance.hpp"

using namespace xquant;
using test::Feed;
using test::Scheme;

TEST_CASE("strict: rows that wait for their group are read from codes, as if the sequence had been sealed") {
    const test::Setup setup = test::small_model();
    for (const Scheme& scheme : test::schemes()) {
        for (const std::size_t tokens : {4, 5, 40, 131, 132, 133, 200, 270}) {
            INFO(scheme.name << ", " << tokens << " tokens");
            // A window of one token: the next one. All others are read from codes.
            const auto strict = scheme.make(setup.model, {.sinks = 4, .recent = 1, .rows = DType::f32, .strict = true});
            const auto sealed = scheme.make(setup.model, {.sinks = 4, .recent = 0, .rows = DType::f32});
            Feed a{strict->create(), 1}, b{sealed->create(), 1};
            test::feed(*strict, setup.model, {{&a, tokens}});
            test::feed(*sealed, setup.model, {{&b, tokens}});
            const test::Outputs unsealed = test::feed_and_abandon(*sealed, setup.model, {{&b, 1}});
            sealed->seal(b.sequence);
            const test::Outputs found = test::feed_and_abandon(*strict, setup.model, {{&a, 1}});
            const test::Outputs expected = test::feed_and_abandon(*sealed, setup.model, {{&b, 1}});
            CHECK(test::relative_distance(found, expected) < 1e-5);
            // And that is another answer than that of the rows as they are.
            // Few rows that share a scale lose next to nothing.
            if (scheme.exact || !scheme.per_channel || (tokens - 4) % 128 < 30) continue;
            CHECK(test::relative_distance(unsealed, expected) > 1e-3);
        }
    }
}

TEST_CASE("drafts that are taken back leave their slots to what comes next") {
    const test::Setup setup = test::small_model();
    for (const Scheme& scheme : test::schemes()) {
        for (const std::size_t recent : {0, 8}) {
            INFO(scheme.name << ", recent " << recent);
            const Options options{.sinks = 4, .recent = recent, .rows = DType::f32};
            const auto cache = scheme.make(setup.model, options), fresh = scheme.make(setup.model, options);
            Feed a{cache->create(), 1}, b{fresh->create(), 1};
            test::feed(*cache, setup.model, {{&a, 200}});
            test::feed(*fresh, setup.model, {{&b, 200}});
            for (int round = 0; round < 3; ++round) {
                Feed draft = a;
                draft.seed = 9;
                test::feed(*cache, setup.model, {{&draft, 5}});
                cache->truncate(a.sequence, 200);
            }
            test::feed(*cache, setup.model, {{&a, 5}});
            test::feed(*fresh, setup.model, {{&b, 5}});
            Bytes taken = cache->bytes();
            taken.workspace = fresh->bytes().workspace;
            CHECK(taken == fresh->bytes());
            std::vector<std::vector<std::size_t>> slots, expected;
            cache->for_each_page(a.sequence, [&](const PageView& page) { slots.push_back({page.begin, page.end}); });
            fresh->for_each_page(b.sequence, [&](const PageView& page) { expected.push_back({page.begin, page.end}); });
            CHECK(slots == expected);
        }
    }
}
