/// Statistics and biases of random layers, for projections that choose their bases by them.
#pragma once

#include <xquant/model.hpp>
#include <xquant/statistics.hpp>

#include <vector>

#include "support/statistics.hpp"

namespace on_device {

/// The statistics and biases of the layers of a model, as long as this lives.
class Knowledge {
public:
    explicit Knowledge(xquant::Model& model, bool biased = false) {
        test::Random random(5);
        statistics_.reserve(model.layers.size());
        biases_.reserve(2 * model.layers.size());
        for (xquant::Layer& layer : model.layers) {
            statistics_.push_back(test::random_statistics(layer.shape, 1 + static_cast<unsigned>(statistics_.size())));
            layer.statistics = &statistics_.back();
            for (const float** bias : {&layer.b_k, &layer.b_v}) {
                biases_.push_back(random.rows(layer.shape.kv_width(), 0.5F));
                if (biased) *bias = biases_.back().data();
            }
        }
    }
    Knowledge(const Knowledge&) = delete;
    Knowledge& operator=(const Knowledge&) = delete;

private:
    std::vector<xquant::LayerStatistics> statistics_;
    std::vector<std::vector<float>> biases_;
};

}  // namespace on_device
