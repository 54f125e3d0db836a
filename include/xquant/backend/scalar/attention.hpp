// Scalar attention over stored streams, tile by tile.
//
//     K = z_k A_k + c_k (norm, RoPE) ;  s = scale q K^T, causal ;  online softmax ;  sum += P z_v ;  out = (sum / total) A_v + c_v
//
// Shapes  tile: up to 128 tokens; K [Dh, tokens]; scores [query rows, tokens]; z_v [tokens, width].
// Limit   the products q K^T and P z_v (FMA) for many query rows, decoding and rematerialization for one.
// Tried   Rebuilding V for every step: Dh times the work of P z_v for one query row. One pass over all rows of a step per
//         tile instead of 32 rows at a time: the scores leave L2.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include <xquant/attention/task.hpp>
#include <xquant/backend/scalar/remat.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {

/// e^x for x <= 0, relative error below 2e-7; 0 below -87. A polynomial, so that loops over it vectorize.
inline float exp_negative(float x) noexcept {
    constexpr float log2_e = 1.44269504F, ln2_high = 0.693359375F, ln2_low = -2.12194440e-4F, magic = 12582912.0F;
    const float clamped = std::max(x, -87.0F);
    const float n = (clamped * log2_e + magic) - magic;
    const float r = (clamped - n * ln2_high) - n * ln2_low;
    float p = 1.9875691500e-4F;
    p = p * r + 1.3981999507e-3F;
    p = p * r + 8.3334519073e-3F;
    p = p * r + 4.1665795894e-2F;
    p = p * r + 1.6666665459e-1F;
    p = p * r + 5.0000001201e-1F;
    const float e = p * (r * r) + r + 1.0F;
    const float power = std::bit_cast<float>((static_cast<std::int32_t>(n) + 127) << 23);
    return x < -87.0F ? 0.0F : e * power;
}

/// Up to this many query rows are turned back by each tile's start; for more, the tile's keys are turned by it.
inline constexpr std::size_t turned_rows = 4;

/// Query rows handled together: their scores stay in L2.
inline constexpr std::size_t row_step = 32;

/// Up to this many query heads (of all rows), vector backends take scores from the codes; more share a tile of K.
inline constexpr std::size_t direct_queries = 8;

/// Whether scores are products with what is stored: with K itself, or with a latent whose A was taken into the queries.
constexpr bool reads_latent(const AttendTask& task) noexcept {
    if (task.rope.pairs > 0 || task.rules.key_norm != nullptr || task.shared_channels > 0) return false;
    return task.key.matrix == nullptr ? task.key.constant == nullptr : absorbs_keys(task);
}

/// Whether a stream's codes are words of 4 channels of a token that stand for themselves.
constexpr bool has_code_words(const StreamFormat& format, const HeadDecoder& head) noexcept {
    return format.quantized() && format.group_tokens == 1 && format.levels == nullptr && format.outliers == 0 &&
           head.first % 4 == 0 && head.width % 4 == 0 && format.group_channels % 4 == 0;
}

/// Whether a backend with 8-bit products rounds the queries to 8 bits: a few of them that meet codes of at most 5 bits.
template <class Backend>
constexpr bool rounds_queries(const AttendTask& task, const StreamView& in) noexcept {
    return Backend::int8_products && task.rows * task.group <= direct_queries && reads_latent(task) &&
           has_code_words(in.format, task.key) && in.format.bits <= int8_most_bits && task.key.width <= task.head_dim;
}

/// Whether a backend sums P z and multiplies by A_v at the end, or rebuilds V for every tile.
constexpr bool sums_latents(scalar, const HeadDecoder& value, std::size_t query_rows, std::size_t head_dim) noexcept {
    return absorbs_values(value, query_rows, head_dim);
}

/// Channels of Partial::sum.
template <class Backend>
constexpr std::size_t partial_width(Backend tag, const HeadDecoder& value, std::size_t query_rows,
                                    std::size_t head_dim) noexcept {
    return sums_latents(tag, value, query_rows, head_dim) ? value.width : head_dim;
}

