// Whether a saved cache can be read by a cache, and why not.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <xquant/core/operations.hpp>
#include <xquant/persistence/rules.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// Whether two formats are equal but for levels, which are compared apart, and the room of the page.
inline bool same_format(StreamFormat a, StreamFormat b) noexcept {
    a.levels = b.levels = nullptr;
    a.tokens = b.tokens = 0;
    return a == b;
}

/// What a layer does, for messages.
constexpr const char* words_of(CrossRole role) noexcept {
    return role == CrossRole::none   ? "stands alone"
           : role == CrossRole::base ? "is the base of differences"
                                     : "stores differences";
}

/// A format, for messages.
inline std::string words_of(const StreamFormat& format) {
    if (format.width == 0) return "nothing";
    if (!format.quantized()) {
        const char* type = format.kind == CodeKind::f32 ? "f32" : format.kind == CodeKind::f16 ? "f16" : "bf16";
        return text_of(type, " in parts of ", format.group_channels, " channels");
    }
    const std::string zero = format.stores_zero ? "a zero each" : text_of("code ", format.zero_code, " for zero");
    return text_of(unsigned{format.bits}, " bits in groups of ", format.group_tokens, " tokens x ",
                   format.group_channels, " channels (", zero, ", ", unsigned{format.outliers}, " outliers each)");
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
        needs(a.streams.size() == b.streams.size(), "projection: layer ", i, " has ", a.streams.size(),
              " streams there and ", b.streams.size(), " here");
        needs(a.role == b.role, "projection: layer ", i, " ", words_of(a.role), " there and ", words_of(b.role),
              " here");
        for (std::size_t s = 0; s < b.streams.size(); ++s) {
            const SavedStream &from = a.streams[s], &to = b.streams[s];
            needs(from.row_width == to.row_width && from.coded.width == to.coded.width, "projection: layer ", i,
                  ", stream ", s, ": rows have ", from.row_width, " channels there and ", to.row_width, " here (",
                  from.coded.width, " and ", to.coded.width, " once coded)");
        }
        const auto agree = [&](const char* of, const std::vector<SavedRule>& there,
                               const std::vector<SavedRule>& here) {
            const std::string what = difference(there, here);
            needs(what.empty(), of, ": layer ", i, ": ", what);
        };
        agree("projection", a.storage, b.storage);
        agree("model", a.rules, b.rules);
        agree("model or projection", a.weights, b.weights);
        needs(a.page_group == b.page_group, "cache: layer ", i, " is in page group ", a.page_group,
              " there, in page group ", b.page_group, " here");
    }
    needs(same_format(file.accumulator, cache.accumulator), "cache: its accumulator is kept in ",
          words_of(file.accumulator), " there, in ", words_of(cache.accumulator), " here");
}

/// Where a file's rows are not coded as the cache codes them, so that pages cannot be taken as they are: which rows,
/// and both formats. "" where they are.
inline std::string code_difference(const Description& file, const Description& cache) {
    for (std::size_t i = 0; i < cache.layers.size(); ++i) {
        for (std::size_t s = 0; s < cache.layers[i].streams.size(); ++s) {
            const SavedStream &a = file.layers[i].streams[s], &b = cache.layers[i].streams[s];
            const std::string where = text_of("layer ", i, ", stream ", s);
            if (!same_format(a.coded, b.coded)) {
                return text_of(where, ": ", words_of(a.coded), " there, ", words_of(b.coded), " here");
            }
            if (!same_format(a.requantized, b.requantized)) {
                return text_of(where, ", once requantized: ", words_of(a.requantized), " there, ",
                               words_of(b.requantized), " here");
            }
            if (a.coded_levels != b.coded_levels || a.requantized_levels != b.requantized_levels) {
                return text_of(where, ": the levels of its codes are others");
            }
        }
    }
    if (file.rows == cache.rows) return "";
    const auto name = [](DType type) { return type == DType::f32 ? "f32" : type == DType::f16 ? "f16" : "bf16"; };
    return text_of("sinks and tail: ", name(file.rows), " there, ", name(cache.rows), " here");
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
        if (layer.page_group != page_group || layer.streams.empty()) continue;
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
