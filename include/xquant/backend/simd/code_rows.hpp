// Rows of codes of 4 or 8 bits per token, as they are stored: byte i of a row of 4-bit codes holds channel i and, in
// its upper half, channel i + n / 2 of a group of n. What scores.hpp and values.hpp read without a tile of words.
//
//     score_code_rows   lanes are channels: one dot instruction for the lower and one for the upper codes of a
//                       register, which holds one row or two, or on Arm a half or a quarter of one; sums of as many
//                       tokens as a register has lanes leave the registers together
//     score_byte_rows   likewise, by queries of 15 bits in two bytes
//     add_code_rows     (values.hpp) four rows are mixed into words of 4 tokens before their codes are parted, so that
//                       each shuffle serves both
//
// Limit   the dot instructions; for few query heads, the shuffles that add up lanes.
// Tried   Parting the codes first, then transposing words of 4 channels (scores) or mixing bytes (values), a tile of
//         words in between: 1.4 times the time of kv4 with 64 channels and 3 query heads. Twice the shuffles, and every
//         word was stored and loaded again.
#pragma once

#include <array>
#include <cstring>
#include <type_traits>

#include <xquant/backend/simd/quads.hpp>
#include <xquant/backend/tile_loop.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// How rows of so many bytes lie in registers.
template <class R, std::size_t RowBytes>
struct RowShape {
    static constexpr std::size_t bytes = 4 * R::lanes,  ///< of a register
        registers = RowBytes > bytes ? RowBytes / bytes : 1, per_register = RowBytes < bytes ? bytes / RowBytes : 1;
    static_assert(RowBytes * per_register == registers * bytes && registers <= 4 && per_register <= 2);
};

/// Bytes of a row where some channels are a whole group that is read as it is stored; 0: it is not.
template <class R>
constexpr std::size_t code_row_bytes(const StreamFormat& format, Slots channels) noexcept {
    const bool whole = channels.first % format.group_channels == 0 &&
                       channels.count == format.channels_of(channels.first / format.group_channels);
    if (!whole || format.group_tokens != 1) return 0;
    if (format.bits != 4 && (format.bits != 8 || R::dot_bits < 8)) return 0;
    const std::size_t doubled = channels.count * format.bits / 4;  // bytes of two rows
    if (doubled == 8 * R::lanes) return 4 * R::lanes;
    if (R::lanes < 8) return doubled == 16 * R::lanes || doubled == 32 * R::lanes ? doubled / 2 : 0;
    return doubled == 4 * R::lanes ? 2 * R::lanes : 0;
}

/// Calls f with what code_row_bytes found as a compile-time constant.
template <class R, class F>
XQUANT_INLINE void with_code_row_bytes(std::size_t bytes, F&& f) noexcept {
    constexpr std::size_t one = 4 * R::lanes;
    if (bytes == one) {
        f(std::integral_constant<std::size_t, one>{});
    } else if constexpr (R::lanes >= 8) {
        f(std::integral_constant<std::size_t, one / 2>{});
    } else if (bytes == 2 * one) {
        f(std::integral_constant<std::size_t, 2 * one>{});
    } else {
        f(std::integral_constant<std::size_t, 4 * one>{});
    }
}

/// Rows of codes that lie one behind the other.
struct CodeRows {
    const std::byte* data;
    std::size_t count,  ///< of rows
        ahead;          ///< bytes to where the next tile's rows lie
};

/// Calls f(from, t) for each `step` rows: where the last ones are fewer, for a copy of them that ends with zeros.
template <std::size_t Step, std::size_t RowBytes, class F>
XQUANT_INLINE void for_row_blocks(const CodeRows& rows, F&& f) noexcept {
    std::size_t t = 0;
    for (; t + Step <= rows.count; t += Step) f(rows.data + t * RowBytes, t);
    if (t == rows.count) return;
    alignas(64) std::array<std::byte, Step * RowBytes> last{};
    std::memcpy(last.data(), rows.data + t * RowBytes, (rows.count - t) * RowBytes);
    f(static_cast<const std::byte*>(last.data()), t);
}