/// Floats of scratch that attend_task needs.
constexpr std::size_t attend_scratch(const AttendTask& task) noexcept {
    const std::size_t dh = task.head_dim, queries = row_step * task.group;
    const std::size_t absorbed = absorbs_keys(task) ? queries * (task.key.width + 1) : 0;
    return rematerialize_scratch(dh) + tile_tokens * std::max(dh, width_step) +
           tile_tokens * std::max(dh, task.value.width) + queries * (dh + tile_tokens) + absorbed;
}

/// Scores of one query row become what the softmax sees: soft cap and ALiBi. `ahead` = position of token 0 - the query's.
inline void adjust_scores(scalar, const ScoreRules& rules, float slope, float ahead, std::size_t tokens,
                          float* XQUANT_RESTRICT scores) noexcept {
    for (std::size_t t = 0; t < tokens && rules.soft_cap > 0; ++t) {
        scores[t] = rules.soft_cap * std::tanh(scores[t] / rules.soft_cap);
    }
    for (std::size_t t = 0; t < tokens && slope != 0; ++t) scores[t] += slope * (ahead + static_cast<float>(t));
}

/// One softmax update: the scores of tokens begin .. end become weights, those of all others 0; sum [width] is rescaled
/// where the maximum rose.
inline void soften(scalar, float* XQUANT_RESTRICT scores, std::size_t begin, std::size_t end, std::size_t tokens,
                   float& maximum, float& total, float* XQUANT_RESTRICT sum, std::size_t width) noexcept {
    if (begin < end) {
        float highest = scores[begin];
        for (std::size_t t = begin + 1; t < end; ++t) highest = std::max(highest, scores[t]);
        if (highest > maximum) {
            const float factor = total > 0 ? exp_negative(maximum - highest) : 0.0F;
            total *= factor;
            for (std::size_t c = 0; c < width; ++c) sum[c] *= factor;
            maximum = highest;
        }
        for (std::size_t t = begin; t < end; ++t) scores[t] = exp_negative(scores[t] - maximum);
        for (std::size_t t = begin; t < end; ++t) total += scores[t];
    }
    for (std::size_t t = 0; t < std::min(begin, end); ++t) scores[t] = 0;
    for (std::size_t t = end; t < tokens; ++t) scores[t] = 0;
}

