// A Calibration in a file. Little-endian:
//
//     "XQCALIB\n", version, tokens, contexts, layers; of each layer its shape and RoPE, what was measured, and its
//     matrices' lower triangles row by row; at the end an XXH3 checksum of everything before it
//
// A file is refused where its layers' shapes or RoPE are not the model's.
#pragma once

#include <array>
#include <string>

#include <xquant/calibration.hpp>
#include <xquant/persistence/file.hpp>
#include <xquant/persistence/layout.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

inline constexpr char calibration_magic[8] = {'X', 'Q', 'C', 'A', 'L', 'I', 'B', '\n'};
inline constexpr std::uint32_t calibration_version = 1;

/// A matrix of the statistics, and the width of its blocks.
struct StatisticsPart {
    const char* name;
    std::vector<float> LayerStatistics::*values;
    std::size_t n, blocks;
};

inline std::array<StatisticsPart, 8> parts_of(const LayerShape& shape) noexcept {
    const std::size_t heads = shape.kv_heads, dh = shape.head_dim, r = shape.kv_width(), d = shape.width;
    return {{{"key_spread", &LayerStatistics::key_spread, dh, heads},
             {"key_cost", &LayerStatistics::key_cost, dh, heads},
             {"value_spread", &LayerStatistics::value_spread, dh, heads},
             {"value_cost", &LayerStatistics::value_cost, dh, heads},
             {"joint_keys", &LayerStatistics::joint_keys, r, 1},
             {"joint_values", &LayerStatistics::joint_values, r, 1},
             {"x_spread", &LayerStatistics::x_spread, d, 1},
             {"difference_spread", &LayerStatistics::difference_spread, d, 1}}};
}

/// What a file says of the layer that its statistics are of.
inline std::array<double, 8> shape_numbers(const Layer& layer) noexcept {
    const LayerShape& shape = layer.shape;
    const std::vector<double>& rope = layer.rope.inverse_frequencies;
    return {static_cast<double>(shape.heads),
            static_cast<double>(shape.kv_heads),
            static_cast<double>(shape.head_dim),
            static_cast<double>(rope.size()),
            rope.empty() ? 0.0 : rope.front(),
            rope.empty() ? 0.0 : rope.back(),
            rope.empty() ? 0.0 : static_cast<double>(layer.rope.pairing),
            rope.empty() ? 0.0 : layer.rope.factor};
}
inline constexpr std::array<const char*, 8> shape_names{"heads",
                                                        "kv_heads",
                                                        "head_dim",
                                                        "number of RoPE frequencies",
                                                        "first RoPE frequency",
                                                        "last RoPE frequency",
                                                        "RoPE pairing",
                                                        "RoPE factor"};

}  // namespace detail

/// Saves a calibration of a model; a file of that name is replaced when the new one is complete. Throws shape_error
/// where the calibration has not one entry for each layer, file_error.
inline void save_calibration(const Calibration& calibration, const Model& model, const std::string& path) {
    detail::expects(calibration.layers.size() == model.layers.size(), "save_calibration: statistics of ",
                    calibration.layers.size(), " layers; the model has ", model.layers.size());
    detail::ByteWriter out;
    for (const char c : detail::calibration_magic) out.put(static_cast<std::uint8_t>(c));
    out.put(detail::calibration_version);
    out.size(calibration.tokens);
    out.size(calibration.contexts);
    out.size(calibration.layers.size());
    for (std::size_t i = 0; i < calibration.layers.size(); ++i) {
        const Layer& layer = model.layers[i];
        const LayerStatistics& statistics = calibration.layers[i];
        out.size(layer.shape.width);
        for (const double number : detail::shape_numbers(layer)) out.put(number);
        out.put(statistics.key_sensitivity);
        out.put(statistics.value_sensitivity);
        for (const detail::StatisticsPart& part : detail::parts_of(layer.shape)) {
            const std::vector<float>& values = statistics.*part.values;
            const std::size_t n = part.n;
            out.put(static_cast<std::uint8_t>(values.empty() ? 0 : 1));
            detail::expects(values.empty() || values.size() == part.blocks * n * n, "save_calibration: layer ", i,
                            " has ", values.size(), " floats of ", part.name, "; expected ", part.blocks * n * n);
            for (std::size_t row = 0; row < values.size() / (n > 0 ? n : 1); ++row) {
                for (std::size_t j = 0; j <= row % n; ++j) out.put(values[row * n + j]);
            }
        }
    }
    out.put(detail::hash_of(out.bytes));
    detail::ReplacingFile file(path);
    file.write(out.bytes);
    file.replace();
}

