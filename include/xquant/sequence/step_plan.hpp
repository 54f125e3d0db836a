// The plan of a step: which rows go where, and what a query reads. Made from counts alone, before any row is seen.
//
// A sequence is   [sinks, f16] [coded rows] [tail, f16]   as a list of segments. A step adds n rows:
//
//     body rows (those after the sinks)   0 ........ coded ........ outside ........ size
//                                         | codes    | waiting      | window of `recent` rows
//
// Rows that leave the window are encoded: at once (granularity 1) if every stream is grouped per token, in groups of
// 128 if one is grouped per channel; until then they wait in the tail, in f16. A query reads the rows of its own step
// as they were given, the tail in f16, the rest from codes. In strict mode it reads everything outside the window from
// codes: the rows that wait are encoded into a page that lasts for this step only.
//
// Rows that follow each other need not be neighbours: tokens between them may have been erased, or positions shifted. A
// segment ends wherever positions jump, so one page may serve several segments of a sequence.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>

#include <xquant/storage/page.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// How many rows stay where; `granularity` rows are encoded together.
struct Retention {
    std::size_t sinks = 0, recent = 0, granularity = 1;
    bool strict = false;
    std::size_t window = 0;  ///< no layer looks back further than this many tokens; 0: some layer sees all

    /// Body rows that are encoded for good when there are `body` of them.
    [[nodiscard]] constexpr std::size_t coded(std::size_t body) const noexcept {
        return body > recent ? (body - recent) / granularity * granularity : 0;
    }
};

struct PageFormats {
    const PageFormat *coded, *rows, *sinks;
};

/// Rows from a page, or (null) from the step's own rows. The plan's segment lists own the pages.
struct Piece {
    Page* page = nullptr;
    std::size_t begin = 0, count = 0;
};

/// Rows to be written to slots of a page: `pieces` entries from first_piece on.
struct Write {
    Page* page = nullptr;
    std::size_t slot = 0, count = 0;
    std::size_t first_piece = 0, pieces = 0;
};

/// What a sequence is at the start of a step.
struct SequenceState {
    Segments segments;
    std::size_t tokens = 0;
    std::int64_t next_position = 0;
    std::int64_t rope_lag = 0;  ///< of the rows to come: RoPE is applied to their keys for next_position - rope_lag
};

/// Adds slots of a page to a list: to its last segment if they follow it, else as a new segment.
template <class List>
void add_rows(List& to, const PageRef& page, std::size_t slot, std::size_t rows, std::int64_t position,
              std::int64_t rope_lag) {
    if (!to.empty()) {
        Segment& last = to.back();
        if (last.page.get() == page.get() && last.end == slot && last.rope_lag == rope_lag &&
            last.first_position + static_cast<std::int64_t>(last.size()) == position) {
            last.end += rows;
            return;
        }
    }
    to.push_back({page, slot, slot + rows, position, rope_lag});
}

/// A new token of a sequence whose new tokens are a tree.
struct TreeRow {
    std::int32_t parent = -1;  ///< among the new tokens of the sequence; -1: what is stored
    std::int32_t depth = 0;    ///< it stands at next_position + depth
};

/// Rows of all segments of a list.
template <class List>
[[nodiscard]] std::size_t rows_in(const List& segments) noexcept {
    std::size_t rows = 0;
    for (const Segment& segment : segments) rows += segment.size();
    return rows;
}

/// Adds rows begin .. end of a list, counted over its segments, to another list.
template <class From, class To>
void copy_rows(const From& from, std::size_t begin, std::size_t end, To& to) {
    std::size_t first = 0;  // row of the segment's first slot
    for (const Segment& segment : from) {
        const std::size_t last = first + segment.size();
        if (last > begin && first < end) {
            const std::size_t skip = begin > first ? begin - first : 0, cut = last > end ? last - end : 0;
            to.push_back({segment.page, segment.begin + skip, segment.end - cut,
                          segment.first_position + static_cast<std::int64_t>(skip), segment.rope_lag});
        }
        first = last;
    }
}

