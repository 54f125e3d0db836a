/// Workspace: what steps take beside what they store. It is bounded, counts against a budget of its own, and is given
/// back when a step commits.
#include <vector>

#include "support/catch.hpp"
#include "support/feed.hpp"
#include "support/memory.hpp"
#include "support/model.hpp"

using namespace xquant;
using test::Feed;
using test::Scheme;

namespace {

/// Many heads: queries are wide beside what is stored.
test::Setup wide_model() { return {{.width = 16, .heads = 32, .kv_heads = 1, .head_dim = 8}, RopePairing::halves, 3}; }

/// The step's peak of workspace above what was there when it had been begun, for n more tokens; nothing is committed.
std::size_t peak_of_attention(test::Cache& cache, test::PeakMemory& memory, const Model& model, Sequence sequence,
                              std::size_t n) {
    Feed feed{sequence, 1, cache.size(sequence)};
    auto step = cache.begin({{sequence, n}});
    std::size_t most = 0;
    for (std::size_t layer = 0; layer < model.layers.size(); ++layer) {
        const test::Rows rows = test::rows_of(model.layers[layer], layer, 1, feed.tokens, n);
        step.append(layer, MatrixView(rows.x.data(), n, model.layers[layer].shape.width));
        const std::size_t width = model.layers[layer].shape.heads * model.layers[layer].shape.head_dim;
        std::vector<float> out(n * width);
        const std::size_t before = cache.bytes().total();
        memory.forget_peak();
        step.attend(layer, MatrixView(rows.q.data(), n, width), out.data());
        most = std::max(most, memory.peak() - before);
    }
    return most;
}

}  // namespace

TEST_CASE("ranges that were erased cost a span each, whatever the prompt behind them") {
    const test::Setup setup = wide_model();
    for (const char* name : {"f32 k and v after RoPE, Hadamard", "q4_0, Hadamard", "x 4"}) {
        INFO(name);
        test::PeakMemory memory;
        const auto cache = test::scheme(name).make(setup.model, {.sinks = 4, .recent = 8, .memory = &memory});
        Feed a{cache->create(), 1};
        test::feed(*cache, setup.model, {{&a, 600}});
        const Sequence holes = cache->fork(a.sequence);
        for (std::size_t i = 0; i < 190; ++i) cache->erase(holes, 10 + 2 * i, 11 + 2 * i);
        for (const std::size_t n : {1, 300}) {
            INFO(n << " tokens");
            const std::size_t plain = peak_of_attention(*cache, memory, setup.model, a.sequence, n);
            const std::size_t holed = peak_of_attention(*cache, memory, setup.model, holes, n);
            // 300 rows of queries are 307,200 bytes; 190 copies of them would be 58 MB.
            CHECK(holed < plain + 300 * 32 * 8 * 4 + 190 * 600);
        }
    }
}

TEST_CASE("attention of a prompt takes what its length in rows does not change") {
    const test::Setup setup = wide_model();
    for (const char* name : {"q8_0", "x 4"}) {
        INFO(name);
        test::PeakMemory memory;
        const auto cache = test::scheme(name).make(setup.model, {.memory = &memory});
        const Sequence s = cache->create();
        const std::size_t some = peak_of_attention(*cache, memory, setup.model, s, 1024),
                          more = peak_of_attention(*cache, memory, setup.model, s, 4096);
        CHECK(some > 100000);
        CHECK(more < some + 6 * 200);  // six more tasks
    }
}

TEST_CASE("a step begins with the workspace that docs/operations.md says") {
    for (const test::Setup& setup : {wide_model(), test::small_model()}) {
        for (const char* name : {"x 4", "f16 k and v", "head svd 4", "kivi 2"}) {
            INFO(name);
            const auto cache = test::scheme(name).make(setup.model, {.sinks = 4, .recent = 8});
            std::vector<Feed> feeds;
            for (std::uint32_t i = 0; i < 3; ++i) feeds.push_back({cache->create(), i + 1});
            std::size_t width = 0;  // of the streams of a layer
            const test::StoredLayers stored = test::scheme(name).stored(setup.model);
            for (const test::StoredStream& stream : stored[0]) width += stream.width;
            for (const std::size_t n : {1, 40, 700, 1}) {
                const std::size_t rows = 3 * n;
                auto step = cache->begin({{feeds[0].sequence, n}, {feeds[1].sequence, n}, {feeds[2].sequence, n}});
                const std::size_t own = 4 * rows * width + 8 * rows, found = cache->bytes().workspace;
                std::size_t segments = 0;
                for (const Feed& feed : feeds) segments += 4 + (feed.tokens + n) / 128 + (8 + 127 + n % 128) / 32;
                CHECK(found >= own);
                CHECK(found <= own + 500 * segments + 500 * 3);
                std::vector<test::NewTokens> parts;
                for (Feed& feed : feeds) parts.push_back({&feed, n});
                static_cast<void>(test::run_layers(step, setup.model, parts, Serial{}));
                step.commit();
                for (Feed& feed : feeds) feed.tokens += n;
            }
        }
    }
}

