// Runs the tasks of a step on an executor that never sees an exception of theirs.
#pragma once

#include <atomic>
#include <exception>
#include <utility>

#include <xquant/config.hpp>
#include <xquant/executor.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// The first exception that left a task.
class FirstException {
public:
    /// Runs a task, unless one has failed before it.
    template <class F>
    void run(F& task, std::size_t i) noexcept {
#if XQUANT_HAS_EXCEPTIONS
        if (failed_.load(std::memory_order_relaxed)) return;
        try {
            task(i);
        } catch (...) {
            // Whoever sets the flag has the first one. The executor's return comes after all writes of its tasks.
            if (!failed_.exchange(true, std::memory_order_relaxed)) thrown_ = std::current_exception();
        }
#else
        task(i);
#endif
    }

    /// Throws it, if there is one. Once all tasks have ended.
    void rethrow() {
#if XQUANT_HAS_EXCEPTIONS
        if (thrown_ != nullptr) std::rethrow_exception(std::exchange(thrown_, nullptr));
#endif
    }

private:
#if XQUANT_HAS_EXCEPTIONS
    std::atomic<bool> failed_{false};
    std::exception_ptr thrown_;
#endif
};

/// task(0) .. task(n - 1) on an executor. An exception of a task is kept until all have ended, and thrown then; tasks
/// that have not begun are left out. Executors may throw by themselves.
template <class F>
void run_tasks(ExecutorRef threads, std::size_t n, F&& task) {
    FirstException first;
    threads.parallel_for(n, [&first, &task](std::size_t i) noexcept { first.run(task, i); });
    first.rethrow();
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
