// Executors, which run the tasks of a step: the calling thread (Serial), or a thread pool of yours.
//
//     struct Pool {
//         template <class F>
//         void parallel_for(std::size_t n, F&& task);   // calls task(0) .. task(n - 1), returns when all have ended
//     };
//
// The tasks of one call are independent of each other and their number follows from shapes alone, so the answers of a
// cache are bit for bit the answers of one thread. No exception leaves a task: the library keeps it until all tasks
// have ended, and throws it then.
#pragma once

#include <cstddef>
#include <memory>
#include <type_traits>

namespace xquant {

// clang-format off

/// Runs f(0) .. f(n - 1), in any order and on any threads, and returns when all are done.
template <class E>
concept executor = requires(E& e, void (*f)(std::size_t)) { e.parallel_for(std::size_t{}, f); };

// clang-format on

/// The executor that uses the calling thread alone.
struct Serial {
    /// Calls f(0) .. f(n - 1), in order.
    template <class F>
    void parallel_for(std::size_t n, F&& f) const {
        for (std::size_t i = 0; i < n; ++i) f(i);
    }
};

/// A reference to any executor, which has to outlive it. It is an executor itself. Costs an indirect call for each
/// task.
class ExecutorRef {
public:
    /// Refers to `executor`, which has to outlive this.
    template <class E>
        requires(executor<std::remove_reference_t<E>> && !std::is_same_v<std::remove_cvref_t<E>, ExecutorRef>)
    ExecutorRef(E&& executor)
    noexcept  // NOLINT: a reference to it is meant
        : executor_(const_cast<void*>(static_cast<const void*>(std::addressof(executor)))),
          run_([](void* on, std::size_t n, Task task, void* of) {
              static_cast<std::remove_reference_t<E>*>(on)->parallel_for(n, [task, of](std::size_t i) { task(of, i); });
          }) {}

    /// Runs f(0) .. f(n - 1) on the executor.
    template <class F>
    void parallel_for(std::size_t n, F&& f) const {
        using Callable = std::remove_reference_t<F>;
        run_(
            executor_, n, [](void* of, std::size_t i) { (*static_cast<Callable*>(of))(i); },
            const_cast<void*>(static_cast<const void*>(std::addressof(f))));
    }

private:
    using Task = void (*)(void* of, std::size_t i);

    void* executor_;
    void (*run_)(void* executor, std::size_t n, Task task, void* of);
};

}  // namespace xquant
