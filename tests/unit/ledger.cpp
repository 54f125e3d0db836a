/// The ledger: what vectors and pages take is entered under its purpose, and only what was taken.
#include <xquant/storage/page.hpp>

#include <atomic>
#include <memory_resource>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "support/catch.hpp"
#include "support/memory.hpp"

using namespace xquant;
using namespace xquant::detail;

TEST_CASE("vectors are counted by purpose, at 64 bytes, and given back") {
    test::CountingMemory memory;
    Ledger ledger(&memory);
    {
        LedgerVector<float, Purpose::weights> weights{LedgerAllocator<float, Purpose::weights>(ledger)};
        LedgerVector<char, Purpose::workspace> work{LedgerAllocator<char, Purpose::workspace>(ledger)};
        weights.reserve(100);
        work.resize(7);
        CHECK(ledger.bytes().weights == 400);
        CHECK(ledger.bytes().workspace == 7);
        CHECK(ledger.bytes().total() == memory.bytes());
        CHECK(ledger.bytes().stored() == 0);
        CHECK(reinterpret_cast<std::uintptr_t>(work.data()) % 64 == 0);
        auto moved = std::move(weights);
        CHECK(ledger.bytes().weights == 400);
        moved.resize(200);
        CHECK(ledger.bytes().weights == 800);
    }
    CHECK(ledger.bytes() == Bytes{});
    CHECK(memory.bytes() == 0);
}

TEST_CASE("what could not be taken is not counted") {
    test::CountingMemory memory;
    Ledger ledger(&memory);
    LedgerVector<float, Purpose::tail> rows{LedgerAllocator<float, Purpose::tail>(ledger)};
    rows.resize(10);
    memory.fail_at(1);
    CHECK_THROWS_AS(rows.resize(1000), std::bad_alloc);
    CHECK(ledger.bytes().tail == 40);
    CHECK(rows.size() == 10);
    LedgerAllocator<double, Purpose::tail> allocator(ledger);
    CHECK_THROWS_AS(static_cast<void>(allocator.allocate(static_cast<std::size_t>(-1) / 4)), std::bad_alloc);
    memory.fail_at(1);
    PageFormat format(ledger, PageKind::coded, 128, 1);
    format.sizes.total = 1000;
    CHECK_THROWS_AS(static_cast<void>(Page::create(ledger, format)), std::bad_alloc);
    CHECK(ledger.bytes().total() == memory.bytes());
    CHECK(ledger.bytes().total() == 40);
}

TEST_CASE("every purpose has its own line, and lines add up") {
    Ledger ledger(nullptr);
    const Purpose purposes[] = {Purpose::codes,       Purpose::scales, Purpose::tail,    Purpose::sinks,
                                Purpose::accumulator, Purpose::index,  Purpose::weights, Purpose::workspace,
                                Purpose::mapped,      Purpose::rebuilt};
    static_assert(std::size(purposes) == purpose_count);
    std::size_t amount = 1;
    for (const Purpose purpose : purposes) {
        ledger.add(purpose, amount);
        amount *= 2;
    }
    CHECK(ledger.bytes() == Bytes{1, 2, 4, 8, 16, 32, 64, 128, 256, 512});
    CHECK(ledger.bytes().stored() == 63);
    CHECK(ledger.bytes().total() == 255 + 512);
    ledger.subtract(Purpose::index, 30);
    CHECK(ledger.bytes().index == 2);
}

TEST_CASE("what is stored keeps to the budget, and nothing else has to") {
    test::CountingMemory memory;
    Ledger ledger(&memory, 1000);
    LedgerAllocator<char, Purpose::index> index(ledger);
    LedgerAllocator<char, Purpose::workspace> workspace(ledger);
    char* a = index.allocate(600);
    char* w = workspace.allocate(5000);
    CHECK_THROWS_AS(static_cast<void>(index.allocate(401)), budget_error);
    char* b = index.allocate(400);
    try {
        static_cast<void>(index.allocate(1));
        FAIL("over the budget");
    } catch (const budget_error& problem) {
        CHECK(problem.needed == 1);
        CHECK(problem.used == 1000);
        CHECK(problem.budget == 1000);
        CHECK(std::string(problem.what()) ==
              "xquant: the budget of 1000 bytes is spent: 1000 are in use, and 1 more are needed");
    }
    // What the resource refuses is not counted either.
    index.deallocate(b, 400);
    memory.fail_at(1);
    CHECK_THROWS_AS(static_cast<void>(index.allocate(400)), std::bad_alloc);
    b = index.allocate(400);
    index.deallocate(b, 400);
    index.deallocate(a, 600);
    workspace.deallocate(w, 5000);
    CHECK(memory.bytes() == 0);
}

TEST_CASE("what does not fit takes no room from what does") {
    // Two threads use 600 of 1000 bytes at most; a third asks for 900 all the time.
    Ledger ledger(nullptr, 1000, 1000);
    for (const Purpose purpose : {Purpose::index, Purpose::workspace}) {
        std::atomic<bool> stop{false};
        std::atomic<std::size_t> refused{0}, spurious{0};
        void* const kept = ledger.allocate(purpose, 200, 64);
        std::thread greedy([&] {
            while (!stop) {
                try {
                    ledger.release(purpose, ledger.allocate(purpose, 900, 64), 900, 64);
                } catch (const budget_error& problem) {
                    refused += problem.workspace == (purpose == Purpose::workspace) ? 1U : 0U;
                }
            }
        });
        std::vector<std::thread> modest;
        for (int i = 0; i < 2; ++i) {
            modest.emplace_back([&] {
                for (int k = 0; k < 100000; ++k) {
                    try {
                        ledger.release(purpose, ledger.allocate(purpose, 200, 64), 200, 64);
                    } catch (const budget_error&) {
                        ++spurious;
                    }
                }
            });
        }
        for (std::thread& one : modest) one.join();
        stop = true;
        greedy.join();
        CHECK(spurious == 0);
        CHECK(refused > 0);
        ledger.release(purpose, kept, 200, 64);
        ledger.release(purpose, ledger.allocate(purpose, 1000, 64), 1000, 64);  // nothing is left behind
    }
}
