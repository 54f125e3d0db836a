// Vector attention, the values: for few query rows P z straight from what is stored.
//
//     rows  f16 or bf16: lanes are channels, sum += p v for 4 registers of channels and up to 4 query heads
//     codes per token: lanes are channels, words hold the codes of 4 tokens. In f32: sum += (p scale) code. With 8-bit
//           products, the weights p scale become whole numbers of 15 bits, in two bytes; one dot instruction multiplies
//           such bytes with 4 codes. Rows of 4 and 8 bits are mixed as they are stored, others through a tile of words.
//           Zeros take one number for each group
//
// Limit   8-bit products: two dot instructions for 4 tokens of `lanes` channels and a query head; then rounding the
//         weights, a tenth of kv4's time. f32 is bound by conversions.
// Not     P in 8 bits: weights below 1/510 of the largest round to 0, and 127 of them beside one large weight may hold
//         a fifth of the softmax.
#pragma once

#include <xquant/backend/simd/scores.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// sums [Heads][width] += sum over tokens of weights [Heads][128] * rows; load(t, c) gives `lanes` channels of a row.
template <class R, std::size_t Heads, std::size_t Vectors, class Load>
void add_rows(Load&& load, std::size_t tokens, std::size_t channel, const float* weights, float* sums,
              std::size_t stride) noexcept {
    typename R::f32 sum[Heads][Vectors];
    XQUANT_UNROLL
    for (std::size_t h = 0; h < Heads; ++h) {
        XQUANT_UNROLL
        for (std::size_t v = 0; v < Vectors; ++v) sum[h][v] = R::load(sums + h * stride + v * R::lanes);
    }
    for (std::size_t t = 0; t < tokens; ++t) {
        typename R::f32 row[Vectors];
        XQUANT_UNROLL
        for (std::size_t v = 0; v < Vectors; ++v) row[v] = load(t, channel + v * R::lanes);
        XQUANT_UNROLL
        for (std::size_t h = 0; h < Heads; ++h) {
            const auto weight = R::splat(weights[h * tile_tokens + t]);
            XQUANT_UNROLL
            for (std::size_t v = 0; v < Vectors; ++v) sum[h][v] = R::fma(weight, row[v], sum[h][v]);
        }
    }
    XQUANT_UNROLL
    for (std::size_t h = 0; h < Heads; ++h) {
        XQUANT_UNROLL
        for (std::size_t v = 0; v < Vectors; ++v) R::store(sums + h * stride + v * R::lanes, sum[h][v]);
    }
}

/// Like add_rows, for any number of heads, over `channels` channels of the rows.
template <class R, class Load>
void add_all_rows(Load&& load, std::size_t tokens, std::size_t channels, const float* weights, std::size_t count,
                  float* sums, std::size_t stride) noexcept {
    for_heads(count, [&]<std::size_t Heads>(std::size_t i, std::integral_constant<std::size_t, Heads>) {
        constexpr std::size_t vectors = Heads * 4 + 5 <= R::count ? 4 : 2;
        std::size_t c = 0;
        for (; c + vectors * R::lanes <= channels; c += vectors * R::lanes) {
            add_rows<R, Heads, vectors>(load, tokens, c, weights + i * tile_tokens, sums + i * stride + c, stride);
        }
        for (; c < channels; c += R::lanes) {
            add_rows<R, Heads, 1>(load, tokens, c, weights + i * tile_tokens, sums + i * stride + c, stride);
        }
    });
}

/// Codes of some tokens and channels (of one channel block) -> quads [tokens / 4][channels], words of 4 tokens; the
/// last word repeats the last token. False where codes in this form have no vector unpacking.
template <class R>
bool load_value_quads(const StreamView& in, Slots of_tokens, Slots of_channels, std::size_t ahead,
                      std::uint32_t* quads) noexcept {
    constexpr std::size_t bytes = 4 * R::lanes;
    const StreamFormat& format = in.format;
    const std::size_t first = of_tokens.first, tokens = of_tokens.count;
    const std::size_t channel = of_channels.first, channels = of_channels.count;
    const std::size_t block = channel / format.group_channels, skip = channel % format.group_channels;
    if (skip % bytes != 0) return false;
    const std::byte* group = in.codes + format.code_offset(first, block);
    const std::size_t step = format.group_bytes(format.channels_of(block));
    return with_group(format.bits, format.channels_of(block), [&](auto bits, auto n) {
        // Copies: stored bytes might change what is captured, for all the compiler knows.
        const std::size_t last = tokens - 1, wide = channels, from_run = skip / bytes, by = step, next = ahead;
        const std::byte* from = group;
        std::uint32_t* to = quads;
        for (std::size_t t = 0; t <= last; t += 4, to += wide) {
            const std::byte* rows[4];
            for (std::size_t i = 0; i < 4; ++i) {
                rows[i] = from + (std::min)(t + i, last) * by;
                prefetch(from + (t + i) * by, next);
            }
            for (std::size_t k = 0; k < wide; k += bytes) {
                const std::size_t run = from_run + k / bytes;
                typename R::i32 words[4];
                R::interleave_bytes(code_bytes<R, bits(), n()>(rows[0], run), code_bytes<R, bits(), n()>(rows[1], run),
                                    code_bytes<R, bits(), n()>(rows[2], run), code_bytes<R, bits(), n()>(rows[3], run),
                                    words);
                store_words<R>(words, (wide - k) / R::lanes, to + k, R::lanes);
            }
        }
    });
}

