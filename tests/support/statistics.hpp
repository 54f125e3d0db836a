/// Statistics of a model's layers that no text was needed for: random, and the same on every machine.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <xquant/calibration.hpp>
#include <xquant/statistics.hpp>

#include "support/model.hpp"

namespace test {

/// A symmetric, positive definite matrix [n, n]: a sum of n random squares, of which the last weighs `spread` times
/// less than the first.
inline std::vector<double> random_squares(std::size_t n, std::uint32_t seed, double spread = 100) {
    Random random(seed);
    const std::vector<float> factor = random.rows(n * n);
    std::vector<double> out(n * n, 0.0);
    for (std::size_t k = 0; k < n; ++k) {
        const double weight = std::pow(spread, -static_cast<double>(k) / static_cast<double>(n));
        for (std::size_t i = 0; i < n; ++i) {
            for (std::size_t j = 0; j < n; ++j) {
                out[i * n + j] +=
                    weight * static_cast<double>(factor[k * n + i]) * static_cast<double>(factor[k * n + j]);
            }
        }
    }
    return out;
}

/// `blocks` of such matrices in f32.
inline std::vector<float> random_blocks(std::size_t n, std::size_t blocks, std::uint32_t seed, double spread = 100) {
    std::vector<float> out;
    for (std::size_t b = 0; b < blocks; ++b) {
        for (const double value : random_squares(n, seed + static_cast<std::uint32_t>(b), spread)) {
            out.push_back(static_cast<float>(value));
        }
    }
    return out;
}

/// Statistics of every layer of a model, sensitivities too.
inline xquant::Calibration random_calibration(const xquant::Model& model, std::uint32_t seed = 1) {
    xquant::Calibration out;
    out.tokens = 4096;
    out.contexts = 7;
    for (const xquant::Layer& layer : model.layers) {
        const std::size_t heads = layer.shape.kv_heads, dh = layer.shape.head_dim, d = layer.shape.width;
        const std::size_t r = layer.shape.kv_width();
        xquant::LayerStatistics& of = out.layers.emplace_back();
        of.key_spread = random_blocks(dh, heads, seed += 100);
        of.key_cost = random_blocks(dh, heads, seed += 100);
        of.value_spread = random_blocks(dh, heads, seed += 100);
        of.value_cost = random_blocks(dh, heads, seed += 100);
        of.joint_keys = random_blocks(r, 1, seed += 100);
        of.joint_values = random_blocks(r, 1, seed += 100);
        if (d > 0) of.x_spread = random_blocks(d, 1, seed += 100);
        if (d > 0) of.difference_spread = random_blocks(d, 1, seed += 100);
        of.key_sensitivity = 0.5F / static_cast<float>(out.layers.size());
        of.value_sensitivity = 0.1F * static_cast<float>(out.layers.size());
    }
    return out;
}

/// Statistics of one layer whose matrices have no small eigenvalue: where rounding differs between two machines,
/// latents in their bases do not differ much more.
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
    return out;
}

}  // namespace test
