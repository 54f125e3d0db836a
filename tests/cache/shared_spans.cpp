/// Sequences of a step that begin with the same pages: which of them are read together, and that each answers as alone.
#include <xquant/core/shared_spans.hpp>

#include <algorithm>
#include <array>
#include <limits>
#include <numeric>
#include <vector>

#include "support/catch.hpp"
#include "support/feed.hpp"
#include "support/model.hpp"
#include "support/threads.hpp"
#include "support/tolerance.hpp"

using namespace xquant;
using test::Feed;
using test::Scheme;

namespace {

/// Readers of numbered pages of 128 tokens, the last of which is their own, and one row behind them.
struct Readers {
    std::vector<std::vector<TokenSpan>> spans;
    std::vector<std::size_t> rows;

    void add(const std::vector<int>& pages, std::size_t count = 1) {
        std::vector<TokenSpan> list;
        for (const int page : pages) {
            TokenSpan span{};
            span.keys.codes = memory.data() + page;
            span.values.codes = memory.data() + page;
            span.end = 128;
            span.first_position = 128 * static_cast<std::int64_t>(list.size());
            list.push_back(span);
        }
        spans.push_back(list);
        rows.push_back(count);
    }

    /// {readers, their spans} of each group.
    using Groups = std::vector<std::pair<std::vector<std::size_t>, std::size_t>>;
    [[nodiscard]] Groups groups(std::size_t least_tiles, std::size_t most_rows, bool whole = false) const {
        std::vector<std::size_t> order(spans.size());
        std::iota(order.begin(), order.end(), std::size_t{0});
        Groups out;
        detail::find_shared_spans(
            order, least_tiles, most_rows, whole,
            [&](std::size_t i) {
                return detail::ReadingRows{spans[i], rows[i], spans[i].back().first_position + 127};
            },
            [&](const detail::SharedSpans& found) {
                const auto at = order.begin() + static_cast<std::ptrdiff_t>(found.first);
                out.push_back({{at, at + static_cast<std::ptrdiff_t>(found.count)}, found.spans});
            });
        return out;
    }

private:
    std::vector<std::byte> memory = std::vector<std::byte>(100);
};

using Indices = std::vector<std::size_t>;

}  // namespace

TEST_CASE("readers that begin with the same spans are grouped, each with a span of its own") {
    Readers at;
    at.add({1, 2, 3, 4});
    at.add({7, 8});
    at.add({1, 2, 3, 5, 6});
    at.add({1, 2, 9});
    at.add({7});
    const auto found = at.groups(1, 32);
    REQUIRE(found.size() == 1);
    CHECK(found[0].first == Indices{0, 2, 3});
    CHECK(found[0].second == 2);
    CHECK(at.groups(3, 32) == Readers::Groups{{{0, 2}, 3}});  // two of them share enough
    CHECK(at.groups(4, 32).empty());
    CHECK(at.groups(1, 2) == Readers::Groups{{{0, 2}, 3}});  // only so many rows at once

    Readers equal;  // forks without a token of their own
    equal.add({1, 2, 3});
    equal.add({1, 2, 3});
    CHECK(equal.groups(1, 32, true) == Readers::Groups{{{0, 1}, 2}});
}

TEST_CASE("spans are shared only where every row sees all of them, at the same positions") {
    Readers at;
    at.add({1, 2, 3});
    at.add({1, 2, 4});
    at.spans[1][1].rope_lag = 5;
    CHECK(at.groups(1, 32) == Readers::Groups{{{0, 1}, 1}});
    at.spans[1][0].first_position = 3;
    CHECK(at.groups(1, 32).empty());

    // A row in the middle of what it reads: the second row before the last of a stored sequence.
    Readers middle;
    middle.add({1, 2, 3});
    middle.add({1, 2, 3});
    middle.spans[1].back().first_position = -100;
    CHECK(middle.groups(1, 32).empty());
    CHECK(middle.groups(1, 32, true).size() == 1);
}

TEST_CASE("sequences that begin alike answer in one step as each would alone, on any number of threads") {
    // Heads of 64 channels: rows that share their tiles meet keys in f32, a few meet the codes.
    const bool is_wide = GENERATE(false, true);
    const test::Setup setup =
        is_wide ? test::Setup({.width = 256, .heads = 6, .kv_heads = 2, .head_dim = 64}, RopePairing::halves, 3)
                : test::small_model();
    // Results of many rows may be of another width than those of a few: of K and V, not of latents.
    const auto rows_of = [](std::size_t i) { return i == 0 ? std::size_t{14} : 1 + i % 2; };
    std::size_t shared = 0;
    for (const Scheme& scheme : test::schemes()) {
        if (is_wide && scheme.name != "head svd 4" && scheme.name != "kivi 2" && scheme.name != "x 4") continue;
        const auto cache = scheme.make(setup.model, {.sinks = 4, .recent = 40});
        Feed root{cache->create(), 1};
        test::feed(*cache, setup.model, {{&root, 700}});
        if (!scheme.cross_layer) cache->erase(root.sequence, 100, 131);
        std::vector<Feed> together, threaded, alone;
        std::vector<test::NewTokens> all, all_threaded;
        for (std::uint32_t i = 0; i < 7; ++i) {
            Feed fork{cache->fork(root.sequence), 10 + i, cache->size(root.sequence)};
            test::feed(*cache, setup.model, {{&fork, 1 + 3 * i}});
            for (std::vector<Feed>* feeds : {&together, &threaded, &alone}) {
                feeds->push_back(fork);
                feeds->back().sequence = cache->fork(fork.sequence);
            }
        }
        for (std::size_t i = 0; i < together.size(); ++i) {
            all.push_back({&together[i], rows_of(i)});
            all_threaded.push_back({&threaded[i], rows_of(i)});
            test::feed(*cache, setup.model, {{&alone[i], rows_of(i)}});
        }
        test::feed(*cache, setup.model, all);
        test::feed_on(test::Threads{3}, *cache, setup.model, all_threaded);
        // Products in 8 bits are rounded otherwise where few queries meet the codes; elsewhere, sums over some 700
        // tokens are formed in another order.
        constexpr auto order = 64 * static_cast<double>(std::numeric_limits<float>::epsilon());
        const double bound = is_wide ? 0.5 * test::own_error(scheme, setup.model) : order;
        for (std::size_t i = 0; i < together.size(); ++i) {
            INFO(scheme.name << ", sequence " << i);
            const double off = test::relative_distance(together[i], alone[i], rows_of(i));
            CHECK(off <= bound);
            shared += off > 0 ? 1 : 0;
            CHECK(together[i].out == threaded[i].out);
        }
    }
    CHECK(shared > 7);  // results that were merged are rounded otherwise
}
