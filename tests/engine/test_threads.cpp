/// The thread pool: every index once, exceptions reach the caller, and it can be used again after one.
#include <atomic>
#include <stdexcept>
#include <thread>

#include "catch.hpp"
#include "threads.hpp"

using llm::ThreadPool;

TEST_CASE("parallel_for calls every index once", "[threads]") {
    const std::size_t threads = GENERATE(1u, 2u, 5u);
    ThreadPool pool(threads);
    CHECK(pool.threads() == threads);
    for (const std::size_t n : {0u, 1u, 2u, 3u, 17u, 1000u}) {
        std::vector<std::atomic<int>> calls(n);
        pool.parallel_for(n, [&](std::size_t i) { ++calls.at(i); });
        for (auto& count : calls) REQUIRE(count == 1);
    }
}

TEST_CASE("many short loops", "[threads]") {
    ThreadPool pool(4);
    std::atomic<std::size_t> sum{0};
    for (std::size_t round = 0; round < 5000; ++round)
        pool.parallel_for(round % 7, [&](std::size_t i) { sum += i + 1; });
    std::size_t expected = 0;
    for (std::size_t round = 0; round < 5000; ++round) expected += (round % 7) * (round % 7 + 1) / 2;
    CHECK(sum == expected);
}

TEST_CASE("a loop after a pause wakes the threads", "[threads]") {
    ThreadPool pool(3);
    for (int round = 0; round < 5; ++round) {
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
        std::atomic<int> calls{0};
        pool.parallel_for(30, [&](std::size_t) { ++calls; });
        REQUIRE(calls == 30);
    }
}

TEST_CASE("an exception reaches the caller", "[threads]") {
    ThreadPool pool(GENERATE(1u, 3u));
    for (int round = 0; round < 50; ++round) {
        REQUIRE_THROWS_AS(pool.parallel_for(100,
                                            [](std::size_t i) {
                                                if (i == 40) throw std::runtime_error("40");
                                            }),
                          std::runtime_error);
        std::atomic<int> calls{0};
        pool.parallel_for(100, [&](std::size_t) { ++calls; });
        REQUIRE(calls == 100);
    }
}

TEST_CASE("by default a pool has the machine's threads", "[threads]") { CHECK(ThreadPool().threads() >= 1); }
