/// The static mean of x in each layer, from text other than the evaluated one: what the x*_rot_mean schemes subtract.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "model.hpp"

namespace llm {

/// ids: chunks of `context` tokens, each a context of its own. The first `skip` tokens of each are left out: their x is
/// far from all others'. Returns [L][D].
std::vector<std::vector<float>> calibrate(const Model& model, std::span<const Token> ids, std::size_t context,
                                          ThreadPool& pool, std::size_t skip = 4);

}  // namespace llm
