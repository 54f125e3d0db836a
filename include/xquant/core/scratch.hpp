// Scratch memory of kernels.
#pragma once

#include <algorithm>
#include <mutex>
#include <utility>

#include <xquant/storage/page.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// Scratch memory for tasks that run side by side. A task borrows a buffer; the pool keeps it for the next task, until
/// trim() at the end of a step.
class ScratchPool {
    using Allocator = LedgerAllocator<float, Purpose::workspace>;

    /// Memory of the ledger; what is in it means nothing.
    struct Buffer {
        float* data = nullptr;
        std::size_t floats = 0;
    };

public:
    explicit ScratchPool(Ledger& ledger)
        : free_(LedgerAllocator<Buffer, Purpose::workspace>(ledger)), ledger_(&ledger) {}
    ScratchPool(const ScratchPool&) = delete;
    ScratchPool& operator=(const ScratchPool&) = delete;
    ~ScratchPool() { trim(); }

    class Loan {
    public:
        /// Throws std::bad_alloc, budget_error; the buffer goes back to the pool then, since the loan itself is
        /// complete.
        Loan(ScratchPool& pool, std::size_t floats) : Loan(pool) {
            if (buffer_.floats >= floats) return;
            pool.free(buffer_);
            buffer_ = {Allocator(*pool.ledger_).allocate(floats), floats};
        }
        Loan(const Loan&) = delete;
        Loan& operator=(const Loan&) = delete;
        ~Loan() { pool_->put(buffer_); }
        [[nodiscard]] float* data() noexcept { return buffer_.data; }

    private:
        explicit Loan(ScratchPool& pool) : pool_(&pool), buffer_(pool.take()) {}

        ScratchPool* pool_;
        Buffer buffer_;
    };

    /// Frees the buffers, unless a task of another step has one: that step will free them.
    void trim() noexcept {
        const std::lock_guard lock(mutex_);
        if (lent_ != 0) return;
        for (Buffer& buffer : free_) free(buffer);
        free_list(free_);
    }

private:
    Buffer take() {
        const std::lock_guard lock(mutex_);
        // Room to give every buffer back without allocating.
        free_.reserve(lent_ + std::max<std::size_t>(1, free_.size()));
        Buffer buffer;
        if (!free_.empty()) {
            buffer = free_.back();
            free_.pop_back();
        }
        ++lent_;
        return buffer;
    }
    void put(Buffer buffer) noexcept {
        const std::lock_guard lock(mutex_);
        --lent_;
        if (buffer.data != nullptr) free_.push_back(buffer);
    }
    void free(Buffer& buffer) noexcept {
        if (buffer.data != nullptr) Allocator(*ledger_).deallocate(buffer.data, buffer.floats);
        buffer = {};
    }

    std::mutex mutex_;
    LedgerVector<Buffer, Purpose::workspace> free_;
    std::size_t lent_ = 0;
    Ledger* ledger_;
};

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
