// How the attention of a step is cut. Plain data.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>

#include <xquant/core/shared_spans.hpp>
#include <xquant/core/step_rows.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// Tiles that a task reads where few rows read many tokens: 2048 tokens.
inline constexpr std::size_t split_tiles = 16;

/// The rows of a sequence, and what they read.
struct AttendPart {
    static constexpr std::size_t none = static_cast<std::size_t>(-1);

    QueryRows rows;
    std::size_t first_span, spans, tiles = 0;
    bool lags = false;          ///< stored RoPE of some span lags behind
    bool rebuilt_lags = false;  ///< that of rebuilt keys
    std::size_t group = none;   ///< that its first spans are read with
    std::size_t row = 0;        ///< the part's first row among the group's
};

/// Parts that begin with the same spans: tasks of their own read these for all rows.
struct AttendGroup {
    SharedSpans shared;  ///< numbers of parts
    std::size_t rows = 0, tiles = 0;
    std::size_t first_task = 0;  ///< of the first kv head
    /// Tasks of a kv head.
    [[nodiscard]] std::size_t tasks() const noexcept { return (tiles + split_tiles - 1) / split_tiles; }
};

/// Consecutive tiles of a part.
struct TileRun {
    std::size_t first_span = 0, spans = 0;  ///< that they lie in, and the next one, which may be asked for ahead
    std::size_t first_tile = 0, tiles = 0;  ///< counted over these spans
};

/// Rows of a part, or of a group, of one kv head, and some of the tiles that they see.
struct AttendPiece {
    static constexpr std::size_t none = AttendPart::none;

    std::size_t part = 0;           ///< of a group: its first one
    std::size_t head = 0, row = 0;  ///< kv head; first row in the part
    TileRun reads{};
    std::size_t splits = 0;       ///< tasks that share the rows, this one the first, at least 1; 0: not the first
    std::size_t absorbed = none;  ///< where the queries times A_k are, if the tasks share them
    std::size_t partial = 0;      ///< where the result is, if the task shares its rows
    std::size_t group = none;     ///< whose rows it has
};

/// Calls f(TileRun) for each `each` tiles of some; `tiles` are counted over all spans. Cost: one look at each span.
template <class F>
void for_each_run(std::span<const TokenSpan> spans, backend::Slots tiles, std::size_t each, F&& f) {
    const auto tiles_in = [&](std::size_t span) { return tiles_of(spans.subspan(span, 1)); };
    std::size_t first = 0, before = 0;  // a span, and the tiles before it
    for (std::size_t tile = tiles.first; tile < tiles.end(); tile += each) {
        const std::size_t end = (std::min)(tile + each, tiles.end());
        while (before + tiles_in(first) <= tile) before += tiles_in(first++);
        std::size_t last = first;
        for (std::size_t until = before; until < end; ++last) until += tiles_in(last);
        f(TileRun{first, (std::min)(last + 1, spans.size()) - first, tile - before, end - tile});
    }
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
