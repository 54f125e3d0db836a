/// Rebuilt keys (Options::rebuilt): what they change in answers, which is little; what they take, which is counted and
/// limited; and that they go with their pages.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <xquant/persistence.hpp>

#include "support/catch.hpp"
#include "support/complaint.hpp"
#include "support/feed.hpp"
#include "support/memory.hpp"
#include "support/model.hpp"
#include "support/oracle.hpp"
#include "support/threads.hpp"
#include "support/tolerance.hpp"

using namespace xquant;
using test::Feed;
using test::Scheme;

namespace {

constexpr std::size_t plenty = std::size_t{1} << 30U;

Options with_rebuilt(Options options, std::size_t bytes) {
    options.rebuilt = bytes;
    return options;
}

/// What K and V in 8 bits do to answers: keys that are kept in 8 bits, beside V as it was, do no more.
double bound_of(const Model& model) { return test::tolerance(test::scheme("q8_0"), model); }

/// Whether a scheme makes K anew for every step, alone or in some layers.
bool rebuilds(const Scheme& scheme) {
    const std::string& name = scheme.name;
    return !scheme.cross_layer && name.find("k and v") == std::string::npos && !name.starts_with("kivi") &&
           !name.starts_with("q4_0") && !name.starts_with("q8_0");
}

/// The same sequence in a cache that keeps rebuilt keys and in one that does not.
class Twins {
public:
    Twins(const Scheme& scheme, const Model& model, const Options& options, std::size_t bytes)
        : with(scheme.make(model, with_rebuilt(options, bytes))),
          without(scheme.make(model, options)),
          model_(&model) {}

    struct Pair {
        Feed a, b;
    };
    Pair create(std::uint32_t seed) { return {{with->create(), seed}, {without->create(), seed}}; }
    void feed(const std::vector<Pair*>& pairs, std::size_t tokens) {
        std::vector<test::NewTokens> a, b;
        for (Pair* pair : pairs) {
            a.push_back({&pair->a, tokens});
            b.push_back({&pair->b, tokens});
        }
        test::feed(*with, *model_, a);
        test::feed(*without, *model_, b);
    }
    void feed(Pair& pair, std::size_t tokens) { feed({&pair}, tokens); }
    /// Steps of one token.
    void decode(Pair& pair, std::size_t steps) {
        for (std::size_t i = 0; i < steps; ++i) feed(pair, 1);
    }
    /// change(cache, sequence) of both.
    template <class F>
    void change(Pair& pair, F&& f) {
        f(*with, pair.a.sequence);
        f(*without, pair.b.sequence);
    }
    Pair fork(const Pair& pair) {
        Pair out = pair;
        out.a.sequence = with->fork(pair.a.sequence);
        out.b.sequence = without->fork(pair.b.sequence);
        return out;
    }
    void truncate(Pair& pair, std::size_t tokens) {
        change(pair, [&](test::Cache& cache, Sequence sequence) { cache.truncate(sequence, tokens); });
        pair.a.tokens = pair.b.tokens = tokens;
    }
    void drop(Pair& pair) {
        change(pair, [](test::Cache& cache, Sequence sequence) { cache.drop(sequence); });
    }
    [[nodiscard]] std::size_t rebuilt() const { return with->bytes().rebuilt; }

    std::shared_ptr<test::Cache> with, without;

private:
    const Model* model_;
};

/// How far the last `rows` answers of a pair are apart.
double apart(const Twins::Pair& pair, std::size_t rows) { return test::relative_distance(pair.a, pair.b, rows); }

/// Bytes of the keys of one page of one layer, with the table of the page.
std::size_t page_bytes(const Scheme& scheme, const Model& model, const Options& options) {
    std::size_t least = 1;
    // The refusal says it: the smallest number that is not refused.
    for (std::size_t step = std::size_t{1} << 22U; step > 0; step /= 2) {
        try {
            static_cast<void>(scheme.make(model, with_rebuilt(options, least + step - 1)));
        } catch (const shape_error&) {
            least += step;
        }
    }
    return least;
}

struct Backwards {
    template <class F>
    void parallel_for(std::size_t n, F&& f) const {
        while (n > 0) f(--n);
    }
};

constexpr Options usual{.sinks = 4, .recent = 20};

}  // namespace