TEST_CASE("commit gives all workspace back, however long the step lives") {
    const test::Setup setup = test::small_model();
    for (const Scheme& scheme : test::schemes()) {
        INFO(scheme.name);
        test::CountingMemory memory;
        const auto cache = scheme.make(setup.model, {.sinks = 4, .recent = 8, .memory = &memory});
        Feed a{cache->create(), 1}, b{cache->create(), 2};
        CHECK(cache->bytes().workspace == 0);
        for (const std::size_t n : {200, 1}) {
            auto step = cache->begin({{a.sequence, n}, {b.sequence, n}});
            static_cast<void>(test::run_layers(step, setup.model, {{&a, n}, {&b, n}}, Serial{}));
            CHECK(cache->bytes().workspace > 0);
            step.commit();
            CHECK(cache->bytes().workspace == 0);
            CHECK(cache->bytes().accumulator == 0);
            CHECK(cache->bytes().total() == memory.bytes());
            a.tokens += n;
            b.tokens += n;
        }
        cache->seal(a.sequence);
        cache->erase(a.sequence, 20, 30);
        cache->compact(a.sequence);
        CHECK(cache->bytes().workspace == 0);
        static_cast<void>(cache->begin({{a.sequence, 10}}));  // and a step that is destroyed gives it back
        CHECK(cache->bytes().workspace == 0);
    }
}

TEST_CASE("a workspace budget is kept: a step that needs more is refused, and nothing has changed") {
    const test::Setup setup = test::small_model();
    for (const Scheme& scheme : test::schemes()) {
        INFO(scheme.name);
        test::PeakMemory memory;
        Options options{.sinks = 4, .recent = 8, .memory = &memory};
        std::size_t needs = 0;
        {
            const auto free = scheme.make(setup.model, options);
            Feed f{free->create(), 1};
            for (const std::size_t n : {64, 1}) {
                const std::size_t stored = free->bytes().total();
                memory.forget_peak();
                test::feed(*free, setup.model, {{&f, n}});
                needs = (std::max)(needs, memory.peak() - stored);
            }
        }
        options.workspace_budget = needs;
        const auto cache = scheme.make(setup.model, options);
        Feed a{cache->create(), 1};
        test::feed(*cache, setup.model, {{&a, 64}});  // just fits
        const Bytes before = cache->bytes();
        try {
            static_cast<void>(cache->begin({{a.sequence, 100000}}));
            FAIL("it is not refused");
        } catch (const budget_error& problem) {
            CHECK(problem.workspace);
            CHECK(problem.budget == needs);
            CHECK(problem.used + problem.needed > problem.budget);
            CHECK(std::string(problem.what()).find("the workspace budget of " + std::to_string(needs) + " bytes") !=
                  std::string::npos);
        }
        CHECK(cache->bytes() == before);
        test::feed(*cache, setup.model, {{&a, 1}});
        CHECK(cache->bytes().workspace == 0);
    }
}

TEST_CASE("attention that its workspace budget refuses can be asked for again, in smaller steps") {
    const test::Setup setup = wide_model();
    test::PeakMemory memory;
    Options options{.recent = 8, .memory = &memory};
    options.workspace_budget = 800000;
    const auto cache = test::scheme("q8_0").make(setup.model, options);
    const Sequence s = cache->create();
    const test::Rows rows = test::rows_of(setup.model.layers[0], 0, 1, 0, 500);
    std::vector<float> out(500 * 256);
    {
        auto step = cache->begin({{s, 500}});
        step.append(0, MatrixView(rows.x.data(), 500, 16));
        for (int i = 0; i < 2; ++i) {
            try {
                step.attend(0, MatrixView(rows.q.data(), 500, 256), out.data());
                FAIL("it is not refused");
            } catch (const budget_error& problem) {
                CHECK(problem.workspace);
            }
        }
    }
    auto step = cache->begin({{s, 8}});
    step.append(0, MatrixView(rows.x.data(), 8, 16));
    CHECK_NOTHROW(step.attend(0, MatrixView(rows.q.data(), 8, 256), out.data()));
}

TEST_CASE("rows and queries in 16 bits are converted block by block, to the bit what f32 rows of their values give") {
    const test::Setup setup = test::small_model();
    for (const Scheme& scheme : test::schemes()) {
        INFO(scheme.name);
        test::PeakMemory memory;
        const auto cache = scheme.make(setup.model, {.sinks = 4, .recent = 8, .memory = &memory});
        Feed a{cache->create(), 1};
        test::feed(*cache, setup.model, {{&a, 100}});
        constexpr std::size_t n = 70;
        auto halves = cache->begin({{a.sequence, n}});
        test::Outputs found, expected;
        std::vector<std::vector<float>> xs, qs;
        for (std::size_t layer = 0; layer < 4; ++layer) {
            test::Rows rows = test::rows_of(setup.model.layers[layer], layer, 1, 100, n);
            std::vector<f16> x;
            std::vector<bf16> q;
            for (float& value : rows.x) x.push_back(to_f16(value)), value = to_float(x.back());
            for (float& value : rows.q) q.push_back(to_bf16(value)), value = to_float(q.back());
            halves.append(layer, MatrixView(x.data(), n, 24));
            found.emplace_back(n * 32);
            halves.attend(layer, MatrixView(q.data(), n, 32), found.back().data());
            xs.push_back(rows.x);
            qs.push_back(rows.q);
        }
        { const auto gone = std::move(halves); }
        auto step = cache->begin({{a.sequence, n}});
        for (std::size_t layer = 0; layer < 4; ++layer) {
            step.append(layer, MatrixView(xs[layer].data(), n, 24));
            expected.emplace_back(n * 32);
            step.attend(layer, MatrixView(qs[layer].data(), n, 32), expected.back().data());
        }
        CHECK(test::difference(expected, found) == "");
    }
}
