// What one attention task reads and writes: the query rows of one kv head against a span of tokens. Plain data.
//
// Tasks of a step are independent. Their number and cut depend on shapes alone, never on threads, so results do not
// depend on the number of threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <xquant/position/rope.hpp>
#include <xquant/projection/plan.hpp>
#include <xquant/storage/stream.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {

/// Consecutive tokens at consecutive positions: slots begin .. end of stored streams.
struct TokenSpan {
    StreamView keys,                  ///< the stream that keys are read from
        values;                       ///< the stream that values are read from
    std::size_t begin = 0,            ///< first slot
        end = 0;                      ///< the slot behind the last
    std::int64_t first_position = 0;  ///< of slot `begin`
    StreamView shared;                ///< read where AttendTask::shared_channels > 0
    std::int64_t rope_lag = 0;  ///< positions by which the RoPE of stored keys lags behind, since they moved afterwards
    bool rebuilt = false;       ///< `keys` are K itself, after its norm and RoPE: read as AttendTask::rebuilt says
};

/// From what is stored of one token to what is stored of another, which may lie in another page: bytes, modulo 2^64.
struct BytesAhead {
    std::size_t codes,  ///< between their codes
        scales;         ///< between their scales, and between their zeros
};
inline BytesAhead bytes_between(const StreamView& from, std::size_t token, const StreamView& to,
                                std::size_t next) noexcept {
    const auto codes = [](const StreamView& in, std::size_t t) {
        return reinterpret_cast<std::uintptr_t>(in.codes) + in.format.code_offset(t / in.format.group_tokens, 0);
    };
    const auto scales = [](const StreamView& in, std::size_t t) {
        return reinterpret_cast<std::uintptr_t>(in.scales) + t / in.format.group_tokens * sizeof(f16);
    };
    return {codes(to, next) - codes(from, token), scales(to, next) - scales(from, token)};
}

/// What attention does beside softmax(scale q k^T) v. Pointers belong to the layer that was prepared.
struct ScoreRules {
    float scale = 1;                     ///< factor of q k^T
    float soft_cap = 0;                  ///< s becomes soft_cap tanh(s / soft_cap); 0: none
    std::size_t window = 0;              ///< a query at p sees positions p - window + 1 .. p; 0: all
    std::size_t chunk = 0;               ///< a query at p sees positions p - p % chunk .. p; 0: no chunks
    const float* key_norm = nullptr;     ///< gain [Dh] of an RMS norm of rematerialized keys, or null
    float key_norm_epsilon = 0;          ///< added to the mean square of a key
    const float* slopes = nullptr;       ///< [H] s += slope (key position - query position), or null
    const float* sink_logits = nullptr;  ///< [H] logits that take part in the softmax without a value, or null

    /// Beyond every position; sums of it and a few positions can be counted.
    static constexpr std::int64_t no_limit = std::int64_t{1} << 62U;

    /// The first position of the chunk that a position lies in.
    [[nodiscard]] constexpr std::int64_t chunk_start(std::int64_t position) const noexcept {
        const auto size = static_cast<std::int64_t>(chunk);
        const std::int64_t rest = position % size;
        return position - (rest < 0 ? rest + size : rest);
    }
    /// The first position that a query at this position sees.
    [[nodiscard]] constexpr std::int64_t first_seen(std::int64_t position) const noexcept {
        if (chunk > 0) return chunk_start(position);
        return window > 0 ? position - static_cast<std::int64_t>(window) + 1 : -no_limit;
    }
    /// The position behind that of the last query that sees this position.
    [[nodiscard]] constexpr std::int64_t seen_until(std::int64_t position) const noexcept {
        if (chunk > 0) return chunk_start(position) + static_cast<std::int64_t>(chunk);
        return window > 0 ? position + static_cast<std::int64_t>(window) : no_limit;
    }
};

