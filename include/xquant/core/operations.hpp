// What can be done to sequences besides adding tokens. Everything works on lists of segments: rows are never touched.
#pragma once

#include <cstdint>
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

inline std::size_t rows_in(const Segments& segments) noexcept {
    std::size_t rows = 0;
    for (const Segment& segment : segments) rows += segment.size();
    return rows;
}

/// Throws shape_error if the next token of a layer with a window would see rows that it has freed.
inline void check_window(const SequenceState& state, std::size_t window) {
    if (window == 0 || rows_in(state.segments) == state.tokens) return;
    // The freed rows come first, so the last of them stands no later than here.
    const std::int64_t freed =
        (state.segments.empty() ? state.next_position : state.segments.front().first_position) - 1;
    expects(freed <= state.next_position - static_cast<std::int64_t>(window),
            "layers with a sliding window, or chunks, of ", window, " tokens have freed the rows up to position ",
            freed, ", which a token at position ", state.next_position, " would see; keep more tokens");
}

/// The position of a token, or of the next token. False if the token has been freed.
inline bool position_of(const SequenceState& state, std::size_t token, std::int64_t& position) noexcept {
    if (token == state.tokens) {
        position = state.next_position;
        return true;
    }
    std::size_t first = state.tokens - rows_in(state.segments);
    if (token < first) return false;
    for (const Segment& segment : state.segments) {
        if (token < first + segment.size()) {
            position = segment.first_position + static_cast<std::int64_t>(token - first);
            return true;
        }
        first += segment.size();
    }
    return false;
}

/// Where the next token of a sequence stands if only the first `tokens` tokens stay: where the first one that goes
/// stands, so a gap before it stays.
inline std::int64_t position_after(const Slot& slot, std::size_t tokens) noexcept {
    std::int64_t position = 0;
    for (const SequenceState& state : slot.states) {
        if (position_of(state, tokens, position)) return position;
    }
    // All layers have windows and have freed it.
    const SequenceState& state = slot.states.front();
    return state.next_position - static_cast<std::int64_t>(state.tokens - tokens);
}

/// The first `tokens` tokens of one page group's state; the next one will stand at `next`.
inline SequenceState truncated(const SequenceState& state, std::size_t tokens, std::int64_t next) {
    std::size_t drop = state.tokens - tokens, count = state.segments.size();
    while (count > 0 && drop >= state.segments[count - 1].size()) drop -= state.segments[--count].size();
    SequenceState out{first_segments(state.segments, count), tokens, next, tokens > 0 ? state.rope_lag : 0};
    if (count > 0) out.segments.back().end -= drop;
    return out;
}

/// A state without the tokens begin .. end, whose tokens from `end` on are moved by `delta` positions.
inline SequenceState cut_and_moved(const SequenceState& state, std::size_t begin, std::size_t end, std::int64_t delta,
                                   bool keys_after_rope) {
    const std::size_t freed = state.tokens - rows_in(state.segments);
    SequenceState out{Segments(state.segments.get_allocator()), state.tokens - (end - begin),
                      state.next_position + delta, state.rope_lag + (keys_after_rope ? delta : 0)};
    // One segment may become two.
    out.segments.reserve(round_up(state.segments.size() + 1, segment_step));
    std::size_t first = freed;  // token of the segment's first slot
    for (const Segment& segment : state.segments) {
        const std::size_t last = first + segment.size();
        if (first < begin) {
            Segment& before = out.segments.emplace_back(segment);
            if (last > begin) before.end -= last - begin;
        }
        if (last > end) {
            const std::size_t skip = first < end ? end - first : 0;
            Segment& after = out.segments.emplace_back(segment);
            after.begin += skip;
            after.first_position += static_cast<std::int64_t>(skip) + delta;
            if (keys_after_rope) after.rope_lag += delta;
        }
        first = last;
    }
    const std::size_t fits = round_up(out.segments.size(), segment_step);
    if (fits < out.segments.capacity()) out.segments = first_segments(out.segments, out.segments.size());
    if (out.tokens == 0) out.rope_lag = 0;
    return out;
}

/// Each state of a sequence becomes what changed(state) makes of it.
/// Throws shape_error, std::bad_alloc; nothing has changed then.
template <class F>
void change_states(Core& core, Slot& slot, F&& changed) {
    NewStates states = new_states(core, slot.states.size());
    for (std::size_t i = 0; i < slot.states.size(); ++i) {
        states.push_back(changed(slot.states[i]));
        check_window(states.back(), core.window(i));
    }
    become(slot, states.data());
}

inline Sequence fork_sequence(Core& core, Sequence sequence, std::size_t tokens) {
    const Slot& from = core.find_idle(sequence);
    expects(tokens <= from.states.front().tokens, "fork: ", tokens, " tokens, but the sequence has ",
            from.states.front().tokens);
    const std::int64_t next = position_after(from, tokens);
    NewStates states = new_states(core, from.states.size());
    for (std::size_t i = 0; i < from.states.size(); ++i) {
        states.push_back(truncated(from.states[i], tokens, next));
        if (tokens < from.states[i].tokens) check_window(states.back(), core.window(i));
    }
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
    const std::int64_t next = position_after(slot, tokens);
    change_states(core, slot, [&](const SequenceState& state) { return truncated(state, tokens, next); });
}

/// Tokens begin .. end are taken out; what follows moves up to where they began.
inline void erase_tokens(Core& core, Sequence sequence, std::size_t begin, std::size_t end) {
    Slot& slot = core.find_idle(sequence);
    const std::size_t size = slot.states.front().tokens;
    expects(begin <= end && end <= size, "erase: tokens ", begin, " .. ", end, ", but the sequence has ", size);
    if (begin == end) return;
    const std::int64_t delta = -static_cast<std::int64_t>(end - begin);
    const bool turned = core.keys_after_rope();
    change_states(core, slot,
                  [&](const SequenceState& state) { return cut_and_moved(state, begin, end, delta, turned); });
}

inline void shift_tokens(Core& core, Sequence sequence, std::size_t begin, std::int64_t delta) {
    Slot& slot = core.find_idle(sequence);
    const std::size_t size = slot.states.front().tokens;
    expects(begin <= size, "shift: from token ", begin, " on, but the sequence has ", size);
    if (delta == 0) return;
    expects(delta > -largest_position && delta < largest_position, "shift: by ", delta, "; positions stay below 2^48");
    for (const SequenceState& state : slot.states) {
        std::int64_t here = 0, before = 0;
        const std::int64_t next = state.next_position + delta;
        expects(next > -largest_position && next < largest_position, "shift: the next position would be ", next,
                "; positions stay below 2^48");
        if (begin == 0 || delta > 0) continue;
        if (!position_of(state, begin, here) || !position_of(state, begin - 1, before)) continue;
        expects(here + delta > before, "shift: token ", begin, " would move to position ", here + delta,
                ", and the token before it stands at ", before);
    }
    const bool turned = core.keys_after_rope();
    change_states(core, slot,
                  [&](const SequenceState& state) { return cut_and_moved(state, begin, begin, delta, turned); });
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
