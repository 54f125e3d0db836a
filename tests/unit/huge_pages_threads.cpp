/// An arena that several threads take from and give back to at once.
#if __has_include(<sys/mman.h>)
#include <xquant/serving/huge_pages.hpp>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "support/catch.hpp"
#include "support/model.hpp"

TEST_CASE("four threads share an arena") {
    xquant::Arena arena(std::size_t{1} << 21U);
    std::atomic<std::size_t> broken{0};
    const auto work = [&](std::uint32_t seed) {
        struct Part {
            unsigned char* bytes;
            std::size_t size;
        };
        test::Random random(seed);
        std::vector<Part> parts;
        const auto give_back = [&](const Part& part) {
            const auto mark = static_cast<unsigned char>(seed);
            if (!std::all_of(part.bytes, part.bytes + part.size, [&](unsigned char b) { return b == mark; })) ++broken;
            arena.deallocate(part.bytes, part.size, 64);
        };
        for (int i = 0; i < 2000; ++i) {
            const std::size_t size = 1 + random.below(20000);
            parts.push_back({static_cast<unsigned char*>(arena.allocate(size, 64)), size});
            std::memset(parts.back().bytes, static_cast<int>(seed), size);
            if (parts.size() > 30) {
                std::swap(parts[random.below(parts.size())], parts.back());
                give_back(parts.back());
                parts.pop_back();
            }
        }
        for (const Part& part : parts) give_back(part);
    };
    std::vector<std::thread> threads;
    for (std::uint32_t seed = 1; seed <= 4; ++seed) threads.emplace_back(work, seed);
    for (std::thread& thread : threads) thread.join();
    CHECK(broken == 0);
    CHECK(arena.in_use() == 0);
    arena.release();
    CHECK(arena.mapped() == 0);
}
#endif
