// Rows of codes of 4 or 8 bits per token, as they are stored: byte i of a row of 4-bit codes holds channel i and, in
// its upper half, channel i + n / 2 of a group of n. What scores.hpp and values.hpp read without a tile of words.
//
//     score_code_rows   the words of four registers are transposed, within blocks of four, before they meet the
//                       queries: a lane then adds up words of one row, and what is left to add are the blocks. A
//                       register holds one row or two, or on Arm a half or a quarter of one
//     score_byte_rows   likewise, by queries of 15 bits in two bytes
//     add_code_rows     (values.hpp) four rows are mixed into words of 4 tokens before their codes are parted, so that
//                       each shuffle serves both
//
// Limit   the dot instructions: with registers of 16 words, 16 rows of 64 codes of 4 bits and 4 query heads take 64 of
//         them, 40 shuffles and partings, and 36 instructions to add up blocks and to apply scales.
// Tried   Parting the codes first, then transposing words of 4 channels (scores) or mixing bytes (values), a tile of
//         words in between: 1.4 times the time of kv4 with 64 channels and 3 query heads. Twice the shuffles, and every
//         word was stored and loaded again. Products first, lanes being channels, and adding up lanes by shuffles
//         afterwards, for every query head: 1.02 times the time of kv4, 1.14 times that of kv8.
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

/// put(head, t, sums) for each `lanes` rows: of the products of each row with the queries. multiply(codes, head) gives
/// the sums of 4 registers, lane 4 b + j that of words 4 b .. 4 b + 3 of register j: lane 4 b + j of codes [..][k] is
/// word 4 b + k of register j.
template <class R, std::size_t RowBytes, std::size_t Heads, class Multiply, class Put>
XQUANT_INLINE void score_registers(const CodeRows& rows, Multiply&& multiply, Put&& put) noexcept {
    using Shape = RowShape<R, RowBytes>;
    constexpr std::size_t fours_of = R::lanes / 4 / Shape::per_register;
    for_row_blocks<R::lanes, RowBytes>(rows, [&](const std::byte* from, std::size_t t) {
        typename R::f32 fours[Heads][fours_of];
        XQUANT_UNROLL
        for (std::size_t four = 0; four < fours_of; ++four) {
            typename R::i32 codes[Shape::registers][4];
            XQUANT_UNROLL
            for (std::size_t r = 0; r < 4; ++r) {
                const std::byte* const at = from + (4 * four + r) * Shape::registers * Shape::bytes;
                prefetch(at, rows.ahead);
                XQUANT_UNROLL
                for (std::size_t i = 0; i < Shape::registers; ++i) codes[i][r] = R::load_i32(at + i * Shape::bytes);
            }
            XQUANT_UNROLL
            for (std::size_t i = 0; i < Shape::registers; ++i) R::transpose_fours(codes[i]);
            XQUANT_UNROLL
            for (std::size_t h = 0; h < Heads; ++h) fours[h][four] = multiply(codes, h);
        }
        XQUANT_UNROLL
        for (std::size_t h = 0; h < Heads; ++h) {
            if constexpr (Shape::per_register == 1) {
                put(h, t, R::sum_fours(fours[h]));
            } else {
                put(h, t, R::sum_halves(fours[h]));
            }
        }
    });
}

