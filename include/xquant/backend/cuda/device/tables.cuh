// What kernels read of a cache: plain tables in device memory. A layer's table is made once, with the cache; a step's
// tables once for the step, and all layers share them, so that a layer is a few launches and nothing else.
#pragma once

#include <cstddef>
#include <cstdint>

#include <xquant/attention/task.hpp>
#include <xquant/backend/cuda/device/packed_weights.cuh>
#include <xquant/model.hpp>
#include <xquant/quantizer/uniform.hpp>
#include <xquant/storage/page.hpp>

namespace xquant::backend::gpu {
inline namespace XQUANT_ABI_NS {

/// A stream of a layer: where it lies in a page of each kind, and how its rows are encoded.
struct StreamTable {
    StreamEncoder encoder;                    ///< pointers to device memory, as all that follow
    xquant::detail::PageSection sections[4];  ///< by PageKind: of coded, (requantized,) row and sink pages
    ScaleRule rule = ScaleRule::other;
    bool feeds_back = false;        ///< coded rows are rounded for the encoder's metric
    std::size_t first_float = 0;    ///< of its rows in a step's, in units of tokens
    std::size_t first_unmixed = 0;  ///< likewise, of the rows before they are mixed; first_float where nothing is
};

/// One layer.
struct LayerTable {
    LayerShape shape;
    RopeView rope;
    ScoreRules rules;
    bool keys_after_rope = false, absorbs_queries = false;
    std::uint32_t key_stream = 0, value_stream = 0, shared_stream = 0;
    std::uint32_t shared_channels = 0, streams = 0;
    CrossRole role = CrossRole::none;
    xquant::detail::PageSection sum;                       ///< of an accumulator's page, where role is not none
    ScaleRule sum_rule = ScaleRule::other;                 ///< how accumulators are encoded
    const HeadDecoder *keys = nullptr, *values = nullptr;  ///< [kv heads]
    const MatrixTable *key_matrices = nullptr, *value_matrices = nullptr;  ///< [kv heads] A, where heads are rebuilt
    const float* key_gain = nullptr;                                       ///< of DeviceTask
    const std::uint32_t* rope_table = nullptr;                             ///< of PackedRope
    const StreamTable* tables = nullptr;                                   ///< [streams]
};

/// Slots of a page, or rows of the step, that queries of a part read.
struct SpanTable {
    const std::byte* page = nullptr;  ///< null: rows of the step
    const std::byte* sum = nullptr;   ///< its accumulator, in caches whose layers store differences
    PageKind kind = PageKind::coded;
    std::uint32_t begin = 0, end = 0;
    std::int64_t first_position = 0, rope_lag = 0;
};

/// Rows to be written to slots of a page, and where they come from.
struct WriteTable {
    std::byte* page = nullptr;
    const std::byte* sum = nullptr;  ///< as SpanTable's
    PageKind kind = PageKind::rows;
    std::uint32_t slot = 0, count = 0, first_piece = 0;
    bool direct = false;         ///< rows of the step, one after another, as they are
    std::uint32_t gathered = 0;  ///< number among the writes whose rows come from several places
};
struct PieceTable {
    const std::byte* page = nullptr;  ///< null: rows of the step
    PageKind kind = PageKind::coded;
    std::uint32_t begin = 0, count = 0;
};

/// Slots of a coded page whose sum the next layer will read.
struct SumTable {
    const std::byte* page = nullptr;
    std::byte* sum = nullptr;
    std::uint32_t begin = 0, end = 0;
};

/// Up to 16 (query row, head) of one sequence, against some of its spans.
struct BlockTable {
    std::uint32_t first_span = 0, spans = 0;
    std::uint32_t part_row = 0, rows = 0;  ///< the sequence's rows in the step
    std::uint32_t first_query = 0;         ///< in units of (row, head) of one kv head
    std::uint32_t splits = 0;              ///< blocks with the same queries, this one the first; 0: not the first
    std::int64_t first_position = 0;       ///< of row 0
};

/// A section of a page of device memory.
XQUANT_DEVICE inline MutableStreamView view_of(const xquant::detail::PageSection& section, std::byte* page) noexcept {
    return xquant::detail::view_section(section, page);
}
XQUANT_DEVICE inline StreamView view_of(const xquant::detail::PageSection& section, const std::byte* page) noexcept {
    return read_only(view_of(section, const_cast<std::byte*>(page)));
}

/// A stream of a layer in a page of some kind.
template <class Byte>
XQUANT_DEVICE auto view_of(const StreamTable& table, PageKind kind, Byte* page) noexcept {
    return view_of(table.sections[static_cast<std::uint32_t>(kind)], page);
}

/// What all kernels of a step read.
struct StepTable {
    const SpanTable* spans = nullptr;
    const WriteTable* writes = nullptr;
    const PieceTable* pieces = nullptr;
    const BlockTable* blocks = nullptr;
    const SumTable* sums = nullptr;
    const std::int64_t* positions = nullptr;  ///< [n] for RoPE of keys that are stored after it
    float* rows = nullptr;                    ///< the layer's rows of all streams: [n, R] of each, twice where mixed
    float* gathered = nullptr;                ///< [indirect writes][streams][128, widest R]
    float* differences = nullptr;             ///< [indirect writes][streams][128, widest coded row]
    float* feedback = nullptr;                ///< [blocks of EncodeWithFeedback][feedback_workspace]
    float* partials = nullptr;                ///< [blocks][kv heads][queries (Size + 2)]
    std::uint32_t* bad = nullptr;             ///< set where a row is not finite
    std::size_t tokens = 0;                   ///< n
    std::uint32_t queries = 0;                ///< of a block
};

XQUANT_DEVICE inline float* rows_of(const StepTable& step, const StreamTable& stream) noexcept {
    return step.rows + step.tokens * stream.first_float;
}
/// The same rows before they are mixed.
XQUANT_DEVICE inline float* unmixed_rows_of(const StepTable& step, const StreamTable& stream) noexcept {
    return step.rows + step.tokens * stream.first_unmixed;
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend::gpu
