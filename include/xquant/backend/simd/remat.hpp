// Vector products: blocks of C stay in registers; keys from codes in 8-bit integers.
//
//     multiply             C (+)= A B, 6 rows x 4 registers (AVX-512) or 6 x 2 (AVX2) at a time
//     rematerialize_int8   K [Dh, tokens] from codes as they are: no dequantization, one dot instruction for 4 channels of
//                          `lanes` tokens
//
// Shapes  code quads [channels / 4][128 tokens], a word holds 4 channels of one token; weight quads [channels / 4][Dh].
// Limit   multiply: FMA. rematerialize_int8: the dot instruction (vpdpbusd, or vpmaddubsw + vpaddw on AVX2), Dh / 4 for each
//         channel block and register of tokens. By count, folding scales into A adds a fifth for 128 tokens and Dh = 64.
#pragma once

#include <xquant/backend/scalar/remat.hpp>
#include <xquant/backend/simd/quads.hpp>
#include <xquant/backend/simd/rope.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {
namespace detail {

template <class R, std::size_t Rows, std::size_t Vectors>
void multiply_registers(std::size_t depth, Operand a, const float* b, std::size_t b_stride, float* c,
                        std::size_t c_stride, std::size_t columns, bool add) noexcept {
    typename R::f32 sum[Rows][Vectors];
    XQUANT_UNROLL
    for (std::size_t i = 0; i < Rows; ++i) {
        XQUANT_UNROLL
        for (std::size_t v = 0; v < Vectors; ++v) {
            const float* from = c + i * c_stride + v * R::lanes;
            sum[i][v] = !add ? R::zero() : Vectors > 1 ? R::load(from) : R::load_first(from, columns);
        }
    }
    for (std::size_t k = 0; k < depth; ++k) {
        typename R::f32 row[Vectors];
        XQUANT_UNROLL
        for (std::size_t v = 0; v < Vectors; ++v) {
            const float* from = b + k * b_stride + v * R::lanes;
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
            float* to = c + i * c_stride + v * R::lanes;
            if (Vectors > 1 || columns == R::lanes) {
                R::store(to, sum[i][v]);
            } else {
                R::store_first(to, sum[i][v], columns);
            }
        }
    }
}

template <class R, std::size_t Vectors>
void multiply_panel(std::size_t rows, std::size_t depth, Operand a, const float* b, std::size_t b_stride, float* c,
                    std::size_t c_stride, std::size_t columns, bool add) noexcept {
    std::size_t i = 0;
    const auto block = [&]<std::size_t Rows>(std::integral_constant<std::size_t, Rows>) {
        for (; i + Rows <= rows; i += Rows) {
            multiply_registers<R, Rows, Vectors>(depth, {a.data + i * a.row_step, a.row_step, a.column_step}, b,
                                                 b_stride, c + i * c_stride, c_stride, columns, add);
        }
    };
    block(std::integral_constant<std::size_t, 6>{});
    block(std::integral_constant<std::size_t, 3>{});
    block(std::integral_constant<std::size_t, 1>{});
}

}  // namespace detail

/// As the scalar one: each entry is summed over k in order, by one fma each.
template <class R>
void multiply(simd<R>, std::size_t rows, std::size_t columns, std::size_t depth, Operand a, const float* b,
              std::size_t b_stride, float* c, std::size_t c_stride, bool add) noexcept {
    constexpr std::size_t vectors = R::count >= 32 ? 4 : 2, wide = vectors * R::lanes;
    std::size_t j = 0;
    for (; j + wide <= columns; j += wide) {
        detail::multiply_panel<R, vectors>(rows, depth, a, b + j, b_stride, c + j, c_stride, wide, add);
    }
    for (; j < columns; j += R::lanes) {
        detail::multiply_panel<R, 1>(rows, depth, a, b + j, b_stride, c + j, c_stride, std::min(R::lanes, columns - j),
                                     add);
    }
}

/// As the scalar one, but each entry is summed in `lanes` parts.
template <class R>
void multiply_vector(simd<R>, const float* a, std::size_t stride, std::size_t rows, std::size_t depth, const float* x,
                     float* out) noexcept {
    for (std::size_t i = 0; i < rows; i += R::lanes) {
        typename R::f32 sums[R::lanes];
        for (std::size_t k = 0; k < R::lanes; ++k) {
            const float* row = a + std::min(i + k, rows - 1) * stride;
            sums[k] = R::zero();
            for (std::size_t c = 0; c < depth; c += R::lanes) {
                const std::size_t n = std::min(R::lanes, depth - c);
                sums[k] = R::fma(R::load_first(row + c, n), R::load_first(x + c, n), sums[k]);
            }
        }
        R::store_first(out + i, R::sum_rows(sums), std::min(R::lanes, rows - i));
    }
}

template <class R>
void transpose_tile(simd<R>, const float* in, std::size_t in_stride, std::size_t rows, std::size_t columns, float* out,
                    std::size_t out_stride) noexcept {
    detail::transpose_floats<R>(in, in_stride, rows, columns, out, out_stride);
}

