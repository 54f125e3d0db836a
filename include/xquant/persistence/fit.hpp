// Whether a saved cache can be read by a cache, and why not.
#pragma once

#include <cstdint>
#include <limits>

#include <xquant/core/operations.hpp>
#include <xquant/persistence/description.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// Whether two formats are equal but for levels, which are compared apart, and the room of the page.
inline bool same_format(StreamFormat a, StreamFormat b) noexcept {
    a.levels = b.levels = nullptr;
    a.tokens = b.tokens = 0;
    return a == b;
}

/// Throws mismatch_error, with the first reason found, where rows of the file do not mean what rows of the cache mean.
inline void check_rows(const Description& file, const Description& cache) {
    const auto needs = [](bool holds, const auto&... what) {
        if (!holds) raise<mismatch_error>("saved cache: the file is of another ", what...);
    };
    needs(file.layers.size() == cache.layers.size(), "model: it has ", file.layers.size(), " layers, this one ",
          cache.layers.size());
    needs(file.sinks == cache.sinks, "cache: it keeps ", file.sinks, " sinks, this one ", cache.sinks);
    for (std::size_t i = 0; i < cache.layers.size(); ++i) {
        const SavedLayer &a = file.layers[i], &b = cache.layers[i];
        needs(a.shape == b.shape, "model: layer ", i, " has width ", a.shape.width, ", heads ", a.shape.heads,
              ", kv_heads ", a.shape.kv_heads, " and head_dim ", a.shape.head_dim, ", this one ", b.shape.width, ", ",
              b.shape.heads, ", ", b.shape.kv_heads, " and ", b.shape.head_dim);
        // The projection comes first: what it stores decides which rules there are.
        needs(a.role == b.role && a.streams.size() == b.streams.size(), "projection: layer ", i, " has ",
              a.streams.size(), " streams there and ", b.streams.size(),
              " here, or only one of file and cache stores differences");
        for (std::size_t s = 0; s < b.streams.size(); ++s) {
            const SavedStream &from = a.streams[s], &to = b.streams[s];
            needs(from.row_width == to.row_width && from.coded.width == to.coded.width, "projection: layer ", i,
                  ", stream ", s, ": rows have ", from.row_width, " channels there and ", to.row_width, " here (",
                  from.coded.width, " and ", to.coded.width, " once coded)");
        }
        const bool places = a.rules.size() > shared_rule && b.rules.size() > shared_rule;
        needs(places && a.rules[keys_after_rope_rule] == b.rules[keys_after_rope_rule] &&
                  a.rules[shared_rule] == b.rules[shared_rule],
              "projection: layer ", i,
              ": only one of file and cache stores keys after RoPE, or has channels that heads share");
        needs(a.page_group == b.page_group && same_answers(a.rules, b.rules), "model: layer ", i,
              ": its window, RoPE, scale or another rule of attention differs");
        needs(same_answers(a.fingerprint, b.fingerprint), "model or projection: layer ", i,
              ": its weights, or the basis of its rows, differ");
    }
    needs(same_format(file.accumulator, cache.accumulator), "cache: its accumulator is kept in another format");
}

/// Whether its rows are coded as the cache codes them, so that pages can be taken as they are.
inline bool same_codes(const Description& file, const Description& cache) noexcept {
    for (std::size_t i = 0; i < cache.layers.size(); ++i) {
        for (std::size_t s = 0; s < cache.layers[i].streams.size(); ++s) {
            const SavedStream &a = file.layers[i].streams[s], &b = cache.layers[i].streams[s];
            if (!same_format(a.coded, b.coded) || a.coded_levels != b.coded_levels) return false;
            if (!same_format(a.requantized, b.requantized) || a.requantized_levels != b.requantized_levels)
                return false;
        }
    }
    return file.rows == cache.rows;
}

/// The format of pages of one kind in one page group, by a description. Levels point into the description, which must
/// outlive it.
inline PageFormat format_of(Ledger& ledger, const Description& from, std::uint32_t page_group, PageKind kind,
                            std::size_t streams) {
    const bool coded = kind == PageKind::coded || kind == PageKind::requantized;
    const std::size_t slots = coded                    ? coded_page_tokens
                              : kind == PageKind::rows ? row_page_tokens
                                                       : static_cast<std::size_t>(from.sinks);
    PageFormat out(ledger, kind, slots, streams);
    out.sizes.total = page_header_bytes;
    for (const SavedLayer& layer : from.layers) {
        if (layer.page_group != page_group) continue;
        for (std::size_t s = 0; s < streams; ++s) {
            if (s >= layer.streams.size()) {
                out.sections.emplace_back();
                continue;
            }
            const SavedStream& stream = layer.streams[s];
            StreamFormat format = kind == PageKind::requantized ? stream.requantized : stream.coded;
            const std::vector<float>& levels =
                kind == PageKind::requantized ? stream.requantized_levels : stream.coded_levels;
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
        sound(
            page.page_group < core.page_groups() && page.kind <= PageKind::sinks && page.filled <= slots_of(page.kind),
            "saved cache: its list of pages is damaged");
    }
    const auto within = [](std::int64_t position) {
        return position > -largest_position && position < largest_position;
    };
    for (const auto& states : file.sequences) {
        sound(states.size() == core.page_groups(),
              "saved cache: a sequence has another number of parts than the model");
        for (std::size_t i = 0; i < states.size(); ++i) {
            const SavedState& state = states[i];
            sound(state.tokens == states[0].tokens && state.next_position == states[0].next_position &&
                      state.rope_lag == states[0].rope_lag && within(state.next_position) && within(state.rope_lag) &&
                      state.tokens < static_cast<std::uint64_t>(largest_position),
                  "saved cache: the parts of a sequence differ in length or position");
            std::uint64_t rows = 0;
            unsigned order = 0;
            std::int64_t next = (std::numeric_limits<std::int64_t>::min)();
            for (const SavedSegment& segment : state.segments) {
                sound(segment.page < file.pages.size(), "saved cache: a sequence names a page that there is not");
                const SavedPage& page = file.pages[segment.page];
                sound(page.page_group == i && segment.begin < segment.end && segment.end <= page.filled &&
                          within(segment.first_position) && within(segment.rope_lag) && segment.first_position >= next,
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