TEST_CASE("rebuilt keys: answers differ by rounding K to 8 bits, and nothing else that is stored does") {
    const bool is_wide = GENERATE(false, true);
    const test::Setup setup =
        is_wide ? test::Setup({.width = 256, .heads = 6, .kv_heads = 2, .head_dim = 64}, RopePairing::halves, 2)
                : test::small_model();
    const double bound = bound_of(setup.model);
    for (const Scheme& scheme : test::schemes()) {
        if (!rebuilds(scheme)) continue;
        if (is_wide && scheme.name != "head svd 4" && scheme.name != "f32 x" && scheme.name != "x rotated 3") continue;
        INFO(scheme.name << ", bound " << bound);
        Twins at(scheme, setup.model, usual, plenty);
        Twins::Pair pair = at.create(1);
        at.feed(pair, 300);
        at.feed(pair, 7);
        // Pages were read once: nothing is kept, and the bits are the same.
        CHECK(at.rebuilt() == 0);
        CHECK(test::difference(pair.b.out, pair.a.out).empty());
        at.decode(pair, 6);
        CHECK(at.rebuilt() > 0);
        CHECK(apart(pair, 3) > 0);
        CHECK(apart(pair, 3) <= bound);
        at.feed(pair, 40);  // many rows meet tiles, not codes
        CHECK(apart(pair, 40) > 0);
        CHECK(apart(pair, 40) <= bound);
        Bytes with = at.with->bytes(), without = at.without->bytes();
        CHECK(with.total() - with.rebuilt - with.index == without.total() - without.rebuilt - without.index);
        CHECK(without.rebuilt == 0);
        CHECK(test::stored_pages(*at.with, pair.a.sequence, scheme, setup.model, usual) ==
              test::stored_pages(*at.without, pair.b.sequence, scheme, setup.model, usual));
        at.drop(pair);
        CHECK(at.rebuilt() == 0);
        with = at.with->bytes(), without = at.without->bytes();
        CHECK(with.total() == without.total() + (with.index - without.index));
    }
}

TEST_CASE("rebuilt keys of models with k_norm, partial RoPE, a factor, windows and shared rows") {
    test::Random random(5);
    std::vector<float> gain = random.rows(16, 0.3F);
    for (float& g : gain) g += 1.0F;
    test::Setup setup({.width = 64, .heads = 4, .kv_heads = 2, .head_dim = 16}, RopePairing::halves, 4, 3);
    for (Layer& layer : setup.model.layers) {
        layer.k_norm = gain.data();
        layer.rope.factor = 1.3;
    }
    setup.model.layers[1].window = 200;
    setup.model.layers[2].k_norm = nullptr;
    const double bound = bound_of(setup.model);
    setup.model.layers[3].rows_of = 2;
    const Scheme& scheme = test::scheme("x rotated 4, requantizable to 2");
    Twins at(scheme, setup.model, usual, plenty);
    Twins::Pair pair = at.create(1);
    const auto feed = [&](std::size_t tokens) {
        for (Feed* one : {&pair.a, &pair.b}) {
            test::Cache& cache = one == &pair.a ? *at.with : *at.without;
            auto step = cache.begin({{one->sequence, tokens}});
            one->out.resize(4);
            for (std::size_t layer = 0; layer < 4; ++layer) {
                const test::Rows rows = test::rows_of(setup.model.layers[layer], layer, 1, one->tokens, tokens);
                if (layer < 3) step.append(layer, MatrixView(rows.x.data(), tokens, 64));
                one->out[layer].assign(tokens * 64, 0);
                step.attend(layer, MatrixView(rows.q.data(), tokens, 64), one->out[layer].data());
            }
            step.commit();
            one->tokens += tokens;
            one->answered = tokens;
        }
    };
    feed(440);
    for (int i = 0; i < 8; ++i) feed(1);
    // Three pages of layers 0, 2 and 3, and one that the window has not freed.
    const std::size_t each = 128 * 2 * (16 + 4);
    CHECK(at.rebuilt() >= 10 * each);
    for (std::size_t layer = 0; layer < 4; ++layer) {
        test::RelativeDistance off;
        for (std::size_t i = 0; i < 64; ++i) off.add(pair.a.out[layer][i], pair.b.out[layer][i]);
        INFO(layer);
        CHECK(off.value() > 0);
        CHECK(off.value() <= bound);
    }
    for (int i = 0; i < 300; ++i) feed(1);  // pages leave the window, and their keys with them
    CHECK(at.rebuilt() < 20 * each);
}

