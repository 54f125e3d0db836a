// The sequences of a cache, found by their handles.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <utility>

#include <xquant/error.hpp>
#include <xquant/sequence/handle.hpp>
#include <xquant/sequence/step_plan.hpp>

namespace xquant {

namespace process {

/// Counts the caches of the process: no two of them share a number.
inline std::atomic<std::uint32_t> cache_count{0};

}  // namespace process

inline namespace XQUANT_ABI_NS {
namespace detail {

/// A sequence of the table.
struct Slot {
    LedgerVector<SequenceState, Purpose::index> states;  ///< one for each page group
    std::uint32_t generation = 0;
    std::uint32_t number = 0;       ///< in the table
    std::uint32_t next_free = 0;    ///< of a slot that is not used: the number of the next one, from 1 on; 0: none
    std::uint32_t listed = 0;       ///< while ListedOnce checks a list: the sequence's place in it, from 1 on
    Slot* listed_before = nullptr;  ///< likewise: the sequence before it in the list
    bool used = false, busy = false;
};

/// Finds a sequence that is named twice in a list, at the cost of one look at each: sequences are marked as the list is
/// read, and the marks are taken away at the end.
class ListedOnce {
public:
    ListedOnce() = default;
    ListedOnce(const ListedOnce&) = delete;
    ListedOnce& operator=(const ListedOnce&) = delete;
    ~ListedOnce() {
        for (Slot* slot = last_; slot != nullptr; slot = std::exchange(slot->listed_before, nullptr)) slot->listed = 0;
    }

    /// Adds the next entry of the list. Throws sequence_error if an earlier one is the same sequence.
    void add(Slot& slot, const char* verb) {
        expects<sequence_error>(slot.listed == 0, verb, ": entries ", slot.listed - 1, " and ", count_,
                                " of the list are the same sequence");
        slot.listed = ++count_;
        slot.listed_before = std::exchange(last_, &slot);
    }

private:
    Slot* last_ = nullptr;
    std::uint32_t count_ = 0;
};

inline std::uint32_t next_cache_number() noexcept {
    std::uint32_t number = 0;
    while (number == 0) number = process::cache_count.fetch_add(1, std::memory_order_relaxed) + 1;
    return number;
}

/// The sequences of a cache. They never move, and several threads may create, find and drop sequences: each its own.
class SlotTable {
public:
    static constexpr std::size_t step = 16;

    explicit SlotTable(Ledger& ledger)
        : blocks_(LedgerAllocator<Block, Purpose::index>(ledger)), ledger_(&ledger), cache_(next_cache_number()) {}

    /// An empty sequence of `page_groups` page groups. Throws std::bad_alloc. Cost: constant, spread over many calls.
    [[nodiscard]] Sequence create(std::size_t page_groups) {
        const std::lock_guard lock(mutex_);
        const std::size_t at = first_free_ != 0 ? first_free_ - 1 : size();
        expects<sequence_error>(at < 0xFFFFFFFFU, "create: a cache has fewer than 2^32 - 1 sequences at a time");
        if (at == size()) add(page_groups);
        Slot& slot = (*this)[at];
        first_free_ = std::exchange(slot.next_free, 0);
        slot.number = static_cast<std::uint32_t>(at);
        slot.used = true;
        ++slot.generation;
        return {static_cast<std::uint64_t>(slot.generation) << 32U | at, cache_};
    }

    /// Throws sequence_error.
    [[nodiscard]] Slot& find(Sequence sequence) {
        const std::lock_guard lock(mutex_);
        expects<sequence_error>(sequence.cache == cache_, "the sequence is not of this cache: ",
                                sequence.cache == 0 ? "no cache has made it" : "another cache has made it");
        const std::size_t at = sequence.id & 0xFFFFFFFFU, generation = sequence.id >> 32U;
        expects<sequence_error>(at < size() && (*this)[at].used && (*this)[at].generation == generation,
                                "the sequence was dropped (slot ", at, ", generation ", generation, ")");
        return (*this)[at];
    }

    /// An empty slot can be used again.
    void release(Slot& slot) noexcept {
        const std::lock_guard lock(mutex_);
        slot.used = false;
        slot.next_free = std::exchange(first_free_, slot.number + 1);
    }

    /// Calls f(slot) for each sequence. Nothing else may use the table meanwhile.
    template <class F>
    void for_each(F&& f) {
        for (std::size_t i = 0; i < size(); ++i) {
            if ((*this)[i].used) f((*this)[i]);
        }
    }

    /// Bytes of a table with room for `step` sequences.
    static constexpr std::size_t first_bytes(std::size_t page_groups) noexcept {
        return step * (sizeof(Block) + sizeof(Slot)) + page_groups * sizeof(SequenceState);
    }

private:
    using Block = LedgerVector<Slot, Purpose::index>;

    [[nodiscard]] std::size_t size() const noexcept {
        return blocks_.empty() ? 0 : (blocks_.size() - 1) * step + blocks_.back().size();
    }
    [[nodiscard]] Slot& operator[](std::size_t at) noexcept { return blocks_[at / step][at % step]; }

    void add(std::size_t page_groups) {
        const LedgerAllocator<Slot, Purpose::index> memory(*ledger_);
        Slot slot{LedgerVector<SequenceState, Purpose::index>(memory)};
        slot.states.reserve(page_groups);
        for (std::size_t i = 0; i < page_groups; ++i) slot.states.push_back({Segments(memory)});
        if (blocks_.empty() || blocks_.back().size() == step) {
            if (blocks_.size() == blocks_.capacity()) blocks_.reserve((std::max)(step, 2 * blocks_.size()));
            Block block(memory);
            block.reserve(step);
            blocks_.push_back(std::move(block));
        }
        blocks_.back().push_back(std::move(slot));
    }

    std::mutex mutex_;
    LedgerVector<Block, Purpose::index> blocks_;
    Ledger* ledger_;
    std::uint32_t cache_;
    std::uint32_t first_free_ = 0;  ///< as Slot::next_free
};

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
