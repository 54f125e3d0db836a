// Recipe: a cache's policies as functions and data, before a cache is constructed from them.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include <xquant/core/prepared.hpp>
#include <xquant/storage/stream.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// What the policies of one layer made: a plan, and a codec for each stream.
struct LayerParts {
    LayerPlan plan;
    std::vector<StreamCodec> codecs;              ///< widths are those of coded rows
    std::vector<StreamCodec> requantized_codecs;  ///< of pages that were requantized; empty: `codecs`
};

/// Finds the levels of a stream whose quantizer learns them.
using LearnStream = std::vector<float> (*)(const PreparedLayer&, const Layer&, std::size_t index, std::size_t stream,
                                           const RopeView&, const StreamCodec&);

/// The sizes of LayerParts, known without preparing weights.
struct LayerSizes {
    std::vector<StreamCodec> codecs, requantized_codecs;
    std::vector<std::size_t> row_widths;               ///< channels of rows as the tail keeps them
    std::size_t matrix_floats = 0, vector_floats = 0;  ///< of LayerFootprint
};

/// Bits of a layer's codes, stream by stream, where they are chosen at run time.
using StreamBits = std::array<std::uint8_t, 2>;

/// How one layer is to be stored: its policies as functions, which take `bits`.
struct LayerRecipe {
    LayerSizes (*sizes)(const Layer&, StreamBits);
    LayerParts (*prepare)(const Layer&, StreamBits);
    std::size_t streams;
    CrossRole role = CrossRole::none;
    bool requantizes = false;  ///< pages can be rewritten by other codecs
    StreamBits bits{};         ///< read by functions whose codes have no bits of their own
};

/// Floats of the levels that codecs learn.
inline std::size_t learnt_levels(const std::vector<StreamCodec>& codecs) noexcept {
    std::size_t levels = 0;
    for (const StreamCodec& codec : codecs) levels += codec.learnt_levels();
    return levels;
}

/// The page group of each layer, of borrowed rows that of the layer which stores them: 0 for all of them where a
/// layer's rows depend on other layers'.
inline std::vector<std::size_t> page_groups_of(const Model& model, bool together) {
    std::vector<std::size_t> out, windows;
    for (const Layer& layer : model.layers) {
        if (layer.borrows() && layer.rows_of < out.size()) {
            out.push_back(out[layer.rows_of]);
            continue;
        }
        const std::size_t window = together ? 0 : layer.reach();
        const auto at = std::find(windows.begin(), windows.end(), window);
        out.push_back(static_cast<std::size_t>(at - windows.begin()));
        if (at == windows.end()) windows.push_back(window);
    }
    return out;
}

/// A cache's layers, and (cross-layer) what the accumulator is kept in.
struct Recipe {
    std::vector<LayerRecipe> layers;
    StreamCodec (*accumulator)(std::size_t width) = nullptr;

    [[nodiscard]] std::size_t streams() const noexcept {
        std::size_t most = 1;
        for (const LayerRecipe& layer : layers) most = (std::max)(most, layer.streams);
        return most;
    }
    [[nodiscard]] bool requantizes() const noexcept {
        return std::any_of(layers.begin(), layers.end(), [](const LayerRecipe& layer) { return layer.requantizes; });
    }
};

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
