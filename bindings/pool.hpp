// A pool of threads for programs that have none: an executor, of which one call at a time is served.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace xquant::bindings {

/// Threads that wait for work; the caller of parallel_for is one of them.
class Pool {
public:
    /// `threads`, the caller among them; 0: one for each processor. Throws std::system_error where one cannot start.
    explicit Pool(std::size_t threads) {
        const std::size_t count = threads == 0 ? (std::max)(1U, std::thread::hardware_concurrency()) : threads;
        try {
            for (std::size_t i = 1; i < count; ++i) workers_.emplace_back([this] { wait_for_work(); });
        } catch (...) {
            stop();
            throw;
        }
    }
    ~Pool() { stop(); }
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    /// Calls task(of, 0) .. task(of, n - 1), and returns when all have ended. Tasks do not throw.
    void run(std::size_t n, void (*task)(void* of, std::size_t i), void* of) {
        if (workers_.empty() || n < 2) {
            for (std::size_t i = 0; i < n; ++i) task(of, i);
            return;
        }
        const std::lock_guard alone(turn_);
        {
            const std::lock_guard lock(mutex_);
            job_ = {n, task, of};
            next_ = 0;
            busy_ = workers_.size();
            ++round_;
        }
        started_.notify_all();
        work();
        std::unique_lock lock(mutex_);
        finished_.wait(lock, [this] { return busy_ == 0; });
    }

    /// An executor (xquant/executor.hpp).
    template <class F>
    void parallel_for(std::size_t n, F&& f) {
        using Function = std::remove_reference_t<F>;
        run(
            n, [](void* of, std::size_t i) { (*static_cast<Function*>(of))(i); },
            const_cast<void*>(static_cast<const void*>(std::addressof(f))));
    }

    /// Threads that work, the caller among them.
    [[nodiscard]] std::size_t size() const noexcept { return workers_.size() + 1; }

private:
    struct Job {
        std::size_t n = 0;
        void (*task)(void* of, std::size_t i) = nullptr;
        void* of = nullptr;
    };

    void work() {
        for (std::size_t i = next_++; i < job_.n; i = next_++) job_.task(job_.of, i);
    }
    void wait_for_work() {
        std::size_t seen = 0;
        while (true) {
            {
                std::unique_lock lock(mutex_);
                started_.wait(lock, [&] { return stopping_ || round_ != seen; });
                if (stopping_) return;
                seen = round_;
            }
            work();
            const std::lock_guard lock(mutex_);
            if (--busy_ == 0) finished_.notify_all();
        }
    }
    void stop() noexcept {
        {
            const std::lock_guard lock(mutex_);
            stopping_ = true;
        }
        started_.notify_all();
        for (std::thread& worker : workers_) worker.join();
        workers_.clear();
    }

    std::vector<std::thread> workers_;
    std::mutex turn_, mutex_;
    std::condition_variable started_, finished_;
    Job job_;
    std::atomic<std::size_t> next_{0};
    std::size_t busy_ = 0, round_ = 0;
    bool stopping_ = false;
};

}  // namespace xquant::bindings
