// Vector attention, scores from codes per channel in 8 bits: a few columns of K at a time, and slow pairs without K
// (backend/key_columns.hpp).
//
// Shapes  weights [columns][width] in 8 bits, one column behind the other: built channels, nought up to a multiple of
//         4 of them, three for each query where there are slow pairs. Scores [queries][128].
// Limit   the dot instruction, width / 4 for each column and register of tokens. With Dh = 64, 3 queries and base
//         100,000 there are 37 columns; a third of the time are their sums, K's step, RoPE and q, a twelfth each u A^T
//         and rounding columns for a block of tokens, the rest P z, softmax and the unpacking of codes.
// Tried   Every pair built: 1.2 times the time of a token (inside llama.cpp). Finding the largest entries
//         and the offsets of 16 columns together, by transposing registers: no faster.
#pragma once

#include <xquant/backend/simd/int8.hpp>
#include <xquant/backend/simd/rope.hpp>
#include <xquant/backend/simd/scores.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// Where the weights of KeyColumns lie: those of built channels, nought up to a multiple of 4 of them, those of slow
/// pairs. Stored channels that are built have no weights. And the queries that built channels meet.
struct KeyWeights {
    std::size_t built,  ///< columns that are built, with those that are nought
        slow;           ///< the first column of the slow pairs
    Int8Block block;
    float* queries;  ///< [queries][built], in the order of the columns

    explicit KeyWeights(const KeyColumns& columns) noexcept
        : built((columns.built + dot_columns - 1) / dot_columns * dot_columns), slow(columns.stored ? 0 : built) {
        const std::size_t all = slow + columns.terms_of(direct_queries), width = columns.width;
        float* const scales = columns.rest + all * (width / 4) + column_overrun;
        block = {width / 4, 1, reinterpret_cast<std::uint32_t*>(columns.rest), scales, scales + all, nullptr};
        queries = block.shifts + all;
    }
};

/// The weights of quantize_weights (scalar) for columns [of.count][Registers * lanes] that lie one behind the other:
/// columns `of.first` and the next ones of a block, for codes that count from `middle` on.
template <class R, std::size_t Registers>
void round_whole_columns(const float* columns, Slots of, const float* factors, const float* centers, float middle,
                         const Int8Block& out) noexcept {
    static_assert(Registers % 4 == 0);
    constexpr std::size_t lanes = R::lanes, channels = Registers * lanes;
    auto* const bytes = reinterpret_cast<std::uint8_t*>(out.weights);
    const auto magnitude = R::splat_i32(0x7FFFFFFF);
    typename R::f32 factor[Registers], center[Registers];
    XQUANT_UNROLL
    for (std::size_t r = 0; r < Registers; ++r) {
        factor[r] = R::load(factors + r * lanes);
        center[r] = R::load(centers + r * lanes);
    }
    for (std::size_t j = of.first; j < of.end(); ++j, columns += channels) {
        typename R::f32 scaled[Registers];
        auto largest = R::zero(), offset = R::zero();
        XQUANT_UNROLL
        for (std::size_t r = 0; r < Registers; ++r) {
            const auto value = R::load(columns + r * lanes);
            scaled[r] = R::mul(factor[r], value);
            largest = R::maximum(largest, R::as_f32(R::bits_and(R::as_i32(scaled[r]), magnitude)));
            offset = R::fma(center[r], value, offset);
        }
        const float most = R::reduce_max(largest);
        out.scales[j] = most / int8_top;
        const auto up = R::splat(most > 0 ? int8_top / most : 0.0F);
        auto sum = R::zero_i32();  // of weights
        XQUANT_UNROLL
        for (std::size_t r = 0; r < Registers; r += 4) {
            typename R::i32 words[4];
            XQUANT_UNROLL
            for (std::size_t k = 0; k < 4; ++k) words[k] = R::round(R::mul(scaled[r + k], up));
            sum = R::add_i32(sum, R::add_i32(R::add_i32(words[0], words[1]), R::add_i32(words[2], words[3])));
            R::store_bytes(bytes + j * channels + r * lanes, words);
        }
        out.shifts[j] = R::reduce_add(R::fma(R::to_f32(sum), R::splat(-middle * out.scales[j]), offset));
    }
}

