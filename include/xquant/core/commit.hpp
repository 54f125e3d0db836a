// What the steps of all backends share: the checks of what they are given, and the moment when rows become part of a sequence.
#pragma once

#include <span>
#include <xquant/core/core.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// Throws sequence_error, shape_error unless a step can be made of these parts.
inline void check_parts(Core& core, std::span<const StepPart> parts) {
    expects(!parts.empty(), "a step needs at least one sequence");
    for (std::size_t i = 0; i < parts.size(); ++i) {
        const Slot& slot = core.find(parts[i].sequence);
        expects<sequence_error>(!slot.busy, "the sequence is already part of a step");
        expects(parts[i].tokens > 0, "a step adds at least one token to each of its sequences");
        expects(parts[i].tokens < (std::size_t{1} << 31U), "a step adds fewer than 2^31 tokens");
        for (std::size_t j = 0; j < i; ++j) {
            expects<sequence_error>(parts[j].sequence != parts[i].sequence, "a sequence appears twice in a step");
        }
    }
}

/// Throws shape_error unless x is what `append` takes: [tokens, D].
inline void check_input(const PreparedLayer& layer, const MatrixView& x, std::size_t tokens) {
    expects(x.rows == tokens && x.cols == layer.shape.width, "x is [tokens of the step, width]");
    expects(!x.empty() && x.stride >= x.cols, "x has no data, or a stride shorter than its rows");
}

/// Throws shape_error unless q and out are what `attend` takes: [tokens, H * Dh]. Returns out_stride, which 0 leaves open.
inline std::size_t check_queries(const PreparedLayer& layer, const MatrixView& q, const float* out,
                                 std::size_t out_stride, std::size_t tokens) {
    const std::size_t width = layer.shape.heads * layer.shape.head_dim;
    if (out_stride == 0) out_stride = width;
    expects(q.rows == tokens && q.cols == width, "q is [tokens of the step, heads * head_dim]");
    expects(!q.empty() && out != nullptr && q.stride >= q.cols && out_stride >= width,
            "q or out has no data, or a stride shorter than its rows");
    return out_stride;
}

/// The sequence becomes what the plan says. Only moves: cannot fail.
inline void commit_plan(SequenceState& state, StepPlan& plan) noexcept {
    for (const Segment& segment : plan.after) {
        // Only of a page that nothing else shares: others may be read by other threads.
        if (segment.page->filled < segment.end) segment.page->filled = segment.end;
    }
    state.segments.swap(plan.after);
    state.tokens = plan.tokens;
    state.next_position = plan.next_position;
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