TEST_CASE("rebuilt keys are the model's, within the error that Options::rebuilt states") {
    test::Random random(6);
    std::vector<float> gain = random.rows(64, 0.3F);
    for (float& g : gain) g += 1.0F;
    test::Setup setup({.width = 256, .heads = 4, .kv_heads = 2, .head_dim = 64}, RopePairing::halves, 2, 24);
    setup.model.layers[1].k_norm = gain.data();
    setup.model.layers[1].rope.factor = 0.8;
    Options options = with_rebuilt({.sinks = 4, .recent = 20, .rows = DType::f32, .weights = WeightType::f32}, plenty);
    const auto cache = test::scheme("f32 x").make(setup.model, options);
    Feed a{cache->create(), 1};
    test::feed(*cache, setup.model, {{&a, 300}});
    for (int i = 0; i < 5; ++i) test::feed(*cache, setup.model, {{&a, 1}});
    detail::Core& core = detail::CacheAccess::core(*cache);
    std::size_t pages = 0;
    for (std::size_t layer = 0; layer < 2; ++layer) {
        const test::Rows rows = test::rows_of(setup.model.layers[layer], layer, 1, 0, 305);
        const std::vector<double> exact = test::oracle_rows(setup.model.layers[layer], rows.x, true);
        for (const detail::Segment& segment : core.find(a.sequence).states[0].segments) {
            const detail::PageRef keys = core.rebuilt()->find(*segment.page.get(), layer);
            if (!keys) continue;
            ++pages;
            REQUIRE(detail::RebuiltPages::position_of(*keys.get()) ==
                    segment.first_position - static_cast<std::int64_t>(segment.begin));
            std::vector<float> found(128 * 128);
            detail::decode_rows(backend::scalar{}, read_only(keys->stream(0, 0)), 0, 128, found.data());
            for (std::size_t t = 0; t < 128; ++t) {
                const double* const row = exact.data() + (static_cast<std::size_t>(segment.first_position) + t) * 128;
                for (std::size_t head = 0; head < 128; head += 64) {
                    const auto [low, high] = std::minmax_element(row + head, row + head + 64);
                    const double largest = std::max(std::abs(*low), std::abs(*high));
                    const double bound = (*high - *low) / 510 + 0x1p-10 * largest + 2e-5;  // f32 rounding of K itself
                    double worst = 0;
                    for (std::size_t c = head; c < head + 64; ++c) {
                        worst = std::max(worst, test::distance_to(row[c], found[t * 128 + c]));
                    }
                    REQUIRE(worst <= bound);
                    REQUIRE(bound < 0.05 * largest);
                }
            }
        }
    }
    CHECK(pages == 4);
}

TEST_CASE("rebuilt keys never take more than was allowed, and every byte is counted") {
    const test::Setup setup = test::small_model();
    const Scheme& scheme = test::scheme("x rotated 3");
    const std::size_t one = page_bytes(scheme, setup.model, usual);
    for (const std::size_t limit : {one, 2 * one + 1, 7 * one, 13 * one - 5, 100 * one}) {
        INFO(limit << " bytes, " << one << " a page");
        test::CountingMemory memory;
        Options options = with_rebuilt(usual, limit);
        options.memory = &memory;
        {
            const auto cache = scheme.make(setup.model, options);
            Feed a{cache->create(), 1}, b{cache->create(), 2};
            std::size_t most = 0;
            const auto check = [&] {
                const Bytes bytes = cache->bytes();
                REQUIRE(bytes.rebuilt <= limit);
                REQUIRE(bytes.total() == memory.bytes());
                REQUIRE(bytes.workspace == 0);
                most = std::max(most, bytes.rebuilt);
            };
            test::feed(*cache, setup.model, {{&a, 700}, {&b, 300}});
            for (int i = 0; i < 40; ++i) {
                test::feed(*cache, setup.model, {{&a, 1}, {&b, 1}});
                check();
            }
            // Five and two pages of four layers: all of them, or as many as there is room for.
            if (limit == 100 * one) {
                const std::size_t keys = one - 4 * sizeof(void*);
                CHECK(most == 28 * keys + 7 * 4 * sizeof(void*));
            } else {
                CHECK(most > limit - one);
            }
            cache->drop(a.sequence);
            check();
            cache->drop(b.sequence);
            check();
            CHECK(cache->bytes().rebuilt == 0);
        }
        CHECK(memory.bytes() == 0);
        CHECK(!memory.misused());
    }
}

