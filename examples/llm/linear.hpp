/// Dense products with the weights of a model, shared out over threads.
///
/// Formula  y = x W' + b      x [n, in], W [out, in] as GGUF stores it, b [out] or empty, y [n, out], all row-major f32
/// Threads  The work is cut into tiles whose sizes depend on the shapes alone, so y doesn't depend on their number.
/// Limits   n = 1 reads every weight once (memory); many rows are bound by Eigen's GEMM (arithmetic).
#pragma once

#include <cstddef>
#include <vector>

#include "threads.hpp"

namespace llm {

struct Matrix {
    std::size_t rows = 0, columns = 0;  // out, in
    std::vector<float> values;          // [rows, columns]
};

void multiply(const float* x, std::size_t n, const Matrix& weights, const std::vector<float>& bias, float* y,
              ThreadPool& pool);

}  // namespace llm
