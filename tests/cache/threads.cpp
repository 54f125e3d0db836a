/// The answer and the stored bytes do not depend on who runs the tasks, nor in which order.
#include <atomic>
#include <new>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <xquant/persistence.hpp>

#include "support/catch.hpp"
#include "support/feed.hpp"
#include "support/memory.hpp"
#include "support/model.hpp"
#include "support/threads.hpp"

using namespace xquant;
using test::Feed;
using test::Scheme;
using test::Threads;

namespace {

struct Backwards {
    template <class F>
    void parallel_for(std::size_t n, F&& f) const {
        while (n > 0) f(--n);
    }
};

test::Setup small_model() { return {{.width = 24, .heads = 4, .kv_heads = 2, .head_dim = 6}, RopePairing::halves, 4}; }

struct Result {
    test::Outputs a, b;
    std::vector<test::StoredPage> pages;
};

template <class Executor>
Result run(const Scheme& scheme, const Model& model, const Options& options, const Executor& threads) {
    const auto cache = scheme.make(model, options);
    Feed a{cache->create(), 1}, b{cache->create(), 2};
    for (const auto& [of_a, of_b] : {std::pair{40, 3}, {100, 1}, {1, 130}, {1, 1}}) {
        test::feed_on(threads, *cache, model,
                      {{&a, static_cast<std::size_t>(of_a)}, {&b, static_cast<std::size_t>(of_b)}});
    }
    return {a.out, b.out, test::stored_pages(*cache, a.sequence, scheme, model, options)};
}

}  // namespace

TEST_CASE("serial, backwards, 2, 3 and 8 threads: the same bits, for every scheme") {
    const test::Setup setup = small_model();
    for (const Scheme& scheme : test::schemes()) {
        for (const Options& options :
             {Options{.sinks = 4, .recent = 20}, Options{.sinks = 0, .recent = 0, .strict = true}}) {
            INFO(scheme.name << ", strict " << options.strict);
            const Result serial = run(scheme, setup.model, options, Serial{});
            const auto same = [&](const char* name, const Result& other) {
                INFO(name);
                CHECK(test::difference(serial.a, other.a) == "");
                CHECK(test::difference(serial.b, other.b) == "");
                CHECK(serial.pages == other.pages);
            };
            same("backwards", run(scheme, setup.model, options, Backwards{}));
            same("2 threads", run(scheme, setup.model, options, Threads{2}));
            same("3 threads", run(scheme, setup.model, options, Threads{3}));
            if (&scheme == &test::schemes().front() || scheme.cross_layer) {
                same("8 threads", run(scheme, setup.model, options, Threads{8}));
            }
        }
    }
}

TEST_CASE("a long sequence is split over tokens, the same way for any number of threads") {
    const test::Setup setup({.width = 16, .heads = 2, .kv_heads = 1, .head_dim = 4}, RopePairing::halves, 1);
    for (const char* name : {"x 4", "head svd 4"}) {
        INFO(name);
        const auto cache = test::scheme(name).make(setup.model, {.sinks = 4, .recent = 32});
        Feed a{cache->create()};
        {
            auto step = cache->begin({{a.sequence, 5000}});
            const test::Rows rows = test::rows_of(setup.model.layers[0], 0, 1, 0, 5000);
            step.append(0, MatrixView(rows.x.data(), 5000, 16), Threads{3});
            step.commit();
            a.tokens = 5000;
        }
        const auto next = [&](const auto& threads) {
            auto step = cache->begin({{a.sequence, 2}});
            return test::run_layers(step, setup.model, {{&a, 2}}, threads);
        };
        const test::Outputs serial = next(Serial{});
        CHECK(test::difference(serial, next(Backwards{})) == "");
        CHECK(test::difference(serial, next(Threads{2})) == "");
        CHECK(test::difference(serial, next(Threads{8})) == "");
    }
}

