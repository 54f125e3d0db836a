/// Memory on huge pages: where it lies, what is given back, and an arena that serves the same bytes again and again.
#if __has_include(<sys/mman.h>)
#include <xquant/preset.hpp>
#include <xquant/serving/huge_pages.hpp>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <new>
#include <span>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/memory.hpp"
#include "support/model.hpp"

using namespace xquant;

namespace {

constexpr std::size_t mib = std::size_t{1} << 20U;

std::uintptr_t address(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer); }

/// Memory that is in use, filled with a byte of its own.
struct Part {
    void* pointer;
    std::size_t size, alignment;
    unsigned char mark;

    void fill() const { std::memset(pointer, mark, size); }
    [[nodiscard]] bool whole() const {
        const auto* bytes = static_cast<const unsigned char*>(pointer);
        return std::all_of(bytes, bytes + size, [this](unsigned char byte) { return byte == mark; });
    }
};

Part take(std::pmr::memory_resource& memory, std::size_t size, std::size_t alignment, std::size_t mark) {
    const Part part{memory.allocate(size, alignment), size, alignment, static_cast<unsigned char>(mark)};
    part.fill();
    return part;
}
void give_back(std::pmr::memory_resource& memory, const Part& part) {
    memory.deallocate(part.pointer, part.size, part.alignment);
}

}  // namespace

TEST_CASE("huge pages are mapped by whole 2 MiB, aligned, zeroed, and unmapped") {
    HugePages memory;
    CHECK(memory.mapped() == 0);
    std::size_t expected = 0;
    std::vector<Part> parts;
    for (const std::size_t size : {std::size_t{0}, std::size_t{1}, 2 * mib, 2 * mib + 1, 7 * mib}) {
        void* pointer = memory.allocate(size, 64);
        CHECK(address(pointer) % (2 * mib) == 0);
        const auto* bytes = static_cast<const unsigned char*>(pointer);
        CHECK(std::all_of(bytes, bytes + size, [](unsigned char byte) { return byte == 0; }));
        expected += std::max<std::size_t>(1, (size + 2 * mib - 1) / (2 * mib)) * 2 * mib;
        CHECK(memory.mapped() == expected);
        parts.push_back({pointer, size, 64, static_cast<unsigned char>(parts.size() + 1)});
        parts.back().fill();
    }
    for (const Part& part : parts) {
        CHECK(part.whole());
        give_back(memory, part);
    }
    CHECK(memory.mapped() == 0);
    CHECK_THROWS_AS(static_cast<void>(memory.allocate(64, 4 * mib)), std::bad_alloc);
    CHECK_THROWS_AS(static_cast<void>(memory.allocate(std::size_t{1} << 60U, 64)), std::bad_alloc);
    CHECK_THROWS_AS(static_cast<void>(memory.allocate(static_cast<std::size_t>(-1), 64)), std::bad_alloc);
    CHECK(memory.mapped() == 0);
    CHECK(memory == memory);
    CHECK_FALSE(memory == HugePages());
}

TEST_CASE("what is mapped beside aligned memory is given back") {
    // Pages of address space, where the system says so.
    const auto address_space = [] {
        std::size_t pages = 0;
        std::ifstream("/proc/self/statm") >> pages;
        return pages * 4096;
    };
    HugePages memory;
    const std::size_t before = address_space();
    for (int i = 0; i < 1000; ++i) memory.deallocate(memory.allocate(mib, 64), mib, 64);
    CHECK(address_space() < before + 100 * mib);
}

TEST_CASE("an arena cuts chunks into parts, and parts grow together again") {
    Arena arena(4 * mib);
    CHECK(arena.mapped() == 0);
    void* a = arena.allocate(100, 8);
    CHECK(arena.mapped() == 4 * mib);
    CHECK(arena.in_use() == 128);
    CHECK(address(a) % (2 * mib) == 0);
    void* b = arena.allocate(1000, 64);
    void* c = arena.allocate(64, 64);
    CHECK(address(b) == address(a) + 128);
    CHECK(address(c) == address(b) + 1024);
    CHECK(arena.in_use() == 128 + 1024 + 64);
    // The hole that fits best.
    arena.deallocate(a, 100, 8);
    void* d = arena.allocate(128, 64);
    CHECK(d == a);
    // Neighbours together make room for more, from either side.
    arena.deallocate(b, 1000, 64);
    arena.deallocate(d, 128, 64);
    void* e = arena.allocate(1152, 64);
    CHECK(e == a);
    arena.deallocate(e, 1152, 64);
    arena.deallocate(c, 64, 64);
    CHECK(arena.in_use() == 0);
    void* all = arena.allocate(4 * mib, 64);
    CHECK(all == a);
    CHECK(arena.mapped() == 4 * mib);
    // More than a chunk.
    void* large = arena.allocate(5 * mib, 64);
    CHECK(arena.mapped() == 10 * mib);
    arena.deallocate(large, 5 * mib, 64);
    CHECK(arena.mapped() == 10 * mib);
    arena.release();
    CHECK(arena.mapped() == 4 * mib);
    arena.deallocate(all, 4 * mib, 64);
    arena.release();
    CHECK(arena.mapped() == 0);
    CHECK_THROWS_AS(static_cast<void>(arena.allocate(static_cast<std::size_t>(-1) - 10, 64)), std::bad_alloc);
    CHECK(arena == arena);
}

