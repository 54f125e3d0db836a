// One step of a cache: rows in, attention out, nothing changed until commit().
#pragma once

#include <array>
#include <span>

#include <xquant/core/attend.hpp>
#include <xquant/core/run_tasks.hpp>
#include <xquant/core/write.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// A step of a cache in the processor's memory. Cache::Step has its documentation.
template <class Backend>
class Step : public StepBase {
public:
    Step(Core& core, std::span<const StepPart> parts)
        : StepBase(core, parts),
          rows_(allocator<float>()),
          positions_(allocator<std::int64_t>()),
          writes_(allocator<PartWrite>()),
          attention_(core) {
        std::size_t floats = 0;
        for (const PreparedLayer& layer : core.layers()) {
            std::size_t widths = 0;
            for (const StreamEncoder& encoder : layer.encoders) widths += encoder.width;
            floats = (std::max)(floats, widths);
        }
        expects(floats == 0 || total_ <= static_cast<std::size_t>(-1) / sizeof(float) / floats, "begin: ", total_,
                " tokens of ", floats, " floats are more bytes than can be counted");
        rows_.resize(total_ * floats);
        positions_.reserve(total_);
        for (const StepSequence& part : parts_) {
            for (std::size_t i = 0; i < part.rows; ++i) positions_.push_back(position_of(part, i) - lag_of(part));
        }
        begin();
    }

    void append(std::size_t layer, const MatrixView& x, ExecutorRef threads) {
        append_rows(layer, {x, {}, {}}, false, threads);
    }

    void append_kv(std::size_t layer, const MatrixView& k, const MatrixView& v, ExecutorRef threads) {
        append_rows(layer, {{}, k, v}, true, threads);
    }

    void attend(std::size_t layer, const MatrixView& q, float* out, Visibility visibility, std::size_t out_stride,
                ExecutorRef threads) {
        const PreparedLayer& prepared = expects_queries(layer, q, out, visibility, out_stride);
        const std::size_t stored = stored_by(layer);
        const PreparedLayer& storing = core_->layers()[stored];
        const bool has_rows = stored == last_, planned = has_rows && tree_.empty();
        Work<RowsAndReads> list(allocator<RowsAndReads>());
        Work<Segment> made(allocator<Segment>());  // what is read, where that is not the plan's list
        list.reserve(parts_.size());
        std::size_t spans = 0;
        for (std::size_t i = 0; i < parts_.size(); ++i) {
            const StepPlan& plan = plan_of(i, prepared);
            if (planned) list.push_back({parts_[i], i, 0, plan.reads.size()});
            if (!planned) list_reads(plan, i, has_rows, list, made);
        }
        for (const RowsAndReads& one : list) spans += one.count;
        attention_.start(prepared, q, visibility, list.size(), spans, row_map());
        for (const RowsAndReads& one : list) {
            const Segment* const reads = planned ? plan_of(one.part, prepared).reads.data() : made.data() + one.begin;
            attention_.add(one.rows, {reads, one.count}, [&](const Segment& segment) {
                return span_of(prepared, storing, parts_[one.part], segment);
            });
        }
        attention_.run_all(out, out_stride, threads);
    }

    void commit() {
        StepBase::commit();
        free_workspace();
    }
    void commit(std::span<const std::size_t> kept) {
        StepBase::commit(kept);
        free_workspace();
    }

private:
    void free_workspace() noexcept {
        // All workspace goes back now, whenever the step is destroyed.
        free_list(rows_);
        free_list(positions_);
        free_list(writes_);
        attention_.free();
    }

    static constexpr std::size_t project_step = 32;  ///< rows projected by one task

    /// A write of a part's plan.
    struct PartWrite {
        std::size_t part, write;
    };

    /// Rows of a part, and the segments that they read.
    struct RowsAndReads {
        QueryRows rows;
        std::size_t part, begin, count;
    };

