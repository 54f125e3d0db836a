/// An executor that starts its threads anew for every loop.
#pragma once

#include <atomic>
#include <cstddef>
#include <thread>
#include <vector>

namespace test {

struct Threads {
    std::size_t count;

    template <class F>
    void parallel_for(std::size_t n, F&& f) const {
        std::atomic<std::size_t> next{0};
        const auto work = [&] {
            for (std::size_t i = next++; i < n; i = next++) f(i);
        };
        std::vector<std::thread> others;
        for (std::size_t i = 1; i < count && i < n; ++i) others.emplace_back(work);
        work();
        for (std::thread& one : others) one.join();
    }
};

}  // namespace test