namespace detail {

/// A block of A [channels, Dh] in 8 bits: factor_c A[c][j] ~ scale[j] weight[c][j]. columns: Dh, rounded up to whole
/// registers.
struct Int8Block {
    std::size_t columns;
    std::uint32_t* weights;  ///< [channels / 4][columns], 4 channels a word
    float* scales;           ///< [columns]
    float* offsets;          ///< [columns] sum over c of zero_c A[c][j]

    static constexpr std::size_t floats(std::size_t channels, std::size_t dh) noexcept {
        return (channels / 4 + 2) * (dh + 15);
    }
};

/// The same numbers as quantize_weights (scalar). Factors and zeros [channels] or null: 1 and, for the offsets, 1.
template <class R>
Int8Block fold_weights(simd<R>, const float* a, std::size_t dh, std::size_t channels, const float* factors,
                       const float* zeros, float* memory) noexcept {
    constexpr std::size_t lanes = R::lanes;
    Int8Block out{(dh + lanes - 1) / lanes * lanes, reinterpret_cast<std::uint32_t*>(memory), nullptr, nullptr};
    out.scales = memory + channels / 4 * out.columns;
    out.offsets = out.scales + out.columns;
    const auto byte = R::splat_i32(0xFF), magnitude = R::splat_i32(0x7FFFFFFF);
    for (std::size_t j = 0; j < dh; j += lanes) {
        const std::size_t n = std::min(lanes, dh - j);
        const auto row = [&](std::size_t c) {
            return n == lanes ? R::load(a + c * dh + j) : R::load_first(a + c * dh + j, n);
        };
        auto largest = R::zero(), offset = R::zero();
        for (std::size_t c = 0; c < channels; ++c) {
            const auto value = row(c), scaled = factors != nullptr ? R::mul(R::splat(factors[c]), value) : value;
            largest = R::max(largest, R::as_f32(R::bits_and(R::as_i32(scaled), magnitude)));
            offset = zeros != nullptr ? R::fma(R::splat(zeros[c]), value, offset) : R::add(offset, value);
        }
        alignas(64) float inverse[lanes], scale[lanes];
        R::store(inverse, largest);
        for (std::size_t i = 0; i < lanes; ++i) {
            scale[i] = inverse[i] / int8_top;
            inverse[i] = inverse[i] > 0 ? int8_top / inverse[i] : 0.0F;
        }
        R::store(out.scales + j, R::load(scale));
        R::store(out.offsets + j, offset);
        const auto up = R::load(inverse);
        for (std::size_t c = 0; c < channels; c += 4) {
            auto word = R::zero_i32();
            for (std::size_t k = 4; k-- > 0;) {
                const auto value = row(c + k),
                           scaled = factors != nullptr ? R::mul(R::splat(factors[c + k]), value) : value;
                word = R::bits_or(R::shift_left(word, 8), R::bits_and(R::round(R::mul(scaled, up)), byte));
            }
            R::store_i32(out.weights + c / 4 * out.columns + j, word);
        }
    }
    return out;
}

/// Registers of tokens, and columns, whose sums are kept at a time.
template <class R>
inline constexpr std::size_t dot_vectors = R::count >= 32 ? 4 : 2;
inline constexpr std::size_t dot_columns = 4;

/// Sums of products, [columns][registers of tokens].
template <class R, std::size_t Vectors>
struct DotSums {
    typename R::i32 at[dot_columns][Vectors];
};

/// at[k][v] = for column columns[k]: sum over quads begin .. end of code * weight, for tokens t + v * lanes ..
template <class R, std::size_t Vectors>
XQUANT_INLINE DotSums<R, Vectors> dot_run(const std::uint32_t* quads, std::size_t begin, std::size_t end, std::size_t t,
                                          const Int8Block& block, const std::size_t (&columns)[dot_columns]) noexcept {
    DotSums<R, Vectors> sums;
    XQUANT_UNROLL
    for (std::size_t k = 0; k < dot_columns; ++k) {
        XQUANT_UNROLL
        for (std::size_t v = 0; v < Vectors; ++v) sums.at[k][v] = R::zero_i32();
    }
    for (std::size_t q = begin; q < end; ++q) {
        typename R::i32 codes[Vectors];
        XQUANT_UNROLL
        for (std::size_t v = 0; v < Vectors; ++v) codes[v] = R::load_i32(quads + q * quad_tokens + t + v * R::lanes);
        XQUANT_UNROLL
        for (std::size_t k = 0; k < dot_columns; ++k) {
            const auto weight = R::template repeat<4>(block.weights + q * block.columns + columns[k]);
            XQUANT_UNROLL
            for (std::size_t v = 0; v < Vectors; ++v) sums.at[k][v] = R::dot(sums.at[k][v], codes[v], weight);
        }
    }
    XQUANT_UNROLL
    for (std::size_t k = 0; k < dot_columns; ++k) {
        XQUANT_UNROLL
        for (std::size_t v = 0; v < Vectors; ++v) sums.at[k][v] = R::dot_end(sums.at[k][v]);
    }
    return sums;
}

/// The same over all channels.
template <class R, std::size_t Vectors>
XQUANT_INLINE DotSums<R, Vectors> dot_quads(const std::uint32_t* quads, std::size_t channels, std::size_t t,
                                            const Int8Block& block, const std::size_t (&columns)[dot_columns],
                                            std::size_t run) noexcept {
    const std::size_t end = channels / 4;
    DotSums<R, Vectors> sums = dot_run<R, Vectors>(quads, 0, std::min(run, end), t, block, columns);
    for (std::size_t q = run; q < end && run < end; q += run) {
        const DotSums<R, Vectors> more = dot_run<R, Vectors>(quads, q, std::min(q + run, end), t, block, columns);
        XQUANT_UNROLL
        for (std::size_t k = 0; k < dot_columns; ++k) {
            XQUANT_UNROLL
            for (std::size_t v = 0; v < Vectors; ++v) sums.at[k][v] = R::add_i32(sums.at[k][v], more.at[k][v]);
        }
    }
    return sums;
}

/// Adds one channel block to K [Dh, tokens] (channel-major); sets it where `set` is true.
template <class R>
void add_int8_block(const StreamView& in, const std::uint32_t* quads, std::size_t channels, const Int8Block& block,
                    const float* token_scales, const float* token_zeros, std::size_t tokens, std::size_t columns,
                    float* out, std::size_t stride, bool set) noexcept {
    constexpr std::size_t vectors = dot_vectors<R>, wide = vectors * R::lanes;
    const std::size_t run = R::dot_run(in.format.bits);
    for (std::size_t t = 0; t < tokens; t += wide) {
        for (std::size_t j = 0; j < columns; j += dot_columns) {
            std::size_t at[dot_columns];
            for (std::size_t k = 0; k < dot_columns; ++k) at[k] = std::min(j + k, columns - 1);
            const auto sums = dot_quads<R, vectors>(quads, channels, t, block, at, run);
            for (std::size_t k = 0; k < std::min(dot_columns, columns - j); ++k) {
                const auto scale = R::splat(block.scales[j + k]), offset = R::splat(block.offsets[j + k]);
                for (std::size_t v = 0; v < vectors; ++v) {
                    const std::size_t first = t + v * R::lanes;
                    if (first >= tokens) break;
                    const std::size_t n = std::min(R::lanes, tokens - first);
                    float* to = out + (j + k) * stride + first;
                    const auto before = set ? R::zero() : R::load_first(to, n);
                    auto value = R::mul(R::to_f32(sums.at[k][v]), scale);
                    if (token_scales != nullptr) {
                        value = R::fma(R::load(token_scales + first), value, before);
                        value = R::fma(R::load(token_zeros + first), offset, value);
                    } else {
                        value = R::add(R::add(value, offset), before);
                    }
                    R::store_first(to, value, n);
                }
            }
        }
    }
}

}  // namespace detail

