/// Attention beside the usual: rows that see each other, layers behind others, and no step at all.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/complaint.hpp"
#include "support/feed.hpp"
#include "support/memory.hpp"
#include "support/model.hpp"
#include "support/oracle.hpp"
#include "support/tolerance.hpp"

using namespace xquant;
using test::complaint;
using test::contains;
using test::Feed;
using test::Scheme;

namespace {

constexpr std::size_t d = 24, heads = 32;  // of small_model

/// The last task first.
struct Backwards {
    template <class F>
    void parallel_for(std::size_t n, F&& f) const {
        for (std::size_t i = n; i > 0; --i) f(i - 1);
    }
};

}  // namespace

TEST_CASE("a row that sees the whole step answers as the step's last row would, bit for bit, whatever the scheme") {
    const test::Setup setup = test::small_model();
    for (const Scheme& scheme : test::schemes()) {
        for (const bool strict : {false, true}) {
            INFO(scheme.name << (strict ? ", strict" : ""));
            const auto cache = scheme.make(setup.model, {.sinks = 4, .recent = 10, .strict = strict});
            Feed a{cache->create(), 1}, b{cache->create(), 2};
            test::feed(*cache, setup.model, {{&a, 140}, {&b, 3}});
            constexpr std::size_t of_a = 30, of_b = 20, n = of_a + of_b;
            auto step = cache->begin({{a.sequence, of_a}, {b.sequence, of_b}});
            for (std::size_t layer = 0; layer < 4; ++layer) {
                test::Rows rows = test::rows_of(setup.model.layers[layer], layer, 1, 140, of_a);
                const test::Rows others = test::rows_of(setup.model.layers[layer], layer, 2, 3, of_b);
                rows.x.insert(rows.x.end(), others.x.begin(), others.x.end());
                rows.q.insert(rows.q.end(), others.q.begin(), others.q.end());
                step.append(layer, MatrixView(rows.x.data(), n, d));
                std::vector<float> whole(n * heads), causal(n * heads);
                step.attend(layer, MatrixView(rows.q.data(), n, heads), whole.data(), Visibility::whole);
                for (const std::size_t row : {std::size_t{0}, std::size_t{7}, of_a - 1, of_a, n - 2}) {
                    // The row's queries, asked by the last row of its sequence.
                    std::vector<float> q = rows.q;
                    const std::size_t last = row < of_a ? of_a - 1 : n - 1;
                    std::copy_n(rows.q.data() + row * heads, heads, q.data() + last * heads);
                    step.attend(layer, MatrixView(q.data(), n, heads), causal.data());
                    const auto row_of = [](const std::vector<float>& out, std::size_t i) {
                        return std::vector<float>(out.begin() + static_cast<std::ptrdiff_t>(i * heads),
                                                  out.begin() + static_cast<std::ptrdiff_t>((i + 1) * heads));
                    };
                    CHECK(row_of(whole, row) == row_of(causal, last));
                    if (row != last) CHECK(row_of(whole, row) != row_of(causal, row));
                }
                std::vector<float> threaded(n * heads);
                step.attend(layer, MatrixView(rows.q.data(), n, heads), threaded.data(), Visibility::whole, 0,
                            Backwards{});
                CHECK(threaded == whole);
            }
            step.commit();
        }
    }
}

