/// When memory is short: a budget that is kept to the byte, pages that are requantized, and a million steps that do not
/// grow.
#include <span>
#include <utility>
#include <vector>

#include <xquant/xquant.hpp>

#include "support/catch.hpp"
#include "support/feed.hpp"
#include "support/memory.hpp"
#include "support/model.hpp"
#include "support/tolerance.hpp"

using namespace xquant;
using test::Feed;

namespace {

const char* const requantizable = "x rotated 4, requantizable to 2";

Bytes without_workspace(Bytes bytes) {
    bytes.workspace = 0;
    return bytes;
}

}  // namespace

TEST_CASE("a step that does not fit the budget is refused before it begins, and nothing has changed") {
    const test::Setup setup = test::small_model();
    for (const test::Scheme& scheme : test::schemes()) {
        INFO(scheme.name);
        const auto free = scheme.make(setup.model, {.sinks = 4, .recent = 8});
        Feed f{free->create(), 1};
        test::feed(*free, setup.model, {{&f, 200}});
        Options options{.sinks = 4, .recent = 8};
        options.budget = free->bytes().stored() + 3000;
        const auto cache = scheme.make(setup.model, options);
        Feed a{cache->create(), 1};
        std::size_t refused = 0;
        for (std::size_t i = 0; i < 400; ++i) {
            const Bytes before = cache->bytes();
            try {
                test::feed(*cache, setup.model, {{&a, 3}});
            } catch (const budget_error& problem) {
                ++refused;
                CHECK(problem.budget == options.budget);
                CHECK(problem.used + problem.needed > problem.budget);
                CHECK(without_workspace(cache->bytes()) == without_workspace(before));
                CHECK(cache->size(a.sequence) == a.tokens);
                if (refused > 3) break;
                cache->truncate(a.sequence, a.tokens - a.tokens / 3);
                a.tokens -= a.tokens / 3;
            }
            REQUIRE(cache->bytes().stored() <= options.budget);
        }
        CHECK(refused > 3);
    }
    Options tiny;
    tiny.budget = 10;
    CHECK_THROWS_AS(test::scheme("x 4").make(setup.model, tiny), budget_error);
}

TEST_CASE("requantized pages take the bytes of fewer bits, for all sequences that share them") {
    const test::Setup setup = test::small_model();
    const Options options{.sinks = 4, .recent = 0, .rows = DType::f32};
    const test::Scheme& scheme = test::scheme(requantizable);
    const auto cache = scheme.make(setup.model, options),
               exact = test::scheme("f32 x, rotated").make(setup.model, options);
    Feed a{cache->create(), 1}, x{exact->create(), 1};
    test::feed(*cache, setup.model, {{&a, 600}});
    test::feed(*exact, setup.model, {{&x, 600}});
    Feed b = a;
    b.sequence = cache->fork(a.sequence);
    const Bytes before = cache->bytes();
    std::vector<PageChoice> asked;
    const std::vector<Sequence> both{a.sequence, b.sequence};
    const Requantized none = cache->requantize(both, [&](const PageChoice& page) {
        asked.push_back(page);
        return false;
    });
    CHECK(none.pages == 0);
    CHECK(cache->bytes().codes == before.codes);
    REQUIRE(asked.size() == 5);  // once, though two sequences have them
    CHECK(asked[0].first_position == 4);
    CHECK(asked[0].behind == 600 - 4 - 128);
    CHECK(asked[4].filled == 600 - 4 - 4 * 128);
    CHECK(asked[0].bytes_after < asked[0].bytes);

    Feed c = a, d = x;
    c.sequence = cache->fork(a.sequence);
    d.sequence = exact->fork(x.sequence);
    test::feed(*cache, setup.model, {{&c, 2}});
    test::feed(*exact, setup.model, {{&d, 2}});
    const double with_four = test::relative_distance(c, d, 2);
    cache->drop(c.sequence);
    const std::size_t stored = cache->bytes().stored();
    const Requantized done = cache->requantize(both, [](const PageChoice& page) { return page.behind >= 256; });
    CHECK(done.pages == 2);
    CHECK(done.tokens == 256);
    CHECK_FALSE(done.out_of_memory);
    CHECK(done.bytes_before - done.bytes_after == stored - cache->bytes().stored());  // shared before, shared after
    CHECK(cache->requantize(both, [](const PageChoice& page) { return page.behind >= 256; }).pages == 0);  // one way
    const Requantized rest = cache->requantize(both);
    CHECK(rest.pages == 2);  // the last one is not full
    Feed e = a, f = x;
    e.sequence = a.sequence;
    f.sequence = exact->fork(x.sequence);
    test::feed(*cache, setup.model, {{&e, 2}});
    test::feed(*exact, setup.model, {{&f, 2}});
    const double with_two = test::relative_distance(e, f, 2);
    CHECK(with_two > with_four);
    CHECK(with_two < test::tolerance(scheme, setup.model, true));

    // Someone who was not asked keeps what they had.
    Feed g{cache->create(), 5};
    test::feed(*cache, setup.model, {{&g, 300}});
    const Sequence other = cache->fork(g.sequence);
    const auto pages = test::stored_pages(*cache, other, scheme, setup.model, options);
    CHECK(cache->requantize(std::vector<Sequence>{g.sequence}).pages == 2);
    CHECK(test::stored_pages(*cache, other, scheme, setup.model, options) == pages);
}