/// P of some tokens times the scales of a group of channels, for each head, and the sums of P times its zeros.
struct GroupWeights : WholeWeights {
    std::array<float, direct_queries> zeros;
};
template <class R>
void weigh_group(const float* p, std::size_t tokens, std::size_t count, const float* scales, const float* zeros,
                 GroupWeights& out) noexcept {
    const TileRow<R> scale = load_tile_row<R>(scales, tokens), zero = load_tile_row<R>(zeros, tokens);
    for (std::size_t i = 0; i < count; ++i) {
        TileRow<R> row = load_tile_row<R>(p + i * tile_tokens, tokens);
        auto total = R::zero();
        XQUANT_UNROLL
        for (std::size_t r = 0; r < tile_tokens / R::lanes; ++r) {
            total = R::fma(row.at[r], zero.at[r], total);
            row.at[r] = R::mul(row.at[r], scale.at[r]);
        }
        out.zeros[i] = R::reduce_add(total);
        round_weights<R>(row, i, out);
    }
}

/// sums [Heads][stride] += what weights from `head` on come to, for a register of channels: by sums of products with
/// both bytes, and with `zeros` by these.
template <class R, std::size_t Heads>
XQUANT_INLINE void finish_whole(const typename R::i32* high, const typename R::i32* low, const GroupWeights& weights,
                                std::size_t head, bool zeros, float* sums, std::size_t stride) noexcept {
    XQUANT_UNROLL
    for (std::size_t h = 0; h < Heads; ++h) {
        float* const to = sums + h * stride;
        const auto before = R::add(R::load(to), R::splat(zeros ? weights.zeros[head + h] : 0.0F));
        R::store(to, R::fma(whole_sum<R>(high[h], low[h]), R::splat(weights.steps[head + h]), before));
    }
}

// The sums of add_quads and add_code_rows are arrays of these functions, and the loops over them stand there twice: as
// members of a struct, or handed to a function that adds to them, g++ 12 keeps them in memory, and `kv4` took 1.3 times
// as long.

/// Codes of a tile of values: quads [count][channels], words of 4 tokens; `run` is how many a sum of integers may hold.
struct ValueQuads {
    const std::uint32_t* quads;
    std::size_t count, channels, run;
};

/// sums [Heads][stride] += step * (codes times whole weights), for Vectors registers of channels from c on; weights and
/// sums are those of query `head` and the next ones.
template <class R, std::size_t Heads, std::size_t Vectors>
void add_quads(const ValueQuads& codes, std::size_t c, const GroupWeights& weights, std::size_t head, float* sums,
               std::size_t stride) noexcept {
    const std::uint32_t* const quads = codes.quads;
    const std::size_t count_q = codes.count, channels = codes.channels, run = codes.run;
    for (std::size_t q = 0; q < count_q;) {
        const std::size_t end = count_q - q > run ? q + run : count_q;
        typename R::i32 high[Vectors][Heads], low[Vectors][Heads];
        XQUANT_UNROLL
        for (std::size_t v = 0; v < Vectors; ++v) {
            XQUANT_UNROLL
            for (std::size_t h = 0; h < Heads; ++h) high[v][h] = low[v][h] = R::zero_i32();
        }
        for (; q < end; ++q) {
            typename R::i32 words[Vectors];
            XQUANT_UNROLL
            for (std::size_t v = 0; v < Vectors; ++v) words[v] = R::load_i32(quads + q * channels + c + v * R::lanes);
            XQUANT_UNROLL
            for (std::size_t h = 0; h < Heads; ++h) {
                const std::size_t at = (head + h) * tile_tokens + 4 * q;
                const auto weight_high = R::template repeat<4>(weights.high.data() + at);
                const auto weight_low = R::template repeat<4>(weights.low.data() + at);
                XQUANT_UNROLL
                for (std::size_t v = 0; v < Vectors; ++v) {
                    high[v][h] = R::dot(high[v][h], words[v], weight_high);
                    low[v][h] = R::dot(low[v][h], words[v], weight_low);
                }
            }
        }
        XQUANT_UNROLL
        for (std::size_t v = 0; v < Vectors; ++v) {
            finish_whole<R, Heads>(high[v], low[v], weights, head, end == count_q, sums + c + v * R::lanes, stride);
        }
    }
}

/// Whether add_code_rows serves these registers: it holds all sums of a tile, and never ends a run of them.
template <class R>
inline constexpr bool adds_code_rows = R::count >= 32 && R::dot_run(R::dot_bits) >= tile_tokens;

/// Bytes of a row that add_all_code_rows reads as it is stored; 0: it does not.
template <class Backend>
constexpr std::size_t value_row_bytes(const StreamFormat& format, Slots channels) noexcept {
    using R = typename Backend::registers;
    if constexpr (Backend::int8_products && adds_code_rows<R>) return code_row_bytes<R>(format, channels);
    return 0;
}