TEST_CASE("a layer is attended to behind others: rows of the step are read as they are stored, whatever the scheme") {
    const test::Setup setup = test::small_model();
    constexpr std::size_t of_a = 150, of_b = 20, n = of_a + of_b;
    for (const Scheme& scheme : test::schemes()) {
        for (const bool strict : {false, true}) {
            INFO(scheme.name << (strict ? ", strict" : ""));
            const auto cache =
                scheme.make(setup.model, {.sinks = 4, .recent = 10, .rows = DType::f32, .strict = strict});
            Feed a{cache->create(), 1}, b{cache->create(), 2};
            test::feed(*cache, setup.model, {{&a, 140}, {&b, 3}});
            test::Outputs at_once, behind;
            std::vector<test::Rows> all;
            auto step = cache->begin({{a.sequence, of_a}, {b.sequence, of_b}});
            const auto attend = [&](std::size_t layer) {
                std::vector<float> out(n * heads);
                step.attend(layer, MatrixView(all[layer].q.data(), n, heads), out.data());
                return out;
            };
            for (std::size_t layer = 0; layer < 4; ++layer) {
                all.push_back(test::rows_of(setup.model.layers[layer], layer, 1, 140, of_a));
                const test::Rows others = test::rows_of(setup.model.layers[layer], layer, 2, 3, of_b);
                all.back().x.insert(all.back().x.end(), others.x.begin(), others.x.end());
                all.back().q.insert(all.back().q.end(), others.q.begin(), others.q.end());
                step.append(layer, MatrixView(all.back().x.data(), n, d));
                at_once.push_back(attend(layer));
                // Layers 2 and 3 of a cross-layer cache are read from sums.
                if (layer == 3 && scheme.cross_layer) {
                    CHECK(contains(complaint<state_error>([&] { attend(2); }),
                                   "layer 2 is read from sums over the layers, which have gone on to layer 3"));
                }
            }
            for (std::size_t layer = 0; layer < (scheme.cross_layer ? 2U : 3U); ++layer)
                behind.push_back(attend(layer));
            at_once.resize(behind.size());
            const double off = test::relative_distance(behind, at_once);
            if (scheme.exact || strict) {
                // Read the same, in tiles that are cut at other places.
                CHECK(off < 1e-5);
            } else {
                CHECK(off < test::tolerance(scheme, setup.model));
                // Even f16 in place of f32 is more than rounding.
                CHECK(off > 1e-5);
            }
            // The step goes on, and ends as if nothing had been asked.
            for (std::size_t layer = 0; layer < 4; ++layer) {
                if (layer < behind.size()) CHECK(attend(layer) == behind[layer]);
            }
            step.commit();
            const auto alone = scheme.make(setup.model, cache->options());
            Feed c{alone->create(), 1};
            test::feed(*alone, setup.model, {{&c, 140}});
            test::feed(*alone, setup.model, {{&c, of_a}});
            CHECK(test::stored_pages(*cache, a.sequence, scheme, setup.model, cache->options()) ==
                  test::stored_pages(*alone, c.sequence, scheme, setup.model, cache->options()));
            CHECK(cache->bytes().workspace == 0);
        }
    }
}

TEST_CASE("a visibility that is none is refused") {
    const test::Setup setup = test::small_model();
    const auto cache = test::scheme("x 4").make(setup.model, {});
    const test::Rows rows = test::rows_of(setup.model.layers[0], 0, 1, 0, 2);
    std::vector<float> out(2 * heads);
    auto step = cache->begin({{cache->create(), 2}});
    step.append(0, MatrixView(rows.x.data(), 2, d));
    CHECK(contains(complaint<shape_error>([&] {
                       step.attend(0, MatrixView(rows.q.data(), 2, heads), out.data(), static_cast<Visibility>(2));
                   }),
                   "the visibility is 2; expected Visibility::causal or Visibility::whole"));
}

