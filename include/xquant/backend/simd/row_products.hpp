// Vector attention, scores from codes per token in 8 bits, of any width: rows of X, and sums over layers. Columns of
// A_k are rounded once for a task; a tile of K has the channels that are built and, behind them, what stands for slow
// pairs (backend/key_columns.hpp).
//
// Shapes  weights of a block of at most 128 channels [channels / 4][Dh], 4 channels a word; K [built + 3 queries][128].
// Limit   the dot instruction, width / 4 for each column and register of tokens. Of rows of 576 channels with 3 queries
//         of 64 channels, 37 columns are left of 64 (base 100,000). A block's scale and offset for each column and
//         register are a tenth of its products. Of all time products are a half, u A^T of slow pairs a sixth, parting a
//         row's codes, which every kv head does anew, a fourteenth.
// Tried   Every pair built, columns rounded for each tile and K turned in f32: 1.4 to 1.5 times the time.
#pragma once

#include <xquant/backend/simd/key_products.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// Calls f(channels, weights) for the blocks of a head's channels, `memory` having room for the weights of all: those
/// of `columns` columns.
template <class R, class F>
void for_each_weight_block(const StreamFormat& format, const HeadDecoder& head, std::size_t columns, float* memory,
                           F&& f) noexcept {
    for_each_int8_block(format, head, [&](std::size_t c, std::size_t channels) {
        f(Slots{c, channels}, Int8Block::in<R>(memory, channels, columns));
        memory += int8_block_floats(channels, columns);
    });
}

/// Rows of K [count][128] (+)= those of a block of channels, a row for each column; Columns at a time.
template <class R, std::size_t Columns>
void add_key_rows(Products<R>&& products, const Int8Block& block, std::size_t count, TokenScales by_token,
                  std::size_t tokens, bool set, float* rows) noexcept {
    constexpr std::size_t vectors = dot_vectors<R>, wide = vectors * R::lanes;
    for (std::size_t t = 0; t < tokens; t += wide) {
        for (std::size_t j = 0; j < count; j += Columns) {
            const auto sums = products.template of<Columns>(t, j);
            for (std::size_t k = 0; k < (std::min)(Columns, count - j); ++k) {
                const auto scale = R::splat(block.scales[j + k]), shift = R::splat(block.shifts[j + k]),
                           offset = R::splat(block.offsets[j + k]);
                float* const to = rows + (j + k) * tile_tokens + t;
                XQUANT_UNROLL
                for (std::size_t v = 0; v < vectors; ++v) {
                    const std::size_t place = t + v * R::lanes;
                    const auto before = set ? R::zero() : R::load(to + v * R::lanes);
                    const auto value = R::fma(R::to_f32(sums.at[k][v]), scale, shift);
                    R::store(to + v * R::lanes, R::fma(R::load(by_token.centers + place), offset,
                                                       R::fma(R::load(by_token.scales + place), value, before)));
                }
            }
        }
    }
}

/// The columns of slow pairs in one block of channels, rounded to 8 bits: [terms][128].
template <class R>
struct SlowWeights {
    static constexpr std::size_t most = slow_terms * direct_queries;
    alignas(64) std::array<std::uint32_t, (most + panel_overrun) * int8_channels / 4> words;
    std::array<float, most> scales, shifts, offsets;

    Int8Block round(const KeyColumns& columns, std::size_t terms, std::size_t width, Slots channels,
                    float middle) noexcept {
        auto* const bytes = reinterpret_cast<std::uint8_t*>(words.data());
        for (std::size_t i = 0; i < terms; ++i) {
            const float* const column = columns.slow_columns + i * width + channels.first;
            const RoundedRow row = round_row<R>(column, channels.count, bytes + i * int8_channels);
            scales[i] = row.step;
            shifts[i] = -middle * row.sum * row.step;
            offsets[i] = sum_of<R>(column, channels.count);
        }
        return {int8_channels / 4, 1, words.data(), scales.data(), shifts.data(), offsets.data()};
    }
};

/// Queries [Heads][built] in the order of a tile's rows, and where their scores [Heads][128] go; the first is query
/// `number` of the task.
struct TileQueries {
    const float* queries;
    std::size_t number;
    float* scores;
};

