// Scalar matrix products.
//
// Limit   FMA. Four rows of C share one pass over B; 64 columns at a time stay in registers on AVX-512, in L1
//         elsewhere.
#pragma once

#include <array>
#include <cstddef>

#include <xquant/backend/backend.hpp>
#include <xquant/backend/views.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// C [Rows, Columns] = (or +=) A [Rows, depth] B [depth, Columns]. Each entry is summed over k in order, whatever the
/// blocking, so a row's result does not depend on its neighbours.
template <std::size_t Rows, std::size_t Columns>
void multiply_block(Operand a, Matrix b, float* XQUANT_RESTRICT c, std::size_t c_stride, bool add) noexcept {
    std::array<std::array<float, Columns>, Rows> sum;
    for (std::size_t i = 0; i < Rows; ++i) {
        for (std::size_t j = 0; j < Columns; ++j) sum[i][j] = add ? c[i * c_stride + j] : 0.0F;
    }
    for (std::size_t k = 0; k < b.rows; ++k) {
        const float* XQUANT_RESTRICT row = b.data + k * b.stride;
        for (std::size_t i = 0; i < Rows; ++i) {
            const float factor = a.data[i * a.row_step + k * a.column_step];
            for (std::size_t j = 0; j < Columns; ++j) sum[i][j] += factor * row[j];
        }
    }
    for (std::size_t i = 0; i < Rows; ++i) {
        for (std::size_t j = 0; j < Columns; ++j) c[i * c_stride + j] = sum[i][j];
    }
}

/// Columns j .. j + Columns of C.
template <std::size_t Columns>
void multiply_columns(Operand a, Matrix b, MutableMatrix c, std::size_t j, bool add) noexcept {
    b.data += j;
    c.data += j;
    std::size_t i = 0;
    for (; i + 4 <= c.rows; i += 4) {
        const Operand from{a.data + i * a.row_step, a.row_step, a.column_step};
        multiply_block<4, Columns>(from, b, c.data + i * c.stride, c.stride, add);
    }
    for (; i < c.rows; ++i) {
        const Operand from{a.data + i * a.row_step, a.row_step, a.column_step};
        multiply_block<1, Columns>(from, b, c.data + i * c.stride, c.stride, add);
    }
}

}  // namespace detail

/// C [rows, columns] = (or +=) A [rows, depth] B [depth, columns]; the shapes are those of C and B.
inline void multiply(scalar, Operand a, Matrix b, MutableMatrix c, bool add) noexcept {
    std::size_t j = 0;
    for (; j + 64 <= c.columns; j += 64) detail::multiply_columns<64>(a, b, c, j, add);
    for (; j + 16 <= c.columns; j += 16) detail::multiply_columns<16>(a, b, c, j, add);
    for (; j + 4 <= c.columns; j += 4) detail::multiply_columns<4>(a, b, c, j, add);
    for (; j < c.columns; ++j) detail::multiply_columns<1>(a, b, c, j, add);
}

/// C [n, m] = A [n, columns] B [m, columns]^T, for a few rows of A.
inline void multiply_transposed(scalar, Matrix a, Matrix b, MutableMatrix c) noexcept {
    for (std::size_t i = 0; i < a.rows; ++i) {
        for (std::size_t j = 0; j < b.rows; ++j) {
            float sum = 0;
            for (std::size_t k = 0; k < a.columns; ++k) sum += b.data[j * b.stride + k] * a.data[i * a.stride + k];
            c.data[i * c.stride + j] = sum;
        }
    }
}

/// in [rows, columns] -> out [columns, rows], rows of out `out_stride` floats apart.
inline void transpose(scalar, Matrix in, float* XQUANT_RESTRICT out, std::size_t out_stride) noexcept {
    for (std::size_t i = 0; i < in.rows; ++i) {
        for (std::size_t j = 0; j < in.columns; ++j) out[j * out_stride + i] = in.data[i * in.stride + j];
    }
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
