/// The static mean of x in each layer, from text other than the evaluated one: what the x*_rot_mean schemes subtract.
#pragma once

#include <cstddef>
#include <vector>

#include "model.hpp"

namespace llm {

/// Every chunk is a context of its own. The first `skip` tokens of each are left out: their x is far from all others'.
/// Returns [L][D].
std::vector<std::vector<float>> calibrate(const Model& model, const std::vector<std::vector<Token>>& chunks,
                                          ThreadPool& pool, std::size_t skip = 4);

}  // namespace llm
