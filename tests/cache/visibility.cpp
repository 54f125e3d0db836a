/// Attention beside the usual: rows that see each other.
#include <algorithm>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/complaint.hpp"
#include "support/feed.hpp"
#include "support/model.hpp"
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