/// As the scalar one: the integer sums are the same, floats differ by rounding.
template <class R>
void rematerialize_int8(simd<R> tag, const StreamView& in, const HeadDecoder& head, std::size_t token,
                        std::size_t tokens, std::size_t dh, std::size_t columns, float* out, std::size_t stride,
                        float* scratch) noexcept {
    const StreamFormat& format = in.format;
    const bool by_channel = format.group_channels == 1;
    auto* quads = reinterpret_cast<std::uint32_t*>(scratch);
    float* memory = scratch + int8_channels / 4 * detail::quad_tokens;
    alignas(64) std::array<float, detail::quad_tokens + R::lanes> scales, zeros;
    for (std::size_t t = 0; t < tokens;) {
        const std::size_t left = by_channel ? format.group_tokens - (token + t) % format.group_tokens : tokens;
        const std::size_t some = std::min(left, tokens - t);
        for (std::size_t c = 0; c < head.width;) {
            const std::size_t channel = head.first + c, channels = int8_block(format, channel, head.width - c);
            detail::load_quads(tag, in, token + t, some, channel, channels, quads);
            const float* a = head.matrix + c * dh;
            detail::Int8Block block;
            if (by_channel) {
                detail::load_channel_scales(in, (token + t) / format.group_tokens, channel, channels, scales.data(),
                                            zeros.data());
                block = detail::fold_weights(tag, a, dh, channels, scales.data(), zeros.data(), memory);
            } else {
                detail::load_token_scales<R>(in, token + t, some, channel / format.group_channels, scales.data(),
                                             zeros.data());
                block = detail::fold_weights(tag, a, dh, channels, nullptr, nullptr, memory);
            }
            detail::add_int8_block<R>(in, quads, channels, block, by_channel ? nullptr : scales.data(), zeros.data(),
                                      some, columns, out + t, stride, c == 0);
            c += channels;
        }
        t += some;
    }
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
