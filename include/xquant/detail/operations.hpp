// What can be done to sequences besides adding tokens. Everything works on lists of segments: rows are never touched.
#pragma once

#include <algorithm>

#include <xquant/detail/core.hpp>

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

inline Sequence fork_sequence(Core& core, Sequence sequence) {
    static_cast<void>(core.find_idle(sequence));
    const Sequence made = core.create();  // may move the slots
    const Slot& from = core.find(sequence);
    Slot& to = core.find(made);
    try {
        for (std::size_t i = 0; i < from.states.size(); ++i) {
            const SequenceState& state = from.states[i];
            to.states[i].segments = first_segments(state.segments, state.segments.size());
            to.states[i].tokens = state.tokens;
            to.states[i].next_position = state.next_position;
        }
    } catch (...) {
        core.drop(made);
        throw;
    }
    return made;
}

/// The first `tokens` tokens of one stack's state.
inline SequenceState truncated(const SequenceState& state, std::size_t tokens) {
    std::size_t drop = state.tokens - tokens, count = state.segments.size();
    while (count > 0 && drop >= state.segments[count - 1].size()) drop -= state.segments[--count].size();
    SequenceState out{first_segments(state.segments, count), tokens, 0};
    if (count == 0) return out;
    Segment& last = out.segments.back();
    last.end -= drop;
    out.next_position = last.first_position + static_cast<std::int64_t>(last.size());
    return out;
}

/// The first position of rows that a window frees one day: those behind the sinks.
inline std::int64_t first_kept(const SequenceState& state) {
    for (const Segment& segment : state.segments) {
        if (segment.page->format().purpose != Purpose::sinks) return segment.first_position;
    }
    return state.next_position;
}

inline void truncate_sequence(Core& core, Sequence sequence, std::size_t tokens) {
    Slot& slot = core.find_idle(sequence);
    const std::size_t now = slot.states.front().tokens;
    expects(tokens <= now, "truncate: the sequence does not have so many tokens");
    if (tokens == now) return;
    LedgerVector<SequenceState, Purpose::workspace> states(
        LedgerAllocator<SequenceState, Purpose::workspace>(core.ledger()));
    states.reserve(slot.states.size());
    for (std::size_t i = 0; i < slot.states.size(); ++i) {
        SequenceState& state = states.emplace_back(truncated(slot.states[i], tokens));
        const std::size_t window = core.window(i);
        if (window == 0) continue;
        const std::int64_t oldest = first_kept(slot.states[i]), sinks = static_cast<std::int64_t>(core.options().sinks);
        const std::int64_t needed = std::max(sinks, state.next_position - static_cast<std::int64_t>(window) + 1);
        expects(
            oldest <= needed,
            "truncate: layers with a sliding window have freed rows that the next token would see; keep more tokens");
    }
    // From here on nothing throws.
    for (std::size_t i = 0; i < states.size(); ++i) {
        slot.states[i].segments.swap(states[i].segments);
        slot.states[i].tokens = states[i].tokens;
        slot.states[i].next_position = states[i].next_position;
        Segments(states[i].segments.get_allocator()).swap(states[i].segments);
        // Slots behind the end are free again if no one else shares the page.
        if (slot.states[i].segments.empty()) continue;
        const Segment& last = slot.states[i].segments.back();
        if (last.page->references() == 1) last.page->filled = last.end;
    }
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