/// sums [Heads][128] of the products of each row with the queries, which multiply(registers, head) gives by lanes.
template <class R, std::size_t RowBytes, std::size_t Heads, class Multiply>
XQUANT_INLINE void score_registers(const CodeRows& rows, float* sums, Multiply&& multiply) noexcept {
    using Shape = RowShape<R, RowBytes>;
    constexpr std::size_t fours_of = R::lanes / 4 / Shape::per_register;
    for_row_blocks<R::lanes, RowBytes>(rows, [&](const std::byte* from, std::size_t t) {
        typename R::f32 fours[Heads][fours_of];
        XQUANT_UNROLL
        for (std::size_t four = 0; four < fours_of; ++four) {
            typename R::f32 sum[Heads][4];
            XQUANT_UNROLL
            for (std::size_t r = 0; r < 4; ++r) {
                const std::byte* const at = from + (4 * four + r) * Shape::registers * Shape::bytes;
                prefetch(at, rows.ahead);
                typename R::i32 codes[Shape::registers];
                XQUANT_UNROLL
                for (std::size_t i = 0; i < Shape::registers; ++i) codes[i] = R::load_i32(at + i * Shape::bytes);
                XQUANT_UNROLL
                for (std::size_t h = 0; h < Heads; ++h) sum[h][r] = multiply(codes, h);
            }
            XQUANT_UNROLL
            for (std::size_t h = 0; h < Heads; ++h) fours[h][four] = R::sum_four(sum[h]);
        }
        XQUANT_UNROLL
        for (std::size_t h = 0; h < Heads; ++h) {
            if constexpr (Shape::per_register == 1) {
                R::store(sums + h * tile_tokens + t, R::sum_fours(fours[h]));
            } else {
                R::store(sums + h * tile_tokens + t, R::sum_halves(fours[h]));
            }
        }
    });
}

/// max |x| of n values.
template <class R>
float largest_of(const float* x, std::size_t n) noexcept {
    auto largest = R::zero();
    for (std::size_t c = 0; c < n; c += R::lanes) {
        const auto value = R::load_first(x + c, (std::min)(R::lanes, n - c));
        largest = R::maximum(largest, R::maximum(value, R::sub(R::zero(), value)));
    }
    return R::reduce_max(largest);
}

/// The sum of n values.
template <class R>
float sum_of(const float* x, std::size_t n) noexcept {
    auto sum = R::zero();
    for (std::size_t c = 0; c < n; c += R::lanes) {
        sum = R::add(sum, R::load_first(x + c, (std::min)(R::lanes, n - c)));
    }
    return R::reduce_add(sum);
}

/// Rows of weights as whole multiples of a step: 255 high + low, high and low within -127 .. 127. The error of a weight
/// is at most 1 / 65024 of the largest weight of its row.
struct WholeWeights {
    std::array<std::uint8_t, direct_queries * tile_tokens> high, low;
    std::array<float, direct_queries> steps;
};

/// 255 high + low, of sums of products with both.
template <class R>
XQUANT_INLINE typename R::f32 whole_sum(typename R::i32 high, typename R::i32 low) noexcept {
    return R::fma(R::to_f32(R::dot_end(high)), R::splat(255.0F), R::to_f32(R::dot_end(low)));
}