TEST_CASE("a step makes keys for four pages of a layer, or an eighth of those that it reads") {
    const test::Setup setup = test::small_model();
    const Scheme& scheme = test::scheme("x 4");
    Twins at(scheme, setup.model, usual, plenty);
    Twins::Pair pair = at.create(1);
    at.feed(pair, 128 * 10 + 30);
    at.decode(pair, 2);
    const std::size_t keys = page_bytes(scheme, setup.model, usual) - 4 * sizeof(void*);
    std::size_t before = at.rebuilt(), steps = 0;
    for (; steps < 10; ++steps) {
        at.decode(pair, 1);
        const std::size_t now = at.rebuilt();
        CHECK(now - before <= 4 * 4 * keys + 4 * 4 * sizeof(void*));
        if (now == before && now > 0) break;
        before = now;
    }
    CHECK(before == 10 * 4 * (keys + sizeof(void*)));
    CHECK(steps <= 4);

    // Forty pages, five at a time; one of them was read before it was full.
    at.feed(pair, 128 * 30);
    at.decode(pair, 2);
    for (const std::size_t pages : {16U, 21U, 26U, 31U, 36U, 40U, 40U}) {
        at.decode(pair, 1);
        CHECK(at.rebuilt() == pages * 4 * (keys + sizeof(void*)));
    }
}

TEST_CASE("pages that are read equally keep what they have; pages that rest give way to those that are read") {
    const test::Setup setup = test::small_model();
    const Scheme& scheme = test::scheme("x rotated 3");
    const std::size_t one = page_bytes(scheme, setup.model, usual);
    Twins at(scheme, setup.model, usual, 6 * one);  // all four pages of the first layer, two of the second
    Twins::Pair a = at.create(1), b = at.create(2);
    at.feed(a, 600);
    at.decode(a, 10);
    // What is kept stays: the answer to one token is the same each time.
    const test::Outputs once = test::feed_and_abandon(*at.with, setup.model, {{&a.a, 1}});
    for (int i = 0; i < 101; ++i) {
        const test::Outputs again = test::feed_and_abandon(*at.with, setup.model, {{&a.a, 1}});
        CHECK(test::difference(once, again).empty());
    }
    CHECK(apart(a, 3) > 0);

    at.feed(b, 280);
    at.decode(b, 20);
    CHECK(test::difference(test::answers(b.b, 290, 10), test::answers(b.a, 290, 10)).empty());  // no room yet
    at.decode(b, 250);
    CHECK(apart(b, 3) > 0);
    CHECK(apart(b, 3) <= bound_of(setup.model));
    at.feed(a, 1);
    CHECK(test::difference(test::answers(a.b, a.b.answered - 1, 1), test::answers(a.a, a.a.answered - 1, 1)).empty());
    CHECK(at.rebuilt() <= 6 * one);
}

TEST_CASE("forks share rebuilt keys; the last one takes them along") {
    const test::Setup setup = test::small_model();
    Twins at(test::scheme("x 4"), setup.model, usual, plenty);
    Twins::Pair a = at.create(1);
    at.feed(a, 300);
    at.decode(a, 6);
    const std::size_t all = at.rebuilt();
    REQUIRE(all > 0);
    Twins::Pair b = at.fork(a), c = at.fork(a);
    at.feed({&a, &b, &c}, 1);
    CHECK(at.rebuilt() == all);
    CHECK(apart(a, 1) > 0);
    CHECK(apart(a, 1) <= bound_of(setup.model));
    CHECK(apart(b, 1) <= bound_of(setup.model));
    // Read together or alone: the same keys.
    CHECK(test::relative_distance(a.a, b.a, 1) <= 1e-5);
    at.drop(a);
    at.drop(b);
    CHECK(at.rebuilt() == all);
    at.decode(c, 1);
    CHECK(apart(c, 1) > 0);
    at.drop(c);
    CHECK(at.rebuilt() == 0);
}