    /// What a part reads, if the step has the layer's rows or not: in their place, what it has stored of them. Of a
    /// tree, each run of rows that follow one another reads what was stored before the step, its ancestors, and itself.
    void list_reads(const StepPlan& plan, std::size_t index, bool has_rows, Work<RowsAndReads>& list,
                    Work<Segment>& made) {
        const StepSequence& part = parts_[index];
        Work<Segment> all(allocator<Segment>());  // the step's rows are its last
        const std::size_t kept_before = rows_in(plan.after) - part.rows;
        for (const Segment& segment : plan.reads) {
            if (segment.page || has_rows) {
                all.push_back(segment);
            } else {
                copy_rows(plan.after, kept_before + segment.begin, kept_before + segment.end, all);
            }
        }
        const std::size_t before = rows_in(all) - part.rows;
        for (std::size_t row = 0, rows = 0; row < part.rows; row += rows) {
            rows = 1;
            while (row + rows < part.rows && follows(part, row + rows)) ++rows;
            const std::size_t begin = made.size();
            copy_rows(all, 0, before, made);
            list_ancestors(part, row, before, all, made);
            copy_rows(all, before + row, before + row + rows, made);
            list.push_back({{part.first_row + row, rows, position_of(part, row)}, index, begin, made.size() - begin});
        }
    }

    /// Whether a row of a part follows the row before it.
    [[nodiscard]] bool follows(const StepSequence& part, std::size_t row) const noexcept {
        return parent_of(part, row) == static_cast<std::int64_t>(row) - 1;
    }

    /// The ancestors of a row, the root first; row r of the part is row before + r of `all`.
    void list_ancestors(const StepSequence& part, std::size_t row, std::size_t before, const Work<Segment>& all,
                        Work<Segment>& to) {
        struct Run {
            std::size_t first, last;
        };
        Work<Run> runs(allocator<Run>());  // of ancestors that follow one another, the root's last
        for (std::int64_t parent = parent_of(part, row); parent >= 0; parent = parent_of(part, runs.back().first)) {
            const auto last = static_cast<std::size_t>(parent);
            runs.push_back({last, last});
            while (runs.back().first > 0 && follows(part, runs.back().first)) --runs.back().first;
        }
        for (std::size_t i = runs.size(); i > 0; --i) {
            copy_rows(all, before + runs[i - 1].first, before + runs[i - 1].last + 1, to);
        }
    }

    /// append or append_kv.
    void append_rows(std::size_t layer, const LayerRows& rows, bool given, ExecutorRef threads) {
        const PreparedLayer& prepared = expects_next(layer, rows, given);
        const std::size_t blocks = (total_ + project_step - 1) / project_step, streams = prepared.encoders.size();
        rows_refused_ = true;
        run_tasks(threads, blocks * streams, [&](std::size_t task) { project_rows(prepared, rows, task); });
        check_values(layer, given);
        list_writes(prepared);

        // Rows and sums that are half done cannot be done again.
        lost_ = true;
        run_tasks(threads, writes_.size() * streams, [&](std::size_t task) { store(prepared, layer, task); });
        sums_.advance(Backend{}, *core_, layer, threads);
        lost_ = rows_refused_ = false;
        pass(layer);
    }

    /// The step's rows of a stream: [n, width].
    [[nodiscard]] float* stream_rows(const PreparedLayer& layer, std::size_t stream) noexcept {
        float* rows = rows_.data();
        for (std::size_t i = 0; i < stream; ++i) rows += total_ * layer.encoders[i].width;
        return rows;
    }

    /// The writes of all parts, for the tasks of append.
    void list_writes(const PreparedLayer& layer) {
        writes_.clear();
        for (std::size_t part = 0; part < parts_.size(); ++part) {
            const std::size_t count = plan_of(part, layer).writes.size();
            for (std::size_t write = 0; write < count; ++write) writes_.push_back({part, write});
        }
    }

    /// By how many positions the stored RoPE of a sequence's keys lags.
    static std::int64_t lag_of(const StepSequence& part) noexcept { return part.slot->states.front().rope_lag; }

    /// The lags of rows from `first` on.
    void find_lags(std::size_t first, std::span<std::int64_t> out) const noexcept {
        for (const StepSequence& part : parts_) {
            const std::size_t begin = (std::max)(first, part.first_row);
            const std::size_t end = (std::min)(first + out.size(), part.first_row + part.rows);
            for (std::size_t row = begin; row < end; ++row) out[row - first] = lag_of(part);
        }
    }

