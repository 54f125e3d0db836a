/// StepPart::rows: tokens lie in any rows of the engine's matrices, and a row may be a token of several sequences.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "support/catch.hpp"
#include "support/complaint.hpp"
#include "support/feed.hpp"
#include "support/memory.hpp"
#include "support/model.hpp"
#include "support/threads.hpp"

using namespace xquant;
using test::complaint;
using test::contains;
using test::Feed;
using test::Scheme;
using test::Threads;

namespace {

constexpr std::size_t d = 24, heads = 32;  // of small_model
constexpr float unwritten = 777;
using Numbers = std::vector<std::uint32_t>;

/// The tokens of a step, one sequence after another: which row of the matrices each one is, and how many there are.
struct Places {
    Numbers rows;
    std::size_t matrix_rows = 0;
};

Places as_they_come(std::size_t n) {
    Places out{Numbers(n), n};
    for (std::size_t i = 0; i < n; ++i) out.rows[i] = static_cast<std::uint32_t>(i);
    return out;
}

/// Any order, with rows of nobody between and behind.
Places shuffled(std::size_t n, test::Random& random) {
    Places out = as_they_come(n + n / 3 + 2);
    for (std::size_t i = out.rows.size(); i > 1; --i) std::swap(out.rows[i - 1], out.rows[random.below(i)]);
    out.rows.resize(n);
    return out;
}

/// The numbers of rows of each part.
std::vector<Numbers> split(const Places& places, const std::vector<StepPart>& parts) {
    std::vector<Numbers> out;
    auto at = places.rows.begin();
    for (const StepPart& part : parts) {
        out.emplace_back(at, at + static_cast<std::ptrdiff_t>(part.tokens));
        at += static_cast<std::ptrdiff_t>(part.tokens);
    }
    return out;
}

/// Parts that name these rows, which have to stay.
std::vector<StepPart> naming(std::vector<StepPart> parts, const std::vector<Numbers>& rows) {
    for (std::size_t i = 0; i < parts.size(); ++i) parts[i].rows = rows[i];
    return parts;
}

/// Rows [n, width] of tokens -> a matrix of other elements, where the rows of nobody are NaN.
template <class T>
std::vector<T> spread(const std::vector<float>& from, std::size_t width, const Places& places) {
    std::vector<T> out(places.matrix_rows * width);
    const auto put = [](float value, T& to) {
        if constexpr (std::is_same_v<T, float>) to = value;
        if constexpr (std::is_same_v<T, f16>) to = to_f16(value);
        if constexpr (std::is_same_v<T, bf16>) to = to_bf16(value);
    };
    for (T& value : out) put(std::numeric_limits<float>::quiet_NaN(), value);
    for (std::size_t i = 0; i < places.rows.size(); ++i) {
        for (std::size_t c = 0; c < width; ++c) put(from[i * width + c], out[places.rows[i] * width + c]);
    }
    return out;
}

/// All layers of a step, and the first one once more, behind the others. Answers [calls][rows of the matrices, H * Dh]:
/// rows of out are two floats apart.
template <class T, class Executor>
test::Outputs run_step(test::Cache::Step& step, const Model& model, const std::vector<test::Rows>& given,
                       const Places& places, Visibility visibility, bool again, const Executor& threads) {
    constexpr std::size_t stride = heads + 2;
    test::Outputs out;
    std::vector<T> first;
    const auto attend = [&](std::size_t layer, const std::vector<T>& q) {
        out.emplace_back(places.matrix_rows * stride, unwritten);
        step.attend(layer, MatrixView(q.data(), places.matrix_rows, heads), out.back().data(), visibility, stride,
                    threads);
    };
    for (std::size_t layer = 0; layer < model.layers.size(); ++layer) {
        const Layer& of = model.layers[layer];
        const bool keys = of.input != LayerInput::x;
        const std::size_t r = of.shape.kv_width(), width = keys ? 2 * r : of.shape.width;
        const std::vector<T> x = spread<T>(given[layer].x, width, places), q = spread<T>(given[layer].q, heads, places);
        if (keys) {
            step.append_kv(layer, MatrixView(x.data(), places.matrix_rows, r, width),
                           MatrixView(x.data() + r, places.matrix_rows, r, width), threads);
        } else {
            step.append(layer, MatrixView(x.data(), places.matrix_rows, width), threads);
        }
        attend(layer, q);
        if (layer == 0) first = q;
    }
    if (again) attend(0, first);
    return out;
}

/// What rows say that were gathered by hand, where they belong: [calls][rows of the matrices, H * Dh], with the answer
/// to the first token that names a row.
test::Outputs scattered(const test::Outputs& by_hand, const Places& places) {
    constexpr std::size_t stride = heads + 2;
    test::Outputs out;
    for (const std::vector<float>& from : by_hand) {
        out.emplace_back(places.matrix_rows * stride, unwritten);
        for (std::size_t i = places.rows.size(); i > 0; --i) {
            std::copy_n(from.data() + (i - 1) * stride, heads, out.back().data() + places.rows[i - 1] * stride);
        }
    }
    return out;
}

/// The rows of tokens of a list of sequences.
std::vector<test::Rows> rows_of_parts(const Model& model, const std::vector<test::NewTokens>& parts) {
    std::vector<test::Rows> out(model.layers.size());
    for (std::size_t layer = 0; layer < out.size(); ++layer) {
        for (const test::NewTokens& part : parts) {
            const test::Rows rows =
                test::rows_of(model.layers[layer], layer, part.feed->seed, part.feed->tokens, part.count);
            out[layer].x.insert(out[layer].x.end(), rows.x.begin(), rows.x.end());
            out[layer].q.insert(out[layer].q.end(), rows.q.begin(), rows.q.end());
        }
    }
    return out;
}

/// Rows of tokens that name the same row become those of the first of them.
void share(std::vector<test::Rows>& given, const Places& places) {
    for (test::Rows& rows : given) {
        for (std::vector<float>* values : {&rows.x, &rows.q}) {
            const std::size_t width = values->size() / places.rows.size();
            for (std::size_t i = 0; i < places.rows.size(); ++i) {
                const auto first = static_cast<std::size_t>(
                    std::find(places.rows.begin(), places.rows.end(), places.rows[i]) - places.rows.begin());
                std::copy_n(values->data() + first * width, width, values->data() + i * width);
            }
        }
    }
}

/// A cache and what runs on it.
struct Bench {
    const Scheme& scheme;
    const Model& model;
    Options options;
    std::shared_ptr<test::Cache> cache;