namespace {

/// Gives out one piece of memory from its beginning to its end: chunks that are neighbours.
class Neighbours : public std::pmr::memory_resource {
public:
    explicit Neighbours(void* memory) : at_(static_cast<std::byte*>(memory)) {}
    [[nodiscard]] std::size_t given() const { return given_; }

private:
    void* do_allocate(std::size_t bytes, std::size_t) override {
        given_ += bytes;
        return std::exchange(at_, at_ + bytes);
    }
    void do_deallocate(void*, std::size_t bytes, std::size_t) override { given_ -= bytes; }
    [[nodiscard]] bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }

    std::byte* at_;
    std::size_t given_ = 0;
};

}  // namespace

TEST_CASE("an arena's chunks do not grow together, though they are neighbours") {
    HugePages pages;
    void* const memory = pages.allocate(8 * mib, 2 * mib);
    Neighbours upstream(memory);
    {
        Arena arena(2 * mib, &upstream);
        for (const bool left_first : {false, true}) {
            void* a = arena.allocate(2 * mib, 64);
            void* b = arena.allocate(2 * mib, 64);
            REQUIRE(address(b) == address(a) + 2 * mib);
            CHECK(arena.mapped() == 4 * mib);
            arena.deallocate(left_first ? a : b, 2 * mib, 64);
            arena.deallocate(left_first ? b : a, 2 * mib, 64);
            // Each is given back as it was taken.
            arena.release();
            CHECK(arena.mapped() == 0);
            CHECK(upstream.given() == 0);
        }
    }
    pages.deallocate(memory, 8 * mib, 2 * mib);
}

TEST_CASE("an arena aligns to what it is asked for") {
    Arena arena(2 * mib);
    std::vector<Part> parts;
    std::size_t mark = 0;
    for (int round = 0; round < 3; ++round) {
        for (std::size_t alignment = 1; alignment <= mib; alignment *= 2) {
            parts.push_back(take(arena, 100, alignment, ++mark));
            CHECK(address(parts.back().pointer) % std::max<std::size_t>(alignment, 64) == 0);
        }
    }
    parts.push_back(take(arena, 64, 4 * mib, ++mark));
    CHECK(address(parts.back().pointer) % (4 * mib) == 0);
    CHECK(arena.in_use() == (parts.size() - 1) * 128 + 64);
    for (const Part& part : parts) {
        CHECK(part.whole());
        give_back(arena, part);
    }
    CHECK(arena.in_use() == 0);
    arena.release();
    CHECK(arena.mapped() == 0);
}

TEST_CASE("100,000 allocations of five sizes are served from the same memory") {
    const std::size_t sizes[] = {10304, 39552, 147520, 590080, 2 * mib};
    Arena arena(8 * mib);
    test::Random random(1);
    std::vector<Part> parts;
    std::size_t in_use = 0, peak = 0, after_half = 0;
    constexpr std::size_t allocations = 100000;
    const auto ends = [](const Part& part) {
        // The first and the last line: enough to see parts that overlap.
        auto* bytes = static_cast<unsigned char*>(part.pointer);
        return std::pair(std::span(bytes, 64), std::span(bytes + part.size - 64, 64));
    };
    for (std::size_t i = 0; i < allocations; ++i) {
        const std::size_t size = sizes[random.below(5)];
        const Part& made =
            parts.emplace_back(Part{arena.allocate(size, 64), size, 64, static_cast<unsigned char>(i % 251)});
        for (const auto& line : {ends(made).first, ends(made).second}) std::ranges::fill(line, made.mark);
        in_use += size;
        peak = std::max(peak, in_use);
        // Now up to 60 parts, now up to 100.
        while (parts.size() > 60 + i / 500 % 2 * 40) {
            std::swap(parts[random.below(parts.size())], parts.back());
            const Part& gone = parts.back();
            for (const auto& line : {ends(gone).first, ends(gone).second}) {
                REQUIRE(std::ranges::count(line, gone.mark) == 64);
            }
            give_back(arena, gone);
            in_use -= gone.size;
            parts.pop_back();
        }
        REQUIRE(arena.in_use() == in_use);
        if (i == allocations / 2) after_half = arena.mapped();
    }
    CHECK(arena.mapped() == after_half);
    CHECK(arena.mapped() < peak + peak / 8 + 8 * mib);
    for (const Part& part : parts) give_back(arena, part);
    CHECK(arena.in_use() == 0);
    arena.release();
    CHECK(arena.mapped() == 0);
}