TEST_CASE("without a step, the last tokens are answered from what is stored, whatever the scheme") {
    const test::Setup setup = test::small_model();
    for (const Scheme& scheme : test::schemes()) {
        INFO(scheme.name);
        test::PeakMemory memory;
        const auto cache = scheme.make(setup.model, {.sinks = 4, .recent = 10, .rows = DType::f32, .memory = &memory});
        Feed a{cache->create(), 1}, b{cache->create(), 2};
        test::feed(*cache, setup.model, {{&a, 140}, {&b, 3}});
        test::feed(*cache, setup.model, {{&a, 40}, {&b, 20}});
        const Bytes before = cache->bytes();
        constexpr std::size_t of_a = 60, of_b = 23, n = of_a + of_b;
        test::Outputs found, wanted, wrong;
        for (std::size_t layer = 0; layer < 4; ++layer) {
            test::Rows rows = test::rows_of(setup.model.layers[layer], layer, 2, 0, of_b);
            const test::Rows of_first = test::rows_of(setup.model.layers[layer], layer, 1, 180 - of_a, of_a);
            rows.q.insert(rows.q.end(), of_first.q.begin(), of_first.q.end());
            const MatrixView q(rows.q.data(), n, heads);
            std::vector<float> out(n * heads);
            if (scheme.cross_layer && layer >= 2) {
                CHECK(contains(complaint<state_error>([&] {
                                   cache->attend(layer, {{b.sequence, of_b}, {a.sequence, of_a}}, q, out.data());
                               }),
                               "is read from sums over the layers, which are there in a step alone"));
                continue;
            }
            memory.forget_peak();
            cache->attend(layer, {{b.sequence, of_b}, {a.sequence, of_a}}, q, out.data());
            CHECK(memory.peak() > before.total());  // its workspace is the cache's memory
            CHECK(cache->bytes() == before);
            found.push_back(out);
            wanted.push_back(b.out[layer]);
            wanted.back().insert(wanted.back().end(), a.out[layer].end() - of_a * heads, a.out[layer].end());

            // As many floats apart as is said, on any executor, and for a sequence that is named twice.
            std::vector<float> wide(n * (heads + 5), 42.0F);
            cache->attend(layer, {{b.sequence, of_b}, {a.sequence, of_a}}, q, wide.data(), Visibility::causal,
                          heads + 5, Backwards{});
            bool same = true;
            for (std::size_t row = 0; row < n; ++row) {
                for (std::size_t c = 0; c < heads + 5; ++c) {
                    same &= wide[row * (heads + 5) + c] == (c < heads ? out[row * heads + c] : 42.0F);
                }
            }
            CHECK(same);
            std::vector<float> both = of_first.q, twice(2 * of_a * heads);
            both.insert(both.end(), of_first.q.begin(), of_first.q.end());
            cache->attend(layer, {{a.sequence, of_a}, {a.sequence, of_a}}, MatrixView(both.data(), 2 * of_a, heads),
                          twice.data());
            CHECK(std::equal(twice.begin(), twice.begin() + of_a * heads, out.begin() + of_b * heads));
            CHECK(std::equal(twice.begin() + of_a * heads, twice.end(), out.begin() + of_b * heads));
        }
        // In the steps rows of their own were read as they were given, here as they are stored.
        const double off = test::relative_distance(found, wanted);
        CHECK(off < (scheme.exact ? 1e-5 : test::tolerance(scheme, setup.model)));
    }
}

TEST_CASE("without a step, rows stand where their tokens stand, behind erased and shifted ones, too") {
    const test::Setup setup = test::small_model();
    for (const Scheme& scheme : test::schemes()) {
        if (!scheme.exact || scheme.cross_layer) continue;
        INFO(scheme.name);
        const auto cache = scheme.make(setup.model, {.sinks = 4, .recent = 10, .rows = DType::f32});
        Feed a{cache->create(), 1};
        test::feed(*cache, setup.model, {{&a, 200}});
        cache->erase(a.sequence, 50, 60);
        cache->shift(a.sequence, 120, 7);
        cache->shift(a.sequence, 150, 300);
        constexpr std::size_t n = 100;  // of 190 tokens: 90 ..
        const test::Rows rows = test::rows_of(setup.model.layers[1], 1, 1, 100, n);
        std::vector<float> out(n * heads);
        cache->attend(1, {{a.sequence, n}}, MatrixView(rows.q.data(), n, heads), out.data());
        double worst = 0;
        for (const std::size_t row : {0, 29, 30, 31, 59, 60, 98, 99}) {
            // The same token, fed once more to a sequence that ends before it.
            const Sequence before = cache->fork(a.sequence, 90 + row);
            auto step = cache->begin({{before, 1}});
            std::vector<float> wanted(heads);
            for (std::size_t layer = 0; layer < 2; ++layer) {
                const test::Rows one = test::rows_of(setup.model.layers[layer], layer, 1, 100 + row, 1);
                step.append(layer, MatrixView(one.x.data(), 1, d));
            }
            step.attend(1, MatrixView(rows.q.data() + row * heads, 1, heads), wanted.data());
            for (std::size_t c = 0; c < heads; ++c) {
                worst = std::max(worst, test::distance_to(double{wanted[c]}, out[row * heads + c]));
            }
        }
        CHECK(worst < 1e-5);
    }
}