    [[nodiscard]] std::vector<std::vector<test::StoredPage>> pages(const std::vector<StepPart>& parts) const {
        std::vector<std::vector<test::StoredPage>> out;
        for (const StepPart& part : parts) {
            out.push_back(test::stored_pages(*cache, part.sequence, scheme, model, options));
        }
        return out;
    }

    /// One step twice, on forks: gathered by hand, and with rows that are named. Both are committed, and dropped.
    template <class T, class Executor>
    void compare(const std::vector<StepPart>& parts, const std::vector<test::Rows>& given, const Places& places,
                 Visibility visibility, const Executor& threads, const std::vector<std::size_t>& kept = {}) const {
        const std::vector<Numbers> numbers = split(places, parts);
        std::vector<StepPart> gathered = parts, named = naming(parts, numbers);
        for (std::size_t i = 0; i < parts.size(); ++i) {
            gathered[i].sequence = cache->fork(parts[i].sequence);
            named[i].sequence = cache->fork(parts[i].sequence);
        }
        const auto run = [&](const std::vector<StepPart>& list, const Places& at, const auto& executor) {
            auto step = cache->begin(list);
            test::Outputs out = run_step<T>(step, model, given, at, visibility, !scheme.cross_layer, executor);
            if (kept.empty()) {
                step.commit();
            } else {
                step.commit(kept);
            }
            return out;
        };
        const test::Outputs by_hand = run(gathered, as_they_come(places.rows.size()), Serial{});
        const test::Outputs by_name = run(named, places, threads);
        CHECK(test::difference(scattered(by_hand, places), by_name) == "");
        CHECK(pages(gathered) == pages(named));
        for (std::size_t i = 0; i < parts.size(); ++i) {
            CHECK(cache->size(named[i].sequence) == cache->size(gathered[i].sequence));
            cache->drop(gathered[i].sequence);
            cache->drop(named[i].sequence);
        }
        CHECK(cache->bytes().workspace == 0);
    }
};

Bench bench_of(const Scheme& scheme, const Model& model, const Options& options) {
    return {scheme, model, options, scheme.make(model, options)};
}

}  // namespace

