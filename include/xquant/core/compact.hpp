// Closes the holes that erased tokens left in a sequence's pages: rows move, as they are stored, to the slots that they
// would have in a sequence that never had the holes.
//
// Rows that are coded one by one are copied with their scales, zeros and outliers; nothing is decoded. Pages whose
// groups span several tokens stay as they are, since a group cannot be cut. So does a page whose rows stand where they
// should.
#pragma once

#include <algorithm>
#include <cstring>

#include <xquant/core/operations.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// Slots of a page that go to other slots, of a page that is counted from 0.
struct Move {
    const Segment* from = nullptr;  ///< the segment that they are part of
    std::size_t skip = 0,           ///< slots of the segment before them
        count = 0, page = 0, slot = 0;

    [[nodiscard]] std::size_t begin() const noexcept { return from->begin + skip; }
};
using Moves = LedgerVector<Move, Purpose::workspace>;

/// Whether rows of a page can be copied one by one.
inline bool has_rows(const PageFormat& format) noexcept {
    return std::all_of(format.sections.begin(), format.sections.end(), [](const PageSection& section) {
        return section.format.width == 0 || section.format.group_tokens == 1;
    });
}

/// Slots of a stream -> slots of another page's. Groups of one token.
inline void copy_slots(const StreamView& from, std::size_t first, std::size_t count, const MutableStreamView& to,
                       std::size_t slot) noexcept {
    const StreamFormat& format = from.format;
    for (std::size_t b = 0; b < format.channel_blocks(); ++b) {
        const auto copy = [&](auto* out, const auto* in, std::size_t each) {
            if (in == nullptr) return;
            const std::size_t source = format.group_index(first, b) * each, target = format.group_index(slot, b) * each;
            std::memcpy(out + target, in + source, count * each * sizeof *in);
        };
        std::memcpy(to.codes + format.code_offset(slot, b), from.codes + format.code_offset(first, b),
                    count * format.group_bytes(format.channels_of(b)));
        copy(to.scales, from.scales, 1);
        copy(to.zeros, from.zeros, 1);
        copy(to.outliers, from.outliers, format.outliers);
        copy(to.indices, from.indices, format.outliers);
    }
}

/// Where the rows of a sequence go. `sinks`: Options::sinks.
inline Moves plan_moves(Core& core, const SequenceState& state, std::size_t sinks) {
    Moves moves{LedgerAllocator<Move, Purpose::workspace>(core.ledger())};
    std::size_t pages = 0, slot = 0, token = state.tokens - rows_in(state.segments);
    const PageFormat* format = nullptr;
    const Page* kept = nullptr;
    for (const Segment& segment : state.segments) {
        const PageFormat& own = segment.page->format();
        const bool copies = has_rows(own);
        if (&own != format || !copies) {
            // Row i behind the sinks lives in slot i mod 32 of a page of newest rows. Other pages begin with slot 0.
            if (&own != format || segment.page.get() != kept) ++pages;
            const std::size_t row = token > sinks ? token - sinks : 0;
            slot = !copies ? segment.begin : own.kind == PageKind::rows ? row % own.tokens : 0;
        }
        format = &own;
        kept = segment.page.get();
        for (std::size_t done = 0; done < segment.size();) {
            if (slot == own.tokens) {
                ++pages;
                slot = 0;
            }
            const std::size_t count = (std::min)(segment.size() - done, own.tokens - slot);
            moves.push_back({&segment, done, count, pages - 1, slot});
            slot += count;
            done += count;
        }
        token += segment.size();
    }
    return moves;
}

/// The page that moves [count] to one page fill: the one that they come from if its rows stand there already.
inline PageRef moved_page(Core& core, const Move* moves, std::size_t count) {
    const PageRef& first = moves->from->page;
    bool stays = true;
    for (std::size_t i = 0; i < count; ++i) {
        stays &= moves[i].from->page.get() == first.get() && moves[i].begin() == moves[i].slot;
    }
    if (stays) return first;
    const PageFormat& format = first->format();
    PageRef made(Page::create(core.ledger(), format));
    // Pages on a device are put together in memory of the processor.
    PageMemory* const device = core.ledger().page_memory();
    const std::size_t bytes = device == nullptr ? 0 : made->data().size();
    LedgerVector<std::byte, Purpose::workspace> memory(2 * bytes,
                                                       LedgerAllocator<std::byte, Purpose::workspace>(core.ledger()));
    std::byte* const target = device == nullptr ? made->base() : memory.data() - page_header_bytes;
    const Page* read = nullptr;
    for (std::size_t i = 0; i < count; ++i) {
        const Page* page = moves[i].from->page.get();
        std::byte* source = page->base();
        if (device != nullptr) {
            if (page != read) device->read(memory.data() + bytes, page->data().data(), bytes);
            read = page;
            source = memory.data() + bytes - page_header_bytes;
        }
        for (const PageSection& section : format.sections) {
            if (section.format.width == 0) continue;
            copy_slots(read_only(view_section(section, source)), moves[i].begin(), moves[i].count,
                       view_section(section, target), moves[i].slot);
        }
    }
    if (device != nullptr) device->write(made->data().data(), memory.data(), bytes);
    return made;
}

/// The state with its rows in as few pages as a sequence that never had holes.
inline SequenceState compacted(Core& core, const SequenceState& state) {
    const Moves moves = plan_moves(core, state, core.options().sinks);
    SequenceState out{Segments(state.segments.get_allocator()), state.tokens, state.next_position, state.rope_lag};
    for (std::size_t i = 0; i < moves.size();) {
        std::size_t end = i;
        while (end < moves.size() && moves[end].page == moves[i].page) ++end;
        const PageRef page = moved_page(core, moves.data() + i, end - i);
        for (; i < end; ++i) {
            const Segment& from = *moves[i].from;
            add_rows(out.segments, page, moves[i].slot, moves[i].count,
                     from.first_position + static_cast<std::int64_t>(moves[i].skip), from.rope_lag);
        }
    }
    out.segments = first_segments(out.segments, out.segments.size());
    return out;
}

/// Throws budget_error, std::bad_alloc; nothing has changed then.
inline void compact_sequence(Core& core, Sequence sequence) {
    Slot& slot = core.find_idle(sequence);
    NewStates states = new_states(core, slot.states.size());
    for (const SequenceState& state : slot.states) states.push_back(compacted(core, state));
    become(slot, states.data());
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
