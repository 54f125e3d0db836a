// The attention of a step, cut into tasks: sequence x kv head x 512 rows x (for few rows) 2048 tokens.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include <xquant/attention/task.hpp>
#include <xquant/backend/simd/backends.hpp>
#include <xquant/core/step_base.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// The tasks of one layer after another. Their number and cut depend on shapes alone, never on threads.
template <class Backend>
class AttendTasks {
public:
    explicit AttendTasks(Core& core)
        : core_(&core),
          spans_(allocator<TokenSpan>()),
          runs_(allocator<Run>()),
          moved_queries_(allocator<float>()),
          tasks_(allocator<Task>()),
          partials_(allocator<float>()) {}

    /// Forgets the tasks of the last layer.
    void clear() noexcept {
        spans_.clear();
        moved_queries_.clear();
        tasks_.clear();
        spans_needed_ = moved_needed_ = partials_needed_ = 0;
    }

    /// Makes room for what `add` adds. All parts are reserved before the first one is added: addresses stay.
    void reserve(const PreparedLayer& prepared, const QueryRows& rows, const StepPlan& plan) {
        spans_needed_ += plan.reads.size();
        const Segment* last = nullptr;
        for (const Segment& segment : plan.reads) {
            const std::int64_t lag = rope_lag(prepared, segment);
            if (lag != 0 && (last == nullptr || rope_lag(prepared, *last) != lag)) {
                moved_needed_ += rows.rows * prepared.shape.heads * prepared.shape.head_dim;
            }
            last = &segment;
        }
        spans_.reserve(spans_needed_);
        moved_queries_.reserve(moved_needed_);
    }

    /// Queries [n, H * Dh] of the step, `q_stride` floats apart; span_of(segment) -> TokenSpan.
    template <class SpanOf>
    void add(const PreparedLayer& prepared, const QueryRows& part, const StepPlan& plan, const float* queries,
             std::size_t q_stride, SpanOf&& span_of) {
        plan_runs(prepared, part, plan, queries + part.first_row * q_stride, q_stride, span_of);
        const std::size_t dh = prepared.shape.head_dim, group = prepared.shape.heads / prepared.shape.kv_heads;
        const bool few = part.rows <= split_rows;
        std::size_t splits = 0;
        for (const Run& run : runs_) splits += few ? (run.tiles + split_tiles - 1) / split_tiles : 1;
        for (std::size_t head = 0; head < prepared.shape.kv_heads; ++head) {
            for (std::size_t row = 0; row < part.rows; row += block_rows) {
                Task task;
                AttendTask& attend = task.attend;
                attend.key = prepared.keys[head];
                attend.value = prepared.values[head];
                if (!prepared.keys_after_rope) attend.rope = core_->rope(prepared);
                attend.shared_channels = prepared.shared.width;
                attend.head_dim = dh;
                attend.rows = (std::min)(block_rows, part.rows - row);
                attend.queries_per_kv = group;
                attend.first_position = part.first_position + static_cast<std::int64_t>(row);
                attend.rules = prepared.rules;
                if (attend.rules.slopes != nullptr) attend.rules.slopes += head * group;
                if (attend.rules.sink_logits != nullptr) attend.rules.sink_logits += head * group;
                task.first_row = part.first_row + row;
                task.head = head;
                task.width = backend::partial_width(Backend{}, attend.value, attend.queries(), dh);
                task.splits = splits;
                for (const Run& run : runs_) {
                    attend.spans = {spans_.data() + run.first_span, run.spans};
                    attend.q = run.queries + row * run.stride + head * group * dh;
                    attend.q_stride = run.stride;
                    const std::size_t tiles_each = few ? split_tiles : run.tiles;
                    for (std::size_t tile = 0; tile < run.tiles; tile += tiles_each) {
                        attend.first_tile = tile;
                        attend.tiles = (std::min)(tiles_each, run.tiles - tile);
                        tasks_.push_back(task);
                        partials_needed_ += attend.queries() * (task.width + 2);
                        task.splits = 0;
                    }
                }
            }
        }
    }

    /// Gives the tasks room for their results, once all parts were added.
    void place() {
        if (partials_.size() < partials_needed_) partials_.resize(partials_needed_);
        float* at = partials_.data();
        for (Task& task : tasks_) {
            const std::size_t count = task.attend.queries();
            task.partial = {at, at + count * task.width, at + count * (task.width + 1)};
            at += count * (task.width + 2);
        }
    }

    [[nodiscard]] std::size_t size() const noexcept { return tasks_.size(); }

    XQUANT_NOINLINE void run(std::size_t index) {
        const Task& task = tasks_[index];
        ScratchPool::Loan scratch(core_->scratch(), backend::attend_scratch(task.attend));
        attend_task(Backend{}, task.attend, task.partial, scratch.data());
    }