    // The bodies of tasks are kept out of line: inlined into different callers, compilers fuse multiplications and
    // additions differently, and results would depend on the translation unit in the last bit.

    /// Task (32 rows, stream) of append: rows of the step are projected.
    XQUANT_NOINLINE void project_rows(const PreparedLayer& layer, const LayerRows& given, std::size_t task) {
        const std::size_t stream = task % layer.encoders.size();
        const std::size_t first = task / layer.encoders.size() * project_step;
        const std::size_t rows = (std::min)(project_step, total_ - first);
        const StreamEncoder& encoder = layer.encoders[stream];
        const MatrixView& x = given.of(encoder.source);
        const std::size_t d = encoder.input;
        const std::size_t inner = backend::project_scratch(d, encoder.width, rows);
        const RowMap map = row_map();
        const bool as_they_lie = x.type == DType::f32 && map.neighbours(first, rows) == rows;
        const std::size_t copied = as_they_lie ? 0 : rows * d;
        ScratchPool::Loan scratch(core_->scratch(), inner + copied);
        backend::Matrix input{static_cast<const float*>(x.row(map.row_of(first))), rows, d, x.stride};
        if (copied > 0) {
            float* const copy = scratch.data() + inner;
            for (std::size_t i = 0; i < rows; ++i) load_row(x.row(map.row_of(first + i)), x.type, d, copy + i * d);
            input = {copy, rows, d, d};
        }
        std::array<std::int64_t, project_step> lags{};
        if (encoder.comes_with_rope) find_lags(first, {lags.data(), rows});
        project(Backend{}, encoder, input,
                {positions_.data() + first, lags.data(), core_->rope(layer), layer.shape.head_dim},
                stream_rows(layer, stream) + first * encoder.width, scratch.data());
    }

    /// Task (write, stream) of append: rows go into their page.
    XQUANT_NOINLINE void store(const PreparedLayer& layer, std::size_t layer_index, std::size_t task) {
        const std::size_t stream = task % layer.encoders.size();
        const PartWrite& at = writes_[task / layer.encoders.size()];
        const StepPlan& plan = plan_of(at.part, layer);
        run_write(Backend{}, *core_, sums_, {plan, plan.writes[at.write], layer_index, stream},
                  stream_rows(layer, stream) + parts_[at.part].first_row * layer.encoders[stream].width);
    }

    void check_values(std::size_t layer, bool given) {
        const PreparedLayer& prepared = core_->layers()[layer];
        for (std::size_t stream = 0; stream < prepared.encoders.size(); ++stream) {
            const std::size_t width = prepared.encoders[stream].width;
            const float* rows = stream_rows(prepared, stream);
            for (std::size_t row = 0; row < total_; ++row) {
                bool good = true;
                for (std::size_t c = 0; c < width; ++c) good &= fits_f16(rows[row * width + c]);
                if (good) continue;
                const std::size_t at = row_map().row_of(row);
                raise_value(layer, at, given ? "append_kv" : "append", ", layer ", layer, ": row ", at,
                            named_.empty() ? " of the step" : " of the matrix",
                            " is not finite, or beyond f16's 65504 once projected");
            }
        }
    }

    /// What a layer reads of a segment; `storing` is the layer whose rows these are.
    TokenSpan span_of(const PreparedLayer& prepared, const PreparedLayer& storing, const StepSequence& part,
                      const Segment& segment) {
        const auto view = [&](std::size_t stream) {
            if (segment.page && prepared.role != CrossRole::none && segment.page->format().is_coded()) {
                return sums_.rows(segment.page.get());
            }
            if (segment.page) return read_only(segment.page->stream(prepared.place, stream));
            const std::size_t width = storing.encoders[stream].width;
            return view_rows(stream_rows(storing, stream) + part.first_row * width, static_cast<std::uint32_t>(width));
        };
        return make_span(prepared, segment, view);
    }

    Work<float> rows_;              ///< the layer's rows: stream after stream, [n, width]
    Work<std::int64_t> positions_;  ///< [n] of the RoPE of keys that are stored after it
    Work<PartWrite> writes_;        ///< of the layer that is appended, all parts
    AttendTasks<Backend> attention_;
};

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
