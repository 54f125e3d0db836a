/// Compacting: rows move together as they are stored, and what a sequence takes and answers is that of one that never
/// had the holes.
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

constexpr double rounding = 2e-5;

Bytes without_workspace(Bytes bytes) {
    bytes.workspace = 0;
    return bytes;
}

/// Erases `holes` single tokens, every third one from token `first` on.
void erase_some(test::Cache& cache, Sequence sequence, std::size_t first, std::size_t holes) {
    for (std::size_t i = 0; i < holes; ++i) cache.erase(sequence, first + 2 * i, first + 2 * i + 1);
}

std::size_t pieces_of(const test::Cache& cache, Sequence sequence) {
    std::size_t pieces = 0;
    cache.for_each_page(sequence, [&](const PageView&) { ++pieces; });
    return pieces;
}

/// Whether keys were stored after RoPE and have moved since.
bool lags(const test::Cache& cache, Sequence sequence) {
    bool any = false;
    cache.for_each_page(sequence, [&](const PageView& page) { any |= page.rope_lag != 0; });
    return any;
}

/// What a step of one token would say, on a fork.
Feed next_token(test::Cache& cache, const Model& model, Sequence sequence, std::uint32_t seed) {
    Feed fork{cache.fork(sequence), seed, cache.size(sequence)};
    test::feed(cache, model, {{&fork, 1}});
    cache.drop(fork.sequence);
    return fork;
}

}  // namespace

TEST_CASE("a compacted sequence takes the bytes of one that never had the holes, and answers as before") {
    const test::Setup setup = test::small_model();
    for (const Scheme& scheme : test::schemes()) {
        for (const bool strict : {false, true}) {
            INFO(scheme.name << ", strict " << strict);
            const Options options{.sinks = 4, .recent = 40, .strict = strict};
            const auto cache = scheme.make(setup.model, options);
            Feed a{cache->create(), 1};
            test::feed(*cache, setup.model, {{&a, 400}});
            const Sequence whole = cache->fork(a.sequence);
            const Feed before_erasing = next_token(*cache, setup.model, whole, 5);
            erase_some(*cache, a.sequence, 10, 100);
            const Feed before = next_token(*cache, setup.model, a.sequence, 5);
            const std::size_t pieces = pieces_of(*cache, a.sequence);
            cache->compact(a.sequence);
            CHECK(cache->size(a.sequence) == 300);
            CHECK(cache->next_position(a.sequence) == 300);
            CHECK(test::distance(before, next_token(*cache, setup.model, a.sequence, 5), 1) < rounding);
            // Rows that are coded in groups of tokens stay where they are, and so do those whose RoPE lags.
            CHECK(pieces > 100);
            if (!scheme.per_channel && !lags(*cache, a.sequence)) {
                CHECK(pieces_of(*cache, a.sequence) < 10);
            }
            // The fork has what it had.
            CHECK(test::distance(before_erasing, next_token(*cache, setup.model, whole, 5), 1) == 0);
            cache->drop(whole);
            // More rows go into the pages that are there. A fresh cache knew as many sequences.
            const auto fresh = scheme.make(setup.model, options);
            Feed x{fresh->create(), 1};
            const Sequence spare = fresh->create();
            fresh->drop(fresh->create());
            fresh->drop(spare);
            test::feed(*fresh, setup.model, {{&x, 300}});
            for (const std::size_t more : {0, 1, 150}) {
                if (more > 0) {
                    test::feed(*cache, setup.model, {{&a, more}});
                    test::feed(*fresh, setup.model, {{&x, more}});
                }
                if (scheme.per_channel) continue;
                const Bytes expected = fresh->bytes(), found = cache->bytes();
                CHECK(found.codes == expected.codes);
                CHECK(found.scales == expected.scales);
                CHECK(found.tail == expected.tail);
                CHECK(found.sinks == expected.sinks);
                // Keys that moved by different distances are segments of their own.
                if (!lags(*cache, a.sequence)) CHECK(found.index == expected.index);
            }
        }
    }
}

TEST_CASE("compacted rows are those of a sequence that was fed the remaining tokens, byte for byte") {
    const test::Setup setup = test::small_model();
    for (const char* name : {"x 4", "x rotated 3", "f32 x, rotated"}) {
        INFO(name);
        const Scheme& scheme = test::scheme(name);
        const Options options{.sinks = 4, .recent = 0};
        const auto cache = scheme.make(setup.model, options), fresh = scheme.make(setup.model, options);
        // Rows depend on their seed and number: 0 .. 9 and 20 .. 299 stay.
        Feed a{cache->create(), 1}, x{fresh->create(), 1};
        test::feed(*cache, setup.model, {{&a, 300}});
        cache->erase(a.sequence, 10, 20);
        cache->compact(a.sequence);
        test::feed(*fresh, setup.model, {{&x, 10}});
        x.tokens = 20;
        test::feed(*fresh, setup.model, {{&x, 280}});
        CHECK(test::stored_pages(*cache, a.sequence, scheme, setup.model, options) ==
              test::stored_pages(*fresh, x.sequence, scheme, setup.model, options));
    }
}

