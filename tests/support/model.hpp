/// Random models for tests: weights, frequencies and rows that are the same on every machine.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include <xquant/model.hpp>
#include <xquant/statistics.hpp>

namespace test {

/// Uniform in [-scale, scale), from the bits of a fixed generator: no library's distribution is the same everywhere.
class Random {
public:
    explicit Random(std::uint32_t seed) : bits_(seed) {}

    float operator()(float scale = 1) {
        return scale * (static_cast<float>(static_cast<std::int32_t>(bits_() >> 8U) - (1 << 23)) * 0x1p-23F);
    }
    std::size_t below(std::size_t n) { return bits_() % n; }
    std::vector<float> rows(std::size_t n, float scale = 1) {
        std::vector<float> out(n);
        for (float& value : out) value = (*this)(scale);
        return out;
    }

private:
    std::mt19937 bits_;
};

/// A model with weights of its own. K and V of unit-sized rows are of unit size.
class Setup {
public:
    /// `pairs` rotary pairs in each head; none given: all of an even head_dim, as many as fit in an odd one.
    Setup(const xquant::LayerShape& shape, xquant::RopePairing pairing, std::size_t layers = 1,
          std::size_t pairs = static_cast<std::size_t>(-1), std::uint32_t seed = 1) {
        Random random(seed);
        xquant::Rope rope = xquant::Rope::standard(shape.head_dim / 2 * 2, 10000.0, pairing);
        if (pairs < rope.inverse_frequencies.size()) rope.inverse_frequencies.resize(pairs);
        model = xquant::Model::uniform(layers, shape, rope);
        const float scale = std::sqrt(3.0F / static_cast<float>(shape.width));
        weights_.reserve(2 * layers + layers);
        for (xquant::Layer& layer : model.layers) {
            for (xquant::MatrixView* view : {&layer.w_k, &layer.w_v}) {
                weights_.push_back(random.rows(shape.kv_width() * shape.width, scale));
                *view = xquant::MatrixView(weights_.back().data(), shape.kv_width(), shape.width);
            }
        }
    }
    Setup(const Setup&) = delete;
    Setup& operator=(const Setup&) = delete;
    Setup(Setup&&) = default;  // vectors keep their memory, so the views stay good
    Setup& operator=(Setup&&) = default;

    /// Gives every layer a calibration mean.
    void add_mean() {
        Random random(99);
        for (xquant::Layer& layer : model.layers) {
            weights_.push_back(random.rows(layer.shape.width, 0.5F));
            layer.mean = weights_.back().data();
        }
    }

    xquant::Model model;

private:
    std::vector<std::vector<float>> weights_;
};

/// Four layers, for every scheme: K and V together are narrower than X.
inline Setup small_model() {
    return {{.width = 24, .heads = 4, .kv_heads = 1, .head_dim = 8}, xquant::RopePairing::interleaved, 4};
}

/// Statistics of a layer of this shape: matrices that are positive definite, whose eigenvalues differ.
inline xquant::LayerStatistics random_statistics(const xquant::LayerShape& shape, unsigned seed = 1) {
    Random random(seed);
    const auto fill = [&](std::vector<float>& out, std::size_t n, std::size_t blocks) {
        for (std::size_t b = 0; b < blocks; ++b) {
            const std::vector<float> factor = random.rows(n * n);
            for (std::size_t i = 0; i < n; ++i) {
                for (std::size_t j = 0; j < n; ++j) {
                    float sum = i == j ? 0.01F * static_cast<float>(n) : 0.0F;
                    for (std::size_t k = 0; k < n; ++k) sum += factor[i * n + k] * factor[j * n + k];
                    out.push_back(sum);
                }
            }
        }
    };
    xquant::LayerStatistics out;
    const std::size_t heads = shape.kv_heads, dh = shape.head_dim, r = shape.kv_width();
    for (auto* of : {&out.key_spread, &out.key_cost, &out.value_spread, &out.value_cost}) fill(*of, dh, heads);
    for (auto* of : {&out.joint_keys, &out.joint_values}) fill(*of, r, 1);
    for (auto* of : {&out.x_spread, &out.difference_spread}) fill(*of, shape.width, 1);
    out.key_sensitivity = 0.001F;
    out.value_sensitivity = 0.002F;
    return out;
}

}  // namespace test
