// A fixed set of threads that share out the iterations of a loop: the executor of programs that have none of their own.
//
//     parallel_for(n, f)    f(0) .. f(n - 1), each once, in any order, on any thread; returns when all have returned
//
// The caller takes part, so a pool of 1 runs everything in place. Iterations are drawn from one counter: give it a few
// for each thread, each of 20 us or more. The first exception stops the draw and is thrown again by parallel_for.
// Limits  one loop at a time (others wait), and none inside another.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace xquant::bindings {

class Pool {
public:
    /// threads: the caller included; 0 for as many as the machine has. Throws std::system_error where one cannot start.
    explicit Pool(std::size_t threads = 0) {
        if (threads == 0) threads = (std::max)(1U, std::thread::hardware_concurrency());
        try {
            for (std::size_t i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
        } catch (...) {
            stop();
            throw;
        }
    }
    ~Pool() { stop(); }
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    /// Threads that work, the caller among them.
    [[nodiscard]] std::size_t threads() const noexcept { return workers_.size() + 1; }

    /// Calls f(0) .. f(n - 1).
    template <class F>
    void parallel_for(std::size_t n, F&& f) {
        run(n, call<std::remove_reference_t<F>>, const_cast<void*>(static_cast<const void*>(std::addressof(f))));
    }

    /// Calls task(of, 0) .. task(of, n - 1).
    void run(std::size_t n, void (*task)(void* of, std::size_t i), void* of) {
        if (n <= 1 || workers_.empty()) {
            for (std::size_t i = 0; i < n; ++i) task(of, i);
            return;
        }
        const std::lock_guard turn(turn_);
        of_ = of;
        task_ = task;
        count_ = n;
        error_ = nullptr;
        next_.store(0, std::memory_order_relaxed);
        busy_.store(workers_.size(), std::memory_order_relaxed);
        round_.fetch_add(1, std::memory_order_release);  // publishes all of the above
        round_.notify_all();
        draw();
        for (std::size_t left; (left = wait_while(busy_, [](std::size_t b) { return b != 0; })) != 0;) busy_.wait(left);
        if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
    }

private:
    /// Never inlined: a second copy of the body, for the serial loop, may fuse other multiplications with additions,
    /// and then the last bit of a result depends on the number of threads.
    template <class Function>
    [[gnu::noinline]] static void call(void* function, std::size_t i) {
        (*static_cast<Function*>(function))(i);
    }

    /// A short spin, since the loops of one layer follow each other within microseconds and waking a thread takes
    /// longer.
    template <class T, class Condition>
    static T wait_while(const std::atomic<T>& value, Condition condition) {
        for (int spin = 0; spin < 4000; ++spin) {
            const T now = value.load(std::memory_order_acquire);
            if (!condition(now)) return now;
            if (spin % 64 == 63) std::this_thread::yield();
        }
        return value.load(std::memory_order_acquire);
    }

    void draw() {
        for (;;) {
            const std::size_t i = next_.fetch_add(1, std::memory_order_relaxed);
            if (i >= count_) return;
            try {
                task_(of_, i);
            } catch (...) {
                const std::lock_guard lock(error_mutex_);
                if (!error_) error_ = std::current_exception();
                next_.store(count_, std::memory_order_relaxed);
            }
        }
    }

    void work() {
        for (std::uint32_t seen = 0;;) {
            std::uint32_t now = wait_while(round_, [&](std::uint32_t round) { return round == seen; });
            while (now == seen) {
                round_.wait(seen);
                now = round_.load(std::memory_order_acquire);
            }
            seen = now;
            if (stopping_.load(std::memory_order_relaxed)) return;
            draw();
            if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) busy_.notify_one();
        }
    }

    void stop() {
        stopping_.store(true, std::memory_order_relaxed);
        round_.fetch_add(1, std::memory_order_release);
        round_.notify_all();
        for (std::thread& worker : workers_) worker.join();
    }

    void* of_ = nullptr;
    void (*task_)(void* of, std::size_t i) = nullptr;
    std::size_t count_ = 0;
    std::atomic<std::size_t> next_{0}, busy_{0};
    std::atomic<std::uint32_t> round_{0};
    std::atomic<bool> stopping_{false};
    std::mutex turn_, error_mutex_;
    std::exception_ptr error_;
    std::vector<std::thread> workers_;  // last, so that all the rest is there when they start
};

}  // namespace xquant::bindings
