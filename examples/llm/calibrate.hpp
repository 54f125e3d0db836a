/// What some schemes learn beforehand, from text other than the evaluated one: the static mean of x in each layer,
/// which the x*_rot_mean schemes subtract, and rows of x, which the kvquant schemes place their levels by.
#pragma once

#include <cstddef>
#include <vector>

#include "model.hpp"

namespace llm {

struct Calibration {
    std::vector<std::vector<float>> mean;  // [L][D]
    std::vector<std::vector<float>> rows;  // [L][n, D], the first of them, at most 512
};

/// Every chunk is a context of its own. The first `skip` tokens of each are left out: their x is far from all others'.
Calibration calibrate(const Model& model, const std::vector<std::vector<Token>>& chunks, ThreadPool& pool,
                      std::size_t skip = 4);

}  // namespace llm
