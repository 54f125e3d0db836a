// Vector attention, scores from codes per channel in 8 bits, one token block after another: of K that is made of them
// (simd/key_products.hpp), or of K itself, stored before RoPE (kivi4).
//
// Shapes  codes of stored channels that are built [channels][128], a byte each, in the order of KeyColumns; quads of
//         those of slow pairs. Scores [queries][128].
// Limit   of stored channels: conversions and FMA, 7 and one for each query for a channel that is built.
#pragma once

#include <xquant/backend/simd/key_products.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// Stored channels that are built: their codes [channels][128], a byte each, and what these stand for, in the order of
/// KeyColumns.
struct ChannelBytes {
    const std::uint8_t* codes;
    const float *scales, *zeros;
};

/// scores [Heads][128] (+)= those of stored channels: K = zero + scale code, RoPE, q K^T. Queries [Heads][stride].
template <class R, std::size_t Heads>
void score_channel_bytes(const AttendTask& task, const ChannelBytes& keys, std::size_t tokens,
                         const KeyColumns& columns, const float* queries, std::size_t stride, float* scores) noexcept {
    constexpr std::size_t lanes = R::lanes, vectors = R::count >= 32 ? 4 : 1;
    for (std::size_t t = 0; t < tokens; t += vectors * lanes) {
        typename R::f32 score[Heads][vectors];
        XQUANT_UNROLL
        for (std::size_t h = 0; h < Heads; ++h) {
            XQUANT_UNROLL
            for (std::size_t v = 0; v < vectors; ++v) {
                score[h][v] = columns.slow > 0 ? R::load(scores + h * tile_tokens + t + v * lanes) : R::zero();
            }
        }
        const auto key = [&](std::size_t j, std::size_t v) {
            const auto code = R::to_f32(R::load_u8(keys.codes + j * tile_tokens + t + v * lanes));
            return R::fma(code, R::splat(keys.scales[j]), R::splat(keys.zeros[j]));
        };
        const auto meet = [&](std::size_t j, std::size_t v, typename R::f32 value) {
            XQUANT_UNROLL
            for (std::size_t h = 0; h < Heads; ++h) {
                score[h][v] = R::fma(value, R::splat(queries[h * stride + j]), score[h][v]);
            }
        };
        for (std::size_t pair = 0; pair < columns.pairs; ++pair) {
            const std::size_t row = columns.numbers[pair] * task.rope.tokens, j = 2 * pair;
            XQUANT_UNROLL
            for (std::size_t v = 0; v < vectors; ++v) {
                const std::size_t place = row + (std::min)(t + v * lanes, task.rope.tokens - lanes);
                const auto cosine = R::load(task.rope.cosines + place), sine = R::load(task.rope.sines + place);
                const auto x = key(j, v), y = key(j + 1, v);
                meet(j, v, R::sub(R::mul(x, cosine), R::mul(y, sine)));
                meet(j + 1, v, R::fma(x, sine, R::mul(y, cosine)));
            }
        }
        for (std::size_t j = 2 * columns.pairs; j < columns.built; ++j) {
            XQUANT_UNROLL
            for (std::size_t v = 0; v < vectors; ++v) meet(j, v, key(j, v));
        }
        XQUANT_UNROLL
        for (std::size_t h = 0; h < Heads; ++h) {
            XQUANT_UNROLL
            for (std::size_t v = 0; v < vectors; ++v) R::store(scores + h * tile_tokens + t + v * lanes, score[h][v]);
        }
    }
}