/// Likewise for any number of channels: of whole registers of bytes, 64 and 128 on every machine.
template <class R>
void round_columns(const float* columns, std::size_t channels, Slots of, const float* factors, const float* centers,
                   float middle, const Int8Block& out) noexcept {
    constexpr std::size_t lanes = R::lanes;
    if (channels == 64) return round_whole_columns<R, 64 / lanes>(columns, of, factors, centers, middle, out);
    if (channels == 128) return round_whole_columns<R, 128 / lanes>(columns, of, factors, centers, middle, out);
    auto* const bytes = reinterpret_cast<std::uint8_t*>(out.weights);
    const auto magnitude = R::splat_i32(0x7FFFFFFF);
    for (std::size_t j = of.first; j < of.end(); ++j, columns += channels) {
        const auto some = [=](const float* from, std::size_t c) {
            return R::load_first(from + c, (std::min)(R::lanes, channels - c));
        };
        auto largest = R::zero(), offset = R::zero(), sum = R::zero();
        for (std::size_t c = 0; c < channels; c += lanes) {
            const auto value = some(columns, c), scaled = R::mul(some(factors, c), value);
            largest = R::maximum(largest, R::as_f32(R::bits_and(R::as_i32(scaled), magnitude)));
            offset = R::fma(some(centers, c), value, offset);
        }
        const float most = R::reduce_max(largest);
        out.scales[j] = most / int8_top;
        const auto up = R::splat(most > 0 ? int8_top / most : 0.0F);
        for (std::size_t c = 0; c < channels; c += lanes) {
            const auto word = R::round(R::mul(R::mul(some(factors, c), some(columns, c)), up));
            sum = R::add(sum, R::to_f32(word));
            R::store_u8(bytes + j * channels + c, R::bits_and(word, R::splat_i32(0xFF)));
        }
        out.shifts[j] = R::reduce_add(R::fma(sum, R::splat(-middle * out.scales[j]), offset));
    }
}

/// Weights of the slow pairs' columns for a block of tokens whose entries have these scales and centers [width].
template <class R>
void round_slow_columns(const KeyColumns& columns, std::size_t queries, const float* scales, const float* centers,
                        float middle, const KeyWeights& out) noexcept {
    const std::size_t terms = columns.terms_of(queries);
    round_columns<R>(columns.slow_columns, columns.width, {out.slow, terms}, scales, centers, middle, out.block);
    for (std::size_t i = 0; i < terms; ++i) {
        out.block.shifts[out.slow + i] += columns.constants[i / slow_terms * constant_terms + i % slow_terms];
    }
}

/// Weights of all columns for a block of tokens with these scales and zeros [width].
template <class R>
void round_key_columns(const AttendTask& task, const KeyColumns& columns, std::size_t queries, const float* scales,
                       const float* centers, float middle, const KeyWeights& out) noexcept {
    const std::size_t width = task.key.width;
    round_columns<R>(columns.built_matrix, width, {0, columns.built}, scales, centers, middle, out.block);
    for (std::size_t j = 0; j < columns.built && task.key.constant != nullptr; ++j) {
        out.block.shifts[j] += task.key.constant[columns.channels[j]];
    }
    const std::size_t nought = out.built - columns.built;
    std::fill_n(out.block.weights + columns.built * (width / 4), nought * (width / 4), 0U);
    std::fill_n(out.block.scales + columns.built, nought, 0.0F);
    std::fill_n(out.block.shifts + columns.built, nought, 0.0F);
    round_slow_columns<R>(columns, queries, scales, centers, middle, out);
}

/// Tokens of a token block, from its first on.
struct TokenBlock {
    std::size_t slot,      ///< of the first
        count;             ///< how many
    std::ptrdiff_t ahead;  ///< of the first, from the first token of the tile

