// Memory for caches on huge pages: attention over a large cache then reads through few entries of the processor's TLB.
// Opt-in and POSIX; xquant.hpp does not include it.
//
//     Arena arena;                              // lives longer than the caches that use it
//     Cache cache(model, {.memory = &arena});
//
// HugePages maps memory, Arena hands it out. A cache asks for pages, a few sizes of 10 KB to some MB that come and go
// all the time; and for buffers of steps, whose sizes follow the step's tokens and are seldom seen twice. This rules
// out simpler arenas: free lists for exact sizes keep a block for each size of buffer that there ever was, and
// std::pmr::unsynchronized_pool_resource (libstdc++ 12) rounds what has more than 4 KiB up to powers of two, and what
// has more than 128 KiB to 1 MiB or more, or (by default) hands it through.
#pragma once

#if !__has_include(<sys/mman.h>)
#error "xquant/serving/huge_pages.hpp needs a POSIX system: it maps memory by mmap"
#endif
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory_resource>
#include <mutex>
#include <new>
#include <set>
#include <tuple>
#include <utility>

#include <xquant/error.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {

/// Maps memory by whole huge pages of 2 MiB, each allocation on its own. A source for Arena, or for another resource
/// that asks for much at a time. The kernel is asked for huge pages (MADV_HUGEPAGE) and may give small ones:
/// then everything works, and is no faster.
///
/// Safe for use by several threads at once.
class HugePages : public std::pmr::memory_resource {
public:
    /// Bytes of a huge page (x86-64, and arm64 where small pages have 4 KiB).
    static constexpr std::size_t page = std::size_t{1} << 21U;

    HugePages() = default;
    HugePages(const HugePages&) = delete;
    HugePages& operator=(const HugePages&) = delete;

    /// Bytes that are mapped now, whether touched or not: a multiple of `page`.
    [[nodiscard]] std::size_t mapped() const noexcept { return mapped_.load(std::memory_order_relaxed); }

private:
    static constexpr std::size_t rounded(std::size_t bytes) noexcept {
        return (std::max<std::size_t>(bytes, 1) + page - 1) / page * page;
    }

    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
        if (alignment > page || bytes > static_cast<std::size_t>(-1) / 2) detail::raise_error(std::bad_alloc());
        // mmap aligns to small pages: one huge page more, and what lies before and behind is given back. No
        // MAP_NORESERVE: what the machine cannot hold is std::bad_alloc here, not a process that is killed later.
        const std::size_t size = rounded(bytes);
        void* taken = ::mmap(nullptr, size + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (taken == MAP_FAILED) detail::raise_error(std::bad_alloc());
        auto* first = static_cast<std::byte*>(taken);
        const std::size_t before = (page - reinterpret_cast<std::uintptr_t>(first) % page) % page;
        if (before > 0) ::munmap(first, before);
        if (before < page) ::munmap(first + before + size, page - before);
#ifdef MADV_HUGEPAGE
        ::madvise(first + before, size, MADV_HUGEPAGE);
#endif
        mapped_.fetch_add(size, std::memory_order_relaxed);
        return first + before;
    }
    void do_deallocate(void* pointer, std::size_t bytes, std::size_t) noexcept override {
        ::munmap(pointer, rounded(bytes));
        mapped_.fetch_sub(rounded(bytes), std::memory_order_relaxed);
    }
    [[nodiscard]] bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }

    std::atomic<std::size_t> mapped_{0};
};

/// Hands out parts of large chunks: the smallest free part that is large enough, cut to size. Parts that are given back
/// grow together with free neighbours, so memory serves any size again, and pages of caches take exactly their bytes.
/// Chunks are kept until release().
///
/// Sizes are rounded up to 64 bytes. Cost: logarithmic in the number of parts, some 150 bytes of ordinary memory for
/// each. Safe for use by several threads at once. An allocation that throws std::bad_alloc changes nothing that is in
/// use.
class Arena : public std::pmr::memory_resource {
public:
    /// Takes `chunk` bytes at a time from `upstream`, more where one allocation needs it, rounded up to 2 MiB and
    /// aligned to 2 MiB. Null: from HugePages of its own; a chunk of these takes memory where it is touched, not
    /// before.
    explicit Arena(std::size_t chunk = std::size_t{1} << 25U, std::pmr::memory_resource* upstream = nullptr) noexcept
        : upstream_(upstream ? upstream : &own_), chunk_((std::min)(chunk, most)) {}
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    /// Gives every chunk back, in use or not.
    ~Arena() override {
        for (const auto& [address, block] : blocks_) {
            if (block.chunk > 0) upstream_->deallocate(address, block.chunk, HugePages::page);
        }
    }

