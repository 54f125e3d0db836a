// Vector matrix products: blocks of C stay in registers.
//
//     multiply   C (+)= A B, 6 rows x 4 registers (AVX-512) or 6 x 2 (AVX2) at a time
//
// Limit   FMA.
#pragma once

#include <algorithm>
#include <cstddef>
#include <type_traits>

#include <xquant/backend/scalar/product.hpp>
#include <xquant/backend/simd/codec.hpp>
#include <xquant/backend/simd/registers.hpp>
#include <xquant/backend/simd/weights.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// A block of C, at its pointer, from the rows of A and the columns of B at theirs.
template <class R, std::size_t Rows, std::size_t Vectors>
void multiply_registers(Operand a, Matrix b, MutableMatrix c, bool add) noexcept {
    typename R::f32 sum[Rows][Vectors];
    const std::size_t columns = c.columns;
    XQUANT_UNROLL
    for (std::size_t i = 0; i < Rows; ++i) {
        XQUANT_UNROLL
        for (std::size_t v = 0; v < Vectors; ++v) {
            const float* from = c.data + i * c.stride + v * R::lanes;
            sum[i][v] = !add ? R::zero() : Vectors > 1 ? R::load(from) : R::load_first(from, columns);
        }
    }
    for (std::size_t k = 0; k < b.rows; ++k) {
        typename R::f32 row[Vectors];
        XQUANT_UNROLL
        for (std::size_t v = 0; v < Vectors; ++v) {
            const float* from = b.data + k * b.stride + v * R::lanes;
            row[v] = Vectors > 1 || columns == R::lanes ? R::load(from) : R::load_first(from, columns);
        }
        XQUANT_UNROLL
        for (std::size_t i = 0; i < Rows; ++i) {
            const auto factor = R::splat(a.data[i * a.row_step + k * a.column_step]);
            XQUANT_UNROLL
            for (std::size_t v = 0; v < Vectors; ++v) sum[i][v] = R::fma(factor, row[v], sum[i][v]);
        }
    }
    XQUANT_UNROLL
    for (std::size_t i = 0; i < Rows; ++i) {
        XQUANT_UNROLL
        for (std::size_t v = 0; v < Vectors; ++v) {
            float* to = c.data + i * c.stride + v * R::lanes;
            if (Vectors > 1 || columns == R::lanes) {
                R::store(to, sum[i][v]);
            } else {
                R::store_first(to, sum[i][v], columns);
            }
        }
    }
}

/// Columns j .. j + wide of C.
template <class R, std::size_t Vectors>
void multiply_panel(Operand a, Matrix b, MutableMatrix c, Slots columns, bool add) noexcept {
    b.data += columns.first;
    c.data += columns.first;
    c.columns = columns.count;
    std::size_t i = 0;
    const auto block = [&]<std::size_t Rows>(std::integral_constant<std::size_t, Rows>) {
        for (; i + Rows <= c.rows; i += Rows) {
            multiply_registers<R, Rows, Vectors>({a.data + i * a.row_step, a.row_step, a.column_step}, b,
                                                 {c.data + i * c.stride, Rows, c.columns, c.stride}, add);
        }
    };
    block(std::integral_constant<std::size_t, 6>{});
    block(std::integral_constant<std::size_t, 3>{});
    block(std::integral_constant<std::size_t, 1>{});
}

}  // namespace detail

/// Like the scalar multiply: each entry is summed over k in order, by one fma each.
template <class R>
void multiply(simd<R>, Operand a, Matrix b, MutableMatrix c, bool add) noexcept {
    constexpr std::size_t vectors = R::count >= 32 ? 4 : 2, wide = vectors * R::lanes;
    std::size_t j = 0;
    for (; j + wide <= c.columns; j += wide) detail::multiply_panel<R, vectors>(a, b, c, {j, wide}, add);
    for (; j < c.columns; j += R::lanes) {
        detail::multiply_panel<R, 1>(a, b, c, {j, (std::min)(R::lanes, c.columns - j)}, add);
    }
}

/// Like the scalar multiply_vector, but each entry is summed in `lanes` parts.
template <class R>
void multiply_vector(simd<R>, Matrix a, const float* x, float* out) noexcept {
    for (std::size_t i = 0; i < a.rows; i += R::lanes) {
        typename R::f32 sums[R::lanes];
        for (std::size_t k = 0; k < R::lanes; ++k) {
            const float* row = a.data + (std::min)(i + k, a.rows - 1) * a.stride;
            sums[k] = R::zero();
            for (std::size_t c = 0; c < a.columns; c += R::lanes) {
                const std::size_t n = (std::min)(R::lanes, a.columns - c);
                sums[k] = R::fma(R::load_first(row + c, n), R::load_first(x + c, n), sums[k]);
            }
        }
        R::store_first(out + i, R::sum_rows(sums), (std::min)(R::lanes, a.rows - i));
    }
}

template <class R>
void transpose(simd<R>, Matrix in, float* out, std::size_t out_stride) noexcept {
    detail::transpose_floats<R>(in, out, out_stride);
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