TEST_CASE("of queries in 16 bits behind a long sequence nothing is read but themselves") {
    const test::Setup setup({.width = 16, .heads = 2, .kv_heads = 1, .head_dim = 4}, RopePairing::halves, 1);
    const auto cache = test::scheme("x 4").make(setup.model, {.sinks = 4, .recent = 32});
    const Sequence s = cache->create();
    const test::Rows rows = test::rows_of(setup.model.layers[0], 0, 1, 0, 5002);
    {
        auto step = cache->begin({{s, 5000}});
        step.append(0, MatrixView(rows.x.data(), 5000, 16));
        step.commit();
    }
    constexpr std::size_t n = 2, heads = 8;
    std::vector<bf16> halves;
    std::vector<float> floats;
    for (std::size_t i = 5000 * heads; i < 5002 * heads; ++i) {
        halves.push_back(to_bf16(rows.q[i]));
        floats.push_back(to_float(halves.back()));
    }
    halves.resize(4 * n * heads, bf16{0xFFFF});  // behind the queries: NaN, two of them as a float as well
    auto step = cache->begin({{s, n}});
    step.append(0, MatrixView(rows.x.data() + std::size_t{5000} * 16, n, 16));
    std::vector<float> wanted(n * heads), found(n * heads);
    step.attend(0, MatrixView(floats.data(), n, heads), wanted.data());
    step.attend(0, MatrixView(halves.data(), n, heads), found.data());
    CHECK(test::difference(wanted, found) == "");
}

namespace {

struct Stopped {};

/// Gives up in the middle of a loop.
struct Breaks {
    mutable std::size_t left;

    template <class F>
    void parallel_for(std::size_t n, F&& f) const {
        for (std::size_t i = 0; i < n; ++i) {
            if (left-- == 0) throw Stopped{};
            f(i);
        }
    }
};

}  // namespace

TEST_CASE("an executor that throws loses its step and nothing else") {
    const test::Setup setup = small_model();
    const Options options{.sinks = 2, .recent = 3};
    for (const char* name : {"kivi 2", "cross-layer x 3"}) {
        INFO(name);
        const auto cache = test::scheme(name).make(setup.model, options),
                   alone = test::scheme(name).make(setup.model, options);
        Feed a{cache->create()};
        test::feed(*cache, setup.model, {{&a, 130}});
        for (std::size_t after = 0; after < 40; after += 3) {
            CHECK_THROWS_AS(test::feed_on(Breaks{after}, *cache, setup.model, {{&a, 60}}), Stopped);
        }
        test::feed(*cache, setup.model, {{&a, 60}});
        CHECK(test::difference(test::outputs_of(*alone, setup.model, {130, 60}), a.out) == "");
    }
}

TEST_CASE("an append that is repeated after its executor threw answers rightly, or says that the step is lost") {
    const test::Setup setup = small_model();
    const Options options{.sinks = 0, .recent = 0, .strict = true};
    for (const char* name : {"x 4", "cross-layer x 3"}) {
        INFO(name);
        const auto cache = test::scheme(name).make(setup.model, options),
                   alone = test::scheme(name).make(setup.model, options);
        const test::Outputs expected = test::outputs_of(*alone, setup.model, {200});
        std::size_t lost = 0, repeated = 0;
        for (std::size_t after = 0; after < 60; ++after) {
            Feed a{cache->create()};
            auto step = cache->begin({{a.sequence, 200}});
            const Breaks breaks{after};
            bool usable = true;
            for (std::size_t layer = 0; layer < setup.model.layers.size() && usable; ++layer) {
                const test::Rows rows = test::rows_of(setup.model.layers[layer], layer, 1, 0, 200);
                const MatrixView x(rows.x.data(), 200, 24);
                try {
                    step.append(layer, x, breaks);
                } catch (const Stopped&) {
                    try {
                        step.append(layer, x);
                        ++repeated;
                    } catch (const state_error&) {
                        usable = false;
                        ++lost;
                        continue;
                    }
                }
                std::vector<float> out(200 * 24);
                step.attend(layer, MatrixView(rows.q.data(), 200, 24), out.data());
                REQUIRE(test::difference(expected[layer], out) == "");
            }
        }
        CHECK(lost > 0);
        CHECK(repeated > 0);
    }
}