    [[nodiscard]] Slots slots() const noexcept { return {slot, count}; }
};

/// scores [queries][128] of the slow pairs: three columns for a query, by the polynomials of turn_table.
template <class R>
void score_slow_pairs(const AttendTask& task, const std::uint32_t* quads, const TokenBlock& tokens,
                      const KeyColumns& columns, const KeyWeights& weights, std::size_t run, std::size_t queries,
                      float* scores) noexcept {
    constexpr std::size_t vectors = dot_vectors<R>, wide = vectors * R::lanes;
    const Int8Block& block = weights.block;
    const std::size_t terms = columns.stored || task.key.constant != nullptr ? constant_terms : slow_terms;
    Products<R> products(quads, columns.width, run, block);
    for (std::size_t t = 0; t < tokens.count; t += wide) {
        const auto turn = [at = static_cast<std::ptrdiff_t>(TurnTable::before + t) + tokens.ahead](std::size_t m) {
            return turn_table.at[m - 1].data() + at;
        };
        for (std::size_t i = 0; i < queries; ++i) {
            const std::size_t j = weights.slow + slow_terms * i;
            const auto sums = products.template of<slow_terms>(t, j);
            typename R::f32 score[vectors];
            XQUANT_UNROLL
            for (std::size_t m = 0; m < slow_terms; ++m) {
                const auto scale = R::splat(block.scales[j + m]), offset = R::splat(block.shifts[j + m]);
                XQUANT_UNROLL
                for (std::size_t v = 0; v < vectors; ++v) {
                    const auto part = R::fma(R::to_f32(sums.at[m][v]), scale, offset);
                    score[v] = m == 0 ? part : R::fma(part, R::load(turn(m) + v * R::lanes), score[v]);
                }
            }
            for (std::size_t m = slow_terms; m < terms; ++m) {
                const auto constant = R::splat(columns.constants[i * constant_terms + m]);
                XQUANT_UNROLL
                for (std::size_t v = 0; v < vectors; ++v) {
                    score[v] = R::fma(constant, R::load(turn(m) + v * R::lanes), score[v]);
                }
            }
            XQUANT_UNROLL
            for (std::size_t v = 0; v < vectors; ++v) R::store(scores + i * tile_tokens + t + v * R::lanes, score[v]);
        }
    }
}