    /// Gives chunks back of which nothing is in use.
    void release() noexcept {
        const std::lock_guard lock(mutex_);
        for (auto at = blocks_.begin(); at != blocks_.end();) {
            const auto [address, size, chunk] = std::tuple(at->first, at->second.size, at->second.chunk);
            if (!is_free(at->second) || size != chunk) {
                ++at;
                continue;
            }
            free_.erase({size, address});
            at = blocks_.erase(at);
            mapped_ -= chunk;
            upstream_->deallocate(address, chunk, HugePages::page);
        }
    }

    /// Bytes of all chunks.
    [[nodiscard]] std::size_t mapped() const noexcept {
        const std::lock_guard lock(mutex_);
        return mapped_;
    }
    /// Bytes of them that are handed out now.
    [[nodiscard]] std::size_t in_use() const noexcept {
        const std::lock_guard lock(mutex_);
        return in_use_;
    }

private:
    using Free =
        std::set<std::pair<std::size_t, std::byte*>>;  ///< (size, address): the first that is large enough fits best
    /// A part of a chunk. Blocks lie side by side; no two neighbours of a chunk are free.
    struct Block {
        std::size_t size;
        std::size_t chunk;      ///< bytes of the chunk that begins here; 0: none does
        Free::node_type entry;  ///< kept while the block is in use, so that giving it back needs no memory
    };
    using Blocks = std::map<std::byte*, Block>;

    static constexpr std::size_t step = 64, most = static_cast<std::size_t>(-1) / 4;

    static constexpr std::size_t round_up(std::size_t n, std::size_t to) noexcept { return (n + to - 1) / to * to; }
    static bool is_free(const Block& block) noexcept { return block.entry.empty(); }

    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
        if (bytes > most || alignment > most) detail::raise_error(std::bad_alloc());
        const std::size_t size = round_up(std::max<std::size_t>(bytes, 1), step);
        const std::size_t slack = alignment > step ? alignment - step : 0;
        const std::lock_guard lock(mutex_);
        Blocks::iterator block = take(size + slack);
        detail::Undo undo([&] { put_back(block); });
        const std::size_t off = reinterpret_cast<std::uintptr_t>(block->first) % alignment;
        if (slack > 0 && off > 0) {
            const Blocks::iterator aligned = cut(block, alignment - off);
            put_back(std::exchange(block, aligned));
        }
        if (block->second.size > size) put_back(cut(block, size));
        undo.release();
        in_use_ += size;
        return block->first;
    }
    void do_deallocate(void* pointer, std::size_t, std::size_t) noexcept override {
        const std::lock_guard lock(mutex_);
        const Blocks::iterator block = blocks_.find(static_cast<std::byte*>(pointer));
        in_use_ -= block->second.size;
        put_back(block);
    }
    [[nodiscard]] bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }

    static Free::node_type new_entry() {
        Free made;
        made.emplace();
        return made.extract(made.begin());
    }

    /// A block of at least `size` bytes, in use from now on.
    [[nodiscard]] Blocks::iterator take(std::size_t size) {
        const auto found = free_.lower_bound({size, nullptr});
        if (found != free_.end()) {
            const Blocks::iterator block = blocks_.find(found->second);
            block->second.entry = free_.extract(found);
            return block;
        }
        const std::size_t chunk = round_up((std::max)(size, chunk_), HugePages::page);
        Free::node_type entry = new_entry();
        auto* address = static_cast<std::byte*>(upstream_->allocate(chunk, HugePages::page));
        detail::Undo undo([&] { upstream_->deallocate(address, chunk, HugePages::page); });
        const auto made = blocks_.try_emplace(address, Block{chunk, chunk, std::move(entry)}).first;
        undo.release();
        mapped_ += chunk;
        return made;
    }

    /// Cuts a block that is in use after `size` bytes; the rest, in use as well.
    [[nodiscard]] Blocks::iterator cut(Blocks::iterator block, std::size_t size) {
        const auto rest = blocks_.emplace_hint(std::next(block), block->first + size,
                                               Block{block->second.size - size, 0, new_entry()});
        block->second.size = size;
        return rest;
    }

    /// Makes a block that is in use free, together with its neighbours.
    void put_back(Blocks::iterator block) noexcept {
        const auto join = [this](Blocks::iterator left, Blocks::iterator right) {
            left->second.size += right->second.size;
            blocks_.erase(right);
        };
        const Blocks::iterator right = std::next(block);
        if (right != blocks_.end() && right->second.chunk == 0 && is_free(right->second)) {
            free_.erase({right->second.size, right->first});
            join(block, right);
        }
        Free::node_type entry = std::move(block->second.entry);
        if (block->second.chunk == 0 && is_free(std::prev(block)->second)) {
            const Blocks::iterator left = std::prev(block);
            free_.erase({left->second.size, left->first});
            join(left, block);
            block = left;
        }
        entry.value() = {block->second.size, block->first};
        free_.insert(std::move(entry));
    }

    HugePages own_;
    std::pmr::memory_resource* upstream_;
    std::size_t chunk_, mapped_ = 0, in_use_ = 0;
    mutable std::mutex mutex_;
    Blocks blocks_;
    Free free_;
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