/// Scores against the rows of a tile of K: RoPE on the built pairs, and the polynomials of the slow ones.
template <class R, bool Norm, std::size_t Heads>
void score_key_rows(const AttendTask& task, const KeyColumns& columns, const float* rows, std::size_t tokens,
                    const TileQueries& of) noexcept {
    constexpr std::size_t lanes = R::lanes, vectors = R::count >= 32 ? 2 : 1;
    const float* const constant = task.key.constant;
    for (std::size_t t = 0; t < tokens; t += vectors * lanes) {
        typename R::f32 score[Heads][vectors];
        XQUANT_UNROLL
        for (std::size_t h = 0; h < Heads; ++h) {
            XQUANT_UNROLL
            for (std::size_t v = 0; v < vectors; ++v) score[h][v] = R::zero();
            if (columns.slow == 0) continue;
            const std::size_t query = of.number + h;
            const float* const slow = rows + (columns.built + slow_terms * query) * tile_tokens + t;
            const float* const constants = columns.constants.data() + constant_terms * query;
            XQUANT_UNROLL
            for (std::size_t v = 0; v < vectors; ++v) {
                auto sum = R::add(R::load(slow + v * lanes), R::splat(constants[0]));
                XQUANT_UNROLL
                for (std::size_t m = 1; m < constant_terms; ++m) {
                    if (m >= slow_terms && constant == nullptr) continue;
                    const auto turn = R::load(turn_table.at[m - 1].data() + TurnTable::before + t + v * lanes);
                    auto part = R::splat(constants[m]);
                    if (m < slow_terms) part = R::add(part, R::load(slow + m * tile_tokens + v * lanes));
                    sum = R::fma(turn, part, sum);
                }
                score[h][v] = sum;
            }
        }
        typename R::f32 squares[vectors];
        for (auto& square : squares) square = R::zero();
        const auto key = [&](std::size_t j, std::size_t v) {
            const std::size_t channel = columns.channels[j];
            auto value = R::load(rows + j * tile_tokens + t + v * lanes);
            if (constant != nullptr) value = R::add(value, R::splat(constant[channel]));
            if constexpr (Norm) {
                squares[v] = R::fma(value, value, squares[v]);
                value = R::mul(value, R::splat(task.rules.key_norm[channel]));
            }
            return value;
        };
        const auto meet = [&](std::size_t j, std::size_t v, typename R::f32 value) {
            XQUANT_UNROLL
            for (std::size_t h = 0; h < Heads; ++h) {
                score[h][v] = R::fma(value, R::splat(of.queries[h * columns.built + j]), score[h][v]);
            }
        };
        for (std::size_t pair = 0; pair < columns.pairs; ++pair) {
            const std::size_t row = columns.numbers[pair] * task.rope.tokens;
            XQUANT_UNROLL
            for (std::size_t v = 0; v < vectors; ++v) {
                const std::size_t place = row + (std::min)(t + v * lanes, task.rope.tokens - lanes);
                const auto cosine = R::load(task.rope.cosines + place), sine = R::load(task.rope.sines + place);
                const auto x = key(2 * pair, v), y = key(2 * pair + 1, v);
                meet(2 * pair, v, R::sub(R::mul(x, cosine), R::mul(y, sine)));
                meet(2 * pair + 1, v, R::fma(x, sine, R::mul(y, cosine)));
            }
        }
        for (std::size_t j = 2 * columns.pairs; j < columns.built; ++j) {
            XQUANT_UNROLL
            for (std::size_t v = 0; v < vectors; ++v) meet(j, v, key(j, v));
        }
        XQUANT_UNROLL
        for (std::size_t v = 0; v < vectors; ++v) {
            [[maybe_unused]] alignas(64) float factor[lanes];
            if constexpr (Norm) {
                R::store(factor, squares[v]);
                for (float& value : factor) {
                    value = 1.0F / std::sqrt(value / static_cast<float>(task.head_dim) + task.rules.key_norm_epsilon);
                }
            }
            XQUANT_UNROLL
            for (std::size_t h = 0; h < Heads; ++h) {
                if constexpr (Norm) score[h][v] = R::mul(score[h][v], R::load(factor));
                R::store(of.scores + h * tile_tokens + t + v * lanes, score[h][v]);
            }
        }
    }
}