TEST_CASE("sizes that are never seen again leave nothing behind") {
    Arena arena(2 * mib);
    test::Random random(2);
    std::vector<Part> pages;
    for (std::size_t i = 0; i < 20; ++i) pages.push_back(take(arena, 39552, 64, i));
    std::size_t most = 0;
    for (std::size_t i = 0; i < 5000; ++i) {
        // A buffer as long as a step, a page that comes and one that goes.
        const Part buffer = take(arena, 1 + random.below(mib / 2), 64, i);
        Part& page = pages[random.below(pages.size())];
        REQUIRE(page.whole());
        give_back(arena, page);
        page = take(arena, 39552, 64, i + 1);
        REQUIRE(buffer.whole());
        give_back(arena, buffer);
        most = std::max(most, arena.mapped());
    }
    CHECK(most <= 4 * mib);
    for (const Part& page : pages) give_back(arena, page);
}

TEST_CASE("an arena whose upstream fails throws, and goes on with what it has") {
    test::CountingMemory upstream;
    {
        Arena arena(2 * mib, &upstream);
        upstream.fail_at(1);
        CHECK_THROWS_AS(static_cast<void>(arena.allocate(64, 64)), std::bad_alloc);
        CHECK(arena.mapped() == 0);
        const Part first = take(arena, mib, 64, 1);
        CHECK(upstream.bytes() == 2 * mib);
        CHECK(upstream.calls() == 2);
        upstream.fail_at(1);
        CHECK_THROWS_AS(static_cast<void>(arena.allocate(mib + 1, 64)), std::bad_alloc);
        CHECK(arena.in_use() == mib);
        CHECK(arena.mapped() == 2 * mib);
        const Part second = take(arena, mib, 64, 2), third = take(arena, 3 * mib, 64, 3);
        CHECK(upstream.bytes() == 6 * mib);
        CHECK(first.whole());
        CHECK(second.whole());
        CHECK(third.whole());
        give_back(arena, first);
        give_back(arena, third);
        arena.release();
        CHECK(upstream.bytes() == 2 * mib);
        CHECK(second.whole());
    }
    // What was not given back goes with the arena.
    CHECK(upstream.bytes() == 0);
    CHECK_FALSE(upstream.misused());
}

TEST_CASE("a cache on an arena stores what it stores elsewhere, and gives it back") {
    const test::Setup setup({.width = 64, .heads = 4, .kv_heads = 2, .head_dim = 16}, RopePairing::halves, 3);
    using Cache = preset::kivi<4>;
    const auto stored = [&](std::pmr::memory_resource* memory, auto look) {
        Cache cache(setup.model, {.sinks = 4, .recent = 32, .memory = memory});
        test::Random random(3);
        std::vector<Sequence> sequences;
        for (const std::size_t n : {300, 1, 170, 500}) {
            sequences.push_back(cache.create());
            auto step = cache.begin({{sequences.back(), n}});
            for (std::size_t layer = 0; layer < 3; ++layer) {
                const std::vector<float> x = random.rows(n * 64);
                std::vector<float> out(n * 64);
                step.append(layer, MatrixView(x.data(), n, 64));
                step.attend(layer, MatrixView(x.data(), n, 64), out.data());
            }
            step.commit();
            if (n == 170) cache.drop(sequences[0]);
        }
        std::vector<std::byte> bytes;
        for (std::size_t i = 1; i < sequences.size(); ++i) {
            cache.for_each_page(sequences[i], [&](const PageView& page) {
                bytes.insert(bytes.end(), page.bytes.begin(), page.bytes.end());
            });
        }
        look(cache);
        return bytes;
    };
    Arena arena;
    const auto on_arena = stored(&arena, [&](const Cache& cache) {
        CHECK(arena.in_use() >= cache.bytes().total());
        CHECK(arena.in_use() < cache.bytes().total() + cache.bytes().total() / 16);
    });
    CHECK(arena.in_use() == 0);
    const auto elsewhere = stored(nullptr, [](const Cache&) {});
    CHECK(on_arena.size() > 10000);
    CHECK(on_arena == elsewhere);
}
#endif
