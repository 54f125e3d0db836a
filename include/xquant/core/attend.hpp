// The attention of a step, cut into tasks: sequence x kv head x 512 rows x (for few rows) 2048 tokens. Where keys have
// to be rebuilt, and sequences with few rows begin with the same pages, these are read once for all of them.
#pragma once

#include <cstdint>
#include <span>

#include <xquant/attention/task.hpp>
#include <xquant/backend/finish.hpp>
#include <xquant/backend/simd/backends.hpp>
#include <xquant/core/attend_parts.hpp>
#include <xquant/core/rebuild.hpp>
#include <xquant/core/run_tasks.hpp>
#include <xquant/core/step_base.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// What a layer reads of a segment, but for the lag of stored RoPE; view(stream) -> StreamView.
template <class View>
TokenSpan make_span(const PreparedLayer& prepared, const Segment& segment, View&& view) {
    TokenSpan span{view(prepared.keys.front().stream),
                   view(prepared.values.front().stream),
                   segment.begin,
                   segment.end,
                   segment.first_position,
                   {},
                   0};
    if (prepared.shared.width > 0) span.shared = view(prepared.shared.stream);
    return span;
}

/// The tasks of one layer after another. Their number and cut depend on shapes and shared pages, never on threads.
/// What they keep does not grow with the rows of a long prompt: a task that has its rows to itself sums up in scratch.
template <class Backend>
class AttendTasks {
public:
    explicit AttendTasks(Core& core)
        : core_(&core),
          rebuilt_(core),
          spans_(allocator<TokenSpan>()),
          parts_(allocator<Part>()),
          order_(allocator<std::size_t>()),
          groups_(allocator<Group>()),
          tasks_(allocator<Task>()),
          absorbed_(allocator<float>()),
          partials_(allocator<float>()) {}

    /// A layer, and the queries [n, H * Dh] of all rows of the step; forgets the layer before. Makes room for as many
    /// parts, and spans of all of them together, as `add` will add. `rows`: where the step's rows are in queries and
    /// out.
    void start(const PreparedLayer& prepared, const MatrixView& queries, Visibility visibility, std::size_t parts,
               std::size_t spans, RowMap rows = {}) {
        prepared_ = &prepared;
        rows_ = rows;
        whole_ = visibility == Visibility::whole;
        queries_ = queries;
        spans_.clear();
        parts_.clear();
        tasks_.clear();
        partial_floats_ = absorbed_floats_ = 0;
        spans_.reserve(spans);
        parts_.reserve(parts);
        rebuilt_.start(static_cast<std::size_t>(&prepared - core_->layers().data()), spans);
    }

    /// Rows of one sequence at consecutive positions, and what they read; span_of(segment) -> TokenSpan.
    template <class SpanOf>
    void add(const QueryRows& rows, std::span<const Segment> reads, SpanOf&& span_of) {
        const bool turned = prepared_->keys_after_rope && core_->rope(*prepared_).pairs > 0;
        Part part{rows, spans_.size(), reads.size()};
        rebuilt_.start_sequence();
        for (const Segment& segment : reads) {
            TokenSpan& span = spans_.emplace_back(span_of(segment));  // there is room
            span.rope_lag = turned ? segment.rope_lag : 0;
            part.lags |= span.rope_lag != 0;
            rebuilt_.meet(segment, span);
            part.rebuilt_lags |= span.rebuilt && span.rope_lag != 0;
        }
        part.tiles = tiles_of(spans_of(part));
        parts_.push_back(part);  // there is room
    }

    /// Runs all tasks, and makes keys for pages that are read often. Throws what the executor throws, std::bad_alloc,
    /// budget_error.
    void run_all(float* out, std::size_t out_stride, ExecutorRef threads) {
        const Undo let_go([this] { rebuilt_.end(); });
        share_spans();
        for (std::size_t i = 0; i < parts_.size(); ++i) plan(i);
        if (partials_.size() < partial_floats_) partials_.resize(partial_floats_);
        if (absorbed_.size() < absorbed_floats_) absorbed_.resize(absorbed_floats_);
        if (absorbed_floats_ > 0) run_tasks(threads, tasks_.size(), [&](std::size_t i) { absorb(i); });
        run_tasks(threads, tasks_.size(), [&](std::size_t i) { run(i, out, out_stride); });
        // Tasks that share their rows have results to merge.
        if (partial_floats_ > 0) run_tasks(threads, tasks_.size(), [&](std::size_t i) { finish(i, out, out_stride); });
        rebuilt_.build(Backend{}, threads);
    }

