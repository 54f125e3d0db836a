/// A memory resource that counts what it was asked for, checks what it is given back, and can be told to fail.
#pragma once

#include <algorithm>
#include <cstddef>
#include <map>
#include <memory_resource>
#include <mutex>
#include <new>
#include <stdexcept>
#include <utility>

namespace test {

class CountingMemory : public std::pmr::memory_resource {
public:
    CountingMemory() = default;
    CountingMemory(const CountingMemory&) = delete;
    CountingMemory& operator=(const CountingMemory&) = delete;

    /// Bytes that are out now, and how often memory was asked for in all.
    [[nodiscard]] std::size_t bytes() const noexcept { return bytes_; }
    [[nodiscard]] std::size_t calls() const noexcept { return calls_; }
    /// Something was given back that was never taken, or with another size or alignment.
    [[nodiscard]] bool misused() const noexcept { return misused_; }

    /// The k-th call from now on throws std::bad_alloc, from 1; 0: none does.
    void fail_at(std::size_t k) noexcept { left_ = k; }
    /// Whether that call has not come yet.
    [[nodiscard]] bool armed() const noexcept { return left_ != 0; }

private:
    void* do_allocate(std::size_t size, std::size_t alignment) override {
        const std::lock_guard lock(mutex_);
        ++calls_;
        if (left_ != 0 && --left_ == 0) throw std::bad_alloc();
        void* pointer = std::pmr::new_delete_resource()->allocate(size, alignment);
        blocks_[pointer] = {size, alignment};
        bytes_ += size;
        return pointer;
    }
    void do_deallocate(void* pointer, std::size_t size, std::size_t alignment) override {
        const std::lock_guard lock(mutex_);
        const auto found = blocks_.find(pointer);
        if (found == blocks_.end() || found->second != std::pair(size, alignment)) {
            misused_ = true;
            return;
        }
        blocks_.erase(found);
        bytes_ -= size;
        std::pmr::new_delete_resource()->deallocate(pointer, size, alignment);
    }
    [[nodiscard]] bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }

    std::mutex mutex_;
    std::map<void*, std::pair<std::size_t, std::size_t>> blocks_;
    std::size_t bytes_ = 0, calls_ = 0, left_ = 0;
    bool misused_ = false;
};

/// Most of what a memory resource was asked for at one time.
class PeakMemory : public std::pmr::memory_resource {
public:
    [[nodiscard]] std::size_t peak() const noexcept { return peak_; }
    /// From here on the peak counts anew.
    void forget_peak() noexcept { peak_ = now_; }

private:
    void* do_allocate(std::size_t size, std::size_t alignment) override {
        void* out = std::pmr::new_delete_resource()->allocate(size, alignment);
        now_ += size;
        peak_ = std::max(peak_, now_);
        return out;
    }
    void do_deallocate(void* pointer, std::size_t size, std::size_t alignment) override {
        std::pmr::new_delete_resource()->deallocate(pointer, size, alignment);
        now_ -= size;
    }
    [[nodiscard]] bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }

    std::size_t now_ = 0, peak_ = 0;
};

}  // namespace test