TEST_CASE("rows in any order give what gathering them by hand gives, bit for bit, whatever the scheme") {
    const test::Setup setup = test::small_model();
    test::Random random(1);
    for (const Scheme& scheme : test::schemes()) {
        for (const bool strict : {false, true}) {
            INFO(scheme.name << (strict ? ", strict" : ""));
            test::CountingMemory memory;
            const Bench bench =
                bench_of(scheme, setup.model, {.sinks = 4, .recent = 10, .strict = strict, .memory = &memory});
            test::Cache& cache = *bench.cache;
            Feed a{cache.create(), 1}, b{cache.create(), 2}, c{cache.create(), 3};
            test::feed(cache, setup.model, {{&a, 140}, {&b, 3}});
            const std::vector<test::NewTokens> tokens{{&a, 45}, {&b, 5}, {&c, 33}};
            const std::vector<StepPart> parts = test::step_parts(tokens);
            const std::vector<test::Rows> given = rows_of_parts(setup.model, tokens);
            constexpr std::size_t n = 45 + 5 + 33;
            const Visibility visible = strict ? Visibility::whole : Visibility::causal;
            bench.compare<float>(parts, given, shuffled(n, random), visible, Threads{3});
            bench.compare<f16>(parts, given, shuffled(n, random), visible, Serial{});
            bench.compare<bf16>(parts, given, shuffled(n, random), visible, Serial{});
            // Nearly in order: what two sequences have lies in one piece, but not where the step's rows are.
            Places pieces = as_they_come(n);
            for (std::uint32_t& row : pieces.rows) row = (row + 40) % n;
            bench.compare<float>(parts, given, pieces, visible, Serial{});
            CHECK(cache.bytes().total() == memory.bytes());
        }
    }
}

TEST_CASE("rows of K and V in any order, too") {
    test::Random random(2);
    for (const auto& [name, input] : {std::pair{"f16 k and v", LayerInput::keys_after_rope},
                                      {"q8_0", LayerInput::keys_after_rope},
                                      {"head svd 4", LayerInput::keys_before_rope}}) {
        INFO(name);
        test::Setup setup = test::small_model();
        for (Layer& layer : setup.model.layers) layer.input = input;
        const Bench bench = bench_of(test::scheme(name), setup.model, {.sinks = 4, .recent = 10});
        test::Cache& cache = *bench.cache;
        Feed a{cache.create(), 1}, b{cache.create(), 2};
        test::feed(cache, setup.model, {{&a, 150}, {&b, 20}});
        cache.shift(a.sequence, 20, 7);  // keys that come with RoPE are turned by a lag of their sequence
        cache.erase(b.sequence, 0, 10);
        const std::vector<test::NewTokens> tokens{{&a, 40}, {&b, 30}};
        const std::vector<test::Rows> given = rows_of_parts(setup.model, tokens);
        bench.compare<float>(test::step_parts(tokens), given, shuffled(70, random), Visibility::causal, Threads{2});
        bench.compare<bf16>(test::step_parts(tokens), given, shuffled(70, random), Visibility::causal, Serial{});
    }
}

TEST_CASE("a row of several sequences is stored for each, and has the answer to the first of the list") {
    const test::Setup setup = test::small_model();
    for (const Scheme& scheme : test::schemes()) {
        INFO(scheme.name);
        const Bench bench = bench_of(scheme, setup.model, {.sinks = 4, .recent = 10});
        test::Cache& cache = *bench.cache;
        Feed a{cache.create(), 1}, b{cache.create(), 2}, c{cache.create(), 3};
        test::feed(cache, setup.model, {{&a, 140}, {&b, 3}});
        // Ten rows of all three, and some of their own; nothing else is c's.
        const std::vector<test::NewTokens> tokens{{&b, 15}, {&a, 13}, {&c, 10}};
        Places places{{20, 3, 4, 5, 6, 7, 8, 9, 10, 11, 1, 0,  15, 13, 17,  //
                       20, 3, 4, 5, 6, 7, 8, 9, 10, 11, 2, 16, 12,          //
                       20, 3, 4, 5, 6, 7, 8, 9, 10, 11},
                      22};
        std::vector<test::Rows> given = rows_of_parts(setup.model, tokens);
        share(given, places);
        bench.compare<float>(test::step_parts(tokens), given, places, Visibility::causal, Threads{2});
        bench.compare<f16>(test::step_parts(tokens), given, places, Visibility::whole, Serial{});
    }
}

