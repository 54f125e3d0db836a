// The sequences of a cache, found by their handles.
#pragma once

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
    bool used = false, busy = false;
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

    /// An empty sequence of `page groups` page groups. Throws std::bad_alloc.
    [[nodiscard]] Sequence create(std::size_t page_groups) {
        const std::lock_guard lock(mutex_);
        std::size_t at = 0;
        while (at < size() && (*this)[at].used) ++at;
        if (at == size()) add(page_groups);
        Slot& slot = (*this)[at];
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
            blocks_.reserve(round_up(blocks_.size() + 1, step));
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
};

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
