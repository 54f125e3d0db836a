// What can be done to sequences besides adding tokens. Everything works on lists of segments: rows are never touched.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <span>

#include <xquant/core/core.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// A list that holds the first `count` segments of another one, with the capacity that its length calls for.
inline Segments first_segments(const Segments& from, std::size_t count) {
    Segments out(from.get_allocator());
    out.reserve(round_up(count, segment_step));
    for (std::size_t i = 0; i < count; ++i) out.push_back(from[i]);
    return out;
}

/// The states that an operation has prepared for a sequence: one for each page group.
using NewStates = LedgerVector<SequenceState, Purpose::workspace>;

inline NewStates new_states(Core& core, std::size_t count) {
    NewStates states(LedgerAllocator<SequenceState, Purpose::workspace>(core.ledger()));
    states.reserve(count);
    return states;
}

/// The sequence becomes what the states [page_groups] say.
inline void become(Slot& slot, SequenceState* states) noexcept {
    for (std::size_t i = 0; i < slot.states.size(); ++i) {
        SequenceState& state = slot.states[i];
        state.segments.swap(states[i].segments);
        state.tokens = states[i].tokens;
        state.next_position = states[i].next_position;
        state.rope_lag = states[i].rope_lag;
        free_list(states[i].segments);
    }
}

/// How many rows the windows of a page group's layers are past: the first ones, always.
inline std::size_t freed_rows(const SequenceState& state) noexcept { return state.tokens - rows_in(state.segments); }

/// Of the states of a sequence the one that has freed the fewest rows: it knows the position of every token that any
/// layer still has.
inline const SequenceState& fullest(std::span<const SequenceState> states) noexcept {
    return *std::min_element(states.begin(), states.end(), [](const SequenceState& a, const SequenceState& b) {
        return freed_rows(a) < freed_rows(b);
    });
}

/// The position of a token, or (token = tokens) of the next one. Of a token that has been freed: the last position at
/// which it can stand, if all between it and the first one that is left are neighbours.
inline std::int64_t latest_position(const SequenceState& full, std::size_t token) noexcept {
    std::size_t first = freed_rows(full);
    if (token < first) {
        const std::int64_t front = full.segments.empty() ? full.next_position : full.segments.front().first_position;
        return front - static_cast<std::int64_t>(first - token);
    }
    for (const Segment& segment : full.segments) {
        if (token < first + segment.size()) return segment.first_position + static_cast<std::int64_t>(token - first);
        first += segment.size();
    }
    return full.next_position;
}

/// Tokens that stand before a position. Those that have been freed count as such.
inline std::size_t tokens_before(const SequenceState& state, std::int64_t position) noexcept {
    std::size_t tokens = freed_rows(state);
    for (const Segment& segment : state.segments) {
        if (segment.first_position >= position) break;
        const std::int64_t before = position - segment.first_position;
        tokens +=
            before < static_cast<std::int64_t>(segment.size()) ? static_cast<std::size_t>(before) : segment.size();
    }
    return tokens;
}

/// Throws shape_error if a token at `next` would see rows that layers with a window have freed.
inline void check_windows(const Core& core, std::span<const SequenceState> states, std::int64_t next) {
    const SequenceState& full = fullest(states);
    for (std::size_t i = 0; i < states.size(); ++i) {
        const std::size_t window = core.window(i), freed = freed_rows(states[i]);
        if (window == 0 || freed == 0) continue;
        const std::int64_t last = latest_position(full, freed - 1);
        expects(last <= next - static_cast<std::int64_t>(window), "layers with a sliding window, or chunks, of ",
                window, " tokens have freed the rows up to position ", last, ", which a token at position ", next,
                " would see");
    }
}

inline std::int64_t position_of_token(const Slot& slot, std::size_t token) {
    const SequenceState& full = fullest(slot.states);
    const std::size_t freed = freed_rows(full);
    expects(token <= full.tokens, "position_of: token ", token, ", but the sequence has ", full.tokens);
    expects(token >= freed, "position_of: all layers have sliding windows and have freed token ", token,
            "; the first token that is left is ", freed);
    return latest_position(full, token);
}