/// Scores by ScoreForm::products, codes per token. Queries in at.queries are scaled.
template <class Backend>
void score_products_by_token(Backend tag, const AttendTask& task, const StreamView& in, Slots tokens,
                             const TileAngles& angles, Slots rows, const AttendScratch& at) noexcept {
    using R = typename Backend::registers;
    const std::size_t dh = task.head_dim, width = task.key.width, count = rows.count * task.queries_per_kv;
    const StreamFormat& format = in.format;
    const float middle = middle_code(format);
    KeyColumns& columns = *at.columns;
    float* const queries = columns.rest;  // [queries][built]
    float* const memory = queries + direct_queries * dh;
    const StreamFormat& known = columns.weights_for;  // pages of one stream may have several formats
    if (known.width == 0 || known.group_channels != format.group_channels || known.bits != format.bits) {
        float* const room = at.inner + rematerialize_room(dh);
        for_each_weight_block<R>(format, task.key, columns.built, memory, [&](Slots channels, const Int8Block& block) {
            const float* const a =
                weights_as_floats(tag, task.key.matrix, {channels.first * dh, channels.count * dh}, room);
            float* const sorted = at.inner;  // [channels][built]
            for (std::size_t c = 0; c < channels.count; ++c) {
                for (std::size_t j = 0; j < columns.built; ++j) {
                    sorted[c * columns.built + j] = a[c * dh + columns.channels[j]];
                }
            }
            fold_weights(tag, {sorted, channels.count, columns.built, columns.built}, nullptr, nullptr, middle,
                         reinterpret_cast<float*>(block.weights));
        });
        columns.weights_for = format;
    }
    for (std::size_t i = 0; i < count; ++i) {
        float* const query = at.queries + i * dh;
        if (task.rope.pairs > 0) {
            apply_rope(tag, task.rope, angles.cosines.data(), angles.sines.data(), -1.0F, query);
        }
        for (std::size_t j = 0; j < columns.built; ++j) queries[i * columns.built + j] = query[columns.channels[j]];
    }

    auto* const quads = reinterpret_cast<std::uint32_t*>(at.inner);
    float* const keys = at.keys;
    const std::size_t terms = columns.terms_of(count), run = R::dot_run(format.bits);
    alignas(64) std::array<float, quad_tokens + R::lanes> scales{}, centers{};
    SlowWeights<R> slow;
    for_each_weight_block<R>(format, task.key, columns.built, memory, [&](Slots channels, const Int8Block& block) {
        const Slots stored{task.key.first + channels.first, channels.count};
        load_quads(tag, in, tokens, stored, at.keys_ahead.codes, quads);
        load_token_scales<R>(in, tokens, stored.first / format.group_channels, at.keys_ahead.scales, scales.data(),
                             centers.data());
        center_codes<R>(scales.data(), middle, tokens.count, centers.data());
        const TokenScales by_token{scales.data(), centers.data()};
        const bool set = channels.first == 0;
        add_key_rows<R, dot_columns>({quads, channels.count, run, block}, block, columns.built, by_token, tokens.count,
                                     set, keys);
        if (terms == 0) return;
        const Int8Block of_slow = slow.round(columns, terms, width, channels, middle);
        add_key_rows<R, slow_terms>({quads, channels.count, run, of_slow}, of_slow, terms, by_token, tokens.count, set,
                                    keys + columns.built * tile_tokens);
    });
    for_heads(count, [&]<std::size_t Heads>(std::size_t i, std::integral_constant<std::size_t, Heads>) {
        const TileQueries of{queries + i * columns.built, i, at.scores + i * tile_tokens};
        if (task.rules.key_norm != nullptr) {
            score_key_rows<R, true, Heads>(task, columns, keys, tokens.count, of);
        } else {
            score_key_rows<R, false, Heads>(task, columns, keys, tokens.count, of);
        }
    });
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
