// Rows of the matrices that an engine hands to a step: which of them are whose tokens, and how many there have to be.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include <xquant/cache_types.hpp>
#include <xquant/error.hpp>
#include <xquant/model.hpp>
#include <xquant/storage/page.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// The row of the engine's matrices that is a token's.
struct NamedRow {
    std::uint32_t row = 0;
    bool answered = true;  ///< whether the row of out has the answer to this token, not to that of a part before
};

/// Where the rows of a step's tokens are in the engine's matrices: one behind the other, or as StepPart::rows say.
struct RowMap {
    std::span<const NamedRow> named{};  ///< [tokens of the step], or empty

    [[nodiscard]] std::size_t row_of(std::size_t token) const noexcept {
        return named.empty() ? token : named[token].row;
    }
    [[nodiscard]] bool answers(std::size_t token) const noexcept { return named.empty() || named[token].answered; }
    /// Whether any of n tokens is answered.
    [[nodiscard]] bool answers_some(std::size_t token, std::size_t n) const noexcept {
        for (std::size_t i = 0; i < n; ++i) {
            if (answers(token + i)) return true;
        }
        return false;
    }
    /// How many of n tokens, the first ones, lie in neighbouring rows and are answered, or all of them not.
    [[nodiscard]] std::size_t neighbours(std::size_t token, std::size_t n) const noexcept {
        if (named.empty()) return n;
        std::size_t run = 1;
        while (run < n && row_of(token + run) == row_of(token) + run && answers(token + run) == answers(token)) ++run;
        return run;
    }
};

/// NamedRow of all tokens of a step.
using NamedRows = LedgerVector<NamedRow, Purpose::workspace>;

/// The rows that all parts name. Throws shape_error where one names a row twice; std::bad_alloc, budget_error.
/// @return  rows that the matrices have at least
inline std::size_t list_named_rows(Ledger& ledger, std::span<const StepPart> parts, NamedRows& named) {
    struct Named {
        std::uint32_t row, part, token;  // the token is counted over all parts
    };
    std::size_t total = 0;
    for (const StepPart& part : parts) total += part.tokens;
    LedgerVector<Named, Purpose::workspace> order(LedgerAllocator<Named, Purpose::workspace>{ledger});
    order.reserve(total);
    named.reserve(total);
    for (std::size_t i = 0; i < parts.size(); ++i) {
        for (const std::uint32_t row : parts[i].rows) {
            order.push_back({row, static_cast<std::uint32_t>(i), static_cast<std::uint32_t>(named.size())});
            named.push_back({row, true});
        }
    }
    std::sort(order.begin(), order.end(),
              [](const Named& a, const Named& b) { return a.row != b.row ? a.row < b.row : a.token < b.token; });
    for (std::size_t i = 1; i < total; ++i) {
        const Named &last = order[i - 1], &next = order[i];
        if (last.row != next.row) continue;
        expects(last.part != next.part, "begin: sequence ", next.part, " of the list names row ", next.row,
                " twice; a row is one token of a sequence");
        named[next.token].answered = false;
    }
    return std::size_t{order.back().row} + 1;
}

/// The new rows of one sequence in a step.
struct QueryRows {
    std::size_t first_row = 0;  ///< of the step's rows
    std::size_t rows = 0;
    std::int64_t first_position = 0;
};

/// How many rows a matrix is to have, or to have at least, and in words what they are.
struct RowsAsked {
    std::size_t rows;
    const char* are;
    bool or_more = false;

    [[nodiscard]] bool fit(const MatrixView& m) const noexcept { return or_more ? m.rows >= rows : m.rows == rows; }
    [[nodiscard]] const char* more() const noexcept { return or_more ? ", or more rows" : ""; }
};

/// Throws shape_error unless q and out are [rows, H * Dh] and the visibility is one. Sets out_stride where it is 0.
inline void check_queries(const LayerShape& shape, std::size_t layer, const MatrixView& q, const RowsAsked& asked,
                          const float* out, Visibility visibility, std::size_t& out_stride) {
    const std::size_t width = shape.heads * shape.head_dim;
    if (out_stride == 0) out_stride = width;
    expects(asked.fit(q) && q.cols == width && !q.empty() && q.stride >= q.cols, "attend, layer ", layer, ": q is ", q,
            "; expected [", asked.are, ", heads * head_dim] = ", Shape{asked.rows, width}, asked.more());
    expects(q.type <= DType::bf16, "attend, layer ", layer, ": q has elements of an unknown type, ",
            static_cast<int>(q.type));
    expects(out != nullptr, "attend, layer ", layer, ": out is null");
    expects(visibility <= Visibility::whole, "attend, layer ", layer, ": the visibility is ",
            static_cast<int>(visibility), "; expected Visibility::causal or Visibility::whole");
    expects(out_stride >= width, "attend, layer ", layer, ": out_stride is ", out_stride, "; a row of out has ", width,
            " floats");
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