inline std::size_t token_at_position(const Slot& slot, std::int64_t position) noexcept {
    return tokens_before(fullest(slot.states), std::clamp(position, -largest_position, largest_position));
}

/// The least number of tokens such that truncate accepts it, and all above it.
inline std::size_t shortest_prefix_of(const Core& core, const Slot& slot) noexcept {
    const SequenceState& full = fullest(slot.states);
    std::size_t least = 0;
    for (std::size_t i = 0; i < slot.states.size(); ++i) {
        const std::size_t window = core.window(i), freed = freed_rows(slot.states[i]);
        if (window <= 1 || freed == 0) continue;
        // Whether token `token` may be the next one if those up to `last` are freed.
        const auto beyond = [&](std::size_t last, std::size_t token) {
            return latest_position(full, last) + static_cast<std::int64_t>(window) <= latest_position(full, token);
        };
        std::size_t n =
            tokens_before(slot.states[i], latest_position(full, freed - 1) + static_cast<std::int64_t>(window));
        // Behind a gap as wide as the window nothing is seen; an empty sequence sees nothing either.
        while (n > 0 && n <= freed && (n == 1 || beyond(n - 2, n - 1))) --n;
        least = (std::max)(least, n);
    }
    return least;
}

/// The first `tokens` tokens of one page group's state; the next one will stand at `next`.
inline SequenceState truncated(const SequenceState& state, std::size_t tokens, std::int64_t next) {
    std::size_t drop = state.tokens - tokens, count = state.segments.size();
    while (count > 0 && drop >= state.segments[count - 1].size()) drop -= state.segments[--count].size();
    SequenceState out{first_segments(state.segments, count), tokens, next, tokens > 0 ? state.rope_lag : 0};
    if (count > 0) out.segments.back().end -= drop;
    return out;
}

/// Tokens begin .. end of a sequence, which move by `delta` positions.
struct MovedTokens {
    std::size_t begin, end;
    std::int64_t delta;
};

/// A state that has the tokens of these ranges alone, which come in order; the next one moves by `next_delta`.
inline SequenceState moved(const SequenceState& state, std::initializer_list<MovedTokens> ranges,
                           std::int64_t next_delta, bool keys_after_rope) {
    SequenceState out{Segments(state.segments.get_allocator()), 0, state.next_position + next_delta,
                      state.rope_lag + (keys_after_rope ? next_delta : 0)};
    for (const MovedTokens& range : ranges) out.tokens += range.end - range.begin;
    // Each boundary of a range may cut a segment in two.
    out.segments.reserve(round_up(state.segments.size() + ranges.size() - 1, segment_step));
    std::size_t first = freed_rows(state);  // token of the segment's first slot
    for (const Segment& segment : state.segments) {
        const std::size_t last = first + segment.size();
        for (const MovedTokens& range : ranges) {
            const std::size_t from = (std::max)(first, range.begin), to = (std::min)(last, range.end);
            if (from >= to) continue;
            add_rows(out.segments, segment.page, segment.begin + (from - first), to - from,
                     segment.first_position + static_cast<std::int64_t>(from - first) + range.delta,
                     segment.rope_lag + (keys_after_rope ? range.delta : 0));
        }
        first = last;
    }
    const std::size_t fits = round_up(out.segments.size(), segment_step);
    if (fits < out.segments.capacity()) out.segments = first_segments(out.segments, out.segments.size());
    if (out.tokens == 0) out.rope_lag = 0;
    return out;
}

/// Pages that a sequence alone has, and of which it no longer reads all slots, lose what is kept beside them.
inline void forget_cut_pages(Core& core, Slot& slot) noexcept {
    if (core.rebuilt() == nullptr) return;
    for (const SequenceState& state : slot.states) {
        const Segments& list = state.segments;
        for (std::size_t i = 0, slots = 0; i < list.size(); ++i) {
            Page& page = *list[i].page.get();
            slots += list[i].size();
            if (i + 1 < list.size() && list[i + 1].page.get() == &page) continue;
            if (page.companions() != nullptr && slots < page.format().tokens &&
                page.references() == references_in(list, page)) {
                core.rebuilt()->forget(page);
            }
            slots = 0;
        }
    }
}

