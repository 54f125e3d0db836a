// Queries in bytes, where they meet codes per token that stand for themselves (kv4, kv8, q8_0): no product with A and
// no RoPE is left to do, and products are integers. A task rounds them once for all its tiles.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include <xquant/attention/task.hpp>
#include <xquant/backend/key_columns.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {

/// Whether scores are products with stored rows: with K itself, or with a latent whose A was folded into the queries.
constexpr bool reads_latent(const AttendTask& task) noexcept {
    if (task.rope.pairs > 0 || task.rules.key_norm != nullptr || task.shared_channels > 0) return false;
    return task.key.matrix == nullptr ? task.key.constant == nullptr : absorbs_keys(task);
}

/// Whether a stream's codes are words of 4 channels of a token that stand for themselves.
constexpr bool has_code_words(const StreamFormat& format, const HeadDecoder& head) noexcept {
    return format.quantized() && format.group_tokens == 1 && format.levels == nullptr && format.outliers == 0 &&
           head.first % 4 == 0 && head.width % 4 == 0 && format.group_channels % 4 == 0;
}

/// Whether a backend with 8-bit products rounds queries to 8 bits: where they are few and codes have at most 5 bits.
template <class Backend>
constexpr bool rounds_queries(const AttendTask& task, const StreamView& in) noexcept {
    return Backend::int8_products && task.queries() <= direct_queries && reads_latent(task) &&
           has_code_words(in.format, task.key) && in.format.bits <= int8_most_bits && task.key.width <= task.head_dim;
}

namespace detail {

/// Channels of a head from channel c on whose queries are rounded together.
inline std::size_t rounded_channels(const StreamFormat& format, const HeadDecoder& head, std::size_t c) noexcept {
    return (std::min)(
        {format.group_channels - (head.first + c) % format.group_channels, head.width - c, int8_channels});
}

/// queries [count, width] -> out: the values that they have after rounding to 8 bits, with a step for each group of
/// channels.
inline void round_queries(const StreamFormat& format, const HeadDecoder& head, const float* queries, std::size_t count,
                          float* out) noexcept {
    std::array<std::int8_t, int8_channels> weights;
    for (std::size_t i = 0; i < count; ++i) {
        for (std::size_t c = 0; c < head.width;) {
            const std::size_t at = i * head.width + c, channels = rounded_channels(format, head, c);
            const float step = quantize_weights(queries + at, 1, channels, nullptr, int8_top, weights.data()).step;
            for (std::size_t k = 0; k < channels; ++k) out[at + k] = step * static_cast<float>(weights[k]);
            c += channels;
        }
    }
}

}  // namespace detail

/// Rows of weights as whole multiples of a step: 256 high + low, two signed bytes. The error of a weight is at most
/// 1 / 65278 of the largest weight of its row.
struct WholeWeights {
    std::array<std::uint8_t, direct_queries * tile_tokens> high, low;
    std::array<float, direct_queries> steps;
};

/// The queries of a task over channels that are rounded together: in two bytes, or in one, which is `high`.
struct QueryGroup : WholeWeights {
    std::array<float, direct_queries> sums;  ///< over the channels of each query
};

/// The groups of all channels of a head, and the format of codes that they were made for; width 0: none.
struct QueryGroups {
    QueryGroup* groups;
    StreamFormat format{};
};

/// Floats that the queries of a task need in bytes, for any of its spans that have their keys rebuilt, or have not.
constexpr std::size_t query_groups_floats(const AttendTask& task, bool rebuilt) noexcept {
    std::size_t most = 0;
    for (const TokenSpan& span : task.spans) {
        const StreamFormat& format = span.keys.format;
        if (span.rebuilt != rebuilt || task.queries() > direct_queries || !reads_latent(task) ||
            !has_code_words(format, task.key))
            continue;
        std::size_t groups = 0;
        for (std::size_t c = 0; c < task.key.width; ++groups) c += detail::rounded_channels(format, task.key, c);
        most = (std::max)(most, groups);
    }
    return most * sizeof(QueryGroup) / sizeof(float);
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
