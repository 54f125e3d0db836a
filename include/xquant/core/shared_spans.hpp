// Which sequences of a step read rows that others read as well: a system prompt, beams, parallel samples, drafts.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include <xquant/attention/task.hpp>
#include <xquant/backend/views.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// Tiles of 128 tokens of some spans.
inline std::size_t tiles_of(std::span<const TokenSpan> spans) noexcept {
    std::size_t tiles = 0;
    for (const TokenSpan& span : spans)
        tiles += (span.end - span.begin + backend::tile_tokens - 1) / backend::tile_tokens;
    return tiles;
}

/// Whether two spans are the same rows at the same positions.
inline bool are_same(const TokenSpan& a, const TokenSpan& b) noexcept {
    return a.keys.codes == b.keys.codes && a.values.codes == b.values.codes && a.begin == b.begin && a.end == b.end &&
           a.first_position == b.first_position && a.rope_lag == b.rope_lag;
}

/// Query rows at consecutive positions, and what they read.
struct ReadingRows {
    std::span<const TokenSpan> spans;
    std::size_t rows;
    std::int64_t first_position;
};

/// Readers `order[first .. first + count)` begin with the same `spans` spans, which all of their rows see whole.
struct SharedSpans {
    std::size_t first, count, spans;
};

/// Groups readers by what they begin with; each keeps at least one span of its own. Shared spans have at least
/// `least_tiles` tiles, groups at most `most_rows` rows. Of a tree, the stem is found, not what some branches share.
/// `whole`: rows see what stands behind them, too. Calls found(SharedSpans) for each group of two and more.
/// @param order  numbers of readers, put into order
/// Cost: n log n comparisons, and one of each span.
template <class ReaderOf, class Found>
void find_shared_spans(std::span<std::size_t> order, std::size_t least_tiles, std::size_t most_rows, bool whole,
                       ReaderOf&& reader, Found&& found) {
    const auto codes = [&](std::size_t i) { return static_cast<const void*>(reader(i).spans.front().keys.codes); };
    std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
        const void *x = codes(a), *y = codes(b);
        return x == y ? a < b : std::less<const void*>()(x, y);
    });
    // Of the first n spans of a: those that b begins with, all of whose tokens every row of b sees.
    const auto common = [&](const ReadingRows& a, const ReadingRows& b, std::size_t n) {
        const std::size_t most = (std::min)(n, b.spans.size() - 1);
        std::size_t k = 0;
        for (; k < most && are_same(a.spans[k], b.spans[k]); ++k) {
            const TokenSpan& span = b.spans[k];
            const auto behind = span.first_position + static_cast<std::int64_t>(span.end - span.begin);
            if (!whole && behind > b.first_position) break;
        }
        return k;
    };
    for (std::size_t begin = 0; begin < order.size();) {
        const ReadingRows first = reader(order[begin]);
        std::size_t spans = common(first, first, first.spans.size()), rows = first.rows, end = begin + 1;
        for (; end < order.size(); ++end) {
            const ReadingRows next = reader(order[end]);
            const std::size_t both = common(first, next, spans);
            if (rows + next.rows > most_rows || tiles_of(first.spans.first(both)) < least_tiles) break;
            spans = both;
            rows += next.rows;
        }
        if (end - begin > 1) found(SharedSpans{begin, end - begin, spans});
        begin = end;
    }
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