    /// Gives back all memory.
    void free() noexcept {
        rebuilt_.free();
        free_list(spans_);
        free_list(parts_);
        free_list(order_);
        free_list(groups_);
        free_list(tasks_);
        free_list(absorbed_);
        free_list(partials_);
    }

private:
    template <class T>
    using Work = LedgerVector<T, Purpose::workspace>;

    using Part = AttendPart;
    using Group = AttendGroup;
    using Task = AttendPiece;
    static constexpr std::size_t none = AttendPart::none;

    static constexpr std::size_t block_rows = 512;  ///< query rows of a task: more, and its sums leave L2
    static constexpr std::size_t split_rows = 16;   ///< up to this many, tokens are split over tasks
    static constexpr std::size_t shared_rows = 32;  ///< rows that read shared spans together: their scores stay in L2
    static constexpr std::size_t shared_tiles = 2;  ///< fewer are not worth another result to merge

    /// Plans the tasks of what several parts begin with. Only where keys have to be rebuilt, which is most of the work
    /// then: rows that meet what is stored have nothing to share but memory.
    void share_spans() {
        const PreparedLayer& prepared = *prepared_;
        const ScoreRules& rules = prepared.rules;
        if (parts_.size() < 2 || rules.window > 0 || rules.chunk > 0 || rules.slopes != nullptr) return;
        order_.clear();
        order_.reserve(parts_.size());
        // Rows that get the answers to other parts take part as well: an answer does not depend on who is answered.
        for (std::size_t i = 0; i < parts_.size(); ++i) {
            if (parts_[i].rows.rows <= split_rows && parts_[i].spans > 0) order_.push_back(i);
        }
        if (order_.size() < 2) return;
        const AttendTask alone = attend_task_of({.part = order_.front()});
        if (backend::reads_latent(alone)) return;
        const auto reader = [&](std::size_t i) {
            return ReadingRows{spans_of(parts_[i]), parts_[i].rows.rows, parts_[i].rows.first_position};
        };
        // Results of so many rows that V is rebuilt for them are of another width than those of a part.
        const auto width_of_rows = [&](std::size_t rows) {
            AttendTask some = alone;
            some.rows = rows;
            return width_of(some);
        };
        std::size_t most_rows = shared_rows;
        while (most_rows > 1 && width_of_rows(most_rows) != width_of_rows(1)) most_rows /= 2;
        groups_.clear();
        groups_.reserve(order_.size() / 2);
        find_shared_spans(order_, shared_tiles, most_rows, whole_, reader,
                          [&](const SharedSpans& shared) { plan_shared(shared); });
    }

    void plan_shared(const SharedSpans& shared) {
        Group& group = groups_.emplace_back(Group{shared});  // there is room
        Task task{.part = order_[shared.first], .group = groups_.size() - 1};
        group.tiles = tiles_of(spans_of(parts_[task.part]).first(shared.spans));
        group.first_task = tasks_.size();
        for (std::size_t i = 0; i < shared.count; ++i) {
            Part& part = parts_[order_[shared.first + i]];
            part.group = task.group;
            part.row = group.rows;
            group.rows += part.rows.rows;
        }
        for (; task.head < prepared_->shape.kv_heads; ++task.head) {
            push_tasks(task, {0, group.tiles}, split_tiles, partial_floats(attend_task_of(task)));
        }
    }

    /// A task for each `each` of some tiles of its part; the first keeps `splits`, and `floats` of the results are each
    /// one's.
    void push_tasks(Task task, backend::Slots tiles, std::size_t each, std::size_t floats) {
        for_each_run(spans_of(parts_[task.part]), tiles, each, [&](const TileRun& run) {
            task.reads = run;
            task.partial = partial_floats_;
            tasks_.push_back(task);
            partial_floats_ += floats;
            task.splits = 0;
        });
    }

    /// Plans a part's tasks, but for the tiles of spans that it shares.
    void plan(std::size_t index) {
        const Part& part = parts_[index];
        const QueryRows& rows = part.rows;
        const std::size_t begin = part.group == none ? 0 : groups_[part.group].tiles, tiles = part.tiles - begin;
        const std::size_t tiles_each = rows.rows <= split_rows ? split_tiles : tiles;
        for (std::size_t head = 0; head < prepared_->shape.kv_heads; ++head) {
            for (std::size_t row = 0; row < rows.rows; row += block_rows) {
                // Rows that get the answers to other parts are left out where that leaves none.
                if (!rows_.answers_some(rows.first_row + row, (std::min)(block_rows, rows.rows - row))) continue;
                Task task{.part = index, .head = head, .row = row, .splits = (tiles + tiles_each - 1) / tiles_each};
                const AttendTask attend = attend_task_of(task);
                if (task.splits > 1 && absorbs_keys(attend)) {
                    task.absorbed = absorbed_floats_;
                    absorbed_floats_ += absorbed_floats(attend);
                }
                push_tasks(task, {begin, tiles}, tiles_each, is_whole(task) ? 0 : partial_floats(attend));
            }
        }
    }