TEST_CASE("rebuilt keys go when the rows of their page are cut, and never outlive rows that are written anew") {
    const test::Setup setup = test::small_model();
    const double bound = bound_of(setup.model);
    for (const char* const name : {"x rotated 3", "x per channel 6", "head svd 4"}) {
        INFO(name);
        Twins at(test::scheme(name), setup.model, usual, plenty);
        Twins::Pair a = at.create(1);
        at.feed(a, 400);
        at.decode(a, 6);
        const std::size_t all = at.rebuilt(), each = all / 2;  // sinks, two pages and a part of a third
        REQUIRE(all > 0);
        at.truncate(a, 4 + 128 + 60);
        CHECK(at.rebuilt() == each);
        a.a.seed = a.b.seed = 7;
        at.feed(a, 200);
        at.decode(a, 6);
        CHECK(at.rebuilt() > each);
        CHECK(apart(a, 6) <= bound);
        // Cut while a fork reads the whole page; later the page is written from there on.
        Twins::Pair b = at.fork(a);
        at.truncate(a, 4 + 128 + 30);
        const std::size_t shared = at.rebuilt();
        at.drop(b);
        CHECK(at.rebuilt() <= shared);
        a.a.seed = a.b.seed = 9;
        at.feed(a, 150);
        at.decode(a, 6);
        CHECK(apart(a, 6) > 0);
        CHECK(apart(a, 6) <= bound);
        at.truncate(a, 0);
        CHECK(at.rebuilt() == 0);
    }
}

TEST_CASE("rebuilt keys of tokens that moved are turned by how far they moved") {
    const test::Setup setup =
        GENERATE(0, 1) == 0
            ? test::small_model()
            : test::Setup({.width = 256, .heads = 6, .kv_heads = 2, .head_dim = 64}, RopePairing::halves, 2);
    const double bound = bound_of(setup.model);
    for (const char* const name : {"f32 x", "head svd 4"}) {
        INFO(name);
        Twins at(test::scheme(name), setup.model, usual, plenty);
        Twins::Pair a = at.create(1);
        at.feed(a, 560);
        at.decode(a, 6);
        const std::size_t all = at.rebuilt();
        Twins::Pair b = at.fork(a);
        // The second page loses rows, those behind it move up.
        at.change(a, [](test::Cache& cache, Sequence s) { cache.erase(s, 150, 170, Gap::close); });
        CHECK(at.rebuilt() == all);  // the fork reads all of it
        at.decode(a, 2);
        CHECK(apart(a, 2) > 0);
        CHECK(apart(a, 2) <= bound);
        at.feed(a, 40);
        CHECK(apart(a, 40) <= bound);
        at.feed({&a, &b}, 1);  // the same pages at two positions
        CHECK(apart(a, 1) <= bound);
        CHECK(apart(b, 1) <= bound);
        at.drop(b);
        at.change(a, [](test::Cache& cache, Sequence s) {
            cache.shift(s, 200, 1000);
            cache.erase(s, 300, 310, Gap::keep);
        });
        CHECK(at.rebuilt() < all);
        at.decode(a, 6);
        CHECK(apart(a, 6) > 0);
        CHECK(apart(a, 6) <= bound);
        at.change(a, [](test::Cache& cache, Sequence s) { cache.compact(s); });
        at.decode(a, 6);
        CHECK(apart(a, 6) > 0);
        CHECK(apart(a, 6) <= bound);
        at.change(a, [](test::Cache& cache, Sequence s) { cache.seal(s); });
        at.decode(a, 6);
        CHECK(apart(a, 6) <= bound);
    }
}

TEST_CASE("requantized pages lose their rebuilt keys, and get those of their new codes") {
    const test::Setup setup = test::small_model();
    Twins at(test::scheme("x rotated 4, requantizable to 2"), setup.model, usual, plenty);
    Twins::Pair a = at.create(1);
    at.feed(a, 300);
    at.decode(a, 6);
    const std::size_t all = at.rebuilt();
    REQUIRE(all > 0);
    at.change(a, [](test::Cache& cache, Sequence s) { cache.requantize(std::vector<Sequence>{s}); });
    CHECK(at.rebuilt() == 0);
    at.decode(a, 6);
    CHECK(at.rebuilt() == all);
    CHECK(apart(a, 2) > 0);
    CHECK(apart(a, 2) <= bound_of(setup.model));
}

