// An executor over the threads that ggml gives to one operation: no second pool beside ggml's, and -t, -tb and
// affinities hold.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>

namespace adapter {

/// All threads of an operation call its function. Thread 0 leads: open, any number of parallel_for, close. The others
/// follow until it closes. ggml's barriers stand before and behind an operation, so only what happens inside is ordered
/// here.
class Team {
public:
    /// Thread 0: the operation has this many threads.
    void open(int threads) noexcept { threads_ = threads; }

    /// Thread 0: waits until the others have left.
    void close() noexcept {
        if (threads_ > 1) {
            closing_.store(true, std::memory_order_release);
            for (unsigned spins = 0; left_.load(std::memory_order_acquire) != threads_ - 1;) pause(spins);
            left_.store(0, std::memory_order_relaxed);
            closing_.store(false, std::memory_order_relaxed);
        }
        threads_ = 1;
    }

    /// The other threads.
    void follow() noexcept {
        for (unsigned spins = 0; !closing_.load(std::memory_order_acquire);) {
            if (take())
                spins = 0;
            else
                pause(spins);
        }
        left_.fetch_add(1, std::memory_order_release);
    }

    /// xquant's executor, for thread 0. No exception leaves a task of xquant's.
    template <class F>
    void parallel_for(std::size_t n, F&& task) noexcept {
        if (threads_ <= 1 || n <= 1) {
            for (std::size_t i = 0; i < n; ++i) task(i);
            return;
        }
        using Task = std::remove_reference_t<F>;
        task_ = const_cast<void*>(static_cast<const void*>(std::addressof(task)));
        call_ = [](void* of, std::size_t i) { (*static_cast<Task*>(of))(i); };
        count_.store(n, std::memory_order_relaxed);
        done_.store(0, std::memory_order_relaxed);
        next_.store(++job_ << index_bits, std::memory_order_release);
        while (take()) {
        }
        for (unsigned spins = 0; done_.load(std::memory_order_acquire) != n;) pause(spins);
        next_.store(nothing, std::memory_order_relaxed);
    }

private:
    /// `next_` has the number of the job above these bits, and the next task's index in them. Without the job's number,
    /// a thread that was held up between its look at the counter and its exchange could take part in a later job by an
    /// index that is not there.
    static constexpr unsigned index_bits = 32;
    static constexpr std::uint64_t index_mask = (std::uint64_t{1} << index_bits) - 1;
    static constexpr std::uint64_t nothing = index_mask;  ///< no job: beyond any count

    /// Machines may have more threads than processors: who waits long lets others run.
    static void pause(unsigned& spins) noexcept {
        if (++spins > 2000) std::this_thread::yield();
    }

    /// Runs one task, if there is one.
    bool take() noexcept {
        std::uint64_t seen = next_.load(std::memory_order_acquire);
        do {
            if ((seen & index_mask) >= count_.load(std::memory_order_relaxed)) return false;
        } while (!next_.compare_exchange_weak(seen, seen + 1, std::memory_order_acquire));
        call_(task_, seen & index_mask);
        done_.fetch_add(1, std::memory_order_release);
        return true;
    }

    int threads_ = 1;
    std::uint64_t job_ = 0;
    void* task_ = nullptr;
    void (*call_)(void*, std::size_t) = nullptr;
    alignas(64) std::atomic<std::uint64_t> next_{nothing};
    alignas(64) std::atomic<std::uint64_t> count_{0};
    std::atomic<std::uint64_t> done_{0};
    std::atomic<int> left_{0};
    std::atomic<bool> closing_{false};
};

}  // namespace adapter
