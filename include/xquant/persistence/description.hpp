// What a saved cache says of itself: scheme, shapes, what its weights answer (rules.hpp), sequences, pages.
// docs/format.md has the layout.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <xquant/backend/views.hpp>
#include <xquant/core/core.hpp>
#include <xquant/persistence/bytes.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// One stream of a layer, as it is stored.
struct SavedStream {
    std::uint64_t row_width = 0;
    StreamFormat coded, requantized;  ///< without levels; where nothing is requantized, they are equal
    std::vector<float> coded_levels, requantized_levels;
};

/// Numbers under a name: one rule of attention, say, or what a layer's weights make of a fixed row.
struct SavedRule {
    std::string name;
    std::vector<double> values;
    /// [values] how far a file's may be from these; empty: not at all. Of the cache that reads, and in no file.
    std::vector<double> tolerances{};
};

struct SavedLayer {
    std::uint32_t page_group = 0;
    CrossRole role = CrossRole::none;
    LayerShape shape;
    std::vector<SavedRule> storage,  ///< what the projection stores, and who reads it
        rules,                       ///< window, scale, soft cap, RoPE, ALiBi slopes, sink logits, epsilons of norms
        weights;                     ///< what encoders and decoders make of fixed rows; f32 in a file
    std::vector<SavedStream> streams;
};

struct SavedSegment {
    std::uint64_t page = 0, begin = 0, end = 0;
    std::int64_t first_position = 0, rope_lag = 0;
};

struct SavedState {
    std::uint64_t tokens = 0;
    std::int64_t next_position = 0, rope_lag = 0;
    std::vector<SavedSegment> segments;
};

struct SavedPage {
    std::uint32_t page_group = 0;
    PageKind kind = PageKind::coded;
    std::uint64_t filled = 0, bytes = 0;  ///< bytes: all but the header
};

struct Description {
    std::string note;
    std::uint64_t sinks = 0;
    DType rows = DType::f16;
    StreamFormat accumulator;  ///< width 0: none
    std::vector<SavedLayer> layers;
    std::vector<std::vector<SavedState>> sequences;  ///< [sequences][page_groups]
    std::vector<SavedPage> pages;
};

inline void put(ByteWriter& out, const StreamFormat& format) {
    out.put(format.width);
    out.put(format.group_tokens);
    out.put(format.group_channels);
    out.put(format.kind);
    out.put(format.bits);
    out.put(static_cast<std::uint8_t>(format.stores_zero));
    out.put(format.zero_code);
    out.put(format.outliers);
}

/// The largest level or zero_code that is taken: times any scale of f16 it is a finite f32.
inline constexpr float largest_level = 1e30F;

inline bool is_level(float number) noexcept { return is_finite(number) && std::abs(number) <= largest_level; }

/// Throws damage_error for a format that no cache has.
inline StreamFormat get_format(ByteReader& in) {
    StreamFormat format;
    format.width = in.get<std::uint32_t>();
    format.group_tokens = in.get<std::uint32_t>();
    format.group_channels = in.get<std::uint32_t>();
    format.kind = in.get<CodeKind>();
    format.bits = in.get<std::uint8_t>();
    format.stores_zero = in.get<std::uint8_t>() != 0;
    format.zero_code = in.get<float>();
    format.outliers = in.get<std::uint8_t>();
    if (format.width == 0) return {};
    const std::uint64_t group = std::uint64_t{format.group_tokens} * format.group_channels;
    const bool planes = format.kind == CodeKind::planes;
    const bool whole =
        planes ? format.bits >= 1 && format.bits <= 8 : format.bits == (format.kind == CodeKind::f32 ? 32 : 16);
    // What concepts.hpp asks of policies: decoders have room for such groups and no others, and find rows that are not
    // quantized by their token.
    const bool grouped = planes
                             ? group >= 8 && group <= backend::max_group && coded_page_tokens % format.group_tokens == 0
                             : format.group_tokens == 1 && group >= 1 && group <= format.width;
    expects<damage_error>(format.width <= (1U << 24U) && format.kind <= CodeKind::bf16 && whole && grouped &&
                              is_level(format.zero_code) && (format.outliers == 0 || (planes && group <= 256)),
                          "saved cache: unknown format of a stream");
    return format;
}

inline void put(ByteWriter& out, const std::vector<SavedRule>& rules, bool as_floats = false) {
    out.size(rules.size());
    for (const SavedRule& rule : rules) {
        out.text(rule.name);
        out.size(rule.values.size());
        for (const double value : rule.values) as_floats ? out.put(static_cast<float>(value)) : out.put(value);
    }
}

/// Throws damage_error.
inline std::vector<SavedRule> get_rules(ByteReader& in, bool as_floats = false) {
    std::vector<SavedRule> out(in.count(16));
    for (SavedRule& rule : out) {
        rule.name = in.text();
        rule.values.resize(in.count(as_floats ? sizeof(float) : sizeof(double)));
        for (double& value : rule.values) value = as_floats ? double{in.get<float>()} : in.get<double>();
    }
    return out;
}

