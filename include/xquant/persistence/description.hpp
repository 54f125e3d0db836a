// What a saved cache says of itself: scheme, shapes, what its weights answer, sequences, pages. docs/format.md has the
// layout.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include <xquant/backend/project.hpp>
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

struct SavedLayer {
    std::uint32_t page_group = 0;
    CrossRole role = CrossRole::none;
    LayerShape shape;
    std::vector<float> rules;        ///< scale, soft cap, window, ALiBi slopes, sink logits, RoPE
    std::vector<float> fingerprint;  ///< what encoders and decoders make of fixed rows
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
    const bool whole = format.kind == CodeKind::planes ? format.bits >= 1 && format.bits <= 8
                                                       : format.bits == (format.kind == CodeKind::f32 ? 32 : 16);
    expects<damage_error>(format.width <= (1U << 24U) && group >= 1 && group <= (1U << 24U) &&
                              format.group_tokens <= coded_page_tokens && format.kind <= CodeKind::bf16 && whole &&
                              (format.outliers == 0 || (format.quantized() && group <= 256)),
                          "saved cache: unknown format of a stream");
    return format;
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
        out.floats(layer.rules);
        out.floats(layer.fingerprint);
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
        layer.rules = in.floats();
        layer.fingerprint = in.floats();
        layer.streams.resize(in.count(32));
        for (SavedStream& stream : layer.streams) {
            stream.row_width = in.get<std::uint64_t>();
            stream.coded = get_format(in);
            stream.coded_levels = in.floats();
            stream.requantized = get_format(in);
            stream.requantized_levels = in.floats();
            for (const auto& [format, levels] : {std::pair{&stream.coded, &stream.coded_levels},
                                                 std::pair{&stream.requantized, &stream.requantized_levels}}) {
                expects<damage_error>(levels->empty() || levels->size() == std::size_t{1} << format->bits,
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

/// What the weights of a layer make of fixed rows. Another model, or another basis of the same latents, gives other
/// numbers. Two machines prepare weights that are equal only up to rounding, so fingerprints are compared with a
/// tolerance.
inline std::vector<float> fingerprint_of(const Core& core, const PreparedLayer& layer) {
    const auto fixed = [](std::size_t n, std::uint64_t seed) {
        std::vector<float> out(n);
        for (std::size_t i = 0; i < n; ++i) {
            std::uint64_t z = (seed << 32U) + (i + 1) * 0x9E3779B97F4A7C15U;  // splitmix64
            z = (z ^ (z >> 30U)) * 0xBF58476D1CE4E5B9U;
            z = (z ^ (z >> 27U)) * 0x94D049BB133111EBU;
            out[i] = static_cast<float>(static_cast<std::int32_t>(z >> 40U) - (1 << 23)) * 0x1p-23F;
        }
        return out;
    };
    std::vector<float> answers;
    const std::vector<float> x = fixed(layer.shape.width, 1);
    const std::int64_t position = 0;
    for (const StreamEncoder& encoder : layer.encoders) {
        std::vector<float> row(encoder.width), scratch(backend::project_scratch(layer.shape.width, encoder.width, 1));
        backend::project(backend::scalar{}, encoder, {x.data(), 1, layer.shape.width, layer.shape.width},
                         {&position, core.rope(layer), layer.shape.head_dim}, row.data(), scratch.data());
        answers.insert(answers.end(), row.begin(), row.end());
        for (std::size_t j = 0; j < encoder.coded_width && encoder.latent != nullptr; ++j) {
            float sum = 0;
            for (std::size_t c = 0; c < encoder.width; ++c) sum += row[c] * encoder.latent[c * encoder.coded_width + j];
            answers.push_back(sum);
        }
    }
    for (const auto* heads : {&layer.keys, &layer.values}) {
        for (const HeadDecoder& head : *heads) {
            const std::vector<float> z = fixed(head.width, 2);
            for (std::size_t j = 0; j < layer.shape.head_dim; ++j) {
                float sum = head.constant != nullptr ? head.constant[j] : 0.0F;
                for (std::size_t c = 0; c < head.width && head.matrix != nullptr; ++c) {
                    sum += z[c] * head.matrix[c * layer.shape.head_dim + j];
                }
                answers.push_back(sum);
            }
        }
    }
    for (std::size_t c = 0; c < layer.shape.head_dim && layer.rules.key_norm != nullptr; ++c) {
        answers.push_back(layer.rules.key_norm[c]);
    }
    return answers;
}

/// Whether two fingerprints are of the same weights.
inline bool same_answers(const std::vector<float>& a, const std::vector<float>& b) noexcept {
    if (a.size() != b.size()) return false;
    double squares = 0;
    for (const float value : a) squares += double{value} * double{value};
    const double size = a.empty() ? 0 : std::sqrt(squares / static_cast<double>(a.size()));
    for (std::size_t i = 0; i < a.size(); ++i) {
        const double difference = std::abs(double{a[i]} - double{b[i]});
        if (!is_finite(difference) || difference > 1e-3 * size + 1e-9) return false;
    }
    return true;
}

/// Places in rules_of of what the projection decides: whether keys are stored after RoPE, and how many channels heads
/// share.
inline constexpr std::size_t keys_after_rope_rule = 3, shared_rule = 4;

/// Numbers that decide how rows are read.
inline std::vector<float> rules_of(const Core& core, const PreparedLayer& layer) {
    const RopeView rope = core.rope(layer);
    std::vector<float> out{layer.rules.scale,
                           layer.rules.soft_cap,
                           static_cast<float>(layer.rules.window),
                           layer.keys_after_rope ? 1.0F : 0.0F,
                           static_cast<float>(layer.shared.width),
                           static_cast<float>(rope.pairing),
                           rope.factor};
    for (std::size_t j = 0; j < rope.pairs; ++j) out.push_back(static_cast<float>(rope.inverse_frequencies[j]));
    for (const float* of : {layer.rules.slopes, layer.rules.sink_logits}) {
        for (std::size_t h = 0; h < layer.shape.heads && of != nullptr; ++h) out.push_back(of[h]);
    }
    return out;
}

/// The part of a description that does not depend on sequences.
inline Description describe(const Core& core) {
    Description out;
    out.sinks = core.options().sinks;
    out.rows = core.options().rows;
    out.accumulator = core.accumulator().format;
    for (std::size_t i = 0; i < core.layers().size(); ++i) {
        const PreparedLayer& layer = core.layers()[i];
        SavedLayer saved;
        saved.page_group = static_cast<std::uint32_t>(layer.page_group);
        saved.role = layer.role;
        saved.shape = layer.shape;
        saved.rules = rules_of(core, layer);
        saved.fingerprint = fingerprint_of(core, layer);
        for (std::size_t stream = 0; stream < layer.encoders.size(); ++stream) {
            const StreamFormat coded = core.codec(i, stream).format;
            const StreamFormat requantized = core.requantizes() ? core.requantized_codec(i, stream).format : coded;
            saved.streams.push_back(
                {layer.encoders[stream].width, coded, requantized, levels_of(coded), levels_of(requantized)});
        }
        out.layers.push_back(std::move(saved));
    }
    return out;
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