TEST_CASE("without a step, calls that cannot be served are refused, and change nothing") {
    test::Setup setup = test::small_model();
    setup.model.layers[1].window = 30;
    setup.model.layers[2].chunk = 16;
    const auto cache = test::scheme("x 4").make(setup.model, {.sinks = 0, .recent = 0});
    Feed a{cache->create(), 1};
    test::feed(*cache, setup.model, {{&a, 150}});
    test::feed(*cache, setup.model, {{&a, 20}});
    test::feed(*cache, setup.model, {{&a, 200}});
    const Sequence empty = cache->create(), gone = cache->create();
    cache->drop(gone);
    const Bytes before = cache->bytes();
    std::vector<float> q(400 * heads, 0.5F), out(400 * heads, 42.0F);
    const auto ask = [&](std::size_t layer, std::vector<QueryPart> parts, std::size_t n,
                         Visibility visibility = Visibility::causal, std::size_t stride = 0) {
        cache->attend(layer, parts, MatrixView(q.data(), n, heads), out.data(), visibility, stride);
    };
    const auto shape = [&](auto... arguments) { return complaint<shape_error>([&] { ask(arguments...); }); };
    const auto state = [&](auto... arguments) { return complaint<state_error>([&] { ask(arguments...); }); };
    const auto unknown = [&](auto... arguments) { return complaint<sequence_error>([&] { ask(arguments...); }); };
    using Parts = std::vector<QueryPart>;
    const Parts one{{a.sequence, 1}};
    CHECK(contains(shape(4U, one, 1U), "layer 4, but the model has 4"));
    CHECK(contains(shape(0U, Parts{}, 1U), "the list of sequences is empty"));
    CHECK(contains(shape(0U, Parts{{a.sequence, 0}}, 1U), "sequence 0 of the list has no query row"));
    CHECK(contains(shape(0U, Parts{{a.sequence, 1}, {a.sequence, 371}}, 372U),
                   "371 query rows for sequence 1 of the list, which has 370 tokens"));
    CHECK(contains(shape(0U, Parts{{a.sequence, (std::size_t{1} << 31U) - 1}, one[0]}, 1U, Visibility::whole),
                   "fewer than 2^31"));
    for (const Visibility visibility : {Visibility::causal, Visibility::whole}) {
        CHECK(contains(shape(0U, Parts{{empty, 1}}, 1U, visibility), "which has 0 tokens"));
    }
    CHECK(contains(shape(0U, one, 2U), "expected [query rows of all sequences, heads * head_dim] = [1, 32]"));
    CHECK(contains(shape(0U, one, 1U, Visibility::causal, heads - 1), "out_stride is 31"));
    CHECK(contains(shape(0U, one, 1U, static_cast<Visibility>(7)), "the visibility is 7"));
    CHECK(contains(unknown(0U, Parts{{gone, 1}}, 1U), "dropped"));
    CHECK(contains(state(1U, one, 1U, Visibility::whole), "layer 1 has a window or chunks (30, 0 tokens)"));
    CHECK(contains(state(2U, one, 1U, Visibility::whole), "layer 2 has a window or chunks (0, 16 tokens)"));
    // The step of 200 tokens could see position 141 and later, and kept whole pages: rows from 128 on.
    CHECK(contains(shape(1U, Parts{{a.sequence, 214}}, 214U),
                   "the last 214 tokens of a sequence would see rows up to position 127"));
    CHECK(contains(shape(1U, Parts{{a.sequence, 300}}, 300U), "up to position 127"));
    CHECK(shape(1U, Parts{{a.sequence, 213}}, 213U) == "");
    CHECK(std::all_of(out.begin() + 213 * heads, out.end(), [](float value) { return value == 42.0F; }));
    {
        const auto step = cache->begin({{a.sequence, 1}});
        CHECK(contains(unknown(0U, one, 1U), "part of a step"));
    }
    CHECK(cache->bytes() == before);

    test::PeakMemory memory;
    Options options{.recent = 8, .memory = &memory};
    options.workspace_budget = 240000;
    const auto small = test::scheme("x 4").make(setup.model, options);
    Feed b{small->create(), 1};
    for (int i = 0; i < 20; ++i) test::feed(*small, setup.model, {{&b, 1}});
    const Bytes little = small->bytes();
    std::vector<QueryPart> many(200, {b.sequence, 1});
    CHECK_THROWS_AS(small->attend(0, many, MatrixView(q.data(), 200, heads), out.data()), budget_error);
    CHECK(small->bytes() == little);
    CHECK_NOTHROW(small->attend(0, {{b.sequence, 1}}, MatrixView(q.data(), 1, heads), out.data()));
}