/// scores [queries][128] of a token block whose codes are channels of K.
template <class R>
void score_stored_block(simd<R> tag, const AttendTask& task, const StreamView& in, const TokenBlock& tokens,
                        std::size_t queries, KeyColumns& columns, const KeyWeights& weights, const AttendScratch& at,
                        float* scores) noexcept {
    const StreamFormat& format = in.format;
    const std::size_t dh = task.head_dim, first = task.key.first, block = tokens.slot / format.group_tokens;
    const std::size_t run = R::dot_run(format.bits);
    const float middle = middle_code(format);
    std::array<float, 2 * max_pairs + R::lanes> scales, zeros, sorted_scales, sorted_zeros;
    load_channel_scales<R>(in, block, {first, dh}, at.keys_ahead.scales, scales.data(), zeros.data());
    for (std::size_t j = 0; j < dh; ++j) {
        sorted_scales[j] = scales[columns.channels[j]];
        sorted_zeros[j] = zeros[columns.channels[j]];
    }
    if (columns.slow > 0) {
        auto* const quads = reinterpret_cast<std::uint32_t*>(at.inner);
        const std::size_t built = columns.built;
        load_quads_by_channel(tag, in, tokens.slots(), {first, columns.channels.data() + built, columns.slow},
                              at.keys_ahead.codes, quads);
        std::array<float, int8_channels + R::lanes> slow_scales{}, slow_centers, nought{};
        std::copy_n(sorted_scales.data() + built, columns.slow, slow_scales.data());
        for (std::size_t c = 0; c < columns.slow; ++c) {
            slow_centers[c] = sorted_zeros[built + c] + middle * slow_scales[c];
        }
        set_stored_constants(queries, slow_centers.data(), columns);
        round_slow_columns<R>(columns, queries, slow_scales.data(), nought.data(), middle, weights);
        score_slow_pairs<R>(task, quads, tokens, columns, weights, run, queries, scores);
    }
    auto* const codes = reinterpret_cast<std::uint8_t*>(at.inner + int8_channels / 4 * quad_tokens);
    const std::size_t size = format.code_offset(0, 1);
    for (std::size_t j = 0; j < columns.built; ++j) {
        const std::byte* const from = in.codes + format.code_offset(block, first + columns.channels[j]);
        for (std::size_t line = 0; line < size; line += 64) prefetch(from + line, at.keys_ahead.codes);
        unpack_group(tag, from, format.group_tokens, format.bits, {0, tokens.count}, codes + j * tile_tokens);
    }
    const ChannelBytes keys{codes, sorted_scales.data(), sorted_zeros.data()};
    for_heads(queries, [&]<std::size_t Heads>(std::size_t i, std::integral_constant<std::size_t, Heads>) {
        score_channel_bytes<R, Heads>(task, keys, tokens.count, columns, weights.queries + i * weights.built,
                                      weights.built, scores + i * tile_tokens);
    });
}

/// Scores by ScoreForm::products, one token block after another. For each block, queries are turned back by the
/// position of its first token.
template <class Backend>
void score_token_blocks(Backend tag, const AttendTask& task, const StreamView& in, Slots tokens, TileAngles& angles,
                        Slots rows, const AttendScratch& at) noexcept {
    using R = typename Backend::registers;
    constexpr std::size_t wide = dot_vectors<R> * R::lanes;
    const StreamFormat& format = in.format;
    const std::size_t dh = task.head_dim, count = rows.count * task.queries_per_kv, block_tokens = format.group_tokens;
    const std::int64_t start = angles.start();
    KeyColumns& columns = *at.columns;
    const KeyWeights weights(columns);
    const std::size_t first = tokens.first, first_block = first / block_tokens * block_tokens;
    for (std::size_t t = first_block; t < tokens.end(); t += block_tokens) {
        const auto ahead = static_cast<std::ptrdiff_t>(t) - static_cast<std::ptrdiff_t>(first);
        if (task.rope.pairs > 0) {
            angles.move_to(task.rope, start + ahead);
            if (t > first_block) scale_queries(task, rows, at.queries);
            for (std::size_t i = 0; i < count; ++i) {
                apply_rope(tag, task.rope, angles.cosines.data(), angles.sines.data(), -1.0F, at.queries + i * dh);
            }
        }
        for (std::size_t i = 0; i < count; ++i) {
            float* const to = weights.queries + i * weights.built;
            for (std::size_t j = 0; j < columns.built; ++j) to[j] = at.queries[i * dh + columns.channels[j]];
            std::fill(to + columns.built, to + weights.built, 0.0F);
        }
        const std::size_t some = std::min<std::size_t>(block_tokens, tokens.end() - t);
        // Scores of whole registers, and of tokens before the tile, go through at.keys: no tile of K is built here.
        const bool fits = ahead >= 0 && t - first + (some + wide - 1) / wide * wide <= tile_tokens;
        float* const scores = fits ? at.scores + (t - first) : at.keys;
        const TokenBlock block{t, some, ahead};
        if (columns.stored) {
            score_stored_block(tag, task, in, block, count, columns, weights, at, scores);
        } else {
            score_built_block(tag, task, in, block, count, columns, weights, at, scores);
        }
        if (fits) continue;
        const std::size_t skip = t < first ? first - t : 0;
        for (std::size_t i = 0; i < count; ++i) {
            std::copy_n(scores + i * tile_tokens + skip, some - skip, at.scores + i * tile_tokens + (t + skip - first));
        }
    }
    angles.move_to(task.rope, start);
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