TEST_CASE("long steps: blocks of rows of which all, some or none are answered, and few rows over many tokens") {
    const test::Setup setup = test::small_model();
    test::Random random(3);
    for (const char* name : {"x 4", "head svd 4", "q8_0"}) {
        INFO(name);
        const Bench bench = bench_of(test::scheme(name), setup.model, {.sinks = 4, .recent = 10});
        test::Cache& cache = *bench.cache;
        Feed a{cache.create(), 1}, b{cache.create(), 2}, c{cache.create(), 3};
        // 1,100 rows of two sequences, of which the second has 20 more.
        std::vector<test::NewTokens> tokens{{&a, 1100}, {&b, 1120}};
        Places places = as_they_come(2220);
        places.matrix_rows = 1120;
        for (std::size_t i = 0; i < 1120; ++i) places.rows[1100 + i] = static_cast<std::uint32_t>(i);
        std::vector<test::Rows> given = rows_of_parts(setup.model, tokens);
        share(given, places);
        bench.compare<float>(test::step_parts(tokens), given, places, Visibility::causal, Threads{2});

        test::feed(cache, setup.model, {{&a, 2500}, {&b, 2200}});
        tokens = {{&a, 3}, {&b, 16}, {&c, 4}};
        given = rows_of_parts(setup.model, tokens);
        bench.compare<float>(test::step_parts(tokens), given, shuffled(23, random), Visibility::causal, Threads{2});
        bench.compare<f16>(test::step_parts(tokens), given, shuffled(23, random), Visibility::causal, Serial{});
        places = {{7, 9, 8, 7, 9, 0, 1, 2, 3, 4, 5, 6, 10, 20, 11, 12, 13, 14, 15, 7, 8, 9, 2}, 21};
        share(given, places);
        bench.compare<float>(test::step_parts(tokens), given, places, Visibility::causal, Threads{2});
    }
}

TEST_CASE("trees in any rows; what is kept is counted in tokens of the step, whatever rows they are") {
    const test::Setup setup = test::small_model();
    test::Random random(4);
    const std::vector<std::int32_t> parents{-1, 0, 1, 0, 3, -1, 5, 5, 2, 4, -1, 8};
    for (const Scheme& scheme : test::schemes()) {
        INFO(scheme.name);
        const Bench bench = bench_of(scheme, setup.model, {.sinks = 4, .recent = 40});
        test::Cache& cache = *bench.cache;
        Feed a{cache.create(), 1}, b{cache.create(), 2}, c{cache.create(), 3};
        test::feed(cache, setup.model, {{&a, 140}, {&b, 3}, {&c, 20}});
        const std::vector<test::NewTokens> tokens{{&a, 12}, {&b, 5}, {&c, 12}};
        std::vector<StepPart> parts = test::step_parts(tokens);
        parts[0].parents = parts[2].parents = parents;
        std::vector<test::Rows> given = rows_of_parts(setup.model, tokens);
        const std::vector<std::size_t> kept{0, 3, 4, 9, 12, 13, 17 + 5, 17 + 7};
        bench.compare<float>(parts, given, shuffled(29, random), Visibility::causal, Threads{2}, kept);
        // Both trees share their rows, in another order in the second, but for the last.
        Places places = shuffled(18, random);
        Numbers& rows = places.rows;
        const std::uint32_t last = rows.back();
        rows.pop_back();
        rows.insert(rows.end(), {rows[0], rows[1], rows[2], rows[3], rows[4], rows[5], rows[7], rows[6], rows[8],
                                 rows[9], rows[10], last});
        share(given, places);
        bench.compare<f16>(parts, given, places, Visibility::causal, Serial{}, kept);
    }
}