TEST_CASE("rebuilt keys are not saved: the file is the same, and a loaded cache makes them as it reads") {
    const test::Setup setup = test::small_model();
    for (const char* const name : {"x rotated 3", "head svd 4"}) {
        Twins at(test::scheme(name), setup.model, usual, plenty);
        Twins::Pair a = at.create(1);
        at.feed(a, 300);
        at.decode(a, 6);
        std::stringstream with, without;
        save(*at.with, std::vector<Sequence>{a.a.sequence}, with);
        save(*at.without, std::vector<Sequence>{a.b.sequence}, without);
        CHECK(with.str() == without.str());
        const auto fresh = test::scheme(name).make(setup.model, with_rebuilt(usual, plenty));
        Feed loaded = a.a;
        loaded.sequence = load(*fresh, with).sequences.at(0);
        CHECK(fresh->bytes().rebuilt == 0);
        for (int i = 0; i < 6; ++i) test::feed(*fresh, setup.model, {{&loaded, 1}});
        at.decode(a, 6);
        CHECK(fresh->bytes().rebuilt == at.rebuilt());
        CHECK(test::relative_distance(loaded, a.b, 6) <= bound_of(setup.model));
        CHECK(test::relative_distance(loaded, a.a, 1) == 0);
    }
}

TEST_CASE("rebuilt keys give way to a budget: no step fails that would fit without them") {
    const test::Setup setup = test::small_model();
    const Scheme& scheme = test::scheme("x rotated 3");
    for (const std::size_t tokens : {700U, 1500U}) {
        Options options = usual;
        {
            const auto cache = scheme.make(setup.model, options);
            Feed a{cache->create(), 1};
            test::feed(*cache, setup.model, {{&a, tokens}});
            options.budget = cache->bytes().stored() + 6000;
        }
        // The formats of rebuilt pages count as well, once.
        const std::size_t formats = scheme.make(setup.model, with_rebuilt(options, plenty))->bytes().index -
                                    scheme.make(setup.model, options)->bytes().index;
        std::size_t fitted[2]{};
        bool kept = false;
        for (const bool dial : {false, true}) {
            Options own = with_rebuilt(options, dial ? plenty : 0);
            own.budget += dial ? formats : 0;
            const auto cache = scheme.make(setup.model, own);
            Feed a{cache->create(), 1};
            test::feed(*cache, setup.model, {{&a, tokens / 2}});
            try {
                for (;;) {
                    test::feed(*cache, setup.model, {{&a, 1}});
                    const Bytes bytes = cache->bytes();
                    REQUIRE(bytes.stored() + bytes.rebuilt <= own.budget);
                    kept = kept || bytes.rebuilt > 0;
                }
            } catch (const budget_error& problem) {
                CHECK(problem.used + problem.needed > problem.budget);
                CHECK(cache->bytes().rebuilt == 0);
            }
            fitted[dial ? 1 : 0] = a.tokens;
        }
        CHECK(kept);
        CHECK(fitted[1] == fitted[0]);
    }
}

TEST_CASE("where memory runs out, no keys are made, and the step goes on") {
    const test::Setup setup = test::small_model();
    const Scheme& scheme = test::scheme("head svd 4");
    test::CountingMemory memory;
    Options options = with_rebuilt(usual, plenty);
    options.memory = &memory;
    const auto cache = scheme.make(setup.model, options);
    Feed a{cache->create(), 1};
    test::feed(*cache, setup.model,
               {
                   {&a, 700},
               });
    for (int i = 0; i < 2; ++i) test::feed(*cache, setup.model, {{&a, 1}});
    const std::size_t before = cache->bytes().rebuilt;
    std::size_t survived = 0;
    for (std::size_t k = 1;; ++k) {
        memory.fail_at(k);
        bool failed = false;
        try {
            test::feed_and_abandon(*cache, setup.model, {{&a, 1}});
        } catch (const std::bad_alloc&) {
            failed = true;
        }
        const bool armed = memory.armed();
        memory.fail_at(0);
        REQUIRE(cache->bytes().total() == memory.bytes());
        if (armed) break;
        survived += failed ? 0 : 1;
    }
    CHECK(survived > 0);
    CHECK(cache->bytes().rebuilt > before);
    test::feed(*cache, setup.model, {{&a, 1}});
    cache->drop(a.sequence);
    CHECK(cache->bytes().rebuilt == 0);
    CHECK(cache->bytes().total() == memory.bytes());
}

