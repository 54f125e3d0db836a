/// Where each token of a sequence stands, beside a model that is a list of numbers: random operations on caches whose
/// layers have windows or none. What is refused would break the order of tokens or show freed rows, and nothing else.
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/feed.hpp"
#include "support/model.hpp"

using namespace xquant;
using test::Feed;

namespace {

/// The model: what stands where, and how many of the first tokens each page group has freed.
struct Places {
    std::vector<std::int64_t> at;
    std::int64_t next = 0;
    std::vector<std::size_t> freed, windows;  ///< [page_groups]

    [[nodiscard]] std::size_t lost() const { return *std::min_element(freed.begin(), freed.end()); }

    /// Whether tokens are in order, and the next one sees no row that was freed.
    [[nodiscard]] bool sound() const {
        for (std::size_t i = 1; i < at.size(); ++i) {
            if (at[i] <= at[i - 1]) return false;
        }
        if (!at.empty() && next <= at.back()) return false;
        for (std::size_t i = 0; i < freed.size(); ++i) {
            if (windows[i] == 0 || freed[i] == 0) continue;
            if (at[freed[i] - 1] > next - static_cast<std::int64_t>(windows[i])) return false;
        }
        return true;
    }

    void truncate(std::size_t tokens) {
        if (tokens < at.size()) next = at[tokens];
        at.resize(tokens);
        for (std::size_t& n : freed) n = std::min(n, tokens);
    }
    void erase(std::size_t begin, std::size_t end, Gap gap) {
        const auto count = static_cast<std::int64_t>(end - begin);
        if (gap == Gap::close) move(end, at.size(), -count, true);
        at.erase(at.begin() + static_cast<std::ptrdiff_t>(begin), at.begin() + static_cast<std::ptrdiff_t>(end));
        for (std::size_t& n : freed) n -= std::min(n, end) - std::min(n, begin);
    }
    void move(std::size_t begin, std::size_t end, std::int64_t delta, bool and_next) {
        for (std::size_t i = begin; i < end; ++i) at[i] += delta;
        if (and_next) next += delta;
    }
};

/// A sequence and its model.
class Pair {
public:
    Pair(test::Cache& cache, const Model& model) : cache_(cache), model_(model), feed_{cache.create(), 1} { look(); }

    void add(std::size_t n) {
        test::feed(cache_, model_, {{&feed_, n}});
        for (std::size_t i = 0; i < n; ++i) places_.at.push_back(places_.next++);
        look();
    }

    /// What the model says must be done is done, and the rest is refused. Where all layers have lost a token, the cache
    /// may refuse more: it does not know where that one stood.
    template <class F>
    void change(const Places& then, F&& f) {
        const bool sound = then.sound();
        bool done = true;
        std::string problem;
        try {
            f(feed_.sequence);
        } catch (const shape_error& reason) {
            done = false;
            problem = reason.what();
        }
        INFO(problem);
        REQUIRE((done == sound || (sound && places_.lost() > 0)));
        if (done) places_ = then;
        done ? ++accepted : ++refused;
        look();
    }

    void check() const {
        const std::size_t size = places_.at.size(), lost = places_.lost();
        for (std::size_t i = 0; i < size; ++i) {
            if (i < lost) {
                REQUIRE_THROWS_AS(cache_.position_of(feed_.sequence, i), shape_error);
                continue;
            }
            REQUIRE(cache_.position_of(feed_.sequence, i) == places_.at[i]);
        }
        REQUIRE(cache_.position_of(feed_.sequence, size) == places_.next);
        std::vector<std::int64_t> wanted{-largest_position, INT64_MIN, INT64_MAX, places_.next, places_.next + 1};
        for (const std::int64_t at : places_.at) wanted.insert(wanted.end(), {at - 1, at, at + 1});
        for (const std::int64_t position : wanted) {
            const auto before = static_cast<std::size_t>(
                std::lower_bound(places_.at.begin(), places_.at.end(), position) - places_.at.begin());
            REQUIRE(cache_.token_at(feed_.sequence, position) == std::max(before, lost));
        }
    }

    /// Every prefix is tried.
    void check_prefixes() {
        const std::size_t size = places_.at.size(), least = cache_.shortest_prefix(feed_.sequence);
        REQUIRE(least <= size);
        for (std::size_t n = 0; n <= size; ++n) {
            bool taken = true;
            try {
                cache_.drop(cache_.fork(feed_.sequence, n));
            } catch (const shape_error&) {
                taken = false;
            }
            Places then = places_;
            then.truncate(n);
            const bool sound = n == 0 || then.sound();
            INFO(n << " of " << size << " tokens, at least " << least);
            REQUIRE((taken == sound || (sound && places_.lost() > 0)));
            if (n >= least || n == 0) REQUIRE(taken);
            if (n + 1 == least) REQUIRE_FALSE(taken);
        }
        if (least > 0) ++limited;
    }

