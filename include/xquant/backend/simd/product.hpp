// Vector matrix products: blocks of C stay in registers.
//
//     multiply              C (+)= A B, 6 rows x 4 registers (AVX-512, NEON) or 6 x 2 (AVX2) at a time
//     multiply_transposed   C = A B^T, up to 4 rows of A x 4 rows of B at a time
//
// Limit   FMA.
// Tried   multiply_transposed with one row of B at a time, the lanes of 16 sums added up at the end: 1.07 times the
//         time of attention over an f16 cache (4 queries, 128 channels). So many sums were stored and loaded again.
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

/// Calls f(first, number) for 1 to 4 query heads at a time, with their number as a compile-time constant.
template <class F>
void for_heads(std::size_t count, F&& f) {
    std::size_t i = 0;
    for (; i + 4 <= count; i += 4) f(i, std::integral_constant<std::size_t, 4>{});
    if (count - i == 3) f(i, std::integral_constant<std::size_t, 3>{});
    if (count - i == 2) f(i, std::integral_constant<std::size_t, 2>{});
    if (count - i == 1) f(i, std::integral_constant<std::size_t, 1>{});
}

/// `lanes` values from `from` on, of which n are there, as f32.
template <class R>
typename R::f32 load_some(const f16* from, std::size_t /*n*/) noexcept {
    return R::load_f16(from);
}
template <class R>
typename R::f32 load_some(const bf16* from, std::size_t /*n*/) noexcept {
    return R::load_bf16(from);
}
template <class R>
typename R::f32 load_some(const float* from, std::size_t n) noexcept {
    return n >= R::lanes ? R::load(from) : R::load_first(from, n);
}

/// Rows [count, width] of floats, f16 or bf16; those in 16 bits have whole registers of channels.
template <class T>
struct Rows {
    const T* data;
    std::size_t count, width, stride;
    std::size_t ahead = 0;  ///< bytes to where the next tile's rows lie
};

/// C [Heads, b.count] = A B^T, for the first Heads rows of A.
///
/// Some rows of B share each load of A, and the sums of four leave the registers as one.
template <class R, std::size_t Heads, class T>
void multiply_some_rows(const Rows<float>& a, const Rows<T>& b, float* out, std::size_t out_stride) noexcept {
    constexpr std::size_t rows = R::count >= 32 || Heads <= 2 ? 4 : 2;
    const std::size_t width = b.width, last = b.count - 1, stride = a.stride, ahead = b.ahead;
    const float* const queries = a.data;
    for (std::size_t j = 0; j < b.count; j += R::lanes) {
        typename R::f32 fours[Heads][R::lanes / 4];
        XQUANT_UNROLL
        for (std::size_t four = 0; four < R::lanes / 4; ++four) {
            typename R::f32 sums[Heads][4];
            XQUANT_UNROLL
            for (std::size_t first = 0; first < 4; first += rows) {
                typename R::f32 sum[Heads][rows];
                const T* row[rows];
                XQUANT_UNROLL
                for (std::size_t r = 0; r < rows; ++r) {
                    row[r] = b.data + (std::min)(j + 4 * four + first + r, last) * b.stride;
                    XQUANT_UNROLL
                    for (std::size_t h = 0; h < Heads; ++h) sum[h][r] = R::zero();
                }
                for (std::size_t k = 0; k < width; k += R::lanes) {
                    typename R::f32 some[rows];
                    XQUANT_UNROLL
                    for (std::size_t r = 0; r < rows; ++r) {
                        if constexpr (sizeof(T) == 2) prefetch(row[r] + k, ahead);
                        some[r] = load_some<R>(row[r] + k, width - k);
                    }
                    XQUANT_UNROLL
                    for (std::size_t h = 0; h < Heads; ++h) {
                        const auto query = load_some<R>(queries + h * stride + k, width - k);
                        XQUANT_UNROLL
                        for (std::size_t r = 0; r < rows; ++r) sum[h][r] = R::fma(some[r], query, sum[h][r]);
                    }
                }
                XQUANT_UNROLL
                for (std::size_t h = 0; h < Heads; ++h) {
                    XQUANT_UNROLL
                    for (std::size_t r = 0; r < rows; ++r) sums[h][first + r] = sum[h][r];
                }
            }
            XQUANT_UNROLL
            for (std::size_t h = 0; h < Heads; ++h) fours[h][four] = R::sum_four(sums[h]);
        }
        const std::size_t n = (std::min)(R::lanes, b.count - j);
        XQUANT_UNROLL
        for (std::size_t h = 0; h < Heads; ++h) {
            R::store_first(out + h * out_stride + j, R::sum_fours(fours[h]), n);
        }
    }
}

/// C [a.count, b.count] = A B^T.
template <class R, class T>
void multiply_rows(const Rows<float>& a, const Rows<T>& b, float* out, std::size_t out_stride) noexcept {
    for_heads(a.count, [&]<std::size_t Heads>(std::size_t i, std::integral_constant<std::size_t, Heads>) {
        multiply_some_rows<R, Heads>({a.data + i * a.stride, Heads, a.width, a.stride}, b, out + i * out_stride,
                                     out_stride);
    });
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

/// Like the scalar multiply_transposed, but each entry is summed in `lanes` parts.
template <class R>
void multiply_transposed(simd<R>, Matrix a, Matrix b, MutableMatrix c) noexcept {
    detail::multiply_rows<R>({a.data, a.rows, a.columns, a.stride},
                             detail::Rows<float>{b.data, b.rows, b.columns, b.stride}, c.data, c.stride);
}

template <class R>
void transpose(simd<R>, Matrix in, float* out, std::size_t out_stride) noexcept {
    detail::transpose_floats<R>(in, out, out_stride);
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