    /// Absorbs the queries of tasks that share them.
    XQUANT_NOINLINE void absorb(std::size_t index) {
        const Task& task = tasks_[index];
        if (task.splits == 0 || task.absorbed == none) return;
        AttendTask attend = attend_task_of(task);
        const std::size_t inner = backend::attend_scratch(attend), copied = copied_floats(task, attend);
        ScratchPool::Loan scratch(core_->scratch(), inner + copied);
        if (copied > 0) load_queries(task, attend, scratch.data() + inner);
        absorb_queries(Backend{}, attend, absorbed_.data() + task.absorbed, scratch.data());
    }

    /// Runs a task. One that has its rows to itself writes them to out, rows `out_stride` floats apart.
    XQUANT_NOINLINE void run(std::size_t index, float* out, std::size_t out_stride) {
        const Task& task = tasks_[index];
        AttendTask attend = attend_task_of(task);
        const std::size_t count = attend.queries(), width = width_of(attend);
        const std::size_t inner = backend::attend_scratch(attend), copied = copied_floats(task, attend);
        ScratchPool::Loan scratch(core_->scratch(), inner + copied + (is_whole(task) ? partial_floats(attend) : 0));
        if (copied > 0) load_queries(task, attend, scratch.data() + inner);
        if (task.absorbed != none) attend.absorbed = absorbed_.data() + task.absorbed;
        float* const sums = is_whole(task) ? scratch.data() + inner + copied : partials_.data() + task.partial;
        const Partial partial = partial_at(sums, count, width);
        attend_task(Backend{}, attend, partial, scratch.data());
        if (is_whole(task)) write(task, attend, partial, out, out_stride);
    }

    /// Merges the splits of a task in order and writes its rows.
    XQUANT_NOINLINE void finish(std::size_t index, float* out, std::size_t out_stride) {
        const Task& task = tasks_[index];
        if (task.splits == 0 || is_whole(task)) return;
        AttendTask attend = attend_task_of(task);
        const std::size_t count = attend.queries(), width = width_of(attend), copied = copied_floats(task, attend);
        ScratchPool::Loan scratch(core_->scratch(), copied);
        if (copied > 0) load_queries(task, attend, scratch.data());
        const Partial partial = partial_at(partials_.data() + task.partial, count, width);
        for (std::size_t i = 1; i < task.splits; ++i) {
            merge_partial(Backend{}, partial, partial_at(partials_.data() + tasks_[index + i].partial, count, width),
                          count, width);
        }
        if (const Part& part = parts_[task.part]; part.group != none) {
            const Group& group = groups_[part.group];
            const std::size_t all = group.rows * attend.queries_per_kv, skip = part.row * attend.queries_per_kv;
            for (std::size_t i = 0; i < group.tasks(); ++i) {
                const Task& from = tasks_[group.first_task + task.head * group.tasks() + i];
                const Partial of_all = partial_at(partials_.data() + from.partial, all, width);
                merge_partial(Backend{}, partial,
                              {of_all.sum + skip * width, of_all.maximum + skip, of_all.total + skip}, count, width);
            }
        }
        write(task, attend, partial, out, out_stride);
    }

    template <class T>
    auto allocator() {
        return LedgerAllocator<T, Purpose::workspace>(core_->ledger());
    }

    /// Whether no other task shares the rows.
    [[nodiscard]] bool is_whole(const Task& task) const noexcept {
        return task.splits == 1 && parts_[task.part].group == none;
    }

    [[nodiscard]] std::span<const TokenSpan> spans_of(const Part& part) const noexcept {
        return {spans_.data() + part.first_span, part.spans};
    }

    /// The first of a task's rows, counted over those of the step.
    [[nodiscard]] std::size_t first_row(const Task& task) const noexcept {
        return parts_[task.part].rows.first_row + task.row;
    }