namespace detail {

/// The parts of attend_scratch.
struct AttendScratch {
    float* keys;      ///< [max(Dh, 128), tokens]
    float* values;    ///< [tokens, max(Dh, width)]
    float* queries;   ///< [32 group, Dh] turned back by the tile's start
    float* scores;    ///< [32 group, tokens]
    float* absorbed;  ///< [rows group, width of the key's latent] q A_k^T, and [rows group] q c_k, if keys are absorbed
    float* inner;     ///< of rematerialize
};

inline AttendScratch split_scratch(const AttendTask& task, float* scratch) noexcept {
    const std::size_t dh = task.head_dim, queries = row_step * task.group;
    AttendScratch out{};
    out.keys = scratch;
    out.values = out.keys + tile_tokens * std::max(dh, width_step);
    out.queries = out.values + tile_tokens * std::max(dh, task.value.width);
    out.scores = out.queries + queries * dh;
    out.inner = out.scores + queries * tile_tokens;
    out.absorbed = out.inner + rematerialize_scratch(dh);
    return out;
}

/// q A_k^T for the channels that RoPE leaves alone, once for all tiles.
template <class Backend>
void absorb_queries(Backend tag, const AttendTask& task, const AttendScratch& at) noexcept {
    const std::size_t dh = task.head_dim, rotary = rotary_channels(task), width = task.key.width;
    float* constants = at.absorbed + task.rows * task.group * width;
    for (std::size_t i = 0; i < task.rows * task.group; ++i) {
        const float* q = task.q + i / task.group * task.q_stride + i % task.group * dh;
        std::array<float, 2 * max_pairs> scaled;
        for (std::size_t c = rotary; c < dh; ++c) scaled[c] = q[c] * task.rules.scale;
        multiply_vector(tag, task.key.matrix + rotary, dh, width, dh - rotary, scaled.data() + rotary,
                        at.absorbed + i * width);
        constants[i] = 0;
        for (std::size_t c = rotary; c < dh && task.key.constant != nullptr; ++c) {
            constants[i] += scaled[c] * task.key.constant[c];
        }
    }
}

/// Adds q c_k where keys are absorbed, for `count` queries from query row `row` on.
inline void add_constants(const AttendTask& task, std::size_t row, std::size_t count, std::size_t tokens,
                          const AttendScratch& at) noexcept {
    if (task.key.constant == nullptr) return;
    const float* constants = at.absorbed + task.rows * task.group * task.key.width + row * task.group;
    for (std::size_t i = 0; i < count; ++i) {
        for (std::size_t t = 0; t < tokens; ++t) at.scores[i * tile_tokens + t] += constants[i];
    }
}

/// Channels of a head from channel c on whose queries are rounded together.
inline std::size_t rounded_channels(const StreamFormat& format, const HeadDecoder& head, std::size_t c) noexcept {
    return std::min({format.group_channels - (head.first + c) % format.group_channels, head.width - c, int8_channels});
}

/// queries [count, width] -> out, as 8 bits have them: a step for each group of channels.
inline void round_queries(const StreamFormat& format, const HeadDecoder& head, const float* queries, std::size_t count,
                          float* out) noexcept {
    std::array<std::int8_t, int8_channels> weights;
    for (std::size_t i = 0; i < count; ++i) {
        for (std::size_t c = 0; c < head.width;) {
            const std::size_t at = i * head.width + c, channels = rounded_channels(format, head, c);
            const float step = quantize_weights(queries + at, 1, channels, nullptr, int8_top, weights.data());
            for (std::size_t k = 0; k < channels; ++k) out[at + k] = step * static_cast<float>(weights[k]);
            c += channels;
        }
    }
}

/// scores [count, tokens] of query rows row .. against the tile, with keys [channels, tokens] rebuilt before.
template <class Backend>
void score_rows(Backend tag, const AttendTask& task, const StreamView& in, std::size_t first, std::size_t tokens,
                std::size_t channels, const TileAngles* turn_back, std::size_t row, std::size_t rows,
                const AttendScratch& at) noexcept {
    const std::size_t dh = task.head_dim, group = task.group, count = rows * group;
    for (std::size_t i = 0; i < count && channels > 0; ++i) {
        const float* q = task.q + (row + i / group) * task.q_stride + i % group * dh;
        float* query = at.queries + i * dh;
        for (std::size_t c = 0; c < channels; ++c) query[c] = q[c] * task.rules.scale;
        if (turn_back != nullptr) {
            turn_head(tag, task.rope, turn_back->cosines.data(), turn_back->sines.data(), -1.0F, query);
        }
    }
    const bool rounds = rounds_queries<Backend>(task, in);
    if (rounds && channels > 0) round_queries(in.format, task.key, at.queries, count, at.queries);
    if (channels > 0) {
        multiply(tag, count, tokens, channels, {at.queries, dh, 1}, at.keys, tile_tokens, at.scores, tile_tokens,
                 false);
    }
    if (channels == dh) return;
    const std::size_t width = task.key.width;
    const float* absorbed = at.absorbed + row * group * width;
    if (rounds) {
        round_queries(in.format, task.key, absorbed, count, at.queries);
        absorbed = at.queries;
    }
    for (std::size_t c = 0; c < width; c += width_step) {
        const std::size_t some = std::min(width_step, width - c);
        decode_tile(tag, in, first, tokens, task.key.first + c, some, at.keys, tile_tokens, TileOrder::channel_major);
        multiply(tag, count, tokens, some, {absorbed + c, width, 1}, at.keys, tile_tokens, at.scores, tile_tokens,
                 c > 0 || channels > 0);
    }
    add_constants(task, row, count, tokens, at);
}

}  // namespace detail

/// Whether a backend takes scores, or P z, straight from the codes of a stream, without a tile of K or z in between. The
/// scalar one never does.
constexpr bool scores_from_codes(scalar, const AttendTask&, const StreamView&) noexcept { return false; }
constexpr bool adds_from_codes(scalar, const AttendTask&, const StreamView&) noexcept { return false; }
inline void score_codes(scalar, const AttendTask&, const StreamView&, std::size_t, std::size_t, TileAngles&,
                        std::size_t, std::size_t, const detail::AttendScratch&) noexcept {}
inline void add_codes(scalar, const AttendTask&, const StreamView&, std::size_t, std::size_t, std::size_t, float*,
                      const detail::AttendScratch&) noexcept {}

/// Asks for what the next tile reads first.
inline void prefetch_span(scalar, const AttendTask&, const TokenSpan&) noexcept {}

