// What a model is known by in a saved cache: the rules by which its rows are stored and read, and what its weights make
// of fixed rows. Each number is compared with its counterpart alone: a window of 32768 tokens hides no scale beside it,
// and a head with large weights no other head.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <xquant/persistence/description.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// How far weights that were prepared on another machine may be off, beside the size of the terms that they are sums
/// of. Sums of f32 in another order differ by 1e-6 or less, sums of matrices in f16 from those in f32 by 2e-4,
/// directions of an SVD whose singular values are close together by more; other weights by about 1.
inline constexpr double weight_tolerance = 2e-3;
/// How far a rule may be off beside its own size: an engine may compute it on another machine, in f32.
inline constexpr double rule_tolerance = 1e-6;

/// Whole numbers, which have to be equal. Doubles have all of them up to 2^53.
template <class... Numbers>
SavedRule whole(std::string name, Numbers... numbers) {
    return {std::move(name), {static_cast<double>(numbers)...}};
}

/// Numbers that may be off by rounding, each by its own size. Null: none.
template <class Number>
SavedRule real(std::string name, const Number* values, std::size_t count) {
    SavedRule out{std::move(name), {}};
    for (std::size_t i = 0; i < count && values != nullptr; ++i) {
        out.values.push_back(static_cast<double>(values[i]));
        out.tolerances.push_back(rule_tolerance * std::abs(out.values.back()));
    }
    return out;
}

/// Weights that belong to single channels: a mean, a bias, a gain. Biases may be sums in which large terms cancel, so
/// the size of all of them counts as well, at a hundredth. Null: none.
inline SavedRule vector_rule(std::string name, const float* values, std::size_t count) {
    SavedRule out{std::move(name), {}};
    double squares = 0;
    for (std::size_t i = 0; i < count && values != nullptr; ++i) {
        out.values.push_back(double{values[i]});
        squares += out.values.back() * out.values.back();
    }
    const double common = std::sqrt(squares / static_cast<double>(count)) / 100;
    for (const double value : out.values) {
        out.tolerances.push_back(weight_tolerance * (std::max)(std::abs(value), common));
    }
    return out;
}

/// Whether a description has what weights make of fixed rows, or (where its size alone is wanted) zeros in its place.
enum class Weights : bool { left_out, read };

/// What a matrix [rows, columns] makes of a fixed row. The size of an answer is that of its terms. A column that is 0
/// but for rounding has the size of a column that is 1e-5 of the others. Null: none.
inline SavedRule matrix_rule(std::string name, const WeightMatrix& matrix, std::size_t rows, std::size_t columns,
                             Weights weights) {
    SavedRule out{std::move(name), {}};
    if (matrix == nullptr) return out;
    out.values.resize(columns);
    if (weights == Weights::left_out) return out;
    std::vector<double> squares(columns);
    for (std::size_t i = 0; i < rows; ++i) {
        std::uint64_t z = (std::uint64_t{1} << 32U) + (i + 1) * 0x9E3779B97F4A7C15U;  // splitmix64
        z = (z ^ (z >> 30U)) * 0xBF58476D1CE4E5B9U;
        z = (z ^ (z >> 27U)) * 0x94D049BB133111EBU;
        const double x = static_cast<double>(static_cast<std::int32_t>(z >> 40U) - (1 << 23)) * 0x1p-23;
        for (std::size_t j = 0; j < columns; ++j) {
            const double term = x * double{weight_at(matrix, i * columns + j)};
            out.values[j] += term;
            squares[j] += term * term;
        }
    }
    double all = 0;
    for (const double square : squares) all += square;
    const double common = all / static_cast<double>(columns) * 1e-10;
    for (const double square : squares) {
        out.tolerances.push_back(weight_tolerance * std::sqrt((std::max)(square, common)));
    }
    return out;
}

/// The name of the rule that says so of a type which is not the usual one.
inline std::string weights_kept_in(WeightType type) { return std::string("weights kept in ") + to_string(type); }

/// The type that a rule of this name tells; of any other rule, the usual ones.
inline std::string_view weights_of(const std::string& name) {
    for (const WeightType type : {WeightType::bf16, WeightType::q8}) {
        if (name == weights_kept_in(type)) return to_string(type);
    }
    return "f32 or f16";
}

/// What the projection decides: which rows are stored, and which channels of them a head reads.
inline std::vector<SavedRule> storage_rules(const PreparedLayer& layer) {
    std::vector<SavedRule> out{whole("keys stored after RoPE", layer.keys_after_rope),
                               whole("stream of shared key channels", layer.shared.stream),
                               whole("shared key channels", layer.shared.width)};
    // Matrices in f32 and in f16 are close enough to read each other's rows; others say what they are.
    const WeightType type = layer.matrices().type();
    if (type > WeightType::f16) out.push_back(whole(weights_kept_in(type), 1));
    if (layer.keys_in_place) out.push_back(whole("keys that cannot move", 1));
    if (layer.borrows()) out.push_back(whole("layer whose rows are read", layer.rows_of));
    for (std::size_t i = 0; i < layer.encoders.size(); ++i) {
        const StreamEncoder& encoder = layer.encoders[i];
        const std::string of = " of stream " + std::to_string(i);
        out.push_back(whole("channels rotated together" + of, encoder.rotate));
        out.push_back(whole("channels normed together" + of, encoder.norm != nullptr ? encoder.norm_width : 0));
        out.push_back(whole("RoPE" + of, encoder.rope));
        if (encoder.source != RowSource::x) out.push_back(whole("made from K or V" + of, encoder.source));
    }
    for (const auto* heads : {&layer.keys, &layer.values}) {
        for (std::size_t i = 0; i < heads->size(); ++i) {
            const HeadDecoder& head = (*heads)[i];
            out.push_back(whole((heads == &layer.keys ? "stream, first and number of channels of key head "
                                                      : "stream, first and number of channels of value head ") +
                                    std::to_string(i),
                                head.stream, head.first, head.width));
        }
    }
    return out;
}

