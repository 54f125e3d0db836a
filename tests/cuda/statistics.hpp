/// Statistics and biases of random layers, for projections that choose their bases by them.
#pragma once

#include <xquant/model.hpp>
#include <xquant/statistics.hpp>

#include <cmath>
#include <cstddef>
#include <vector>

#include "support/model.hpp"

namespace on_device {

/// `blocks` symmetric, positive definite matrices [n, n]: a diagonal of `least` or so, and the mean of u u^T over some
/// random directions u.
inline std::vector<float> positive_matrices(test::Random& random, std::size_t blocks, std::size_t n, float least) {
    constexpr int directions = 12;
    constexpr float weight = 1.0F / static_cast<float>(directions);
    std::vector<float> out(blocks * n * n, 0.0F);
    for (std::size_t block = 0; block < blocks; ++block) {
        float* const matrix = out.data() + block * n * n;
        for (std::size_t i = 0; i < n; ++i) matrix[i * n + i] = least * (1 + random(0.5F));
        for (int k = 0; k < directions; ++k) {
            const std::vector<float> u = random.rows(n, std::sqrt(3.0F / static_cast<float>(n)));
            for (std::size_t i = 0; i < n; ++i) {
                for (std::size_t j = 0; j <= i; ++j) {
                    matrix[i * n + j] += weight * u[i] * u[j];
                    if (j < i) matrix[j * n + i] = matrix[i * n + j];
                }
            }
        }
    }
    return out;
}

/// What a Calibrator would know of a layer. Rows of unit size spread and cost something in every direction.
inline xquant::LayerStatistics random_statistics(const xquant::LayerShape& shape, std::uint32_t seed) {
    test::Random random(seed);
    const std::size_t heads = shape.kv_heads, dh = shape.head_dim, r = shape.kv_width(), d = shape.width;
    xquant::LayerStatistics out;
    out.key_spread = positive_matrices(random, heads, dh, 0.2F);
    out.key_cost = positive_matrices(random, heads, dh, 0.05F);
    out.value_spread = positive_matrices(random, heads, dh, 0.2F);
    out.value_cost = positive_matrices(random, heads, dh, 0.05F);
    out.joint_keys = positive_matrices(random, 1, r, 0.2F);
    out.joint_values = positive_matrices(random, 1, r, 0.2F);
    out.x_spread = positive_matrices(random, 1, d, 0.2F);
    out.difference_spread = positive_matrices(random, 1, d, 0.2F);
    return out;
}

/// The statistics and biases of the layers of a model, as long as this lives.
class Knowledge {
public:
    explicit Knowledge(xquant::Model& model, bool biased = false) {
        test::Random random(5);
        statistics_.reserve(model.layers.size());
        biases_.reserve(2 * model.layers.size());
        for (xquant::Layer& layer : model.layers) {
            statistics_.push_back(random_statistics(layer.shape, static_cast<std::uint32_t>(statistics_.size())));
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