namespace detail {

/// Adds one span's tokens first .. first + tokens (at most 128) to the partial result.
template <class Backend>
void attend_tile(Backend tag, const AttendTask& task, const TokenSpan& span, std::size_t first, std::size_t tokens,
                 Partial partial, TileAngles& angles, const AttendScratch& at) noexcept {
    const std::size_t dh = task.head_dim, group = task.group;
    const auto count_of = [](std::size_t n) { return static_cast<std::int64_t>(n); };
    const std::int64_t start = span.first_position + count_of(first - span.begin);
    // Rows before the tile's first token see nothing of it, nor do rows whose window begins behind its last.
    const std::int64_t window = count_of(task.rules.window);
    const std::int64_t skip = std::clamp<std::int64_t>(start - task.first_position, 0, count_of(task.rows));
    const std::int64_t stop =
        window == 0 ? count_of(task.rows)
                    : std::clamp<std::int64_t>(start + count_of(tokens) - 1 + window - task.first_position, 0,
                                               count_of(task.rows));
    if (skip >= stop) return;

    const bool absorbed = absorbs_values(task.value, task.rows * group, dh);
    const std::size_t width = absorbed ? task.value.width : dh;
    const std::size_t channels = absorbs_keys(task) ? rotary_channels(task) : dh;
    // Few query rows are turned back by the tile's start; for many, the tile is turned by its start as well.
    const bool few = task.rows <= turned_rows;
    angles.move_to(task.rope, start);
    const bool direct_scores = scores_from_codes(tag, task, span.keys),
               direct_values = adds_from_codes(tag, task, span.values);
    if (!direct_scores) {
        if (channels > task.shared_channels) {
            rematerialize(tag, span.keys, task.key, first, tokens, dh, channels, at.keys, tile_tokens,
                          TileOrder::channel_major, at.inner);
        }
        if (task.shared_channels > 0) {
            decode_tile(tag, span.shared, first, tokens, 0, task.shared_channels, at.keys, tile_tokens,
                        TileOrder::channel_major);
        }
        if (task.rules.key_norm != nullptr) {
            normalize_keys(tag, task.rules.key_norm, task.rules.key_norm_epsilon, dh, at.keys, tile_tokens, tokens);
        }
        if (task.rope.pairs > 0) {
            turn_tile(tag, task.rope, few ? nullptr : angles.cosines.data(), few ? nullptr : angles.sines.data(),
                      at.keys, tile_tokens, tokens);
        }
    }
    if (direct_values) {
        // nothing to prepare
    } else if (absorbed) {
        for (std::size_t c = 0; c < width; c += width_step) {
            decode_tile(tag, span.values, first, tokens, task.value.first + c, std::min(width_step, width - c),
                        at.values + c, width, TileOrder::token_major);
        }
    } else {
        // c_v is added once, at the end.
        HeadDecoder value = task.value;
        value.constant = nullptr;
        rematerialize(tag, span.values, value, first, tokens, dh, dh, at.values, dh, TileOrder::token_major, at.inner);
    }

    const auto end = static_cast<std::size_t>(stop);
    for (auto row = static_cast<std::size_t>(skip); row < end; row += row_step) {
        const std::size_t rows = std::min(row_step, end - row), count = rows * group;
        if (direct_scores) {
            score_codes(tag, task, span.keys, first, tokens, angles, row, rows, at);
        } else {
            const TileAngles* back = few && task.rope.pairs > 0 ? &angles : nullptr;
            score_rows(tag, task, span.keys, first, tokens, channels, back, row, rows, at);
        }
        float* sums = partial.sum + row * group * width;
        for (std::size_t i = 0; i < count; ++i) {
            float* scores = at.scores + i * tile_tokens;
            const std::int64_t position = task.first_position + count_of(row + i / group);
            const auto visible =
                static_cast<std::size_t>(std::min<std::int64_t>(count_of(tokens), position - start + 1));
            const std::int64_t before = window == 0 ? 0 : position - window + 1 - start;
            const auto gone = static_cast<std::size_t>(std::clamp<std::int64_t>(before, 0, count_of(tokens)));
            const float slope = task.rules.slopes != nullptr ? task.rules.slopes[i % group] : 0.0F;
            adjust_scores(tag, task.rules, slope, static_cast<float>(start - position), tokens, scores);
            const std::size_t q = row * group + i;
            soften(tag, scores, gone, visible, tokens, partial.maximum[q], partial.total[q], sums + i * width, width);
        }
        if (direct_values) {
            add_codes(tag, task, span.values, first, tokens, count, sums, at);
        } else {
            multiply(tag, count, width, tokens, {at.scores, tile_tokens, 1}, at.values, width, sums, width, true);
        }
    }
}

}  // namespace detail