TEST_CASE("rebuilt keys: the same bits on any number of threads", "[threads]") {
    const test::Setup setup({.width = 24, .heads = 4, .kv_heads = 2, .head_dim = 6}, RopePairing::halves, 4);
    for (const char* const name : {"x rotated 3", "head svd 4", "mixed"}) {
        const Scheme& scheme = test::scheme(name);
        const std::size_t limit = 9 * page_bytes(scheme, setup.model, usual);
        const auto run = [&](const auto& threads) {
            const auto cache = scheme.make(setup.model, with_rebuilt(usual, limit));
            Feed a{cache->create(), 1}, b{cache->create(), 2};
            test::feed_on(threads, *cache, setup.model, {{&a, 500}, {&b, 200}});
            for (int i = 0; i < 8; ++i) test::feed_on(threads, *cache, setup.model, {{&a, 1}, {&b, 1}});
            CHECK(cache->bytes().rebuilt > 0);
            a.out.insert(a.out.end(), b.out.begin(), b.out.end());
            return a.out;
        };
        const test::Outputs serial = run(Serial{});
        INFO(name);
        CHECK(test::difference(serial, run(Backwards{})).empty());
        CHECK(test::difference(serial, run(test::Threads{2})).empty());
        CHECK(test::difference(serial, run(test::Threads{5})).empty());
    }
}