/// scores [queries][128] (+)= those of the channels that are built: K = code w, RoPE, q K^T, four columns of K at a
/// time. `run` is how many quads a sum of integers may hold.
template <class R, bool Norm>
void score_products(const AttendTask& task, const std::uint32_t* quads, std::size_t tokens, const KeyColumns& columns,
                    const KeyWeights& weights, std::size_t run, std::size_t queries, float* scores) noexcept {
    constexpr std::size_t vectors = dot_vectors<R>, wide = vectors * R::lanes, lanes = R::lanes;
    const std::size_t dh = task.head_dim, built = weights.built;
    const Int8Block& block = weights.block;
    Products<R> products(quads, task.key.width, run, block);
    for (std::size_t t = 0; t < tokens; t += wide) {
        typename R::f32 squares[vectors];
        for (auto& square : squares) square = R::zero();
        for (std::size_t j = 0; j < built; j += dot_columns) {
            const auto sums = products.template of<dot_columns>(t, j);
            typename R::f32 key[dot_columns][vectors];
            XQUANT_UNROLL
            for (std::size_t k = 0; k < dot_columns; ++k) {
                const auto scale = R::splat(block.scales[j + k]), offset = R::splat(block.shifts[j + k]);
                XQUANT_UNROLL
                for (std::size_t v = 0; v < vectors; ++v) key[k][v] = R::fma(R::to_f32(sums.at[k][v]), scale, offset);
                if constexpr (Norm) {
                    const auto gain = R::splat(j + k < dh ? task.rules.key_norm[columns.channels[j + k]] : 0.0F);
                    XQUANT_UNROLL
                    for (std::size_t v = 0; v < vectors; ++v) {
                        squares[v] = R::fma(key[k][v], key[k][v], squares[v]);
                        key[k][v] = R::mul(key[k][v], gain);
                    }
                }
            }
            XQUANT_UNROLL
            for (std::size_t k = 0; k < dot_columns; k += 2) {
                const std::size_t pair = (j + k) / 2;
                if (pair >= columns.pairs) continue;
                const std::size_t row = columns.numbers[pair] * task.rope.tokens;
                XQUANT_UNROLL
                for (std::size_t v = 0; v < vectors; ++v) {
                    const std::size_t place = row + (std::min)(t + v * lanes, task.rope.tokens - lanes);
                    const auto cosine = R::load(task.rope.cosines + place), sine = R::load(task.rope.sines + place);
                    const auto x = key[k][v], y = key[k + 1][v];
                    key[k][v] = R::sub(R::mul(x, cosine), R::mul(y, sine));
                    key[k + 1][v] = R::fma(x, sine, R::mul(y, cosine));
                }
            }
            const bool is_first = j == 0 && columns.slow == 0;
            for (std::size_t i = 0; i < queries; ++i) {
                const float* const q = weights.queries + i * built + j;
                float* const to = scores + i * tile_tokens + t;
                typename R::f32 score[vectors];
                XQUANT_UNROLL
                for (std::size_t v = 0; v < vectors; ++v) score[v] = is_first ? R::zero() : R::load(to + v * lanes);
                XQUANT_UNROLL
                for (std::size_t k = 0; k < dot_columns; ++k) {
                    const auto value = R::splat(q[k]);
                    XQUANT_UNROLL
                    for (std::size_t v = 0; v < vectors; ++v) score[v] = R::fma(key[k][v], value, score[v]);
                }
                XQUANT_UNROLL
                for (std::size_t v = 0; v < vectors; ++v) R::store(to + v * lanes, score[v]);
            }
        }
        if constexpr (Norm) {
            XQUANT_UNROLL
            for (std::size_t v = 0; v < vectors; ++v) {
                alignas(64) float factor[lanes];
                R::store(factor, squares[v]);
                for (float& value : factor) {
                    value = 1.0F / std::sqrt(value / static_cast<float>(dh) + task.rules.key_norm_epsilon);
                }
                for (std::size_t i = 0; i < queries; ++i) {
                    float* to = scores + i * tile_tokens + t + v * lanes;
                    R::store(to, R::mul(R::load(to), R::load(factor)));
                }
            }
        }
    }
}

/// scores [queries][128] of a token block, by products with A.
template <class R>
void score_built_block(simd<R> tag, const AttendTask& task, const StreamView& in, const TokenBlock& tokens,
                       std::size_t queries, const KeyColumns& columns, const KeyWeights& weights,
                       const AttendScratch& at, float* scores) noexcept {
    const Slots channels{task.key.first, task.key.width};
    auto* const quads = reinterpret_cast<std::uint32_t*>(at.inner);
    const float middle = middle_code(in.format);
    std::array<float, int8_channels + R::lanes> scales, centers;
    load_quads(tag, in, tokens.slots(), channels, at.keys_ahead.codes, quads);
    load_channel_scales<R>(in, tokens.slot / in.format.group_tokens, channels, at.keys_ahead.scales, scales.data(),
                           centers.data());
    center_codes<R>(scales.data(), middle, channels.count, centers.data());
    round_key_columns<R>(task, columns, queries, scales.data(), centers.data(), middle, weights);
    const std::size_t run = R::dot_run(in.format.bits);
    if (columns.slow > 0) score_slow_pairs<R>(task, quads, tokens, columns, weights, run, queries, scores);
    if (task.rules.key_norm != nullptr) {
        score_products<R, true>(task, quads, tokens.count, columns, weights, run, queries, scores);
    } else {
        score_products<R, false>(task, quads, tokens.count, columns, weights, run, queries, scores);
    }
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