/// Reads a calibration of this model. Throws file_error, damage_error for other bytes than were saved, mismatch_error
/// for a calibration of another model, with what differs.
inline Calibration load_calibration(const std::string& path, const Model& model) {
    const detail::MappedFile file = detail::map_file(path);
    const std::size_t size = file.bytes.size(), magic = sizeof detail::calibration_magic, hash = sizeof(std::uint64_t);
    detail::expects<damage_error>(
        size > magic + hash && std::memcmp(file.bytes.data(), detail::calibration_magic, magic) == 0, path,
        ": no calibration");
    detail::ByteReader end(file.bytes.subspan(size - hash));
    detail::expects<damage_error>(end.get<std::uint64_t>() == detail::hash_of(file.bytes.first(size - hash)), path,
                                  ": its checksum does not fit its ", size, " bytes");
    detail::ByteReader in(file.bytes.subspan(magic, size - hash - magic));
    const auto version = in.get<std::uint32_t>();
    detail::expects<mismatch_error>(version == detail::calibration_version, path, ": version ", version,
                                    "; this library reads version ", detail::calibration_version);
    Calibration out;
    out.tokens = in.size();
    out.contexts = in.size();
    const std::size_t layers = in.size();
    detail::expects<mismatch_error>(layers == model.layers.size(), path, ": of a model of ", layers,
                                    " layers; this one has ", model.layers.size());
    for (std::size_t i = 0; i < layers; ++i) {
        LayerShape shape = model.layers[i].shape;
        // An engine that hands over K and V may know no width.
        const std::size_t width = in.size();
        detail::expects<mismatch_error>(width == shape.width || width == 0 || shape.width == 0, path,
                                        ": of another model: width of layer ", i, " is ", width, " there and ",
                                        shape.width, " here");
        shape.width = width;
        const auto expected = detail::shape_numbers(model.layers[i]);
        for (std::size_t k = 0; k < expected.size(); ++k) {
            const auto number = in.get<double>();
            detail::expects<mismatch_error>(std::abs(number - expected[k]) <= 1e-6 * std::abs(expected[k]), path,
                                            ": of another model: ", detail::shape_names[k], " of layer ", i, " is ",
                                            number, " there and ", expected[k], " here");
        }
        LayerStatistics& statistics = out.layers.emplace_back();
        statistics.key_sensitivity = in.get<float>();
        statistics.value_sensitivity = in.get<float>();
        for (const detail::StatisticsPart& part : detail::parts_of(shape)) {
            if (in.get<std::uint8_t>() == 0) continue;
            const std::size_t n = part.n;
            detail::expects<damage_error>(n < (std::size_t{1} << 16U) && part.blocks * n * (n + 1) / 2 <= in.left() / 4,
                                          path, ": ", part.name, " of layer ", i, " ends too soon");
            std::vector<float>& values = statistics.*part.values;
            values.resize(part.blocks * n * n);
            for (std::size_t row = 0; row < part.blocks * n; ++row) {
                const std::size_t first = row - row % n;
                for (std::size_t j = 0; j <= row % n; ++j) {
                    values[row * n + j] = values[(first + j) * n + row % n] = in.get<float>();
                }
            }
        }
    }
    return out;
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
