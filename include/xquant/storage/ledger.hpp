// The ledger: every byte that a cache allocates, by purpose. All allocations go through it, so bytes() is exact and the
// budget holds.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <memory_resource>
#include <new>

#include <xquant/error.hpp>

namespace xquant {

/// What an allocation is for.
enum class Purpose : unsigned char {
    codes,
    scales,
    tail,
    sinks,
    accumulator,
    index,
    weights,
    workspace,
    mapped,
    rebuilt
};
/// Entries of Purpose.
inline constexpr std::size_t purpose_count = 10;

/// Bytes allocated, by purpose. All of them but `mapped` add up to what was asked of the memory resource.
struct Bytes {
    std::size_t codes = 0;   ///< codes of encoded rows and the outliers kept beside them, free slots of pages included
    std::size_t scales = 0;  ///< scales and zeros of encoded rows
    std::size_t tail = 0;    ///< newest rows, and rows that wait for their group to fill, in f16
    std::size_t sinks = 0;   ///< first rows, in f16
    std::size_t accumulator = 0;  ///< running reconstruction of cross-layer schemes
    std::size_t index = 0;        ///< page headers, lists of pages, sequences
    std::size_t weights = 0;      ///< prepared projections
    std::size_t workspace = 0;    ///< buffers of steps and kernels
    std::size_t mapped = 0;       ///< pages that are read where they lie in a saved file, whatever their kind
    std::size_t rebuilt = 0;      ///< keys kept beside coded pages for speed (Options::rebuilt)