TEST_CASE("requantize refuses caches with one quantizer, and stops where memory runs out") {
    const test::Setup setup = test::small_model();
    const auto plain = test::scheme("x 4").make(setup.model, {});
    CHECK_THROWS_AS(plain->requantize(std::vector<Sequence>{plain->create()}), state_error);
    test::CountingMemory memory;
    const auto cache = test::scheme(requantizable).make(setup.model, {.sinks = 4, .recent = 0, .memory = &memory});
    Feed a{cache->create(), 1};
    test::feed(*cache, setup.model, {{&a, 600}});
    std::size_t stopped = 0, pages = 0;
    for (std::size_t k = 1; pages < 4; ++k) {
        memory.fail_at(k);
        const Requantized done = cache->requantize(std::vector<Sequence>{a.sequence});
        memory.fail_at(0);
        pages += done.pages;
        stopped += done.out_of_memory ? 1U : 0U;
        CHECK(cache->size(a.sequence) == 600);
        REQUIRE(k < 100);
    }
    CHECK(stopped > 0);
    test::feed(*cache, setup.model, {{&a, 10}});
}

TEST_CASE("a budget that is spent leaves room to requantize, and that leaves room for more") {
    const test::Setup setup = test::small_model();
    Options options{.sinks = 4, .recent = 0};
    options.budget = 40000;
    const auto cache = test::scheme(requantizable).make(setup.model, options);
    Feed a{cache->create(), 1};
    std::size_t before = 0;
    try {
        for (;;) test::feed(*cache, setup.model, {{&a, 8}});
    } catch (const budget_error&) {
        before = a.tokens;
    }
    CHECK(cache->requantize(std::vector<Sequence>{a.sequence}).pages > 0);
    try {
        for (;;) test::feed(*cache, setup.model, {{&a, 8}});
    } catch (const budget_error&) {
    }
    CHECK(a.tokens > before + 100);
    CHECK(cache->bytes().stored() <= options.budget);
}

TEST_CASE("a million steps take no more memory than the first thousand") {
    const test::Setup setup({.width = 4, .heads = 1, .kv_heads = 1, .head_dim = 2}, RopePairing::interleaved, 1);
    test::PeakMemory memory;
    const auto cache = test::scheme("x rotated 3").make(setup.model, {.sinks = 2, .recent = 4, .memory = &memory});
    const Sequence s = cache->create();
    const std::vector<float> x{0.5F, -1, 0.25F, 2}, q{1, -1};
    std::vector<float> out(2);
    std::size_t peak = 0;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    constexpr std::size_t steps = 100000;
#else
    constexpr std::size_t steps = 1000000;
#endif
    for (std::size_t i = 0; i < steps; ++i) {
        auto step = cache->begin({{s, 1}});
        step.append(0, MatrixView(x.data(), 1, 4));
        step.attend(0, MatrixView(q.data(), 1, 2), out.data());
        step.commit();
        // Grows to 300 tokens; then the middle goes, or the end.
        if (cache->size(s) == 300) {
            if (i % 2 == 0) {
                cache->erase(s, 2, 202);
            } else {
                cache->truncate(s, 100);
            }
        }
        if (i == 5000) peak = memory.peak();
    }
    CHECK(memory.peak() == peak);
}

namespace {

/// Full pages of a sequence that are of a kind.
std::size_t full_pages(const test::Cache& cache, Sequence sequence, PageKind kind) {
    std::size_t count = 0;
    cache.for_each_page(sequence, [&](const PageView& page) { count += page.kind == kind && page.end == 128 ? 1 : 0; });
    return count;
}

}  // namespace

TEST_CASE("slots in use count up to the last that one of the given sequences has") {
    const test::Setup setup = test::small_model();
    const auto cache = test::scheme(requantizable).make(setup.model, {.sinks = 4, .recent = 0});
    Feed a{cache->create(), 1};
    test::feed(*cache, setup.model, {{&a, 4 + 256}});
    const Sequence b = cache->fork(a.sequence, 4 + 128 + 70);
    cache->truncate(a.sequence, 4 + 128 + 50);
    std::vector<std::size_t> filled;
    const auto note = [&](const PageChoice& page) {
        filled.push_back(page.filled);
        return false;
    };
    cache->requantize(std::vector<Sequence>{a.sequence}, note);
    cache->requantize(std::vector<Sequence>{a.sequence, b}, note);
    cache->erase(b, 4, 4 + 20);  // what lies behind these slots stays where it is
    cache->requantize(std::vector<Sequence>{b}, note);
    CHECK(filled == std::vector<std::size_t>{128, 50, 128, 70, 128, 70});
    CHECK(cache->requantize(std::vector<Sequence>{a.sequence, b}).pages == 1);  // the other one is no longer full
}

TEST_CASE("many sequences that share pages are requantized together: each page once, in the order of the list") {
    const test::Setup setup = test::small_model();
    const auto cache = test::scheme(requantizable).make(setup.model, {.sinks = 4, .recent = 0});
    Feed a{cache->create(), 1}, b{cache->create(), 2};
    test::feed(*cache, setup.model, {{&a, 4 + 256}});
    test::feed(*cache, setup.model, {{&b, 4 + 128}});
    std::vector<Sequence> all;
    for (std::size_t i = 0; i < 50; ++i) all.push_back(cache->fork(i % 5 == 3 ? b.sequence : a.sequence));
    std::vector<std::pair<std::size_t, std::int64_t>> asked;
    const Requantized done = cache->requantize(all, [&](const PageChoice& page) {
        asked.emplace_back(page.sequence, page.first_position);
        return true;
    });
    CHECK(asked == std::vector<std::pair<std::size_t, std::int64_t>>{{0, 4}, {0, 132}, {3, 4}});
    CHECK(done.pages == 3);
    for (const Sequence s : all) CHECK(full_pages(*cache, s, PageKind::coded) == 0);
    CHECK(full_pages(*cache, a.sequence, PageKind::coded) == 2);  // not in the list
    CHECK(cache->bytes().workspace == 0);
}
