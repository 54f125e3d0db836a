// Attention over stored streams, tile by tile: the loop that drives every backend.
//
//     K = z_k A_k + c_k (norm, RoPE);  s = scale q K^T, causal;  online softmax;  sum += P z_v;
//     out = (sum / total) A_v + c_v
//
// What a backend gives. A backend is a tag; each of these is an overload that takes the tag first, and a tag that has
// none inherits the scalar one (backend/scalar/):
//
//     decode_tile, encode_rows            codes -> f32, rows -> codes                                scalar/codec.hpp
//     multiply, multiply_transposed, transpose                                                       scalar/product.hpp
//     load_weights                        prepared matrices -> f32                                   scalar/weights.hpp
//     rematerialize_int8                  only for tags of int8<...>                                 scalar/int8.hpp
//     normalize, normalize_keys           RMS norms                                                  scalar/norm.hpp
//     apply_rope_to_tile, apply_rope      RoPE of a tile of keys, of a query                         scalar/rope.hpp
//     adjust_scores, online_softmax       soft cap and ALiBi; one update of the softmax              scalar/softmax.hpp
//     clear_partial, merge_partial        results of a part of the tokens                            scalar/softmax.hpp
//
// and these hooks, by which it may leave the tile out where it can take scores or P z straight from what is stored:
//
//     scores_from_codes, score_codes      adds_from_codes, add_codes      sums_latents      prefetch_span       (below)
//
// Shapes  tile: up to 128 tokens; K [Dh, tokens]; scores [query rows, tokens]; z_v [tokens, width].
// Limit   the products q K^T and P z_v (FMA) for many query rows, decoding and rematerialization for one.
// Tried   Rebuilding V for every step: Dh times the work of P z_v for one query row. One pass over all rows of a step
//         per tile instead of 32 rows at a time: the scores leave L2.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>

#include <xquant/attention/task.hpp>
#include <xquant/backend/query_groups.hpp>
#include <xquant/backend/rematerialize.hpp>
#include <xquant/backend/scalar/lag.hpp>
#include <xquant/backend/scalar/norm.hpp>
#include <xquant/backend/scalar/rope.hpp>
#include <xquant/backend/scalar/softmax.hpp>
#include <xquant/backend/slow_pairs.hpp>
#include <xquant/backend/span_reader.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {

/// For up to this many query rows, the queries are turned back by the position of each tile's start; for more, the keys
/// of the tile are turned by it.
inline constexpr std::size_t rope_on_queries_rows = 4;

/// Query rows handled together: their scores stay in L2.
inline constexpr std::size_t row_step = 32;

/// Whether a backend sums P z and multiplies by A_v at the end, or rebuilds V for every tile.
constexpr bool sums_latents(scalar, const HeadDecoder& value, std::size_t queries, std::size_t head_dim) noexcept {
    return absorbs_values(value, queries, head_dim);
}

/// Channels of Partial::sum.
template <class Backend>
constexpr std::size_t partial_width(Backend tag, const HeadDecoder& value, std::size_t queries,
                                    std::size_t head_dim) noexcept {
    return sums_latents(tag, value, queries, head_dim) ? value.width : head_dim;
}

/// Floats of a copy of A_k in f32, of which a task makes one for all its tiles where K is rebuilt and A_k is small and
/// kept in less.
constexpr std::size_t key_copy_floats(const AttendTask& task) noexcept {
    const WeightMatrix& matrix = task.key.matrix;
    const bool copies =
        matrix != nullptr && matrix.type != WeightType::f32 && task.key.width <= int8_channels && !reads_latent(task);
    return copies ? task.key.width * task.head_dim : 0;
}

/// Floats of scratch that attend_task needs.
constexpr std::size_t attend_scratch(const AttendTask& task) noexcept {
    const std::size_t dh = task.head_dim, queries = row_step * task.queries_per_kv;
    const std::size_t absorbed = absorbs_keys(task) ? queries * (task.key.width + 1) : 0;
    const std::size_t turned = turned_floats(task) + turned_floats(task_of_rebuilt_keys(task));
    return rematerialize_scratch(dh) + tile_tokens * (std::max)(dh, width_step) +
           tile_tokens * (std::max)(dh, task.value.width) + queries * (dh + tile_tokens) + absorbed + turned +
           key_copy_floats(task) + key_columns_floats(task) + query_groups_floats(task, false) +
           query_groups_floats(task_of_rebuilt_keys(task), true);
}