class StepPlan {
public:
    template <class T>
    using Vector = LedgerVector<T, Purpose::workspace>;

    /// Plans n new tokens, or (n = 0, everything = true) the encoding of all rows outside the window.
    /// Allocates every page the step will need. Throws std::bad_alloc; the sequence is not touched.
    /// tree [n]: positions of the new tokens, which are stored in the order of the tree's rows; empty: one behind the
    /// other. It outlives the plan.
    StepPlan(Ledger& ledger, const SequenceState& now, std::size_t n, Retention keep, PageFormats formats,
             bool everything = false, std::span<const TreeRow> tree = {})
        : after(LedgerAllocator<Segment, Purpose::index>(ledger)),
          reads(LedgerAllocator<Segment, Purpose::workspace>(ledger)),
          writes(LedgerAllocator<Write, Purpose::workspace>(ledger)),
          pieces(LedgerAllocator<Piece, Purpose::workspace>(ledger)),
          tokens(now.tokens + n),
          next_position(now.next_position + static_cast<std::int64_t>(n)),
          ledger_(&ledger),
          now_(&now),
          tree_(tree),
          formats_(formats),
          seen_from_(keep.window > 0 ? now.next_position - static_cast<std::int64_t>(keep.window) + 1
                                     : (std::numeric_limits<std::int64_t>::min)()) {
        const bool only_sinks = count(Purpose::codes) + count(Purpose::tail) == 0;
        new_sinks_ = now.tokens < keep.sinks && only_sinks ? (std::min)(n, keep.sinks - now.tokens) : 0;
        waiting_ = count(Purpose::tail);
        const std::size_t body = waiting_ + n - new_sinks_;
        const std::size_t outside = body > keep.recent ? body - keep.recent : 0;
        const std::size_t coded = everything ? outside : keep.coded(body);
        const std::size_t before = now.tokens > keep.sinks ? now.tokens - keep.sinks : 0;  // body rows so far
        const bool extends = keep.granularity == 1;

        copy(Purpose::sinks, 0, after);
        if (new_sinks_ > 0) add_sinks();
        copy(Purpose::codes, 0, after);
        encode(coded, extends);
        copy(Purpose::tail, coded, after);
        keep_rows((std::max)(coded, waiting_), body, before > waiting_ ? before - waiting_ : 0);

        if (keep.strict) {
            copy(Purpose::sinks, 0, reads);
            read_new(0, new_sinks_);
            for (const Segment& segment : after) {
                if (segment.page->format().is_coded()) reads.push_back(segment);
            }
            encode_for_now(coded, outside);
            copy(Purpose::tail, outside, reads);
            const std::size_t exact = new_sinks_ + (outside > waiting_ ? outside - waiting_ : 0);
            read_new(exact, n);
        } else {
            for (const Segment& segment : now.segments) {
                if (seen(segment)) reads.push_back(segment);
            }
            read_new(0, n);
        }
        fit();
    }

    /// Of the n new rows only some stay, counted from the sequence's row `first_row` of the step: a path through the
    /// tree, from its root on. So those that lie in one segment are neighbours, and no segment is added.
    void keep(std::span<const std::size_t> rows, std::size_t first_row, std::size_t n) noexcept {
        const std::size_t before = rows_in(after) - n;
        std::size_t first = 0, next = 0, left = 0;  // row of the segment's first slot; entry of `rows`; segments so far
        for (Segment& segment : after) {
            const std::size_t last = first + segment.size();
            std::size_t skip = 0, stay = first < before ? (std::min)(before - first, segment.size()) : 0;
            for (; next < rows.size() && before + (rows[next] - first_row) < last; ++next) {
                if (stay == 0) skip = before + (rows[next] - first_row) - first;
                ++stay;
            }
            first = last;
            if (stay == 0) continue;
            segment.begin += skip;
            segment.end = segment.begin + stay;
            segment.first_position += static_cast<std::int64_t>(skip);
            if (&after[left] != &segment) after[left] = std::move(segment);
            ++left;
        }
        after.erase(after.begin() + static_cast<std::ptrdiff_t>(left), after.end());
        tokens -= n - rows.size();
        next_position -= static_cast<std::int64_t>(n - rows.size());
    }