/// weights [count][tokens], rows `stride` floats apart; at most 128 of each, the others become 0.
template <class R>
void round_weights(const float* weights, std::size_t stride, std::size_t tokens, std::size_t count,
                   WholeWeights& out) noexcept {
    constexpr float top = 127.0F * 255.0F + 127.0F;
    for (std::size_t i = 0; i < count; ++i) {
        const float* row = weights + i * stride;
        const float most = largest_of<R>(row, tokens);
        out.steps[i] = most / top;
        const auto inverse = R::splat(most > 0 ? top / most : 0.0F);
        for (std::size_t t = 0; t < tile_tokens; t += 4 * R::lanes) {
            typename R::i32 high[4], low[4];
            XQUANT_UNROLL
            for (std::size_t r = 0; r < 4; ++r) {
                const std::size_t at = t + r * R::lanes, n = at < tokens ? (std::min)(R::lanes, tokens - at) : 0;
                const auto whole = R::to_f32(R::round(R::mul(R::load_first(row + at, n), inverse)));
                high[r] = R::round(R::mul(whole, R::splat(1.0F / 255.0F)));
                low[r] = R::round(R::fma(R::to_f32(high[r]), R::splat(-255.0F), whole));
            }
            R::store_bytes(out.high.data() + i * tile_tokens + t, high);
            R::store_bytes(out.low.data() + i * tile_tokens + t, low);
        }
    }
}

/// sums [Heads][128] = code . q for each row of codes of 8 bits. queries: [Heads][at most 128] in two bytes.
template <class R, std::size_t RowBytes, std::size_t Heads>
void score_byte_rows(const CodeRows& rows, const WholeWeights& queries, float* sums) noexcept {
    using Shape = RowShape<R, RowBytes>;
    constexpr std::size_t some = (std::min)(RowBytes, Shape::bytes);
    typename R::i32 query[Heads][2][Shape::registers];
    XQUANT_UNROLL
    for (std::size_t h = 0; h < Heads; ++h) {
        XQUANT_UNROLL
        for (std::size_t i = 0; i < Shape::registers; ++i) {
            query[h][0][i] = R::template repeat<some>(queries.high.data() + h * tile_tokens + i * some);
            query[h][1][i] = R::template repeat<some>(queries.low.data() + h * tile_tokens + i * some);
        }
    }
    score_registers<R, RowBytes, Heads>(rows, sums, [&](const typename R::i32* codes, std::size_t h) {
        auto high = R::zero_i32(), low = R::zero_i32();
        XQUANT_UNROLL
        for (std::size_t i = 0; i < Shape::registers; ++i) {
            high = R::dot(high, codes[i], query[h][0][i]);
            low = R::dot(low, codes[i], query[h][1][i]);
        }
        return whole_sum<R>(high, low);
    });
}

/// sums [Heads][128] = code . q for each row of 4-bit codes. queries: [Heads][int8_channels] bytes, a channel each.
template <class R, std::size_t RowBytes, std::size_t Heads>
void score_code_rows(const CodeRows& rows, const std::uint8_t* queries, float* sums) noexcept {
    using Shape = RowShape<R, RowBytes>;
    static_assert(2 * Shape::registers <= R::dot_run(4));
    constexpr std::size_t some = (std::min)(RowBytes, Shape::bytes);
    typename R::i32 query[Heads][2][Shape::registers];
    XQUANT_UNROLL
    for (std::size_t h = 0; h < Heads; ++h) {
        XQUANT_UNROLL
        for (std::size_t half = 0; half < 2; ++half) {
            const std::uint8_t* const from = queries + h * int8_channels + half * RowBytes;
            XQUANT_UNROLL
            for (std::size_t i = 0; i < Shape::registers; ++i) {
                query[h][half][i] = R::template repeat<some>(from + i * some);
            }
        }
    }
    const auto nibbles = R::splat_i32(0x0F0F0F0F);
    score_registers<R, RowBytes, Heads>(rows, sums, [&](const typename R::i32* both, std::size_t h) {
        auto sum = R::zero_i32();
        XQUANT_UNROLL
        for (std::size_t i = 0; i < Shape::registers; ++i) {
            const auto low = R::bits_and(both[i], nibbles), high = R::bits_and(R::shift_right(both[i], 4), nibbles);
            sum = R::dot(R::dot(sum, low, query[h][0][i]), high, query[h][1][i]);
        }
        return R::to_f32(R::dot_end(sum));
    });
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