/// The parts of attend_scratch.
struct AttendScratch {
    float* keys;           ///< [max(Dh, 128), tokens]
    float* values;         ///< [tokens, max(Dh, width)]
    float* queries;        ///< [32 rows, Dh] turned back by the tile's start
    float* scores;         ///< [32 rows, tokens]
    float* absorbed;       ///< [queries, width of the key's latent] q A_k^T, and [queries] q c_k, if keys are absorbed
    float* inner;          ///< scratch of rematerialize
    float* turned;         ///< [queries, Dh] turned back by a span's lag, if they are; the same for rebuilt keys
    float* key_copy;       ///< A_k in f32, if the task makes a copy
    float* sorted;         ///< memory of `columns`
    KeyColumns* columns;   ///< of scores_by_products; made at the first tile that takes them
    QueryGroups* rounded;  ///< queries in bytes; made at the first tile that takes them
    BytesAhead keys_ahead, values_ahead;  ///< from a tile to the next one
};

/// Whether a backend takes scores, or P z, straight from the codes of a stream, without a tile of K or z in between.
/// The scalar backend never does.
constexpr bool scores_from_codes(scalar, const AttendTask&, const StreamView&) noexcept { return false; }
constexpr bool adds_from_codes(scalar, const AttendTask&, const StreamView&) noexcept { return false; }
/// Scores [queries of `rows`, 128] against tokens of a stream. Angles are those of the tile's start, at the call and at
/// the return.
inline void score_codes(scalar, const AttendTask&, const StreamView&, Slots /*tokens*/, TileAngles&, Slots /*rows*/,
                        const AttendScratch&) noexcept {}
/// sums [count, width] += weights [count, 128] (in AttendScratch::scores) times tokens of a stream.
inline void add_codes(scalar, const AttendTask&, const StreamView&, Slots /*tokens*/, std::size_t /*count*/, float*,
                      const AttendScratch&) noexcept {}

/// Prefetches what the next tile reads first.
inline void prefetch_span(scalar, const AttendTask&, const TokenSpan&) noexcept {}