TEST_CASE("no exception of a task reaches the executor; the call throws it when all tasks have ended") {
    const test::Setup setup = small_model();
    for (const char* name : {"kivi 2", "cross-layer x 3", "head svd 4"}) {
        INFO(name);
        test::CountingMemory memory;
        const auto cache = test::scheme(name).make(setup.model, {.sinks = 2, .recent = 3, .memory = &memory}),
                   alone = test::scheme(name).make(setup.model, {.sinks = 2, .recent = 3});
        Feed a{cache->create()};
        test::feed(*cache, setup.model, {{&a, 130}});
        const Bytes before = cache->bytes();
        std::size_t failures = 0;
        for (std::size_t k = 1;; ++k) {
            memory.fail_at(k);
            try {
                // Its threads have no handler: an exception would end the program.
                test::feed_on(Threads{3}, *cache, setup.model, {{&a, 60}});
                memory.fail_at(0);
                break;
            } catch (const std::bad_alloc&) {
                memory.fail_at(0);
                ++failures;
                CHECK(cache->bytes() == before);
            }
        }
        CHECK(failures > 10);
        CHECK(test::difference(test::outputs_of(*alone, setup.model, {130, 60}), a.out) == "");
    }
}

namespace {

/// An executor that must not see exceptions.
struct Strict {
    bool* whole;

    template <class F>
    void parallel_for(std::size_t n, F&& f) const {
        for (std::size_t i = 0; i < n; ++i) [&]() noexcept { f(i); }();
        *whole = true;
    }
};

}  // namespace

TEST_CASE("the exception of the first task that failed is thrown, and tasks behind it are left out") {
    std::size_t ran = 0;
    bool whole = false;
    const Strict strict{&whole};
    try {
        xquant::detail::run_tasks(strict, 10, [&](std::size_t i) {
            ++ran;
            if (i >= 4) throw std::runtime_error("task " + std::to_string(i));
        });
        FAIL("nothing was thrown");
    } catch (const std::runtime_error& problem) {
        CHECK(std::string(problem.what()) == "task 4");
    }
    CHECK(ran == 5);
    CHECK(whole);
}

TEST_CASE("threads that each have a sequence of their own need no lock, though they share pages") {
    const test::Setup setup = small_model();
    for (const char* name : {"head svd 4", "x rotated 3", "cross-layer x rotated 2", "q4_0, Hadamard"}) {
        INFO(name);
        const auto cache = test::scheme(name).make(setup.model, {.sinks = 4, .recent = 8});
        const Bytes empty = cache->bytes();
        Feed base{cache->create(), 1};
        test::feed(*cache, setup.model, {{&base, 150}});

        // What a thread does to a fork of what all of them read.
        const auto work = [&](std::uint32_t seed) {
            Feed own = base;
            own.sequence = cache->fork(base.sequence);
            own.seed = seed;
            for (int round = 0; round < 6; ++round) {
                test::feed(*cache, setup.model, {{&own, 20}});
                Feed draft = own;
                draft.sequence = cache->fork(own.sequence);
                test::feed(*cache, setup.model, {{&draft, 3}});
                cache->drop(draft.sequence);
                cache->erase(own.sequence, 10, 14);
                cache->truncate(own.sequence, cache->size(own.sequence) - 2);
                static_cast<void>(cache->size(base.sequence));
                static_cast<void>(cache->bytes());
            }
            cache->drop(own.sequence);
            return own.out;
        };
        std::vector<test::Outputs> alone, together(4);
        for (std::uint32_t i = 0; i < 4; ++i) alone.push_back(work(i + 2));
        std::vector<std::thread> threads;
        for (std::uint32_t i = 0; i < 4; ++i) threads.emplace_back([&, i] { together[i] = work(i + 2); });
        for (std::thread& one : threads) one.join();
        for (std::size_t i = 0; i < 4; ++i) CHECK((together[i] == alone[i]));
        cache->drop(base.sequence);
        CHECK(cache->bytes().codes == empty.codes);
        CHECK(cache->bytes().tail == empty.tail);
    }
}