/// What of a register of stored bytes is multiplied: 4-bit codes in their lower halves, in their upper halves, in both;
/// or the bytes, which are codes of 8 bits.
enum class CodePart : unsigned char { lower, upper, both, bytes };

/// sums [Heads][stride] += weights times half a register of each row of codes, from byte `skip` on. Channels of lower
/// and upper codes lie `RowBytes` apart.
template <class R, std::size_t RowBytes, std::size_t Heads, CodePart Part>
void add_code_rows(const CodeRows& rows, std::size_t skip, const GroupWeights& weights, std::size_t head, float* sums,
                   std::size_t stride) noexcept {
    constexpr std::size_t vectors = Part == CodePart::both ? 4 : 2;
    const auto nibbles = R::splat_i32(0x0F0F0F0F);
    typename R::i32 high[vectors][Heads], low[vectors][Heads];
    XQUANT_UNROLL
    for (std::size_t v = 0; v < vectors; ++v) {
        XQUANT_UNROLL
        for (std::size_t h = 0; h < Heads; ++h) high[v][h] = low[v][h] = R::zero_i32();
    }
    for_row_blocks<4, RowBytes>(rows, [&](const std::byte* first, std::size_t t) {
        const std::byte* const from = first + skip;
        for (std::size_t line = 0; line < 4 * RowBytes; line += 64) prefetch(first + line, rows.ahead);
        typename R::i32 both[2], words[vectors];
        R::interleave_halves(R::load_halves(from, from + RowBytes),
                             R::load_halves(from + 2 * RowBytes, from + 3 * RowBytes), both);
        XQUANT_UNROLL
        for (std::size_t i = 0; i < 2; ++i) {
            if constexpr (Part == CodePart::bytes) words[i] = both[i];
            if constexpr (Part == CodePart::lower || Part == CodePart::both) words[i] = R::bits_and(both[i], nibbles);
            if constexpr (Part == CodePart::upper || Part == CodePart::both) {
                words[vectors - 2 + i] = R::bits_and(R::shift_right(both[i], 4), nibbles);
            }
        }
        XQUANT_UNROLL
        for (std::size_t h = 0; h < Heads; ++h) {
            const std::size_t at = (head + h) * tile_tokens + t;
            const auto weight_high = R::template repeat<4>(weights.high.data() + at);
            const auto weight_low = R::template repeat<4>(weights.low.data() + at);
            XQUANT_UNROLL
            for (std::size_t v = 0; v < vectors; ++v) {
                high[v][h] = R::dot(high[v][h], words[v], weight_high);
                low[v][h] = R::dot(low[v][h], words[v], weight_low);
            }
        }
    });
    XQUANT_UNROLL
    for (std::size_t v = 0; v < vectors; ++v) {
        const bool upper = Part == CodePart::upper || v >= 2;
        const std::size_t channel = skip + v % 2 * R::lanes + (upper ? RowBytes : 0);
        finish_whole<R, Heads>(high[v], low[v], weights, head, true, sums + channel, stride);
    }
}

/// sums [count][stride] += weights times rows of codes of 4 or 8 bits.
template <class R, std::size_t RowBytes>
void add_all_code_rows(const CodeRows& rows, bool bytes, const GroupWeights& weights, std::size_t count, float* sums,
                       std::size_t stride) noexcept {
    for_heads(count, [&]<std::size_t Heads>(std::size_t i, std::integral_constant<std::size_t, Heads>) {
        float* const to = sums + i * stride;
        for (std::size_t skip = 0; skip < RowBytes; skip += 2 * R::lanes) {
            if (R::dot_bits >= 8 && bytes) {
                add_code_rows<R, RowBytes, Heads, CodePart::bytes>(rows, skip, weights, i, to, stride);
            } else if constexpr (Heads <= 3) {
                add_code_rows<R, RowBytes, Heads, CodePart::both>(rows, skip, weights, i, to, stride);
            } else {
                add_code_rows<R, RowBytes, Heads, CodePart::lower>(rows, skip, weights, i, to, stride);
                add_code_rows<R, RowBytes, Heads, CodePart::upper>(rows, skip, weights, i, to, stride);
            }
        }
    });
}

/// sums [count][stride] += weights times codes.
template <class R>
void add_products(const ValueQuads& codes, const GroupWeights& weights, std::size_t count, float* sums,
                  std::size_t stride) noexcept {
    const std::size_t channels = codes.channels;
    for_heads(count, [&]<std::size_t Heads>(std::size_t i, std::integral_constant<std::size_t, Heads>) {
        constexpr std::size_t vectors = R::count < 32 ? (Heads <= 2 ? 2 : 1) : Heads <= 3 ? 4 : 2;
        std::size_t c = 0;
        for (; c + vectors * R::lanes <= channels; c += vectors * R::lanes) {
            add_quads<R, Heads, vectors>(codes, c, weights, i, sums + i * stride, stride);
        }
        for (; c < channels; c += R::lanes) {
            add_quads<R, Heads, 1>(codes, c, weights, i, sums + i * stride, stride);
        }
    });
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