    /// What the tokens take of the memory resource: all but weights, workspace, what is mapped and what is rebuilt.
    [[nodiscard]] std::size_t stored() const noexcept { return codes + scales + tail + sinks + accumulator + index; }
    /// All that was asked of the memory resource (and of a device).
    [[nodiscard]] std::size_t total() const noexcept { return stored() + weights + workspace + rebuilt; }
    friend bool operator==(const Bytes&, const Bytes&) = default;
};

/// Memory for the rows of pages where that is not the processor's own: a device's. Headers of pages stay with the
/// processor.
class PageMemory {
public:
    /// Zeroed bytes, aligned to 64. Throws std::bad_alloc.
    virtual void* allocate(std::size_t bytes) = 0;
    /// Gives back memory from allocate, with the `bytes` that were asked for.
    virtual void release(void* memory, std::size_t bytes) noexcept = 0;
    /// Copies to memory of the processor, and waits until the bytes are there.
    virtual void read(void* to, const void* from, std::size_t bytes) = 0;
    /// Copies from memory of the processor.
    virtual void write(void* to, const void* from, std::size_t bytes) = 0;

protected:
    ~PageMemory() = default;
};

inline namespace XQUANT_ABI_NS {
namespace detail {

/// Whether it is part of Bytes::stored().
constexpr bool is_stored(Purpose purpose) noexcept {
    return purpose != Purpose::weights && purpose != Purpose::workspace && purpose != Purpose::mapped &&
           purpose != Purpose::rebuilt;
}

class Page;

/// What is kept beside pages for speed alone: it goes when its page goes, and gives way where a budget is spent.
class PageCompanions {
public:
    /// The page is about to go, or its rows to change.
    virtual void forget(Page& page) noexcept = 0;
    /// Gives up something; false where there is nothing left.
    virtual bool give_way() noexcept = 0;

protected:
    ~PageCompanions() = default;
};

/// Bytes that count against a budget.
class Account {
public:
    /// Budget 0: none. `workspace`: it is Options::workspace_budget, for messages.
    Account(std::size_t budget, bool workspace) noexcept : budget_(budget), workspace_(workspace) {}

    /// Throws budget_error if they do not fit and are to be `limited`. What does not fit is never entered, so it takes
    /// no room from other threads.
    void enter(std::size_t bytes, bool limited) {
        std::size_t used = used_.load(std::memory_order_relaxed);
        do {
            if (limited && !fits(bytes, used)) raise_error(budget_error(bytes, used, budget_, workspace_));
        } while (!used_.compare_exchange_weak(used, used + bytes, std::memory_order_relaxed));
    }
    void leave(std::size_t bytes) noexcept { used_.fetch_sub(bytes, std::memory_order_relaxed); }

    /// Whether they would fit now.
    [[nodiscard]] bool fits(std::size_t bytes) const noexcept {
        return fits(bytes, used_.load(std::memory_order_relaxed));
    }
    /// Enters them if they fit; whether they did.
    [[nodiscard]] bool try_enter(std::size_t bytes) noexcept {
        std::size_t used = used_.load(std::memory_order_relaxed);
        do {
            if (!fits(bytes, used)) return false;
        } while (!used_.compare_exchange_weak(used, used + bytes, std::memory_order_relaxed));
        return true;
    }

private:
    [[nodiscard]] bool fits(std::size_t bytes, std::size_t used) const noexcept {
        return budget_ == 0 || (used <= budget_ && bytes <= budget_ - used);
    }

    std::size_t budget_;
    bool workspace_;
    std::atomic<std::size_t> used_{0};
};

class Ledger {
public:
    /// Budgets of 0: none.
    explicit Ledger(std::pmr::memory_resource* resource, std::size_t budget = 0, std::size_t workspace_budget = 0,
                    std::size_t rebuilt = 0) noexcept
        : resource_(resource ? resource : std::pmr::get_default_resource()),
          stored_(budget, false),
          workspace_(workspace_budget, true),
          rebuilt_(rebuilt, false) {}
    Ledger(const Ledger&) = delete;
    Ledger& operator=(const Ledger&) = delete;

    /// Throws budget_error unless it is not to be `limited`, and what the resource throws; nothing is counted then.
    void* allocate(Purpose purpose, std::size_t bytes, std::size_t alignment, bool limited = true) {
        return within_budget(purpose, bytes, limited, [&] { return resource_->allocate(bytes, alignment); });
    }
    void release(Purpose purpose, void* pointer, std::size_t bytes, std::size_t alignment) noexcept {
        resource_->deallocate(pointer, bytes, alignment);
        leave(purpose, bytes);
    }

    /// Where rows of pages are allocated, if not in the memory resource; else null.
    [[nodiscard]] PageMemory* page_memory() const noexcept { return page_memory_; }
    void set_page_memory(PageMemory* memory) noexcept { page_memory_ = memory; }
    void* allocate_rows(std::size_t bytes, bool limited) {
        return within_budget(Purpose::codes, bytes, limited, [&] { return page_memory_->allocate(bytes); });
    }
    void release_rows(void* pointer, std::size_t bytes) noexcept {
        page_memory_->release(pointer, bytes);
        leave(Purpose::codes, bytes);
    }

    /// What allocate() returns by a call of `allocate`, for memory that is not the resource's. Throws budget_error, and
    /// what the call throws; nothing is counted then.
    template <class Allocate>
    void* within_budget(Purpose purpose, std::size_t bytes, bool limited, Allocate&& allocate) {
        Account* const account = account_of(purpose);
        if (account == nullptr) return allocate();
        enter(*account, bytes, limited);
        Undo undo([&] { account->leave(bytes); });
        void* const pointer = allocate();
        undo.release();
        return pointer;
    }
    /// What within_budget allocated has been freed.
    void leave(Purpose purpose, std::size_t bytes) noexcept {
        if (Account* const account = account_of(purpose)) account->leave(bytes);
    }

    /// What is kept beside pages, or null; it outlives every page.
    [[nodiscard]] PageCompanions* companions() const noexcept { return companions_; }
    void set_companions(PageCompanions* companions) noexcept { companions_ = companions; }
    /// Bytes beside pages count against the budget of what is stored, as long as they are there for everyone. False:
    /// they would not fit there, or not into what Options::rebuilt allows.
    [[nodiscard]] bool try_enter_rebuilt(std::size_t bytes) noexcept {
        return rebuilt_.fits(bytes) && stored_.try_enter(bytes);
    }
    void leave_rebuilt(std::size_t bytes) noexcept { stored_.leave(bytes); }

    void add(Purpose purpose, std::size_t bytes) noexcept { slot(purpose).fetch_add(bytes, std::memory_order_relaxed); }
    void subtract(Purpose purpose, std::size_t bytes) noexcept {
        slot(purpose).fetch_sub(bytes, std::memory_order_relaxed);
    }

    [[nodiscard]] Bytes bytes() const noexcept {
        const auto get = [this](Purpose purpose) {
            return bytes_[static_cast<std::size_t>(purpose)].load(std::memory_order_relaxed);
        };
        return {get(Purpose::codes),       get(Purpose::scales), get(Purpose::tail),    get(Purpose::sinks),
                get(Purpose::accumulator), get(Purpose::index),  get(Purpose::weights), get(Purpose::workspace),
                get(Purpose::mapped),      get(Purpose::rebuilt)};
    }

private:
    /// What limits this purpose; null: nothing does.
    [[nodiscard]] Account* account_of(Purpose purpose) noexcept {
        return is_stored(purpose)              ? &stored_
               : purpose == Purpose::workspace ? &workspace_
               : purpose == Purpose::rebuilt   ? &rebuilt_
                                               : nullptr;
    }

    /// Account::enter; but where the budget is spent, what is kept for speed goes before an error comes.
    void enter(Account& account, std::size_t bytes, bool limited) {
        if (&account == &stored_ && companions_ != nullptr) {
            do {
                if (account.try_enter(bytes)) return;
            } while (companions_->give_way());
        }
        account.enter(bytes, limited);
    }

    std::atomic<std::size_t>& slot(Purpose purpose) noexcept { return bytes_[static_cast<std::size_t>(purpose)]; }

    std::pmr::memory_resource* resource_;
    PageMemory* page_memory_ = nullptr;
    PageCompanions* companions_ = nullptr;
    Account stored_, workspace_, rebuilt_;
    std::array<std::atomic<std::size_t>, purpose_count> bytes_{};
};

/// A standard allocator that enters what it takes into a ledger.
template <class T, Purpose For>
struct LedgerAllocator {
    using value_type = T;
    template <class U>
    struct rebind {
        using other = LedgerAllocator<U, For>;
    };

    Ledger* ledger;

    explicit LedgerAllocator(Ledger& book) noexcept : ledger(&book) {}
    template <class U>
    LedgerAllocator(const LedgerAllocator<U, For>& other) noexcept : ledger(other.ledger) {}

    // 64 bytes: a cache line, and the widest vector register.
    static constexpr std::size_t alignment = alignof(T) > 64 ? alignof(T) : 64;

    T* allocate(std::size_t n) {
        if (n > static_cast<std::size_t>(-1) / sizeof(T)) raise_error(std::bad_array_new_length());
        void* pointer = ledger->allocate(For, n * sizeof(T), alignment);
        ledger->add(For, n * sizeof(T));
        return static_cast<T*>(pointer);
    }
    void deallocate(T* pointer, std::size_t n) noexcept {
        ledger->release(For, pointer, n * sizeof(T), alignment);
        ledger->subtract(For, n * sizeof(T));
    }

    template <class U>
    friend bool operator==(const LedgerAllocator& a, const LedgerAllocator<U, For>& b) noexcept {
        return a.ledger == b.ledger;
    }
};

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