    /// Merges the splits of a task in order and writes its rows.
    XQUANT_NOINLINE void finish(std::size_t index, float* out, std::size_t out_stride) {
        const Task& task = tasks_[index];
        if (task.splits == 0) return;
        const AttendTask& attend = task.attend;
        const std::size_t count = attend.queries();
        for (std::size_t i = 1; i < task.splits; ++i) {
            merge_partial(Backend{}, task.partial, tasks_[index + i].partial, count, task.width);
        }
        finish_partial(Backend{}, attend, task.partial,
                       out + task.first_row * out_stride + task.head * attend.queries_per_kv * attend.head_dim,
                       out_stride);
    }

private:
    template <class T>
    using Work = LedgerVector<T, Purpose::workspace>;

    struct Task {
        AttendTask attend;
        std::size_t first_row = 0;  ///< in the step
        std::size_t head = 0;       ///< kv head
        std::size_t splits = 0;     ///< tasks that share the rows, this one the first; 0: not the first
        std::size_t width = 0;
        Partial partial;
    };

    /// Neighbouring spans of a part whose stored RoPE lags by the same number of positions, and the queries for them.
    struct Run {
        std::size_t first_span = 0, spans = 0, tiles = 0;
        std::int64_t rope_lag = 0;
        const float* queries = nullptr;  ///< [rows][stride]
        std::size_t stride = 0;
    };

    static constexpr std::size_t block_rows = 512;  ///< query rows of a task: more, and its sums leave L2
    static constexpr std::size_t split_rows = 16;   ///< up to this many, tokens are split over tasks
    static constexpr std::size_t split_tiles = 16;  ///< tiles of such a split, 2048 tokens

    template <class T>
    auto allocator() {
        return LedgerAllocator<T, Purpose::workspace>(core_->ledger());
    }

    /// How many positions the stored RoPE of a segment's keys lags behind.
    [[nodiscard]] std::int64_t rope_lag(const PreparedLayer& prepared, const Segment& segment) const noexcept {
        return prepared.keys_after_rope && core_->rope(prepared).pairs > 0 ? segment.rope_lag : 0;
    }

    /// The spans of a part, in runs. A key that was stored with the RoPE of position p and moved by m should have the
    /// RoPE of p + m; the query is turned back by m instead: q . R(m) k = (R(-m) q) . k.
    template <class SpanOf>
    void plan_runs(const PreparedLayer& prepared, const QueryRows& part, const StepPlan& plan, const float* queries,
                   std::size_t q_stride, SpanOf&& span_of) {
        runs_.clear();
        for (const Segment& segment : plan.reads) {
            const std::int64_t lag = rope_lag(prepared, segment);
            if (runs_.empty() || runs_.back().rope_lag != lag) {
                runs_.push_back({spans_.size(), 0, 0, lag, queries, q_stride});
                if (lag != 0) {
                    runs_.back().queries = undo_rope(prepared, part.rows, lag, queries, q_stride);
                    runs_.back().stride = prepared.shape.heads * prepared.shape.head_dim;
                }
            }
            spans_.push_back(span_of(segment));
            ++runs_.back().spans;
            runs_.back().tiles += (segment.size() + backend::tile_tokens - 1) / backend::tile_tokens;
        }
    }

    /// A copy of the queries [rows, H * Dh], turned back by `lag` positions.
    const float* undo_rope(const PreparedLayer& prepared, std::size_t rows, std::int64_t lag, const float* queries,
                           std::size_t q_stride) {
        const std::size_t dh = prepared.shape.head_dim, width = prepared.shape.heads * dh;
        const std::size_t first = moved_queries_.size();
        moved_queries_.resize(first + rows * width);  // there is room
        const RopeView rope = core_->rope(prepared);
        std::array<float, backend::max_pairs> cosines, sines;
        rope_angles(rope, lag, cosines.data(), sines.data());
        for (std::size_t i = 0; i < rows; ++i) {
            float* row = moved_queries_.data() + first + i * width;
            std::copy_n(queries + i * q_stride, width, row);
            for (std::size_t c = 0; c < width; c += dh) {
                apply_rope(backend::scalar{}, rope, cosines.data(), sines.data(), -1.0F, row + c);
            }
        }
        return moved_queries_.data() + first;
    }

    Core* core_;
    Work<TokenSpan> spans_;
    Work<Run> runs_;
    Work<float> moved_queries_;  ///< queries of runs whose RoPE lags
    Work<Task> tasks_;
    Work<float> partials_;
    std::size_t spans_needed_ = 0, moved_needed_ = 0, partials_needed_ = 0;
};

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
