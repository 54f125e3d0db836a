// Errors: thrown before anything changes, each with a sentence that says what was given and what was expected.
//
// Without exceptions (-fno-exceptions) an error calls the handler of set_error_handler, which must not return; the
// default one writes the message to stderr and calls std::terminate. std::bad_alloc cannot be thrown there either:
// memory resources have to succeed.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include <xquant/types.hpp>

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
    /// No layer, or no row.
    static constexpr std::size_t none = static_cast<std::size_t>(-1);

    /// The message names the layer and the row, too.
    explicit value_error(const std::string& message, std::size_t of_layer = none, std::size_t of_row = none)
        : error(message), layer(of_layer), row(of_row) {}

    std::size_t layer;  ///< the layer that the value belongs to, or none
    std::size_t row;    ///< of a step, of calibration or of a matrix (vectors: 0), from 0 on, or none
};

/// A sequence that does not exist (never created here, or dropped), or that another step is using.
struct sequence_error : error {
    using error::error;
};

/// A call out of order: a layer appended twice, attended before it was appended, a step used after its commit.
struct state_error : error {
    using error::error;
};

/// Options::budget or Options::workspace_budget does not allow what was asked for. Whatever asked has changed nothing.
struct budget_error : error {
    /// The message has all three numbers.
    budget_error(std::size_t needed_bytes, std::size_t used_bytes, std::size_t budget_bytes, bool of_workspace = false)
        : error((of_workspace ? "xquant: the workspace budget of " : "xquant: the budget of ") +
                std::to_string(budget_bytes) + " bytes is spent: " + std::to_string(used_bytes) + " are in use, and " +
                std::to_string(needed_bytes) + " more are needed"),
          needed(needed_bytes),
          used(used_bytes),
          budget(budget_bytes),
          workspace(of_workspace) {}

    std::size_t needed;  ///< bytes of the allocation that did not fit; more may have followed
    std::size_t used;    ///< bytes in use before it, what the operation had allocated by then included
    std::size_t budget;  ///< the budget
    bool workspace;      ///< whether it is Options::workspace_budget; else Options::budget
};

/// A file that cannot be written or read.
struct file_error : error {
    using error::error;
};

/// A file whose bytes are not those that were written: truncated, changed, or no saved cache at all.
struct damage_error : file_error {
    using file_error::file_error;
};

/// A file of another version, scheme, shape or model than the cache that is to read it.
struct mismatch_error : file_error {
    using file_error::file_error;
};

/// What an error does where there are no exceptions. It gets the sentence that what() would give, and must not return.
using ErrorHandler = void (*)(const char* message);

/// What files have in common that were compiled with different flags. (A `namespace detail` here would join the one
/// inside the inline namespace of the instruction set.)
namespace process {

/// What set_error_handler was given; null: the default.
inline std::atomic<ErrorHandler> error_handler{nullptr};

}  // namespace process

inline namespace XQUANT_ABI_NS {

namespace detail {

/// A shape, for messages.
struct Shape {
    std::size_t rows = 0, cols = 0;
};

/// Throws, or without exceptions calls the handler.
template <class Error>
[[noreturn]] void raise_error(const Error& raised) {
#if XQUANT_HAS_EXCEPTIONS
    throw raised;
#else
    if (const ErrorHandler handler = process::error_handler.load()) handler(raised.what());
    std::fprintf(stderr, "%s\n", raised.what());
    std::terminate();
#endif
}

inline void add_text(std::string& to, std::string_view part) { to += part; }
template <class Number>
    requires std::is_integral_v<Number>
void add_text(std::string& to, Number number) { to += std::to_string(number); }
inline void add_text(std::string& to, double number) {
    char digits[32];
    std::snprintf(digits, sizeof digits, "%g", number);
    to += digits;
}

inline void add_text(std::string& to, const Shape& shape) {
    // Piece by piece: g++ 12 warns of "[" + std::to_string(...).
    to += "[";
    to += std::to_string(shape.rows);
    to += ", ";
    to += std::to_string(shape.cols);
    to += "]";
}
inline void add_text(std::string& to, const MatrixView& view) {
    add_text(to, Shape{view.rows, view.cols});
    if (view.stride != view.cols) to += " with stride " + std::to_string(view.stride);
    if (view.data == nullptr) to += " without data";
}

/// Words, numbers and shapes, one after another.
template <class... Parts>
std::string text_of(const Parts&... parts) {
    std::string text;
    (add_text(text, parts), ...);
    return text;
}

/// An error whose message has these words and numbers.
template <class Error, class... Parts>
[[noreturn]] XQUANT_COLD void raise(const Parts&... parts) {
    raise_error(Error("xquant: " + text_of(parts...)));
}

/// A value_error likewise, with its layer and row (or none).
template <class... Parts>
[[noreturn]] XQUANT_COLD void raise_value(std::size_t layer, std::size_t row, const Parts&... parts) {
    raise_error(value_error("xquant: " + text_of(parts...), layer, row));
}

template <class Error = shape_error, class... Parts>
void expects(bool holds, const Parts&... parts) {
    if (!holds) raise<Error>(parts...);
}

/// Runs a function when it goes out of scope, unless it was released: what has to be undone where an exception passes,
/// or in any case.
template <class F>
class Undo {
public:
    explicit Undo(F undo) noexcept : undo_(std::move(undo)) {}
    Undo(const Undo&) = delete;
    Undo& operator=(const Undo&) = delete;
    ~Undo() {
        if (armed_) undo_();
    }
    void release() noexcept { armed_ = false; }

private:
    F undo_;
    bool armed_ = true;
};

}  // namespace detail

#if !XQUANT_HAS_EXCEPTIONS
/// Sets what an error does in programs compiled without exceptions; null: the default. Returns the one before.
inline ErrorHandler set_error_handler(ErrorHandler handler) noexcept {
    return process::error_handler.exchange(handler);
}
#endif

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