/// An empty partial result.
inline void clear_partial(scalar, Partial partial, std::size_t queries, std::size_t width) noexcept {
    std::fill_n(partial.sum, queries * width, 0.0F);
    std::fill_n(partial.maximum, queries, -std::numeric_limits<float>::infinity());
    std::fill_n(partial.total, queries, 0.0F);
}

/// Adds `from` to `into`: both relative to the larger maximum.
inline void merge_partial(scalar, Partial into, Partial from, std::size_t queries, std::size_t width) noexcept {
    for (std::size_t i = 0; i < queries; ++i) {
        if (from.total[i] == 0) continue;
        const float highest = std::max(into.maximum[i], from.maximum[i]);
        const float keep = into.total[i] == 0 ? 0.0F : exp_negative(into.maximum[i] - highest);
        const float factor = exp_negative(from.maximum[i] - highest);
        into.total[i] = into.total[i] * keep + from.total[i] * factor;
        into.maximum[i] = highest;
        for (std::size_t c = 0; c < width; ++c) {
            into.sum[i * width + c] = into.sum[i * width + c] * keep + from.sum[i * width + c] * factor;
        }
    }
}

/// The partial result of a task over its tiles.
template <class Backend>
void attend_task(Backend tag, const AttendTask& task, Partial partial, float* scratch) noexcept {
    const std::size_t queries = task.rows * task.group;
    clear_partial(tag, partial, queries, partial_width(tag, task.value, queries, task.head_dim));
    const detail::AttendScratch at = detail::split_scratch(task, scratch);
    if (absorbs_keys(task)) detail::absorb_queries(tag, task, at);
    TileAngles angles;
    std::size_t tile = 0;
    for (const TokenSpan& span : task.spans) {
        for (std::size_t first = span.begin; first < span.end; first += tile_tokens, ++tile) {
            if (tile < task.first_tile || tile >= task.first_tile + task.tiles) continue;
            if (&span != &task.spans.back()) prefetch_span(tag, task, *(&span + 1));
            detail::attend_tile(tag, task, span, first, std::min(tile_tokens, span.end - first), partial, angles, at);
        }
    }
}

/// out = (sum / total) A_v + c_v. Shape out: [rows][out_stride], the group's heads side by side. sum is overwritten.
template <class Backend>
void finish_partial(Backend tag, const AttendTask& task, Partial partial, float* out, std::size_t out_stride) noexcept {
    const std::size_t dh = task.head_dim, queries = task.rows * task.group;
    const bool absorbed = sums_latents(tag, task.value, queries, dh);
    const std::size_t width = absorbed ? task.value.width : dh;
    for (std::size_t i = 0; i < queries; ++i) {
        float* XQUANT_RESTRICT sum = partial.sum + i * width;
        // A sink logit takes its share of the softmax and leaves that much less of V, its constant included.
        float factor = 1.0F, sink = 0.0F;
        if (task.rules.sink_logits != nullptr) {
            const float logit = task.rules.sink_logits[i % task.group], highest = std::max(logit, partial.maximum[i]);
            factor = exp_negative(partial.maximum[i] - highest);
            sink = exp_negative(logit - highest);
        }
        const float inverse = factor / (partial.total[i] * factor + sink), share = partial.total[i] * inverse;
        for (std::size_t c = 0; c < width; ++c) sum[c] *= inverse;
        float* XQUANT_RESTRICT target = out + i / task.group * out_stride + i % task.group * dh;
        if (absorbed && task.value.matrix != nullptr) {
            multiply(tag, 1, dh, width, {sum, width, 1}, task.value.matrix, dh, target, dh, false);
        } else {
            std::copy_n(sum, dh, target);
        }
        for (std::size_t c = 0; c < dh && task.value.constant != nullptr; ++c) {
            target[c] += task.value.constant[c] * share;
        }
    }
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