/// Each state of a sequence becomes what changed(state) makes of it.
/// Throws shape_error, std::bad_alloc; nothing has changed then.
template <class F>
void change_states(Core& core, Slot& slot, F&& changed) {
    NewStates states = new_states(core, slot.states.size());
    for (const SequenceState& state : slot.states) states.push_back(changed(state));
    check_windows(core, states, states.front().next_position);
    become(slot, states.data());
    forget_cut_pages(core, slot);
}

inline Sequence fork_sequence(Core& core, Sequence sequence, std::size_t tokens) {
    const Slot& from = core.find_idle(sequence);
    expects(tokens <= from.states.front().tokens, "fork: ", tokens, " tokens, but the sequence has ",
            from.states.front().tokens);
    const std::int64_t next = latest_position(fullest(from.states), tokens);
    NewStates states = new_states(core, from.states.size());
    for (const SequenceState& state : from.states) states.push_back(truncated(state, tokens, next));
    if (tokens < from.states.front().tokens) check_windows(core, states, next);
    const Sequence made = core.create();
    Slot& to = core.find(made);
    // From here on nothing throws.
    become(to, states.data());
    return made;
}

inline void truncate_sequence(Core& core, Sequence sequence, std::size_t tokens) {
    Slot& slot = core.find_idle(sequence);
    const std::size_t now = slot.states.front().tokens;
    expects(tokens <= now, "truncate: ", tokens, " tokens, but the sequence has ", now);
    if (tokens == now) return;
    const std::int64_t next = latest_position(fullest(slot.states), tokens);
    change_states(core, slot, [&](const SequenceState& state) { return truncated(state, tokens, next); });
}

/// Throws state_error where tokens would move that cannot.
inline void expects_movable(const Core& core, const char* verb, std::size_t begin, std::size_t end,
                            std::int64_t delta) {
    expects<state_error>(begin == end || delta == 0 || !core.keys_in_place(), verb, ": tokens ", begin, " .. ", end,
                         " would move by ", delta,
                         " positions, and keys whose LayerInput is keys_in_place cannot move");
}

/// Tokens begin .. end are taken out; what follows moves up to where they began, or stays where it stands.
inline void erase_tokens(Core& core, Sequence sequence, std::size_t begin, std::size_t end, Gap gap) {
    Slot& slot = core.find_idle(sequence);
    const std::size_t size = slot.states.front().tokens;
    expects(begin <= end && end <= size, "erase: tokens ", begin, " .. ", end, ", but the sequence has ", size);
    if (begin == end) return;
    const std::int64_t delta = gap == Gap::close ? -static_cast<std::int64_t>(end - begin) : 0;
    expects_movable(core, "erase", end, size, delta);
    const bool turned = core.keys_after_rope();
    change_states(core, slot, [&](const SequenceState& state) {
        return moved(state, {{0, begin, 0}, {end, size, delta}}, delta, turned);
    });
}

/// Throws shape_error unless tokens begin .. end (with `and_next` all from begin on, and the next one) stay between
/// their neighbours when they move by `delta`.
inline void check_shift(const SequenceState& full, std::size_t begin, std::size_t end, std::int64_t delta,
                        bool and_next) {
    const char* const range = "; positions lie between -2^48 and 2^48";
    expects(delta > -largest_position && delta < largest_position, "shift: by ", delta, range);
    const std::int64_t first = latest_position(full, begin) + delta,
                       last = (and_next ? full.next_position : latest_position(full, end - 1)) + delta;
    expects(first > -largest_position && last < largest_position, "shift: tokens would move to positions ", first,
            " .. ", last, range);
    const auto stands = [&](std::size_t token) {
        return token < freed_rows(full) ? " may stand at up to (all layers have freed it) " : " stands at ";
    };
    if (begin > 0) {
        const std::int64_t before = latest_position(full, begin - 1);
        expects(first > before, "shift: token ", begin, " would move to position ", first, ", and the token before it",
                stands(begin - 1), before);
    }
    if (!and_next) {
        const std::int64_t behind = latest_position(full, end);
        expects(last < behind, "shift: token ", end - 1, " would move to position ", last, ", and the token behind it",
                stands(end), behind);
    }
}

