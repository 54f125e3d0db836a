// Weights of llama.cpp as floats, wherever they lie and however they are coded.
#pragma once

#include <cstddef>
#include <vector>

#include "ggml.h"

namespace adapter {

/// Rows first .. first + count of a weight [D, rows], as ggml multiplies with them: [count, D]. Throws
/// std::runtime_error where they cannot be read. Cost: reading them; for weights that ggml keeps in an order of its
/// own, a product with D columns.
std::vector<float> rows_of(const ggml_tensor* weight, std::size_t first, std::size_t count);

/// Elements first .. first + count of a vector. Throws std::runtime_error unless it is f32.
std::vector<float> vector_of(const ggml_tensor* vector, std::size_t first, std::size_t count);

}  // namespace adapter
