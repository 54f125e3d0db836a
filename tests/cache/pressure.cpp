/// When memory is short: a budget that is kept to the byte, pages that are requantized, and a million steps that do not
/// grow.
#include <cmath>
#include <cstring>
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

/// Rows of a stream whose tokens are one group each: [tokens, width], from the bytes of a page.
std::vector<float> decoded(std::span<const std::byte> page, const test::Section& at, const test::StoredStream& stream,
                           std::size_t tokens) {
    std::vector<float> rows;
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(page.data());
    for (std::size_t t = 0; t < tokens; ++t) {
        const std::size_t size = test::group_size(stream.width, stream.bits);
        const auto codes = test::unpack_bit_by_bit(bytes + at.codes.begin + t * size, stream.width, stream.bits);
        f16 scale, zero;
        std::memcpy(&scale, bytes + at.scales.begin + 2 * t, 2);
        std::memcpy(&zero, bytes + at.zeros.begin + 2 * t, 2);
        for (const std::uint8_t code : codes)
            rows.push_back(to_float(zero) + to_float(scale) * static_cast<float>(code));
    }
    return rows;
}

/// The bytes of a sequence's full pages of a kind, and where each begins.
std::vector<std::vector<std::byte>> full_pages(const test::Cache& cache, Sequence sequence, PageKind kind) {
    std::vector<std::vector<std::byte>> out;
    cache.for_each_page(sequence, [&](const PageView& page) {
        if (page.kind == kind && page.end == 128) out.emplace_back(page.bytes.begin(), page.bytes.end());
    });
    return out;
}

}  // namespace

TEST_CASE("requantized rows are what quantize makes of the decoded ones, token by token, to the bit") {
    const test::Setup setup = test::small_model();
    const auto cache = test::scheme(requantizable).make(setup.model, {.sinks = 4, .recent = 0});
    Feed a{cache->create(), 1};
    test::feed(*cache, setup.model, {{&a, 4 + 256}});
    const auto before = full_pages(*cache, a.sequence, PageKind::coded);
    CHECK(cache->requantize(std::vector<Sequence>{a.sequence}).pages == 2);
    const auto after = full_pages(*cache, a.sequence, PageKind::requantized);
    REQUIRE(before.size() == 2);
    REQUIRE(after.size() == 2);
    const test::StoredStream four{24, 1, 128, 4, true, true}, two{24, 1, 128, 2, true, true};
    const auto at_four = test::page_sections(test::StoredLayers(4, {four}), 128),
               at_two = test::page_sections(test::StoredLayers(4, {two}), 128);
    for (std::size_t page = 0; page < 2; ++page) {
        for (std::size_t layer = 0; layer < 4; ++layer) {
            INFO("page " << page << ", layer " << layer);
            const std::vector<float> rows = decoded(before[page], at_four[layer][0], four, 128);
            const QuantizedRows expected = quantize<Uniform<2>>(MatrixView(rows.data(), 128, 24));
            std::vector<float> values(128 * 24);
            dequantize(expected, values.data());
            CHECK(test::difference(values, decoded(after[page], at_two[layer][0], two, 128)) == "");
        }
    }
}

TEST_CASE("what a scale makes of a code beyond the largest f16 is cut before it is coded again") {
    const test::Setup setup = test::small_model();
    using Back =
        XCache<Requantizable<Uniform<4>, Unquantized<f16>>, Layout<PerToken>, CrossLayer<Off>, Projection<Plain>>;
    Back cache(setup.model, {.sinks = 0, .recent = 0});
    const Sequence s = cache.create();
    std::vector<float> x(128 * 24);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = i % 2 == 0 ? f16_max : -f16_max;
    auto step = cache.begin({{s, 128}});
    for (std::size_t layer = 0; layer < 4; ++layer) step.append(layer, MatrixView(x.data(), 128, 24));
    step.commit();
    const test::StoredStream four{24, 1, 128, 4, true, true};
    const auto pages = full_pages(cache, s, PageKind::coded);
    REQUIRE(pages.size() == 1);
    // 15 steps of (2 * 65504 / 15), rounded to f16: 65536.
    CHECK(decoded(pages[0], test::page_sections(test::StoredLayers(4, {four}), 128)[0][0], four, 1)[0] == 65536.0F);
    CHECK(cache.requantize(std::vector<Sequence>{s}).pages == 1);
    const auto rows = full_pages(cache, s, PageKind::requantized);
    REQUIRE(rows.size() == 1);
    const auto* halves = reinterpret_cast<const std::uint16_t*>(rows[0].data());
    for (std::size_t i = 0; i < 128 * 24; ++i) {
        REQUIRE(to_float(f16{halves[i]}) == (i % 2 == 0 ? f16_max : -f16_max));
    }
}

TEST_CASE("requantized differences are taken against the new sums: errors of layers do not add up") {
    const test::Setup setup({.width = 24, .heads = 4, .kv_heads = 1, .head_dim = 8}, RopePairing::interleaved, 8);
    using Stack = XCache<Requantizable<Uniform<6>, Uniform<2>>, Layout<PerToken>, CrossLayer<Delta>, Projection<Plain>>;
    Stack cache(setup.model, {.sinks = 0, .recent = 0});
    Feed a{cache.create(), 1};
    test::feed(cache, setup.model, {{&a, 128}});
    const auto before = full_pages(cache, a.sequence, PageKind::coded);
    CHECK(cache.requantize(std::vector<Sequence>{a.sequence}).pages == 1);
    const auto after = full_pages(cache, a.sequence, PageKind::requantized);
    REQUIRE(before.size() == 1);
    REQUIRE(after.size() == 1);
    // Layers up to the base, layer 2, keep 4 bits.
    const test::StoredStream four{24, 1, 128, 4, true, true}, six{24, 1, 128, 6, true, true},
        two{24, 1, 128, 2, true, true};
    test::StoredLayers fresh, old;
    for (std::size_t layer = 0; layer < 8; ++layer) {
        fresh.push_back({layer < 3 ? four : six});
        old.push_back({layer < 3 ? four : two});
    }
    const auto at_fresh = test::page_sections(fresh, 128), at_old = test::page_sections(old, 128);
    std::vector<float> sum(128 * 24), found(128 * 24);
    double worst = 0;
    for (std::size_t layer = 2; layer < 8; ++layer) {
        const std::vector<float> was = decoded(before[0], at_fresh[layer][0], fresh[layer][0], 128),
                                 is = decoded(after[0], at_old[layer][0], old[layer][0], 128);
        for (std::size_t i = 0; i < sum.size(); ++i) {
            sum[i] += was[i];
            found[i] += is[i];
            f16 scale;
            std::memcpy(&scale, after[0].data() + at_old[layer][0].scales.begin + 2 * (i / 24), 2);
            const double step = to_float(scale), off = std::abs(double{sum[i]} - double{found[i]});
            // Half a step, and what the rounding of scale and zero to f16 adds.
            REQUIRE(off <= 0.505 * step + 0.01);
            if (layer > 2) worst = std::max(worst, off);
        }
    }
    CHECK(worst > 0.1);  // 2 bits are coarse: the rule is put to the test
}

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
    CHECK(filled == std::vector<std::size_t>{128, 50, 128, 70});
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
    for (const Sequence s : all) CHECK(full_pages(*cache, s, PageKind::coded).empty());
    CHECK(full_pages(*cache, a.sequence, PageKind::coded).size() == 2);  // not in the list
    CHECK(cache->bytes().workspace == 0);
}
