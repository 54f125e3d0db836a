// Who runs the tasks of a step: the calling thread (Serial), or a thread pool of yours.
//
//     struct Pool {
//         template <class F>
//         void parallel_for(std::size_t n, F&& task);   // calls task(0) .. task(n - 1), returns when all have ended
//     };
//
// The tasks of one call are independent of each other and their number follows from shapes alone, so that the answers of a cache are
// bit for bit the answers of one thread. An exception that leaves a task must leave parallel_for, too.
#pragma once

#include <cstddef>

namespace xquant {

// clang-format off

/// Runs f(0) .. f(n - 1), in any order and on any threads, and returns when all are done.
template <class E>
concept executor = requires(E& e, void (*f)(std::size_t)) { e.parallel_for(std::size_t{}, f); };

// clang-format on

/// The executor that uses the calling thread alone.
struct Serial {
    template <class F>
    void parallel_for(std::size_t n, F&& f) const {
        for (std::size_t i = 0; i < n; ++i) f(i);
    }
};

}  // namespace xquant