/// A row of a query's bytes as score_registers' codes meet it: [registers][4].
template <class R, std::size_t RowBytes>
XQUANT_INLINE void spread_query(const std::uint8_t* bytes, typename R::i32 (*out)[4]) noexcept {
    using Shape = RowShape<R, RowBytes>;
    constexpr std::size_t some = (std::min)(RowBytes, Shape::bytes);
    XQUANT_UNROLL
    for (std::size_t i = 0; i < Shape::registers; ++i) {
        XQUANT_UNROLL
        for (std::size_t k = 0; k < 4; ++k) out[i][k] = R::template repeat<some>(bytes + i * some);
        R::transpose_fours(out[i]);
    }
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

/// The largest whole weight.
inline constexpr float most_whole = 127.0F * 256.0F + 127.0F;

/// 256 high + low, of sums of products with both.
template <class R>
XQUANT_INLINE typename R::f32 whole_sum(typename R::i32 high, typename R::i32 low) noexcept {
    return R::fma(R::to_f32(R::dot_end(high)), R::splat(256.0F), R::to_f32(R::dot_end(low)));
}

/// 128 values in registers.
template <class R>
struct TileRow {
    typename R::f32 at[tile_tokens / R::lanes];
};

/// The first n of 128 values; the others become 0.
template <class R>
XQUANT_INLINE TileRow<R> load_tile_row(const float* from, std::size_t n) noexcept {
    TileRow<R> out;
    if (n == tile_tokens) {
        XQUANT_UNROLL
        for (std::size_t r = 0; r < tile_tokens / R::lanes; ++r) out.at[r] = R::load(from + r * R::lanes);
    } else {
        for (std::size_t r = 0, t = 0; t < tile_tokens; ++r, t += R::lanes) {
            out.at[r] = R::load_first(from + t, t < n ? (std::min)(R::lanes, n - t) : 0);
        }
    }
    return out;
}

/// Row i of weights.
template <class R>
XQUANT_INLINE void round_weights(const TileRow<R>& row, std::size_t i, WholeWeights& out) noexcept {
    constexpr std::size_t registers = tile_tokens / R::lanes;
    const auto magnitude = R::splat_i32(0x7FFFFFFF);
    auto largest = R::zero();
    XQUANT_UNROLL
    for (std::size_t r = 0; r < registers; ++r) {
        largest = R::maximum(largest, R::as_f32(R::bits_and(R::as_i32(row.at[r]), magnitude)));
    }
    const float most = R::reduce_max(largest);
    out.steps[i] = most / most_whole;
    const auto inverse = R::splat(most > 0 ? most_whole / most : 0.0F);
    XQUANT_UNROLL
    for (std::size_t r = 0; r < registers; r += 4) {
        typename R::i32 whole[4];
        XQUANT_UNROLL
        for (std::size_t k = 0; k < 4; ++k) whole[k] = R::round(R::mul(row.at[r + k], inverse));
        const std::size_t at = i * tile_tokens + r * R::lanes;
        R::store_two_bytes(out.high.data() + at, out.low.data() + at, whole);
    }
}

/// put(head, t, sums) of code . q for `lanes` rows of codes of 8 bits. Queries: rows of at most 128, from `first` on.
template <class R, std::size_t RowBytes, std::size_t Heads, class Put>
void score_byte_rows(const CodeRows& rows, const WholeWeights& queries, std::size_t first, Put&& put) noexcept {
    using Shape = RowShape<R, RowBytes>;
    typename R::i32 query[Heads][2][Shape::registers][4];
    XQUANT_UNROLL
    for (std::size_t h = 0; h < Heads; ++h) {
        spread_query<R, RowBytes>(queries.high.data() + (first + h) * tile_tokens, query[h][0]);
        spread_query<R, RowBytes>(queries.low.data() + (first + h) * tile_tokens, query[h][1]);
    }
    const auto multiply = [&](const typename R::i32(&codes)[Shape::registers][4], std::size_t h) {
        auto high = R::zero_i32(), low = R::zero_i32();
        XQUANT_UNROLL
        for (std::size_t i = 0; i < Shape::registers; ++i) {
            XQUANT_UNROLL
            for (std::size_t k = 0; k < 4; ++k) {
                high = R::dot(high, codes[i][k], query[h][0][i][k]);
                low = R::dot(low, codes[i][k], query[h][1][i][k]);
            }
        }
        return whole_sum<R>(high, low);
    };
    score_registers<R, RowBytes, Heads>(rows, multiply, put);
}

/// put(head, t, sums) of code . q for `lanes` rows of 4-bit codes. Queries: [Heads][int8_channels] bytes.
template <class R, std::size_t RowBytes, std::size_t Heads, class Put>
void score_code_rows(const CodeRows& rows, const std::uint8_t* queries, Put&& put) noexcept {
    using Shape = RowShape<R, RowBytes>;
    static_assert(R::dot_run(4) >= 8);
    typename R::i32 query[Heads][2][Shape::registers][4];
    XQUANT_UNROLL
    for (std::size_t h = 0; h < Heads; ++h) {
        spread_query<R, RowBytes>(queries + h * int8_channels, query[h][0]);
        spread_query<R, RowBytes>(queries + h * int8_channels + RowBytes, query[h][1]);
    }
    const auto nibbles = R::splat_i32(0x0F0F0F0F);
    const auto multiply = [&](const typename R::i32(&both)[Shape::registers][4], std::size_t h) {
        auto total = R::zero_i32();
        XQUANT_UNROLL
        for (std::size_t i = 0; i < Shape::registers; ++i) {
            auto sum = R::zero_i32();
            XQUANT_UNROLL
            for (std::size_t k = 0; k < 4; ++k) {
                sum = R::dot(sum, R::bits_and(both[i][k], nibbles), query[h][0][i][k]);
                sum = R::dot(sum, R::bits_and(R::shift_right(both[i][k], 4), nibbles), query[h][1][i][k]);
            }
            total = i == 0 ? R::dot_end(sum) : R::add_i32(total, R::dot_end(sum));
        }
        return R::to_f32(total);
    };
    score_registers<R, RowBytes, Heads>(rows, multiply, put);
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
