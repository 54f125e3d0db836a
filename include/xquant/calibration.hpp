// Calibration: what is known of a model's keys and values beside its weights, layer by layer.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include <xquant/model.hpp>
#include <xquant/statistics.hpp>

namespace xquant {

/// What a Calibrator found: statistics of each layer.
struct Calibration {
    std::vector<LayerStatistics> layers;  ///< [L]
    std::size_t tokens = 0;               ///< that they were gathered from, sinks not counted
    std::size_t contexts = 0;             ///< places of the text

    /// Layers of the model point at their statistics, which have to outlive the construction of caches.
    void attach(Model& model) const {
        for (std::size_t i = 0; i < (std::min)(layers.size(), model.layers.size()); ++i) {
            model.layers[i].statistics = &layers[i];
        }
    }
};

}  // namespace xquant