/// The query rows of one sequence in a step, seen from one kv head.
struct AttendTask {
    std::span<const TokenSpan> spans;  ///< in order of position
    HeadDecoder key,                   ///< how the head's K comes back
        value,                         ///< and its V
        rebuilt;                       ///< its K in spans that have it rebuilt; width 0: no span has
    RopeView rope;                     ///< no pairs: keys are not turned when read
    RopeView stored_rope;              ///< of keys stored after it, where a span's lags; no pairs: none does
    std::size_t head_dim = 0;          ///< Dh
    std::size_t rows = 0;              ///< query rows (tokens)
    std::size_t queries_per_kv = 1;    ///< query heads that share the kv head, H / Hkv
    std::int64_t first_position = 0;   ///< of row 0; row i stands at first_position + i
    bool whole = false;                ///< rows see what stands behind them, too
    bool rebuilt_lags = false;         ///< RoPE of rebuilt keys lags in some span
    const float* q = nullptr;          ///< [rows][q_stride], the query heads of the kv head side by side
    std::size_t q_stride = 0;          ///< floats from a row of q to the next
    std::size_t shared_channels = 0;   ///< first channels of every key that come from TokenSpan::shared, not from `key`
    ScoreRules rules;                  ///< slopes and sink_logits start at the kv head's first query head
    std::size_t first_tile = 0,        ///< the first tile of 128 tokens, counted over all spans, that is this task's
        tiles = 0;                     ///< how many tiles are this task's
    const float* absorbed = nullptr;   ///< absorbed_floats: q A_k^T [queries][width], q c_k [queries]; null: not there

    /// The last position that a row at this position sees. `rules` say which is the first.
    [[nodiscard]] constexpr std::int64_t last_seen(std::int64_t position) const noexcept {
        if (!whole) return position;
        if (rules.chunk == 0) return ScoreRules::no_limit;
        return rules.chunk_start(position) + static_cast<std::int64_t>(rules.chunk) - 1;
    }
    /// No row that stands before this position sees `position`.
    [[nodiscard]] constexpr std::int64_t seen_from(std::int64_t position) const noexcept {
        if (!whole) return position;
        return rules.chunk > 0 ? rules.chunk_start(position) : -ScoreRules::no_limit;
    }

    /// Query heads of all rows: query i is head i % queries_per_kv of row i / queries_per_kv.
    [[nodiscard]] constexpr std::size_t queries() const noexcept { return rows * queries_per_kv; }
    /// The head [Dh] of a query.
    [[nodiscard]] constexpr const float* query(std::size_t i) const noexcept {
        return q + i / queries_per_kv * q_stride + i % queries_per_kv * head_dim;
    }
};

/// A partial result of online softmax: out = sum / total, all relative to exp(maximum).
struct Partial {
    float* sum = nullptr;      ///< [queries, width]
    float* maximum = nullptr;  ///< [queries]
    float* total = nullptr;    ///< [queries]
};

/// Whether a product with A [width, columns] is applied once to a few query rows, or to every token of a tile. The
/// latter wins where many query rows share a latent that is wider than a head.
constexpr bool absorbs(const HeadDecoder& head, std::size_t query_rows, std::size_t columns) noexcept {
    return query_rows * head.width <= head.width * columns + query_rows * columns;
}

/// Whether P z is accumulated and multiplied by A_v once at the end: 1 / Dh of the work of rebuilding V.
constexpr bool absorbs_values(const HeadDecoder& value, std::size_t query_rows, std::size_t head_dim) noexcept {
    return value.matrix == nullptr || absorbs(value, query_rows, head_dim);
}

/// Channels of K that RoPE turns: the first ones of a head.
constexpr std::size_t rotary_channels(const AttendTask& task) noexcept { return 2 * task.rope.pairs; }

/// Whether q A_k^T is computed once, so that the channels of K that RoPE leaves alone are never rebuilt: NoPE, learned
/// positions, ALiBi, the rest of a partial RoPE. A norm of the whole key stands in the way.
constexpr bool absorbs_keys(const AttendTask& task) noexcept {
    const std::size_t columns = task.head_dim - rotary_channels(task);
    return columns > 0 && task.key.matrix != nullptr && task.rules.key_norm == nullptr && task.rows <= 32 &&
           absorbs(task.key, task.queries(), columns);
}

/// Floats of AttendTask::absorbed.
constexpr std::size_t absorbed_floats(const AttendTask& task) noexcept {
    return absorbs_keys(task) ? task.queries() * (task.key.width + 1) : 0;
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
