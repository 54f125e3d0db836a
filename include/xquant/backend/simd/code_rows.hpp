// Rows of 4-bit codes per token, as they are stored: byte i of a row holds channel i and, in its upper half, channel
// i + n / 2 of a group of n. What scores.hpp and values.hpp read of them without a tile of words in between.
//
//     score_code_rows   lanes are channels: one dot instruction for the lower and one for the upper codes of a
//                       register, which holds one row or two; sums of 16 tokens leave the registers together
//     add_code_rows     (values.hpp) four rows are mixed into words of 4 tokens before their codes are parted, so that
//                       each shuffle serves both
//
// Limit   the dot instructions; for few query heads, the shuffles that add up lanes.
// Tried   Parting the codes first, then transposing words of 4 channels (scores) or mixing bytes (values), a tile of
//         words in between: 1.4 times the time of kv4 with 64 channels and 3 query heads. Twice the shuffles, and every
//         word was stored and loaded again.
#pragma once

#include <xquant/backend/simd/quads.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// Rows of a register that score_code_rows reads of groups of n codes; 0: it does not read such.
template <class R>
constexpr std::size_t rows_per_register(const StreamFormat& format, std::size_t n) noexcept {
    if (format.bits != 4 || format.group_tokens != 1 || n % 8 != 0) return 0;
    if (n / 2 == 4 * R::lanes) return 1;
    return n / 2 == 2 * R::lanes ? 2 : 0;
}

/// Rows of codes that lie one behind the other.
struct CodeRows {
    const std::byte* data;
    std::size_t count, ahead;  ///< rows; bytes to where the next tile's lie
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

/// sums [Heads][128] = code . q for each row. queries: [Heads][int8_channels] bytes, a channel each.
template <class R, std::size_t PerRegister, std::size_t Heads>
void score_code_rows(const CodeRows& rows, const std::uint8_t* queries, float* sums) noexcept {
    constexpr std::size_t row_bytes = 4 * R::lanes / PerRegister, fours_of = R::lanes / 4 / PerRegister;
    typename R::i32 query[Heads][2];
    XQUANT_UNROLL
    for (std::size_t h = 0; h < Heads; ++h) {
        XQUANT_UNROLL
        for (std::size_t half = 0; half < 2; ++half) {
            query[h][half] = R::template repeat<row_bytes>(queries + h * int8_channels + half * row_bytes);
        }
    }
    const auto nibbles = R::splat_i32(0x0F0F0F0F);
    for_row_blocks<R::lanes, row_bytes>(rows, [&](const std::byte* from, std::size_t t) {
        typename R::f32 fours[Heads][fours_of];
        XQUANT_UNROLL
        for (std::size_t four = 0; four < fours_of; ++four) {
            typename R::f32 sum[Heads][4];
            XQUANT_UNROLL
            for (std::size_t r = 0; r < 4; ++r) {
                const std::byte* const at = from + (4 * four + r) * 4 * R::lanes;
                prefetch(at, rows.ahead);
                const auto both = R::load_i32(at);
                const auto low = R::bits_and(both, nibbles), high = R::bits_and(R::shift_right(both, 4), nibbles);
                XQUANT_UNROLL
                for (std::size_t h = 0; h < Heads; ++h) {
                    sum[h][r] =
                        R::to_f32(R::dot_end(R::dot(R::dot(R::zero_i32(), low, query[h][0]), high, query[h][1])));
                }
            }
            XQUANT_UNROLL
            for (std::size_t h = 0; h < Heads; ++h) fours[h][four] = R::sum_four(sum[h]);
        }
        XQUANT_UNROLL
        for (std::size_t h = 0; h < Heads; ++h) {
            R::store(sums + h * tile_tokens + t, PerRegister == 1 ? R::sum_fours(fours[h]) : R::sum_halves(fours[h]));
        }
    });
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