/// What the model decides: how rows are read.
inline std::vector<SavedRule> attention_rules(const Core& core, const PreparedLayer& layer) {
    const RopeView rope = core.rope(layer);
    const bool turns = rope.pairs > 0;
    std::vector<SavedRule> out{
        whole("window", layer.rules.window),
        whole("chunk", layer.rules.chunk),
        real("softmax scale", &layer.rules.scale, 1),
        real("soft cap", &layer.rules.soft_cap, 1),
        whole("RoPE pairing", turns ? static_cast<unsigned>(rope.pairing) : 0U),
        real("RoPE factor", &rope.factor, turns ? 1 : 0),
        real("RoPE frequency", rope.inverse_frequencies, rope.pairs),
        real("ALiBi slope", layer.rules.slopes, layer.shape.heads),
        real("sink logit", layer.rules.sink_logits, layer.shape.heads),
        real("k_norm epsilon", &layer.rules.key_norm_epsilon, layer.rules.key_norm != nullptr ? 1 : 0)};
    for (std::size_t i = 0; i < layer.encoders.size(); ++i) {
        const StreamEncoder& encoder = layer.encoders[i];
        out.push_back(real("norm epsilon of stream " + std::to_string(i), &encoder.norm_epsilon,
                           encoder.norm != nullptr ? 1 : 0));
    }
    return out;
}

/// What the model's weights, in the basis of the projection, make of fixed rows: stream by stream, head by head.
inline std::vector<SavedRule> weight_rules(const PreparedLayer& layer, Weights weights) {
    std::vector<SavedRule> out;
    for (std::size_t i = 0; i < layer.encoders.size(); ++i) {
        const StreamEncoder& encoder = layer.encoders[i];
        const std::string of = " of stream " + std::to_string(i);
        out.push_back(vector_rule("mean" + of, encoder.mean, encoder.input));
        out.push_back(
            matrix_rule("weights" + of, encoder.matrix, encoder.input, encoder.width / encoder.blocks, weights));
        out.push_back(vector_rule("bias" + of, encoder.bias, encoder.width));
        out.push_back(vector_rule("norm gain" + of, encoder.norm, encoder.norm_width));
        out.push_back(matrix_rule("latent" + of, encoder.latent, encoder.width, encoder.coded_width, weights));
    }
    for (const auto* heads : {&layer.keys, &layer.values}) {
        for (std::size_t i = 0; i < heads->size(); ++i) {
            const HeadDecoder& head = (*heads)[i];
            const std::string of = (heads == &layer.keys ? " of key head " : " of value head ") + std::to_string(i);
            out.push_back(matrix_rule("weights" + of, head.matrix, head.width, head.head_dim, weights));
            out.push_back(vector_rule("constant" + of, head.constant, head.head_dim));
        }
    }
    out.push_back(vector_rule("k_norm gain", layer.rules.key_norm, layer.shape.head_dim));
    return out;
}

/// Names the first rule of a cache that a file does not have, with both values; "" where there is none.
inline std::string difference(const std::vector<SavedRule>& file, const std::vector<SavedRule>& cache) {
    const auto digits = [](double number) {
        char text[32];
        std::snprintf(text, sizeof text, "%.9g", number);
        return std::string(text);
    };
    for (std::size_t i = 0; i < (std::min)(file.size(), cache.size()); ++i) {
        const SavedRule &a = file[i], &b = cache[i];
        if (a.name != b.name) {
            const std::string_view there = weights_of(a.name), here = weights_of(b.name);
            if (there != here) return text_of("weights are kept in ", there, " there, in ", here, " here");
            // A file's name may be any bytes, and is not shown.
            return text_of(b.name, ": another rule stands in its place there");
        }
        if (a.values.size() != b.values.size()) {
            return text_of(b.name, ": ", a.values.size(), " of them there, ", b.values.size(), " here");
        }
        for (std::size_t j = 0; j < b.values.size(); ++j) {
            const double tolerance = b.tolerances.empty() ? 0 : b.tolerances[j];
            const double distance = std::abs(a.values[j] - b.values[j]);
            if (is_finite(distance) && distance <= tolerance) continue;  // NaN is equal to nothing
            const std::string which = b.values.size() > 1 ? " " + std::to_string(j) : "";
            return text_of(b.name, which, ": ", digits(a.values[j]), " there, ", digits(b.values[j]), " here");
        }
    }
    if (file.size() != cache.size())
        return text_of("number of rules: ", file.size(), " there, ", cache.size(), " here");
    return "";
}

/// The part of a description that does not depend on sequences. Cost: reads all prepared weights once, unless they are
/// left out.
inline Description describe(const Core& core, Weights weights = Weights::read) {
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
        saved.storage = storage_rules(layer);
        saved.rules = attention_rules(core, layer);
        saved.weights = weight_rules(layer, weights);
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
