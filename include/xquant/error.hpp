// Errors: thrown before anything changes, each with a sentence that says what was given and what was expected.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>

#include <xquant/config.hpp>

namespace xquant {

/// Base of everything this library throws (besides std::bad_alloc from the memory resource).
struct error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/// A size, shape, stride or option that does not fit the model or the policies.
struct shape_error : error {
    using error::error;
};

/// A value that cannot be stored: not finite, or beyond the range of f16 (65504).
struct value_error : error {
    using error::error;
};

/// A sequence that does not exist (never created, or dropped), or that another step is using.
struct sequence_error : error {
    using error::error;
};

/// A call out of order: a layer appended twice, attended before it was appended, a step used after its commit.
struct state_error : error {
    using error::error;
};

/// Options::budget does not allow what was asked for. Whatever asked has changed nothing.
struct budget_error : error {
    budget_error(std::size_t needed_bytes, std::size_t used_bytes, std::size_t budget_bytes)
        : error("xquant: the budget of " + std::to_string(budget_bytes) + " bytes is spent: " +
                std::to_string(used_bytes) + " are in use, and " + std::to_string(needed_bytes) + " more are needed"),
          needed(needed_bytes),
          used(used_bytes),
          budget(budget_bytes) {}

    std::size_t needed;  ///< bytes of the allocation that did not fit; more may have followed
    std::size_t used;    ///< bytes of Bytes::stored() before it, what the operation had allocated by then included
    std::size_t budget;
};

inline namespace XQUANT_ABI_NS {
namespace detail {

template <class Error>
[[noreturn]] void raise(std::string message) {
    throw Error("xquant: " + std::move(message));
}

template <class Error = shape_error>
void expects(bool holds, const char* message) {
    if (!holds) raise<Error>(message);
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