namespace detail {

inline AttendScratch split_scratch(const AttendTask& task, float* scratch) noexcept {
    const std::size_t dh = task.head_dim, queries = row_step * task.queries_per_kv;
    AttendScratch out{};
    out.keys = scratch;
    out.values = out.keys + tile_tokens * (std::max)(dh, width_step);
    out.queries = out.values + tile_tokens * (std::max)(dh, task.value.width);
    out.scores = out.queries + queries * dh;
    out.inner = out.scores + queries * tile_tokens;
    out.absorbed = out.inner + rematerialize_scratch(dh);
    out.turned = out.absorbed + (absorbs_keys(task) ? queries * (task.key.width + 1) : 0);
    out.key_copy = out.turned + turned_floats(task) + turned_floats(task_of_rebuilt_keys(task));
    out.sorted = out.key_copy + key_copy_floats(task);
    return out;
}

/// The queries [count, Dh] of some rows, times the scale of scores.
inline void scale_queries(const AttendTask& task, Slots rows, float* out) noexcept {
    const std::size_t dh = task.head_dim, first = rows.first * task.queries_per_kv;
    for (std::size_t i = 0; i < rows.count * task.queries_per_kv; ++i) {
        const float* q = task.query(first + i);
        for (std::size_t c = 0; c < dh; ++c) out[i * dh + c] = q[c] * task.rules.scale;
    }
}

/// q A_k^T for the channels that RoPE leaves alone, once for all tiles.
template <class Backend>
void absorb_queries(Backend tag, const AttendTask& task, const AttendScratch& at) noexcept {
    const std::size_t dh = task.head_dim, rotary = rotary_channels(task), width = task.key.width;
    float* constants = at.absorbed + task.queries() * width;
    scale_queries(task, {0, task.rows}, at.queries);
    for (std::size_t k = 0; k < width; k += width_step) {
        const std::size_t some = (std::min)(width_step, width - k);
        const float* const a = weights_as_floats(tag, task.key.matrix, {k * dh, some * dh}, at.inner);
        multiply_transposed(tag, {at.queries + rotary, task.queries(), dh - rotary, dh},
                            {a + rotary, some, dh - rotary, dh}, {at.absorbed + k, task.queries(), some, width});
    }
    for (std::size_t i = 0; i < task.queries(); ++i) {
        constants[i] = 0;
        for (std::size_t c = rotary; c < dh && task.key.constant != nullptr; ++c) {
            constants[i] += task.query(i)[c] * task.rules.scale * task.key.constant[c];
        }
    }
}

/// Adds q c_k where keys are absorbed, for the queries of some rows.
inline void add_constants(const AttendTask& task, Slots rows, std::size_t tokens, const AttendScratch& at) noexcept {
    if (task.key.constant == nullptr) return;
    const float* constants = at.absorbed + task.queries() * task.key.width + rows.first * task.queries_per_kv;
    for (std::size_t i = 0; i < rows.count * task.queries_per_kv; ++i) {
        for (std::size_t t = 0; t < tokens; ++t) at.scores[i * tile_tokens + t] += constants[i];
    }
}

/// A tile of keys [channels, tokens] that was rebuilt: AttendScratch::keys.
struct RebuiltKeys {
    Slots tokens;
    std::size_t channels;          ///< how many: the channels that RoPE turns, or all
    const TileAngles* on_queries;  ///< angles that the queries are to be turned back by, or null
    const LagAngles* lag;          ///< angles that the tile is to be turned by, or null
    bool without_slow;             ///< slow pairs are not to meet the queries
};

/// scores [queries of `rows`, tokens] against the tile.
template <class Backend>
void score_rows(Backend tag, const AttendTask& task, const StreamView& in, const RebuiltKeys& keys, Slots rows,
                const AttendScratch& at) noexcept {
    const std::size_t dh = task.head_dim, channels = keys.channels, tokens = keys.tokens.count;
    const std::size_t first_query = rows.first * task.queries_per_kv, count = rows.count * task.queries_per_kv;
    const MutableMatrix scores{at.scores, count, tokens, tile_tokens};
    for (std::size_t i = 0; i < count && channels > 0; ++i) {
        const float* q = task.query(first_query + i);
        float* query = at.queries + i * dh;
        for (std::size_t c = 0; c < channels; ++c) query[c] = q[c] * task.rules.scale;
        if (keys.on_queries != nullptr) {
            apply_rope(tag, task.rope, keys.on_queries->cosines.data(), keys.on_queries->sines.data(), -1.0F, query);
        }
        const std::size_t slow = keys.without_slow ? at.columns->slow : 0, built = dh - slow;
        for (std::size_t k = 0; k < slow; ++k) query[at.columns->channels[built + k]] = 0;
    }
    const bool rounds = rounds_queries<Backend>(task, in);
    if (rounds && channels > 0) round_queries(in.format, task.key, at.queries, count, at.queries);
    if (channels > 0) multiply(tag, {at.queries, dh, 1}, {at.keys, channels, tokens, tile_tokens}, scores, false);
    if (channels == dh) return;
    const std::size_t width = task.key.width;
    const float* absorbed = at.absorbed + first_query * width;
    if (rounds) {
        round_queries(in.format, task.key, absorbed, count, at.queries);
        absorbed = at.queries;
    }
    for (std::size_t c = 0; c < width; c += width_step) {
        const std::size_t some = (std::min)(width_step, width - c);
        decode_tile(tag, in, keys.tokens.first, task.key.first + c,
                    {at.keys, tokens, some, tile_tokens, TileOrder::channel_major});
        multiply(tag, {absorbed + c, width, 1}, {at.keys, some, tokens, tile_tokens}, scores, c > 0 || channels > 0);
    }
    add_constants(task, rows, tokens, at);
}

/// K of a tile, with norm and RoPE applied: the channels that RoPE turns, or all of them.
template <class Backend>
void rebuild_keys(Backend tag, const AttendTask& task, const TokenSpan& span, const RebuiltKeys& keys,
                  const TileAngles& angles, const AttendScratch& at) noexcept {
    const Tile tile{at.keys, keys.tokens.count, keys.channels, tile_tokens, TileOrder::channel_major};
    if (keys.channels > task.shared_channels) {
        rematerialize(tag, span.keys, task.key, keys.tokens.first, tile, at.inner);
    }
    if (task.shared_channels > 0) {
        decode_tile(tag, span.shared, keys.tokens.first, 0, tile.part({0, tile.tokens}, {0, task.shared_channels}));
    }
    if (task.rules.key_norm != nullptr) {
        normalize_keys(tag, task.rules.key_norm, task.rules.key_norm_epsilon, tile);
    }
    if (task.rope.pairs > 0) {
        apply_rope_to_tile(tag, task.rope, keys.on_queries != nullptr ? nullptr : &angles, tile);
    }
    if (keys.lag != nullptr) turn_keys(tag, task.stored_rope, *keys.lag, tile);
}

/// V of a tile, or its latent where A_v comes at the end: [tokens, width].
template <class Backend>
void rebuild_values(Backend tag, const AttendTask& task, const TokenSpan& span, Slots tokens, bool absorbed,
                    const AttendScratch& at) noexcept {
    const std::size_t width = absorbed ? task.value.width : task.head_dim;
    const Tile tile{at.values, tokens.count, width, width, TileOrder::token_major};
    if (absorbed) {
        for (std::size_t c = 0; c < width; c += width_step) {
            decode_tile(tag, span.values, tokens.first, task.value.first + c,
                        tile.part({0, tokens.count}, {c, (std::min)(width_step, width - c)}));
        }
    } else {
        // c_v is added once, at the end.
        HeadDecoder value = task.value;
        value.constant = nullptr;
        rematerialize(tag, span.values, value, tokens.first, tile, at.inner);
    }
}

/// Adds some tokens (at most 128) of one span to the partial result.
template <class Backend>
void attend_tile(Backend tag, const AttendTask& task, const TokenSpan& span, Slots tokens, Partial partial,
                 TileAngles& angles, const LagAngles& lag, const AttendScratch& at) noexcept {
    const std::size_t dh = task.head_dim, group = task.queries_per_kv;
    const auto count_of = [](std::size_t n) { return static_cast<std::int64_t>(n); };
    const std::int64_t start = span.first_position + count_of(tokens.first - span.begin), n = count_of(tokens.count);
    // Rows before the tile's first token see nothing of it, unless they see what stands behind them; nor do rows whose
    // window or chunk begins behind its last.
    const std::int64_t all = count_of(task.rows);
    const std::int64_t skip = std::clamp<std::int64_t>(task.seen_from(start) - task.first_position, 0, all);
    const std::int64_t stop =
        std::clamp<std::int64_t>(task.rules.seen_until(start + n - 1) - task.first_position, 0, all);
    if (skip >= stop) return;

    const bool absorbed = absorbs_values(task.value, task.queries(), dh);
    const std::size_t width = absorbed ? task.value.width : dh;
    // Few query rows are turned back by the tile's start; for many, the tile is turned by its start as well.
    const bool on_queries = task.rows <= rope_on_queries_rows && task.rope.pairs > 0;
    angles.move_to(task.rope, start);
    const bool turns = span.rope_lag != 0 && !turns_queries(task);
    const bool by_products = scores_by_products<Backend>(task, span.keys);
    const RebuiltKeys keys{tokens, absorbs_keys(task) ? rotary_channels(task) : dh, on_queries ? &angles : nullptr,
                           turns ? &lag : nullptr, by_products};
    if (by_products) order_columns(tag, task, span.keys.format, at.sorted, at.inner, *at.columns);
    const bool direct_scores = scores_from_codes(tag, task, span.keys),
               direct_values = adds_from_codes(tag, task, span.values);
    if (!direct_scores) rebuild_keys(tag, task, span, keys, angles, at);
    if (!direct_values) rebuild_values(tag, task, span, tokens, absorbed, at);

    const auto end = static_cast<std::size_t>(stop);
    for (auto row = static_cast<std::size_t>(skip); row < end; row += row_step) {
        const Slots rows{row, (std::min)(row_step, end - row)};
        const std::size_t first_query = row * group, count = rows.count * group;
        if (by_products) make_slow_columns(tag, task, rows, angles, *at.columns);
        if (direct_scores) {
            score_codes(tag, task, span.keys, tokens, angles, rows, at);
        } else {
            score_rows(tag, task, span.keys, keys, rows, at);
            if (by_products) add_slow_scores(tag, task, span.keys, tokens, count, *at.columns, at.scores);
        }
        float* sums = partial.sum + first_query * width;
        for (std::size_t i = 0; i < count; ++i) {
            float* scores = at.scores + i * tile_tokens;
            const std::int64_t position = task.first_position + count_of(row + i / group);
            const std::int64_t before = task.rules.first_seen(position) - start;
            const VisibleTokens seen{
                static_cast<std::size_t>(std::clamp<std::int64_t>(before, 0, n)),
                static_cast<std::size_t>(std::min<std::int64_t>(n, task.last_seen(position) - start + 1)),
                tokens.count};
            const float slope = task.rules.slopes != nullptr ? task.rules.slopes[i % group] : 0.0F;
            adjust_scores(tag, task.rules, slope, static_cast<float>(start - position), tokens.count, scores);
            const std::size_t q = first_query + i;
            online_softmax(tag, scores, seen, {partial.maximum[q], partial.total[q], sums + i * width, width});
        }
        if (direct_values) {
            add_codes(tag, task, span.values, tokens, count, sums, at);
        } else {
            multiply(tag, {at.scores, tile_tokens, 1}, {at.values, tokens.count, width, width},
                     {sums, count, width, width}, true);
        }
    }
}

}  // namespace detail

