// Scratch memory of kernels.
#pragma once

#include <algorithm>
#include <mutex>
#include <utility>

#include <xquant/storage/page.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// Scratch memory for tasks that run side by side. A task borrows a buffer; the pool keeps it for the next task.
class ScratchPool {
public:
    using Buffer = LedgerVector<float, Purpose::workspace>;

    explicit ScratchPool(Ledger& ledger)
        : free_(LedgerAllocator<Buffer, Purpose::workspace>(ledger)), ledger_(&ledger) {}

    class Loan {
    public:
        /// Throws std::bad_alloc; the buffer goes back to the pool then, since the loan itself is complete.
        Loan(ScratchPool& pool, std::size_t floats) : Loan(pool) {
            if (buffer_.size() >= floats) return;
            buffer_.clear();
            buffer_.shrink_to_fit();
            buffer_.resize(floats);
        }
        Loan(const Loan&) = delete;
        Loan& operator=(const Loan&) = delete;
        ~Loan() { pool_->put(std::move(buffer_)); }
        [[nodiscard]] float* data() noexcept { return buffer_.data(); }

    private:
        explicit Loan(ScratchPool& pool) : pool_(&pool), buffer_(pool.take()) {}

        ScratchPool* pool_;
        Buffer buffer_;
    };

private:
    Buffer take() {
        const std::lock_guard lock(mutex_);
        // Room to give every buffer back without allocating.
        free_.reserve(lent_ + std::max<std::size_t>(1, free_.size()));
        Buffer buffer(LedgerAllocator<float, Purpose::workspace>{*ledger_});
        if (!free_.empty()) {
            buffer = std::move(free_.back());
            free_.pop_back();
        }
        ++lent_;
        return buffer;
    }
    void put(Buffer buffer) noexcept {
        const std::lock_guard lock(mutex_);
        --lent_;
        free_.push_back(std::move(buffer));
    }

    std::mutex mutex_;
    LedgerVector<Buffer, Purpose::workspace> free_;
    std::size_t lent_ = 0;
    Ledger* ledger_;
};

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