TEST_CASE("pages whose rows need not move stay, and stay shared; compacting again does nothing") {
    const test::Setup setup = test::small_model();
    for (const Scheme& scheme : test::schemes()) {
        INFO(scheme.name);
        const auto cache = scheme.make(setup.model, {.sinks = 4, .recent = 8});
        Feed a{cache->create(), 1};
        test::feed(*cache, setup.model, {{&a, 500}});
        const Sequence fork = cache->fork(a.sequence);
        const Bytes whole = cache->bytes();
        cache->compact(a.sequence);
        CHECK(without_workspace(cache->bytes()) == without_workspace(whole));  // no holes: everything is shared still
        // The first hole lies in the third page of codes.
        cache->erase(a.sequence, 4 + 2 * 128 + 5, 4 + 2 * 128 + 6);
        cache->compact(a.sequence);
        const Bytes once = cache->bytes();
        if (!scheme.per_channel) {
            // The third and fourth page are there twice; the rows behind them, too, where they moved.
            CHECK((once.codes - whole.codes) * 4 == 2 * whole.codes);
            CHECK(once.sinks == whole.sinks);
        } else {
            CHECK(once.codes == whole.codes);
        }
        cache->compact(a.sequence);
        CHECK(without_workspace(cache->bytes()) == without_workspace(once));
        cache->drop(fork);
    }
}

TEST_CASE("holes among the sinks and the newest rows close, too") {
    const test::Setup setup = test::small_model();
    const Options options{.sinks = 40, .recent = 200};
    const auto cache = test::scheme("x 4").make(setup.model, options);
    Feed a{cache->create(), 1};
    test::feed(*cache, setup.model, {{&a, 200}});
    erase_some(*cache, a.sequence, 1, 10);
    erase_some(*cache, a.sequence, 60, 40);
    const Feed before = next_token(*cache, setup.model, a.sequence, 9);
    const std::size_t tail = cache->bytes().tail;
    cache->compact(a.sequence);
    CHECK(test::distance(before, next_token(*cache, setup.model, a.sequence, 9), 1) < rounding);
    CHECK(cache->bytes().tail < tail);
    CHECK(pieces_of(*cache, a.sequence) <= 1 + 120 / 32 + 1);
}

TEST_CASE("compacting with too little memory, at any allocation, or with too small a budget, changes nothing") {
    const test::Setup setup = test::small_model();
    for (const char* name : {"head svd 4", "x rotated 3", "cross-layer x rotated 8, f16 sums"}) {
        INFO(name);
        const Scheme& scheme = test::scheme(name);
        test::CountingMemory memory;
        Options options{.sinks = 4, .recent = 8, .memory = &memory};
        const auto cache = scheme.make(setup.model, options);
        Feed a{cache->create(), 1};
        test::feed(*cache, setup.model, {{&a, 300}});
        erase_some(*cache, a.sequence, 20, 40);
        const auto stored = [&] { return test::stored_pages(*cache, a.sequence, scheme, setup.model, options); };
        const auto before = stored();
        const Bytes bytes = without_workspace(cache->bytes());
        std::size_t failures = 0;
        for (std::size_t k = 1;; ++k) {
            memory.fail_at(k);
            try {
                cache->compact(a.sequence);
                memory.fail_at(0);
                break;
            } catch (const std::bad_alloc&) {
                memory.fail_at(0);
                ++failures;
                REQUIRE(stored() == before);
                REQUIRE(without_workspace(cache->bytes()) == bytes);
                REQUIRE(cache->bytes().total() == memory.bytes());
            }
        }
        CHECK(failures > 2);
        if (!scheme.per_channel) CHECK(stored() != before);

        options.budget = 2 * bytes.stored();
        const auto tight = scheme.make(setup.model, options);
        Feed b{tight->create(), 1};
        const std::size_t fits = 200;
        test::feed(*tight, setup.model, {{&b, fits}});
        erase_some(*tight, b.sequence, 20, 40);
        // What is left of the budget goes to other sequences.
        std::vector<Sequence> others;
        try {
            for (;;) {
                Feed one{tight->create(), 2};
                others.push_back(one.sequence);
                test::feed(*tight, setup.model, {{&one, 1}});
            }
        } catch (const budget_error&) {
        }
        const Bytes full = without_workspace(tight->bytes());
        if (!scheme.per_channel) CHECK_THROWS_AS(tight->compact(b.sequence), budget_error);
        CHECK(without_workspace(tight->bytes()) == full);
        CHECK(tight->size(b.sequence) == fits - 40);
    }
}

TEST_CASE("pages of both quantizers are compacted, each among its own") {
    const test::Setup setup = test::small_model();
    const auto cache = test::scheme("x rotated 4, requantizable to 2").make(setup.model, {.sinks = 4, .recent = 0});
    Feed a{cache->create(), 1};
    test::feed(*cache, setup.model, {{&a, 4 + 6 * 128}});
    cache->requantize(std::vector<Sequence>{a.sequence}, [](const PageChoice& page) { return page.behind >= 3 * 128; });
    erase_some(*cache, a.sequence, 4, 128);        // two thirds of 384 tokens in 2 bits stay
    erase_some(*cache, a.sequence, 4 + 256, 128);  // and of as many in 4 bits
    const Feed before = next_token(*cache, setup.model, a.sequence, 7);
    cache->compact(a.sequence);
    CHECK(test::distance(before, next_token(*cache, setup.model, a.sequence, 7), 1) < rounding);
    std::vector<PageKind> kinds;
    cache->for_each_page(a.sequence, [&](const PageView& page) {
        kinds.push_back(page.kind);
        CHECK(page.begin == 0);
    });
    CHECK(kinds == std::vector<PageKind>{PageKind::sinks, PageKind::requantized, PageKind::requantized, PageKind::coded,
                                         PageKind::coded});
}