namespace {

/// What readers of a sequence find, whoever else reads: sizes, a fork, stored bytes, a file.
struct Findings {
    std::size_t size = 0, forked = 0;
    std::int64_t next = 0;
    std::uint64_t sum = 0;  ///< of the stored bytes
    std::string file;
    std::vector<float> answers;  ///< of attention
    friend bool operator==(const Findings&, const Findings&) = default;
};

Findings read_all(test::Cache& cache, Sequence sequence) {
    Findings out;
    out.size = cache.size(sequence);
    out.next = cache.next_position(sequence);
    cache.for_each_page(sequence, [&](const PageView& page) {
        for (const std::byte byte : page.bytes) out.sum = out.sum * 31 + std::to_integer<std::uint64_t>(byte);
    });
    const Sequence copy = cache.fork(sequence, out.size - 3);
    out.forked = cache.size(copy);
    cache.drop(copy);
    std::ostringstream file;
    save(cache, std::vector<Sequence>{sequence}, file, "read by many");
    out.file = file.str();
    out.answers.resize(5 * 24);
    const std::vector<float> q(5 * 24, 0.5F);
    cache.attend(0, {{sequence, 5}}, MatrixView(q.data(), 5, 24), out.answers.data());
    return out;
}

}  // namespace

TEST_CASE("every operation on sequences of its own runs beside those of other threads, which read what all share") {
    const test::Setup setup = small_model();
    for (const char* name :
         {"x rotated 4, requantizable to 2", "head svd 4", "cross-layer x rotated 2", "q4_0, Hadamard", "mixed"}) {
        INFO(name);
        const bool requantizes = std::string(name).find("requantizable") != std::string::npos;
        const auto cache = test::scheme(name).make(setup.model, {.sinks = 4, .recent = 8});
        const Bytes empty = cache->bytes();
        Feed base{cache->create(), 1};
        test::feed(*cache, setup.model, {{&base, 270}});

        /// All verbs, on forks of what all read, and on sequences of the thread's own; what all steps answered.
        const auto write = [&](std::uint32_t seed) {
            std::vector<test::Outputs> said;
            const auto step = [&](const std::vector<test::NewTokens>& parts) {
                test::feed(*cache, setup.model, parts);
                for (const test::NewTokens& part : parts) {
                    said.push_back(std::move(part.feed->out));
                    part.feed->out.clear();
                    part.feed->answered = 0;
                }
            };
            Feed own{cache->fork(base.sequence), seed}, twin{cache->fork(base.sequence, 200), seed + 100};
            for (int round = 0; round < 3; ++round) {
                step({{&own, 20}, {&twin, 7}});
                said.push_back(test::feed_and_abandon(*cache, setup.model, {{&twin, 3}}));
                cache->erase(own.sequence, 10, 14);
                cache->shift(own.sequence, 50, 3);
                cache->truncate(own.sequence, cache->size(own.sequence) - 2);
                cache->seal(twin.sequence);
                if (requantizes) cache->requantize(std::vector<Sequence>{own.sequence, twin.sequence});
                Feed made{cache->create(), seed + 200};
                step({{&made, 5}});
                const std::vector<Sequence> beam{made.sequence, twin.sequence};
                cache->gather(beam, std::vector<std::size_t>{1, 1});
                step({{&made, 2}, {&own, 1}});
                cache->drop(made.sequence);
                static_cast<void>(cache->bytes());
            }
            cache->drop(own.sequence);
            cache->drop(twin.sequence);
            return said;
        };
        const Findings found = read_all(*cache, base.sequence);
        std::vector<std::vector<test::Outputs>> alone, together(2);
        for (std::uint32_t i = 0; i < 2; ++i) alone.push_back(write(i + 2));
        std::vector<std::thread> threads;
        std::atomic<bool> done{false};
        std::atomic<std::size_t> wrong{0}, reads{0};
        for (int i = 0; i < 2; ++i) {
            threads.emplace_back([&] {
                do {
                    wrong += read_all(*cache, base.sequence) == found ? 0U : 1U;
                    ++reads;
                } while (!done);
            });
        }
        std::vector<std::thread> writers;
        for (std::uint32_t i = 0; i < 2; ++i) writers.emplace_back([&, i] { together[i] = write(i + 2); });
        for (std::thread& one : writers) one.join();
        done = true;
        for (std::thread& one : threads) one.join();
        CHECK(wrong == 0);
        CHECK(reads >= 2);
        for (std::size_t i = 0; i < 2; ++i) CHECK((together[i] == alone[i]));
        CHECK(!together[0].empty());
        CHECK((together[0] != together[1]));
        cache->drop(base.sequence);
        CHECK(cache->bytes().codes == empty.codes);
        CHECK(cache->bytes().tail == empty.tail);
        CHECK(cache->bytes().mapped == 0);
    }
}