    Segments after;         ///< the sequence once the step is committed
    Vector<Segment> reads;  ///< what queries see; no page: the step's rows
    Vector<Write> writes;
    Vector<Piece> pieces;
    std::size_t tokens;  ///< once committed
    std::int64_t next_position;

private:
    [[nodiscard]] std::int64_t position(std::size_t step_row) const noexcept {
        if (!tree_.empty()) return now_->next_position + tree_[step_row].depth;
        return now_->next_position + static_cast<std::int64_t>(step_row);
    }

    /// Rows from row .. on, before `to`, that stand at consecutive positions.
    [[nodiscard]] std::size_t neighbours(std::size_t row, std::size_t to) const noexcept {
        if (tree_.empty()) return to - row;
        std::size_t rows = 1;
        while (row + rows < to && position(row + rows) == position(row) + static_cast<std::int64_t>(rows)) ++rows;
        return rows;
    }

    /// Queries read rows from .. to of the step as they were given.
    void read_new(std::size_t from, std::size_t to) {
        for (std::size_t rows = 0; from < to; from += rows) {
            rows = neighbours(from, to);
            reads.push_back({PageRef{}, from, from + rows, position(from), now_->rope_lag});
        }
    }

    /// Rows from .. to of the step, which are written into a page from a slot on, become segments of `out`.
    template <class List>
    void add_new(std::size_t from, std::size_t to, const PageRef& page, std::size_t slot, List& out) const {
        for (std::size_t rows = 0; from < to; from += rows, slot += rows) {
            rows = neighbours(from, to);
            add_rows(out, page, slot, rows, position(from), now_->rope_lag);
        }
    }

    /// Whether any query of this step or later can see some of the segment. Other segments are dropped from the plan.
    [[nodiscard]] bool seen(const Segment& segment) const noexcept {
        return segment.first_position + static_cast<std::int64_t>(segment.size()) > seen_from_;
    }
    [[nodiscard]] bool is(Purpose purpose, const Segment& segment) const noexcept {
        return segment.page->format().purpose() == purpose && seen(segment);
    }

    /// Rows of the sequence that lie in pages of one kind.
    [[nodiscard]] std::size_t count(Purpose purpose) const noexcept {
        std::size_t rows = 0;
        for (const Segment& segment : now_->segments) {
            if (is(purpose, segment)) rows += segment.size();
        }
        return rows;
    }

    /// The sequence's segments of one kind, less their first `skip` rows.
    template <class List>
    void copy(Purpose purpose, std::size_t skip, List& out) const {
        for (const Segment& segment : now_->segments) {
            if (!is(purpose, segment)) continue;
            const std::size_t gone = (std::min)(skip, segment.size());
            skip -= gone;
            if (gone < segment.size()) {
                out.push_back({segment.page, segment.begin + gone, segment.end,
                               segment.first_position + static_cast<std::int64_t>(gone), segment.rope_lag});
            }
        }
    }

    /// Whether the page of `after`'s last segment has free slots from `slot` on, and no other sequence uses the page.
    /// Slots whose rows were erased or truncated are free, too.
    [[nodiscard]] bool can_extend(const PageFormat& format, std::size_t slot) const noexcept {
        if (after.empty()) return false;
        const Segment& last = after.back();
        const Page& page = *last.page.get();
        if (&page.format() != &format || last.end != slot || slot == format.tokens) return false;
        std::size_t owned = 0, used = 0;
        for (const Segment& segment : now_->segments) {
            if (segment.page.get() != &page) continue;
            ++owned;
            used = (std::max)(used, segment.end);
        }
        // A page opened by this plan is ours. Others may be shared: with more than the sequence and `after`.
        return owned == 0 || (page.references() == owned + references_in(after, page) && used <= slot);
    }