/// AttendTask::absorbed of a task, for any number of its tiles. Scratch: attend_scratch(task) floats.
template <class Backend>
void absorb_queries(Backend tag, const AttendTask& task, float* out, float* scratch) noexcept {
    AttendScratch at = detail::split_scratch(task, scratch);
    at.absorbed = out;
    detail::absorb_queries(tag, task, at);
}

/// The partial result of a task over its tiles. Scratch: attend_scratch(task) floats.
template <class Backend>
void attend_task(Backend tag, const AttendTask& given, Partial partial, float* scratch) noexcept {
    [[maybe_unused]] const typename Backend::MatrixScope scope;
    const std::size_t queries = given.queries();
    clear_partial(tag, partial, queries, partial_width(tag, given.value, queries, given.head_dim));
    AttendScratch at = detail::split_scratch(given, scratch);
    KeyColumns columns;
    at.columns = &columns;
    auto* const groups = at.sorted + key_columns_floats(given);
    QueryGroups of_stored{reinterpret_cast<QueryGroup*>(groups), {}};
    QueryGroups of_rebuilt{reinterpret_cast<QueryGroup*>(groups + query_groups_floats(given, false)), {}};
    AttendTask task = given;
    if (const std::size_t floats = key_copy_floats(given); floats > 0) {
        task.key.matrix = weights_as_floats(tag, given.key.matrix, {0, floats}, at.key_copy);
    }
    if (given.absorbed != nullptr) {
        std::copy_n(given.absorbed, absorbed_floats(given), at.absorbed);
    } else if (absorbs_keys(task)) {
        detail::absorb_queries(tag, task, at);
    }
    TileAngles angles;
    SpanReader stored(task, at.turned), rebuilt(task_of_rebuilt_keys(task), at.turned + turned_floats(task));
    std::size_t tile = 0;
    for (const TokenSpan& span : task.spans) {
        for (std::size_t first = span.begin; first < span.end; first += tile_tokens, ++tile) {
            if (tile < task.first_tile) continue;
            if (tile == task.first_tile + task.tiles) return;
            const bool in_span = first + tile_tokens < span.end, is_last = !in_span && &span == &task.spans.back();
            const TokenSpan& next = in_span || is_last ? span : *(&span + 1);
            const std::size_t next_first = is_last ? first : in_span ? first + tile_tokens : next.begin;
            at.keys_ahead = bytes_between(span.keys, first, next.keys, next_first);
            at.values_ahead = bytes_between(span.values, first, next.values, next_first);
            if (&next != &span) prefetch_span(tag, (next.rebuilt ? rebuilt : stored).given(), next);
            SpanReader& reader = span.rebuilt ? rebuilt : stored;
            at.rounded = span.rebuilt ? &of_rebuilt : &of_stored;
            if (reader.move_to(tag, span)) {
                at.rounded->format = {};
                if (!span.rebuilt) columns.stretch = {};
                if (!span.rebuilt && absorbs_keys(task)) detail::absorb_queries(tag, stored.turned(), at);
            }
            detail::attend_tile(tag, reader.turned(), span, {first, (std::min)(tile_tokens, span.end - first)}, partial,
                                angles, reader.lag(), at);
        }
    }
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
