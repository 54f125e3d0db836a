// Whether a saved cache can be read by a cache, and why not.
#pragma once

#include <cstdint>
#include <limits>
#include <string>

#include <xquant/core/operations.hpp>
#include <xquant/persistence/description.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// Levels are compared by themselves, rooms of pages are not part of a scheme.
inline bool same_format(StreamFormat a, StreamFormat b) noexcept {
    a.levels = b.levels = nullptr;
    a.tokens = b.tokens = 0;
    return a == b;
}

/// Throws mismatch_error, with the first reason found, where rows of the file do not mean what rows of the cache mean.
inline void check_rows(const Description& file, const Description& cache) {
    const auto needs = [](bool holds, const std::string& what) {
        if (!holds) raise<mismatch_error>("saved cache: the file is of another " + what);
    };
    needs(file.layers.size() == cache.layers.size(), "model: it has " + std::to_string(file.layers.size()) +
                                                         " layers, this one " + std::to_string(cache.layers.size()));
    needs(file.sinks == cache.sinks,
          "cache: it keeps " + std::to_string(file.sinks) + " sinks, this one " + std::to_string(cache.sinks));
    for (std::size_t i = 0; i < cache.layers.size(); ++i) {
        const SavedLayer &a = file.layers[i], &b = cache.layers[i];
        const std::string where = " (layer " + std::to_string(i) + ")";
        needs(a.shape == b.shape, "model: shapes differ" + where);
        needs(a.stack == b.stack && same_answers(a.rules, b.rules),
              "model: windows, RoPE, scales or other rules of attention differ" + where);
        bool streams = a.role == b.role && a.streams.size() == b.streams.size();
        for (std::size_t s = 0; s < b.streams.size() && streams; ++s) {
            streams = a.streams[s].row_width == b.streams[s].row_width &&
                      a.streams[s].coded.width == b.streams[s].coded.width;
        }
        needs(streams, "projection: its rows are not what this cache stores" + where);
        needs(same_answers(a.fingerprint, b.fingerprint),
              "model or projection: the weights, or the basis of its rows, differ" + where);
    }
    needs(same_format(file.accumulator, cache.accumulator), "cache: its accumulator is kept in another format");
}

/// Whether its rows are coded as the cache codes them, so that pages can be taken as they are.
inline bool same_codes(const Description& file, const Description& cache) noexcept {
    for (std::size_t i = 0; i < cache.layers.size(); ++i) {
        for (std::size_t s = 0; s < cache.layers[i].streams.size(); ++s) {
            const SavedStream &a = file.layers[i].streams[s], &b = cache.layers[i].streams[s];
            if (!same_format(a.coded, b.coded) || a.coded_levels != b.coded_levels) return false;
            if (!same_format(a.old, b.old) || a.old_levels != b.old_levels) return false;
        }
    }
    return file.rows == cache.rows;
}

/// The pages of one kind of one stack, as a description has them. Levels are those of the description, which must stay.
inline PageFormat format_of(Ledger& ledger, const Description& from, std::uint32_t stack, PageKind kind,
                            std::size_t streams) {
    const bool coded = kind == PageKind::coded || kind == PageKind::old;
    const std::size_t slots = coded                    ? coded_page_tokens
                              : kind == PageKind::rows ? row_page_tokens
                                                       : static_cast<std::size_t>(from.sinks);
    const Purpose purpose = coded ? Purpose::codes : kind == PageKind::rows ? Purpose::tail : Purpose::sinks;
    PageFormat out(ledger, purpose, slots, streams);
    out.sizes.total = page_header_bytes;
    for (const SavedLayer& layer : from.layers) {
        if (layer.stack != stack) continue;
        for (std::size_t s = 0; s < streams; ++s) {
            if (s >= layer.streams.size()) {
                out.sections.emplace_back();
                continue;
            }
            const SavedStream& stream = layer.streams[s];
            StreamFormat format = kind == PageKind::old ? stream.old : stream.coded;
            const std::vector<float>& levels = kind == PageKind::old ? stream.old_levels : stream.coded_levels;
            if (!levels.empty()) format.levels = levels.data();
            if (!coded) format = exact_rows(static_cast<std::uint32_t>(stream.row_width), from.rows);
            out.sections.push_back(out.sizes.place(format, slots));
        }
    }
    return out;
}

/// Throws damage_error unless the sequences of a description can be those of a cache. Pages have `slots` of their kind.
inline void check_sequences(const Description& file, const Core& core) {
    const auto sound = [](bool holds, const char* message) { expects<damage_error>(holds, message); };
    const auto slots_of = [&](PageKind kind) {
        return kind == PageKind::rows    ? row_page_tokens
               : kind == PageKind::sinks ? static_cast<std::size_t>(file.sinks)
                                         : coded_page_tokens;
    };
    for (const SavedPage& page : file.pages) {
        sound(page.stack < core.stacks() && page.kind <= PageKind::sinks && page.filled <= slots_of(page.kind),
              "saved cache: its list of pages is damaged");
    }
    const auto small = [](std::int64_t position) {
        return position > -largest_position && position < largest_position;
    };
    for (const auto& states : file.sequences) {
        sound(states.size() == core.stacks(), "saved cache: a sequence has another number of parts than the model");
        for (std::size_t i = 0; i < states.size(); ++i) {
            const SavedState& state = states[i];
            sound(state.tokens == states[0].tokens && state.next_position == states[0].next_position &&
                      state.moved == states[0].moved && small(state.next_position) && small(state.moved) &&
                      state.tokens < static_cast<std::uint64_t>(largest_position),
                  "saved cache: the parts of a sequence differ in length or position");
            std::uint64_t rows = 0;
            unsigned order = 0;
            std::int64_t next = std::numeric_limits<std::int64_t>::min();
            for (const SavedSegment& segment : state.segments) {
                sound(segment.page < file.pages.size(), "saved cache: a sequence names a page that there is not");
                const SavedPage& page = file.pages[segment.page];
                sound(page.stack == i && segment.begin < segment.end && segment.end <= page.filled &&
                          small(segment.first_position) && small(segment.moved) && segment.first_position >= next,
                      "saved cache: a sequence's list of rows is damaged");
                const unsigned place = page.kind == PageKind::sinks ? 0 : page.kind == PageKind::rows ? 2 : 1;
                sound(place >= order, "saved cache: a sequence's list of rows is out of order");
                order = place;
                rows += segment.end - segment.begin;
                next = segment.first_position + static_cast<std::int64_t>(segment.end - segment.begin);
            }
            const bool complete = rows == state.tokens || (rows < state.tokens && core.window(i) > 0);
            sound(complete && (state.segments.empty() || next <= state.next_position),
                  "saved cache: a sequence has another number of rows than of tokens");
        }
    }
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