TEST_CASE("rows that are not there, and lists that do not fit, are refused with their numbers") {
    const test::Setup setup = test::small_model();
    const auto cache = test::scheme("x 4").make(setup.model, {.sinks = 4, .recent = 8});
    const Sequence a = cache->create(), b = cache->create();
    const Bytes before = cache->bytes();
    const auto refused = [&](std::initializer_list<StepPart> parts) {
        const std::string said = complaint<shape_error>([&] { static_cast<void>(cache->begin(parts)); });
        CHECK(cache->bytes() == before);
        return said;
    };
    const Numbers two{5, 2}, three{2, 7, 0}, twice{3, 1, 3};
    CHECK(contains(refused({{a, 2, {}, two}, {b, 2, {}, three}}),
                   "3 rows for the 2 tokens of sequence 1 of the list; expected one for each, or none"));
    CHECK(contains(refused({{a, 2, {}, two}, {b, 3}}),
                   "sequence 1 of the list names no rows, and sequence 0 names some; all parts of a step name rows"));
    CHECK(contains(refused({{a, 2}, {b, 3, {}, three}}),
                   "sequence 1 of the list names rows, and sequence 0 names none; all parts of a step name rows"));
    CHECK(contains(refused({{a, 2, {}, two}, {b, 3, {}, twice}}),
                   "sequence 1 of the list names row 3 twice; a row is one token of a sequence"));

    auto step = cache->begin({{a, 2, {}, two}, {b, 3, {}, three}});
    CHECK(step.size() == 5);
    std::vector<float> x(9 * d, 0.5F), q(9 * heads, 0.5F), out(9 * heads, unwritten);
    const std::string asked = "expected [rows up to the last that StepPart::rows name, ";
    CHECK(contains(complaint<shape_error>([&] { step.append(0, MatrixView(x.data(), 7, d)); }),
                   "append, layer 0: x is [7, 24]; " + asked + "width] = [8, 24], or more rows"));
    x[7 * d + 1] = std::numeric_limits<float>::infinity();
    try {
        step.append(0, MatrixView(x.data(), 9, d));
        FAIL("infinity was taken");
    } catch (const value_error& error) {
        CHECK(contains(error.what(), "append, layer 0: row 7 of the matrix is not finite"));
        CHECK(error.row == 7);
    }
    x[7 * d + 1] = 0;
    x[8 * d] = x[6 * d] = std::numeric_limits<float>::infinity();  // of nobody
    step.append(0, MatrixView(x.data(), 9, d));
    CHECK(contains(complaint<shape_error>([&] { step.attend(0, MatrixView(q.data(), 7, heads), out.data()); }),
                   "attend, layer 0: q is [7, 32]; " + asked + "heads * head_dim] = [8, 32], or more rows"));
    CHECK(std::count(out.begin(), out.end(), unwritten) == 9 * heads);
    step.attend(0, MatrixView(q.data(), 8, heads), out.data());
    for (std::size_t row = 0; row < 9; ++row) {
        const bool named = row == 5 || row == 2 || row == 7 || row == 0;
        CHECK((out[row * heads] != unwritten) == named);
    }
}

TEST_CASE("named rows take eight bytes a token of workspace, and leave nothing behind") {
    const test::Setup setup = test::small_model();
    test::CountingMemory memory;
    const auto cache = test::scheme("x 4").make(setup.model, {.sinks = 4, .recent = 8, .memory = &memory});
    const Sequence a = cache->create(), b = cache->create();
    constexpr std::size_t n = 1000;
    const Numbers rows = as_they_come(n).rows;
    const auto taken = [&](const StepPart& first, const StepPart& second) {
        const auto step = cache->begin({first, second});
        CHECK(cache->bytes().total() == memory.bytes());
        return cache->bytes().workspace;
    };
    const Bytes before = cache->bytes();
    CHECK(taken({a, n, {}, rows}, {b, n, {}, rows}) == taken({a, n}, {b, n}) + 2 * n * 8);
    CHECK(cache->bytes() == before);
    CHECK(memory.bytes() == before.total());
}