/// Tokens begin .. end move by `delta`; with `and_next`, all from begin on and the next one.
inline void shift_tokens(Core& core, Sequence sequence, std::size_t begin, std::size_t end, std::int64_t delta,
                         bool and_next) {
    Slot& slot = core.find_idle(sequence);
    if (delta == 0 || (begin == end && !and_next)) return;
    check_shift(fullest(slot.states), begin, end, delta, and_next);
    expects_movable(core, "shift", begin, end, delta);
    const std::size_t size = slot.states.front().tokens;
    const bool turned = core.keys_after_rope();
    change_states(core, slot, [&](const SequenceState& state) {
        return moved(state, {{0, begin, 0}, {begin, end, delta}, {end, size, 0}}, and_next ? delta : 0, turned);
    });
}

inline void shift_from(Core& core, Sequence sequence, std::size_t begin, std::int64_t delta) {
    const std::size_t size = core.find(sequence).states.front().tokens;
    expects(begin <= size, "shift: from token ", begin, " on, but the sequence has ", size);
    shift_tokens(core, sequence, begin, size, delta, true);
}

inline void shift_range(Core& core, Sequence sequence, std::size_t begin, std::size_t end, std::int64_t delta) {
    const std::size_t size = core.find(sequence).states.front().tokens;
    expects(begin <= end && end <= size, "shift: tokens ", begin, " .. ", end, ", but the sequence has ", size);
    shift_tokens(core, sequence, begin, end, delta, false);
}

/// Keys of the tokens to come are turned by as much less than their position as before: rope_lag stays.
inline void place_next(Core& core, Sequence sequence, std::int64_t position) {
    Slot& slot = core.find_idle(sequence);
    const SequenceState& full = fullest(slot.states);
    expects(position > -largest_position && position < largest_position, "set_next_position: ", position,
            "; positions lie between -2^48 and 2^48");
    if (full.tokens > 0) {
        const std::int64_t last = latest_position(full, full.tokens - 1);
        expects(position > last, "set_next_position: ", position, ", and the last token ",
                full.segments.empty() ? "may stand at up to (all layers have freed it) " : "stands at ", last);
    }
    check_windows(core, slot.states, position);
    for (SequenceState& state : slot.states) state.next_position = position;
}

/// Sequence i becomes what sequence parents[i] was.
inline void gather_sequences(Core& core, std::span<const Sequence> sequences, std::span<const std::size_t> parents) {
    expects(sequences.size() == parents.size(), "gather: ", parents.size(), " parents for ", sequences.size(),
            " sequences; expected one for each");
    {
        ListedOnce listed;
        for (std::size_t i = 0; i < sequences.size(); ++i) {
            Slot& slot = core.find_idle(sequences[i]);
            expects(parents[i] < sequences.size(), "gather: parents[", i, "] is ", parents[i],
                    "; expected a number below ", sequences.size(), ", the length of the list");
            listed.add(slot, "gather");
        }
    }
    NewStates states = new_states(core, sequences.size() * core.page_groups());
    for (const std::size_t parent : parents) {
        for (const SequenceState& state : core.find(sequences[parent]).states) {
            states.push_back(truncated(state, state.tokens, state.next_position));
        }
    }
    for (std::size_t i = 0; i < sequences.size(); ++i) {
        // Where a sequence is its own parent, nothing changes.
        become(core.find(sequences[i]), states.data() + i * core.page_groups());
    }
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
