// Products with prepared matrices, whatever they are kept in. Drives every backend that has `load_weights` and
// `multiply`.
//
// Panels of a matrix become f32 on their way to the product; kept in f32, it is read where it lies.
// Limit   few rows: reading the matrix from memory, so half the bytes take half the time where it leaves the caches.
//         Many rows: the product, by FMA throughput.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>

#include <xquant/backend/scalar/product.hpp>
#include <xquant/backend/scalar/weights.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {

/// C [rows, columns] = (or +=) A [rows, depth] W [depth, columns]; rows and columns are those of C.
template <class Backend>
void multiply_weights(Backend tag, Operand a, const WeightMatrix& weights, std::size_t depth, MutableMatrix c,
                      bool add) noexcept {
    if (weights.type == WeightType::f32) {
        multiply(tag, a, {weights.floats(), depth, c.columns, c.columns}, c, add);
        return;
    }
    // The matrix is read from its beginning to its end, long pieces of rows at a time, which processors fetch ahead. C
    // stays in the cache.
    constexpr std::size_t most = 4096;
    alignas(64) std::array<float, most> panel;
    const std::size_t deep = c.rows < 4 ? 4 : 16, wide = most / deep;
    for (std::size_t k = 0; k < depth; k += deep) {
        const std::size_t rows = (std::min)(deep, depth - k);
        for (std::size_t j = 0; j < c.columns; j += wide) {
            const std::size_t columns = (std::min)(wide, c.columns - j);
            for (std::size_t i = 0; i < rows; ++i) {
                load_weights(tag, weights, {(k + i) * c.columns + j, columns}, panel.data() + i * columns);
            }
            multiply(tag, {a.data + k * a.column_step, a.row_step, a.column_step},
                     {panel.data(), rows, columns, columns}, {c.data + j, c.rows, columns, c.stride}, add || k > 0);
        }
    }
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