TEST_CASE("threads that share pages share their rebuilt keys, and let them go", "[threads]") {
    const test::Setup setup = test::small_model();
    const double bound = bound_of(setup.model);
    const Scheme& scheme = test::scheme("x 4");
    const std::size_t limit = 11 * page_bytes(scheme, setup.model, usual);
    const auto plain = scheme.make(setup.model, usual);
    Feed expected{plain->create(), 1};
    test::feed(*plain, setup.model, {{&expected, 450}});
    for (int i = 0; i < 30; ++i) test::feed(*plain, setup.model, {{&expected, 1}});
    const auto cache = scheme.make(setup.model, with_rebuilt(usual, limit));
    Feed root{cache->create(), 1};
    test::feed(*cache, setup.model, {{&root, 450}});
    std::vector<std::thread> threads;
    std::vector<double> off(4, HUGE_VAL);
    for (std::size_t t = 0; t < off.size(); ++t) {
        threads.emplace_back([&, t] {
            for (int round = 0; round < 3; ++round) {
                Feed own = root;
                own.sequence = cache->fork(root.sequence);
                Feed other{cache->create(), static_cast<std::uint32_t>(50 + t)};
                test::feed(*cache, setup.model, {{&other, 200}});
                for (int i = 0; i < 30; ++i) {
                    test::feed(*cache, setup.model, {{&own, 1}});
                    if (i % 5 == 0) test::feed(*cache, setup.model, {{&other, 1}});
                }
                off[t] = test::relative_distance(own, expected, 30);
                cache->drop(other.sequence);
                cache->drop(own.sequence);
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    for (const double each : off) CHECK(each <= bound);
    CHECK(cache->bytes().rebuilt <= limit);
    cache->drop(root.sequence);
    CHECK(cache->bytes().rebuilt == 0);
}

TEST_CASE("attention without a step reads and makes rebuilt keys as well") {
    const test::Setup setup = test::small_model();
    Twins at(test::scheme("head svd 4"), setup.model, usual, plenty);
    Twins::Pair a = at.create(1);
    at.feed(a, 300);
    at.change(a, [](test::Cache& cache, Sequence s) { cache.seal(s); });
    const test::Rows rows = test::rows_of(setup.model.layers[1], 1, 3, 0, 2);
    std::vector<float> with(64), without(64);
    for (std::size_t i = 0; i < 6 * 4; ++i) {
        at.with->attend(i % 4, {{a.a.sequence, 2}}, MatrixView(rows.q.data(), 2, 32), with.data());
        at.without->attend(i % 4, {{a.b.sequence, 2}}, MatrixView(rows.q.data(), 2, 32), without.data());
    }
    CHECK(at.rebuilt() > 0);
    test::RelativeDistance off;
    for (std::size_t i = 0; i < 64; ++i) off.add(with[i], without[i]);
    CHECK(off.value() > 0);
    CHECK(off.value() <= bound_of(setup.model));
}

TEST_CASE("random operations: rebuilt keys stay within their bounds, of bytes and of answers") {
    const test::Setup setup = test::small_model();
    const double bound = 1.5 * bound_of(setup.model);  // of single answers, not of many together
    for (const char* const name : {"x rotated 4, requantizable to 2", "head svd 4"}) {
        const Scheme& scheme = test::scheme(name);
        const std::size_t limit = 10 * page_bytes(scheme, setup.model, usual);
        Twins at(scheme, setup.model, usual, limit);
        std::vector<Twins::Pair> pairs{at.create(1)};
        test::Random random(17);
        std::uint32_t seed = 1;
        std::size_t kept = 0;
        for (int i = 0; i < 400; ++i) {
            const std::size_t which = random.below(pairs.size());
            Twins::Pair& one = pairs[which];
            const std::size_t tokens = at.with->size(one.a.sequence);
            switch (random.below(12)) {
                case 0:
                    if (pairs.size() < 4) pairs.push_back(at.create(++seed));
                    break;
                case 1:
                    if (pairs.size() < 4) pairs.push_back(at.fork(one));
                    break;
                case 2:
                    if (pairs.size() > 2) {
                        at.drop(one);
                        pairs.erase(pairs.begin() + static_cast<std::ptrdiff_t>(which));
                    }
                    break;
                case 3: {
                    const std::size_t keep = tokens - random.below(tokens + 1) / 4;
                    at.change(one, [&](test::Cache& cache, Sequence s) { cache.truncate(s, keep); });
                    one.a.seed = one.b.seed = ++seed;
                    break;
                }
                case 4: {
                    const std::size_t begin = random.below(tokens + 1), end = std::min(tokens, begin + random.below(9));
                    const Gap gap = random.below(2) == 0 ? Gap::close : Gap::keep;
                    at.change(one, [&](test::Cache& cache, Sequence s) { cache.erase(s, begin, end, gap); });
                    break;
                }
                case 5: {
                    const std::size_t begin = random.below(tokens + 1);
                    at.change(one, [&](test::Cache& cache, Sequence s) { cache.shift(s, begin, 5); });
                    break;
                }
                case 6:
                    at.change(one, [&](test::Cache& cache, Sequence s) {
                        if (scheme.name.find("requantizable") != std::string::npos && i % 3 == 0) {
                            cache.requantize(std::vector<Sequence>{s});
                        } else {
                            cache.compact(s);
                        }
                    });
                    break;
                case 7:
                    at.change(one, [](test::Cache& cache, Sequence s) { cache.seal(s); });
                    break;
                default: {
                    const std::size_t count = random.below(4) == 0 ? 150 : 1;
                    for (int k = 0; k < 4; ++k) at.feed(one, tokens > 800 ? 1 : count);
                    REQUIRE(apart(one, 1) <= bound);
                }
            }
            REQUIRE(at.rebuilt() <= limit);
            const Bytes with = at.with->bytes(), without = at.without->bytes();
            REQUIRE(with.codes == without.codes);
            REQUIRE(with.workspace == 0);
            kept += at.rebuilt() > 0 ? 1U : 0U;
        }
        CHECK(kept > 100);
        for (Twins::Pair& pair : pairs) at.drop(pair);
        CHECK(at.rebuilt() == 0);
    }
}

TEST_CASE("rebuilt keys are refused where they cannot help, with a sentence that has the numbers") {
    const test::Setup setup = test::small_model();
    const auto complaint = [](const Scheme& scheme, const Model& model, std::size_t bytes) {
        return test::complaint<shape_error>([&] { static_cast<void>(scheme.make(model, with_rebuilt(usual, bytes))); });
    };
    for (const Scheme& scheme : test::schemes()) {
        INFO(scheme.name);
        const std::string said = complaint(scheme, setup.model, 123456789);
        CHECK(said.empty() == rebuilds(scheme));
        if (!rebuilds(scheme)) CHECK(said.find("123456789") != std::string::npos);
        if (scheme.cross_layer) CHECK(said.find("cross-layer") != std::string::npos);
    }
    test::Setup without_rope({.width = 24, .heads = 4, .kv_heads = 1, .head_dim = 8}, RopePairing::halves, 3, 0);
    CHECK(complaint(test::scheme("x 4"), without_rope.model, 5555).find("none of the 3 layers") != std::string::npos);
    // One layer that has RoPE is enough.
    without_rope.model.layers[1].rope = Rope::standard(8, 10000.0, RopePairing::halves);
    CHECK(complaint(test::scheme("x 4"), without_rope.model, 55555).empty());
    const std::string small = complaint(test::scheme("x 4"), setup.model, 100);
    CHECK(small.find("is 100 bytes") != std::string::npos);
    CHECK(small.find("128 tokens") != std::string::npos);
}
