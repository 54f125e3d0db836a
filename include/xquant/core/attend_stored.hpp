// Attention over what sequences have stored, without a step: nothing is added, and nothing changes.
#pragma once

#include <span>

#include <xquant/core/attend.hpp>
#include <xquant/core/operations.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// Query rows at consecutive positions, and the sequence that they read.
struct StoredRows {
    QueryRows rows;
    const SequenceState* state;
};

/// The last n tokens of a sequence, as rows of q from first_row on: a run for each stretch of consecutive positions.
/// Throws shape_error if they would see rows that were freed.
template <class Runs>
void list_last_tokens(const Slot& slot, std::size_t n, const PreparedLayer& prepared, std::size_t first_row,
                      Runs& runs) {
    const SequenceState& state = slot.states[prepared.page_group];
    const std::size_t stored = rows_in(state.segments), first = runs.size();
    std::size_t left = stored;  // tokens from the segment's first slot on
    for (const Segment& segment : state.segments) {
        const std::size_t skip = left > n ? (std::min)(left - n, segment.size()) : 0;
        const std::size_t rows = segment.size() - skip;
        left -= segment.size();
        if (rows == 0) continue;
        const std::int64_t position = segment.first_position + static_cast<std::int64_t>(skip);
        if (runs.size() > first) {
            QueryRows& last = runs.back().rows;
            if (last.first_position + static_cast<std::int64_t>(last.rows) == position) {
                last.rows += rows;
                first_row += rows;
                continue;
            }
        }
        runs.push_back({{first_row, rows, position}, &state});
        first_row += rows;
    }
    const std::size_t freed = freed_rows(state);
    if (freed == 0) return;
    const std::int64_t last_freed = latest_position(fullest(slot.states), freed - 1);
    expects(n <= stored && prepared.rules.first_seen(runs[first].rows.first_position) > last_freed, "attend: the last ",
            n, " tokens of a sequence would see rows up to position ", last_freed,
            ", which layers with a sliding window, or chunks, have freed");
}

/// Cache::attend has its documentation.
template <class Backend>
void attend_stored(Core& core, std::size_t layer, std::span<const QueryPart> parts, const MatrixView& q, float* out,
                   Visibility visibility, std::size_t out_stride, ExecutorRef threads) {
    expects(layer < core.layers().size(), "attend: layer ", layer, ", but the model has ", core.layers().size());
    const PreparedLayer& prepared = core.layers()[layer];
    expects<state_error>(prepared.role == CrossRole::none, "attend: layer ", layer,
                         " is read from sums over the layers, which are there in a step alone");
    expects<state_error>(visibility != Visibility::whole || (prepared.rules.window == 0 && prepared.rules.chunk == 0),
                         "attend: layer ", layer, " has a window or chunks (", prepared.rules.window, ", ",
                         prepared.rules.chunk, " tokens); outside of a step, Visibility::whole is for layers without");
    expects(!parts.empty(), "attend: the list of sequences is empty");
    constexpr std::size_t most = (std::size_t{1} << 31U) - 1;
    std::size_t total = 0, segments = 0;
    for (std::size_t i = 0; i < parts.size(); ++i) {
        const Slot& slot = core.find_idle(parts[i].sequence);
        const std::size_t rows = parts[i].rows, tokens = slot.states[prepared.page_group].tokens;
        expects(rows > 0, "attend: sequence ", i, " of the list has no query row; expected one or more");
        expects(rows <= most && total <= most - rows, "attend: a call has fewer than 2^31 query rows; entry ", i,
                " of the list asks for ", rows, " after ", total, " others");
        expects(tokens > 0 && (rows <= tokens || visibility == Visibility::whole), "attend: ", rows,
                " query rows for sequence ", i, " of the list, which has ", tokens, " tokens");
        total += rows;
        segments += slot.states[prepared.page_group].segments.size();
    }
    check_queries(prepared.shape, layer, q, {total, "query rows of all sequences"}, out, visibility, out_stride);

    const Undo trim([&core] { core.scratch().trim(); });
    LedgerVector<StoredRows, Purpose::workspace> runs(LedgerAllocator<StoredRows, Purpose::workspace>(core.ledger()));
    runs.reserve(parts.size() + segments);
    std::size_t first_row = 0, spans = 0;
    for (const QueryPart& part : parts) {
        const Slot& slot = core.find(part.sequence);
        const SequenceState& state = slot.states[prepared.page_group];
        if (visibility == Visibility::whole) {
            const Segment& last = state.segments.back();
            const auto behind = static_cast<std::int64_t>(last.size()) - static_cast<std::int64_t>(part.rows);
            runs.push_back({{first_row, part.rows, last.first_position + behind}, &state});
        } else {
            list_last_tokens(slot, part.rows, prepared, first_row, runs);
        }
        first_row += part.rows;
    }
    for (const StoredRows& run : runs) spans += run.state->segments.size();
    AttendTasks<Backend> attention(core);
    attention.start(prepared, q, visibility, runs.size(), spans);
    for (const StoredRows& run : runs) {
        attention.add(run.rows, {run.state->segments.data(), run.state->segments.size()}, [&](const Segment& segment) {
            return make_span(prepared, segment, [&](std::size_t stream) {
                return read_only(segment.page->stream(prepared.place, stream));
            });
        });
    }
    attention.run_all(out, out_stride, threads);
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