/// Levels of a format, where it has some: [2^bits].
inline std::vector<float> levels_of(const StreamFormat& format) {
    if (format.levels == nullptr) return {};
    return {format.levels, format.levels + (std::size_t{1} << format.bits)};
}

inline std::vector<std::byte> to_bytes(const Description& from) {
    ByteWriter out;
    out.text(from.note);
    out.put(from.sinks);
    out.put(from.rows);
    put(out, from.accumulator);
    out.size(from.layers.size());
    for (const SavedLayer& layer : from.layers) {
        out.put(layer.page_group);
        out.put(layer.role);
        for (const std::size_t n : {layer.shape.width, layer.shape.heads, layer.shape.kv_heads, layer.shape.head_dim}) {
            out.size(n);
        }
        put(out, layer.storage);
        put(out, layer.rules);
        put(out, layer.weights, true);
        out.size(layer.streams.size());
        for (const SavedStream& stream : layer.streams) {
            out.put(stream.row_width);
            put(out, stream.coded);
            out.floats(stream.coded_levels);
            put(out, stream.requantized);
            out.floats(stream.requantized_levels);
        }
    }
    out.size(from.sequences.size());
    for (const auto& states : from.sequences) {
        out.size(states.size());
        for (const SavedState& state : states) {
            out.put(state.tokens);
            out.put(state.next_position);
            out.put(state.rope_lag);
            out.size(state.segments.size());
            for (const SavedSegment& segment : state.segments) {
                out.put(segment.page);
                out.put(segment.begin);
                out.put(segment.end);
                out.put(segment.first_position);
                out.put(segment.rope_lag);
            }
        }
    }
    out.size(from.pages.size());
    for (const SavedPage& page : from.pages) {
        out.put(page.page_group);
        out.put(page.kind);
        out.put(page.filled);
        out.put(page.bytes);
    }
    return out.bytes;
}

/// Throws damage_error.
inline Description from_bytes(std::span<const std::byte> bytes) {
    ByteReader in(bytes);
    Description out;
    out.note = in.text();
    out.sinks = in.get<std::uint64_t>();
    out.rows = in.get<DType>();
    expects<damage_error>(out.rows <= DType::bf16 && out.sinks <= 4096, "saved cache: its options are damaged");
    out.accumulator = get_format(in);
    out.layers.resize(in.count(64));
    for (SavedLayer& layer : out.layers) {
        layer.page_group = in.get<std::uint32_t>();
        layer.role = in.get<CrossRole>();
        expects<damage_error>(layer.role <= CrossRole::difference, "saved cache: a layer's role is damaged");
        for (std::size_t* n : {&layer.shape.width, &layer.shape.heads, &layer.shape.kv_heads, &layer.shape.head_dim}) {
            *n = in.size();
        }
        layer.storage = get_rules(in);
        layer.rules = get_rules(in);
        layer.weights = get_rules(in, true);
        layer.streams.resize(in.count(32));
        for (SavedStream& stream : layer.streams) {
            stream.row_width = in.get<std::uint64_t>();
            stream.coded = get_format(in);
            stream.coded_levels = in.floats();
            stream.requantized = get_format(in);
            stream.requantized_levels = in.floats();
            for (const auto& [format, levels] : {std::pair{&stream.coded, &stream.coded_levels},
                                                 std::pair{&stream.requantized, &stream.requantized_levels}}) {
                const bool finite = std::all_of(levels->begin(), levels->end(), is_level);
                expects<damage_error>(finite && (levels->empty() || (format->quantized() &&
                                                                     levels->size() == std::size_t{1} << format->bits)),
                                      "saved cache: the levels of a codebook are damaged");
            }
            expects<damage_error>(stream.row_width > 0 && stream.row_width <= (1U << 24U) && stream.coded.width > 0 &&
                                      stream.requantized.width == stream.coded.width,
                                  "saved cache: a stream's width is damaged");
        }
    }
    out.sequences.resize(in.count(8));
    for (auto& states : out.sequences) {
        states.resize(in.count(32));
        for (SavedState& state : states) {
            state.tokens = in.get<std::uint64_t>();
            state.next_position = in.get<std::int64_t>();
            state.rope_lag = in.get<std::int64_t>();
            state.segments.resize(in.count(40));
            for (SavedSegment& segment : state.segments) {
                segment.page = in.get<std::uint64_t>();
                segment.begin = in.get<std::uint64_t>();
                segment.end = in.get<std::uint64_t>();
                segment.first_position = in.get<std::int64_t>();
                segment.rope_lag = in.get<std::int64_t>();
            }
        }
    }
    out.pages.resize(in.count(24));
    for (SavedPage& page : out.pages) {
        page.page_group = in.get<std::uint32_t>();
        page.kind = in.get<PageKind>();
        page.filled = in.get<std::uint64_t>();
        page.bytes = in.get<std::uint64_t>();
    }
    expects<damage_error>(in.empty(), "saved cache: ", in.left(), " bytes are left over at the end of its description");
    return out;
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
