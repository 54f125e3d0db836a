// What one attention task reads and writes: the query rows of one kv head against a span of tokens. Plain data.
//
// Tasks of a step are independent. Their number and cut depend on shapes alone, never on threads, so results do not
// depend on the number of threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <xquant/position/rope.hpp>
#include <xquant/storage/plan.hpp>
#include <xquant/storage/stream.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {

/// Consecutive tokens at consecutive positions: slots begin .. end of stored streams.
struct TokenSpan {
    StreamView keys, values;
    std::size_t begin = 0, end = 0;
    std::int64_t first_position = 0;  ///< of slot `begin`
};

/// The query rows of one sequence in a step, seen from one kv head.
struct AttendTask {
    std::span<const TokenSpan> spans;  ///< in order of position
    HeadDecoder key, value;
    RopeView rope;  ///< no pairs: keys are not turned when read
    std::size_t head_dim = 0;
    std::size_t rows = 0;             ///< query rows (tokens)
    std::size_t group = 1;            ///< query heads that share the kv head, H / Hkv
    std::int64_t first_position = 0;  ///< of row 0; row i sees positions up to first_position + i
    const float* q = nullptr;         ///< [rows][q_stride], the group's heads side by side
    std::size_t q_stride = 0;
    float scale = 1;  ///< factor of q k^T
};

/// A partial result of online softmax: out = sum / total, all relative to exp(maximum).
struct Partial {
    float* sum = nullptr;      ///< [rows * group, width]
    float* maximum = nullptr;  ///< [rows * group]
    float* total = nullptr;    ///< [rows * group]
};

/// Whether P z is accumulated and multiplied by A_v once at the end (1 / Dh of the work of rebuilding V), or V is rebuilt
/// tile by tile. The latter wins where many query rows share a latent that is wider than a head.
constexpr bool absorbs_values(const HeadDecoder& value, std::size_t query_rows, std::size_t head_dim) noexcept {
    return value.matrix == nullptr || query_rows * value.width <= value.width * head_dim + query_rows * head_dim;
}

/// Channels of Partial::sum.
constexpr std::size_t partial_width(const HeadDecoder& value, std::size_t query_rows, std::size_t head_dim) noexcept {
    return absorbs_values(value, query_rows, head_dim) ? value.width : head_dim;
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