    /// Body rows body_row .. + rows are written into a page and become segments of `to`.
    template <class List>
    void write(const PageRef& page, std::size_t slot, std::size_t rows, std::size_t body_row, List& to) {
        Write out{page.get(), slot, rows, pieces.size(), 0};
        std::size_t left = rows, at = body_row;
        // The tail's rows come first, then the step's.
        std::size_t first = 0;
        for (const Segment& segment : now_->segments) {
            if (!is(Purpose::tail, segment)) continue;
            if (left > 0 && at >= first && at < first + segment.size()) {
                const std::size_t skip = at - first, take = (std::min)(left, segment.size() - skip);
                pieces.push_back({segment.page.get(), segment.begin + skip, take});
                add_rows(to, page, slot, take, segment.first_position + static_cast<std::int64_t>(skip),
                         segment.rope_lag);
                at += take;
                left -= take;
                slot += take;
            }
            first += segment.size();
        }
        if (left > 0) {
            const std::size_t row = new_sinks_ + (at - waiting_);
            pieces.push_back({nullptr, row, left});
            add_new(row, row + left, page, slot, to);
        }
        out.pieces = pieces.size() - out.first_piece;
        writes.push_back(out);
    }

    /// The last page of `after`, or a new one, for rows from `slot` on.
    PageRef page_for(const PageFormat& format, std::size_t slot) {
        return can_extend(format, slot) ? after.back().page : PageRef(Page::create(*ledger_, format));
    }

    /// Sinks fill their page from the first slot on, whatever was erased among them.
    void add_sinks() {
        for (std::size_t done = 0; done < new_sinks_;) {
            const std::size_t room = formats_.sinks->tokens, end = after.empty() ? room : after.back().end;
            const std::size_t slot = end == room ? 0 : end, take = (std::min)(new_sinks_ - done, room - slot);
            const PageRef page = page_for(*formats_.sinks, slot);
            writes.push_back({page.get(), slot, take, pieces.size(), 1});
            pieces.push_back({nullptr, done, take});
            add_new(done, done + take, page, slot, after);
            done += take;
        }
    }

    void encode(std::size_t rows, bool extends) {
        for (std::size_t done = 0; done < rows;) {
            const std::size_t slot = extends && !after.empty() ? after.back().end : 0;
            const bool more = extends && can_extend(*formats_.coded, slot);
            const PageRef page = more ? after.back().page : PageRef(Page::create(*ledger_, *formats_.coded));
            const std::size_t first = more ? slot : 0, take = (std::min)(rows - done, coded_page_tokens - first);
            write(page, first, take, done, after);
            done += take;
        }
    }

    /// Strict mode: rows from .. to are read from codes in this step, but stay in the tail.
    void encode_for_now(std::size_t from, std::size_t to) {
        for (std::size_t done = from; done < to;) {
            const PageRef page(Page::create(*ledger_, *formats_.coded));
            const std::size_t take = (std::min)(to - done, coded_page_tokens);
            write(page, 0, take, done, reads);
            done += take;
        }
    }

    /// New rows from .. to stay as rows, behind the rows that are there. Row i of the body goes to slot i % 32 of a
    /// page.
    void keep_rows(std::size_t from, std::size_t to, std::size_t coded_before) {
        for (std::size_t done = from; done < to;) {
            const bool goes_on = !after.empty() && &after.back().page->format() == formats_.rows;
            const std::size_t slot = (goes_on ? after.back().end : coded_before + done) % row_page_tokens;
            const std::size_t take = (std::min)(to - done, row_page_tokens - slot);
            write(page_for(*formats_.rows, slot), slot, take, done, after);
            done += take;
        }
    }

    /// Gives `after` the capacity that its length calls for, whatever way it grew.
    void fit() {
        Segments fitted(after.get_allocator());
        fitted.reserve(round_up(after.size(), segment_step));
        for (Segment& segment : after) fitted.push_back(std::move(segment));
        after = std::move(fitted);
    }

    Ledger* ledger_;
    const SequenceState* now_;
    std::span<const TreeRow> tree_;
    PageFormats formats_;
    std::int64_t seen_from_;                   ///< the first position that a query of this step or later can see
    std::size_t new_sinks_ = 0, waiting_ = 0;  ///< rows of the step that become sinks; rows that are in the tail now
};

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