    [[nodiscard]] AttendTask attend_task_of(const Task& task) const noexcept {
        const PreparedLayer& prepared = *prepared_;
        const Part& part = parts_[task.part];
        const std::size_t dh = prepared.shape.head_dim, group = prepared.shape.heads / prepared.shape.kv_heads;
        AttendTask attend;
        attend.spans = spans_of(part).subspan(task.reads.first_span, task.reads.spans);
        attend.rows = task.group != none ? groups_[task.group].rows : (std::min)(block_rows, part.rows.rows - task.row);
        attend.key = prepared.keys[task.head];
        attend.value = prepared.values[task.head];
        if (!prepared.keys_after_rope) attend.rope = core_->rope(prepared);
        if (part.lags) attend.stored_rope = core_->rope(prepared);
        if (rebuilt_.is_active()) attend.rebuilt = {0, task.head * dh, dh, {}, nullptr, dh};
        attend.rebuilt_lags = part.rebuilt_lags;
        attend.shared_channels = prepared.shared.width;
        attend.head_dim = dh;
        attend.queries_per_kv = group;
        attend.whole = whole_;
        attend.first_position = part.rows.first_position + static_cast<std::int64_t>(task.row);
        attend.q = static_cast<const float*>(queries_.row(rows_.row_of(first_row(task)))) + task.head * group * dh;
        attend.q_stride = queries_.stride;
        attend.rules = prepared.rules;
        if (attend.rules.slopes != nullptr) attend.rules.slopes += task.head * group;
        if (attend.rules.sink_logits != nullptr) attend.rules.sink_logits += task.head * group;
        attend.first_tile = task.reads.first_tile;
        attend.tiles = task.reads.tiles;
        return attend;
    }

    /// Floats that load_queries writes; 0: the task reads the queries where they lie.
    [[nodiscard]] std::size_t copied_floats(const Task& task, const AttendTask& attend) const noexcept {
        const bool as_they_lie = task.group == none && queries_.type == DType::f32 &&
                                 rows_.neighbours(first_row(task), attend.rows) == attend.rows;
        return as_they_lie ? 0 : attend.queries() * attend.head_dim;
    }

    /// The queries of a task as f32 [rows][heads of the kv head, Dh], where they are given in 16 bits or lie apart.
    void load_queries(const Task& task, AttendTask& attend, float* to) const noexcept {
        const std::size_t width = attend.queries_per_kv * attend.head_dim;
        float* next = to;
        const auto load = [&](std::size_t first, std::size_t rows) {
            for (std::size_t i = 0; i < rows; ++i, next += width) {
                const auto* row = static_cast<const std::byte*>(queries_.row(rows_.row_of(first + i)));
                load_row(row + task.head * width * size_of(queries_.type), queries_.type, width, next);
            }
        };
        if (task.group == none) {
            load(first_row(task), attend.rows);
        } else {
            const SharedSpans& shared = groups_[task.group].shared;
            for (std::size_t i = 0; i < shared.count; ++i) {
                const QueryRows& rows = parts_[order_[shared.first + i]].rows;
                load(rows.first_row, rows.rows);
            }
        }
        attend.q = to;
        attend.q_stride = width;
    }

    [[nodiscard]] std::size_t width_of(const AttendTask& attend) const noexcept {
        return backend::partial_width(Backend{}, attend.value, attend.queries(), attend.head_dim);
    }
    /// Floats of a task's result.
    [[nodiscard]] std::size_t partial_floats(const AttendTask& attend) const noexcept {
        return attend.queries() * (width_of(attend) + 2);
    }
    static Partial partial_at(float* at, std::size_t count, std::size_t width) noexcept {
        return {at, at + count * width, at + count * (width + 1)};
    }

    void write(const Task& task, const AttendTask& attend, const Partial& partial, float* out,
               std::size_t out_stride) const noexcept {
        const std::size_t first = first_row(task), column = task.head * attend.queries_per_kv * attend.head_dim;
        for (std::size_t row = 0, run = 0; row < attend.rows; row += run) {
            run = rows_.neighbours(first + row, attend.rows - row);
            if (!rows_.answers(first + row)) continue;
            finish_partial(Backend{}, attend, partial, {row, run},
                           out + rows_.row_of(first + row) * out_stride + column, out_stride);
        }
    }

    Core* core_;
    RebuiltReads rebuilt_;
    const PreparedLayer* prepared_ = nullptr;
    MatrixView queries_;
    RowMap rows_;
    bool whole_ = false;
    Work<TokenSpan> spans_;
    Work<Part> parts_;
    Work<std::size_t> order_;  ///< of parts: those that share what they begin with lie side by side
    Work<Group> groups_;
    Work<Task> tasks_;
    Work<float> absorbed_;  ///< queries times A_k, of tasks that share them
    Work<float> partials_;  ///< results of tasks that share their rows
    std::size_t absorbed_floats_ = 0, partial_floats_ = 0;
};

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