    [[nodiscard]] const Places& places() const { return places_; }
    [[nodiscard]] Sequence sequence() const { return feed_.sequence; }
    /// How many of the first tokens each page group has freed, as they are stored.
    void look() {
        detail::Core& core = detail::CacheAccess::core(cache_);
        const detail::Slot& slot = core.find(feed_.sequence);
        places_.freed.clear();
        places_.windows.clear();
        for (std::size_t i = 0; i < slot.states.size(); ++i) {
            std::size_t rows = 0;
            for (const detail::Segment& segment : slot.states[i].segments) rows += segment.size();
            REQUIRE(slot.states[i].tokens == places_.at.size());
            places_.freed.push_back(places_.at.size() - rows);
            places_.windows.push_back(core.window(i));
        }
    }

    std::size_t accepted = 0, refused = 0, limited = 0;

private:
    test::Cache& cache_;
    const Model& model_;
    Feed feed_;
    Places places_;
};

void change_at_random(test::Cache& cache, Pair& pair, test::Random& random) {
    Places then = pair.places();
    const std::size_t size = then.at.size(), begin = random.below(size + 1),
                      end = begin + random.below(std::min<std::size_t>(60, size - begin) + 1);
    const std::int64_t delta = static_cast<std::int64_t>(random.below(121)) - 60;
    switch (random.below(8)) {
        case 0: {
            const std::size_t tokens = size - random.below(std::min<std::size_t>(size, 30) + 1);
            then.truncate(tokens);
            pair.change(then, [&](Sequence s) { cache.truncate(s, tokens); });
            break;
        }
        case 1:
        case 2: {
            const Gap gap = random.below(2) == 0 ? Gap::close : Gap::keep;
            then.erase(begin, end, gap);
            pair.change(then, [&](Sequence s) { cache.erase(s, begin, end, gap); });
            break;
        }
        case 3:
            then.move(begin, size, delta, true);
            pair.change(then, [&](Sequence s) { cache.shift(s, begin, delta); });
            break;
        case 4:
        case 5:
            then.move(begin, end, delta, false);
            pair.change(then, [&](Sequence s) { cache.shift(s, begin, end, delta); });
            break;
        case 6:
            then.next = then.next + delta;
            pair.change(then, [&](Sequence s) { cache.set_next_position(s, then.next); });
            break;
        default:
            random.below(2) == 0 ? cache.seal(pair.sequence()) : cache.compact(pair.sequence());
            pair.look();
    }
}

}  // namespace

TEST_CASE("every token stands where a list of numbers says, whatever was done and whatever windows have freed") {
    struct Case {
        const char* scheme;
        std::vector<std::size_t> windows;  ///< of layers 0, 1, ..
    };
    const Case cases[] = {{"x rotated 3", {}},
                          {"f16 k and v", {0, 30}},
                          {"x rotated 3", {20, 0, 50, 0}},
                          {"q8_0", {1, 0, 1, 40}},
                          {"f16 k and v", {20, 30, 20, 30}},
                          {"x rotated 3", {1, 25, 25, 1}},
                          {"cross-layer svd rotated 4", {40, 40, 40, 40}},
                          {"head svd 4", {60, 60, 60, 60}}};
    std::uint32_t seed = 1;
    for (const Case& one : cases) {
        test::Setup setup = test::small_model();
        for (std::size_t i = 0; i < one.windows.size(); ++i) setup.model.layers[i].window = one.windows[i];
        INFO(one.scheme << ", case " << seed);
        const auto cache = test::scheme(one.scheme).make(setup.model, {.sinks = 3, .recent = 12});
        test::Random random(seed++);
        std::size_t accepted = 0, refused = 0, limited = 0;
        for (int round = 0; round < 6; ++round) {
            Pair pair(*cache, setup.model);
            pair.add(150);
            for (int i = 0; i < 60; ++i) {
                if (i % 3 == 0 && pair.places().at.size() < 300) {
                    pair.add(1 + random.below(30));
                } else {
                    change_at_random(*cache, pair, random);
                }
                pair.check();
                if (i % 6 == 0) pair.check_prefixes();
            }
            accepted += pair.accepted;
            refused += pair.refused;
            limited += pair.limited;
            cache->drop(pair.sequence());
        }
        CHECK(accepted > 60);
        CHECK(refused > 30);
        const bool frees = std::any_of(one.windows.begin(), one.windows.end(), [](std::size_t w) { return w > 1; });
        CHECK((limited > 10) == frees);
    }
}
