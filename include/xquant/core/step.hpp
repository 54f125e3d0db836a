// One step of a cache: rows in, attention out, nothing changed until commit().
#pragma once

#include <span>
#include <string>
#include <utility>

#include <xquant/core/attend.hpp>
#include <xquant/core/write.hpp>
#include <xquant/executor.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// A step over one or several sequences. Move-only; destroying it without commit() leaves the cache as it was.
template <class Backend>
class Step {
    template <class T>
    using Work = LedgerVector<T, Purpose::workspace>;

    struct Part : QueryRows {
        Slot* slot;
    };

public:
    Step(Core& core, std::span<const StepPart> parts)
        : core_(&core),
          parts_(allocator<Part>()),
          plans_(allocator<StepPlan>()),
          rows_(allocator<float>()),
          positions_(allocator<std::int64_t>()),
          input_(allocator<float>()),
          sums_(core),
          attention_(core) {
        check_parts(core, parts);
        parts_.reserve(parts.size());
        plans_.reserve(parts.size() * core.stacks());
        for (const StepPart& part : parts) {
            Slot& slot = core.find(part.sequence);
            for (std::size_t stack = 0; stack < core.stacks(); ++stack) {
                plans_.push_back(core.plan(slot, stack, part.tokens));
            }
            parts_.push_back({{total_, part.tokens, slot.states.front().next_position}, &slot});
            total_ += part.tokens;
        }
        sums_.open(core, plans_);
        std::size_t floats = 0;
        for (std::size_t layer = 0; layer < core.layers().size(); ++layer) {
            std::size_t widths = 0;
            for (const StreamEncoder& encoder : core.layers()[layer].encoders) widths += encoder.width;
            floats = std::max(floats, widths);
        }
        rows_.resize(checked_product(total_, floats));
        positions_.reserve(total_);
        for (const Part& part : parts_) {
            const std::int64_t first = part.first_position - part.slot->states.front().moved;
            for (std::size_t i = 0; i < part.rows; ++i) positions_.push_back(first + static_cast<std::int64_t>(i));
        }
        // From here on nothing throws.
        for (const Part& part : parts_) part.slot->busy = true;
    }

    Step(Step&& other) noexcept
        : core_(std::exchange(other.core_, nullptr)),
          parts_(std::move(other.parts_)),
          plans_(std::move(other.plans_)),
          rows_(std::move(other.rows_)),
          positions_(std::move(other.positions_)),
          input_(std::move(other.input_)),
          sums_(std::move(other.sums_)),
          attention_(std::move(other.attention_)),
          total_(other.total_),
          next_(other.next_),
          lost_(other.lost_) {}
    Step& operator=(Step&&) = delete;
    ~Step() { end(); }

    /// Tokens of the step, all sequences together.
    [[nodiscard]] std::size_t size() const noexcept { return total_; }

    /// The attention input of a layer, after its norm. Shape x: [n, D], the rows of the sequences one after another.
    /// Layers come in order, each once. x is read before this returns and not kept.
    /// Throws value_error for values that are not finite or beyond f16, before anything is stored; shape_error,
    /// state_error; the step goes on. std::bad_alloc (or what the executor throws): the step can only be destroyed, the
    /// cache is as it was. Cost: the projection of n rows, and encoding those that leave the window.
    template <executor Executor = const Serial>
    void append(std::size_t layer, const MatrixView& x, Executor&& threads = Serial{}) {
        expects_usable();
        expects<state_error>(layer == next_, "layers are appended in order, each once");
        expects<state_error>(layer < core_->layers().size(), "the step has all its layers");
        const PreparedLayer& prepared = core_->layers()[layer];
        check_input(prepared, x, total_);
        const float* input = static_cast<const float*>(x.data);
        if (x.type != DType::f32 || x.stride != x.cols) input = load(x);
        const std::size_t blocks = (total_ + project_step - 1) / project_step, streams = prepared.encoders.size();
        threads.parallel_for(blocks * streams, [&](std::size_t task) { project_rows(prepared, input, task); });
        check_values(layer);

        // Rows and sums that are half done cannot be done again.
        lost_ = true;
        std::size_t writes = 0;
        for (std::size_t i = 0; i < parts_.size(); ++i) writes += plan_of(i, prepared).writes.size();
        threads.parallel_for(writes * streams, [&](std::size_t task) { store(prepared, layer, task); });
        sums_.advance(Backend{}, *core_, layer, threads);
        lost_ = false;
        ++next_;
    }

    /// Attention of the layer that was appended last. Shapes q: [n, H * Dh] after RoPE, out: [n, H * Dh] f32; rows are
    /// `out_stride` floats apart (0: H * Dh). Each row sees its sequence up to and including itself.
    template <executor Executor = const Serial>
    void attend(std::size_t layer, const MatrixView& q, float* out, std::size_t out_stride = 0,
                Executor&& threads = Serial{}) {
        expects_usable();
        expects<state_error>(layer + 1 == next_, "attend follows append of the same layer");
        const PreparedLayer& prepared = core_->layers()[layer];
        out_stride = check_queries(prepared, q, out, out_stride, total_);
        const float* queries = static_cast<const float*>(q.data);
        std::size_t q_stride = q.stride;
        if (q.type != DType::f32) {
            queries = load(q);
            q_stride = q.cols;
        }
        attention_.clear();
        for (std::size_t i = 0; i < parts_.size(); ++i) attention_.reserve(prepared, parts_[i], plan_of(i, prepared));
        for (std::size_t i = 0; i < parts_.size(); ++i) {
            attention_.add(prepared, parts_[i], plan_of(i, prepared), queries, q_stride,
                           [&](const Segment& segment) { return span_of(prepared, parts_[i], segment); });
        }
        attention_.place();
        threads.parallel_for(attention_.size(), [&](std::size_t i) { attention_.run(i); });
        threads.parallel_for(attention_.size(), [&](std::size_t i) { attention_.finish(i, out, out_stride); });
    }

    /// The sequences now have the step's tokens. All layers must have been appended, else state_error. Cannot fail
    /// otherwise.
    void commit() {
        expects_usable();
        expects<state_error>(next_ == core_->layers().size(), "commit before every layer was appended");
        for (std::size_t i = 0; i < plans_.size(); ++i) {
            commit_plan(parts_[i / core_->stacks()].slot->states[i % core_->stacks()], plans_[i]);
        }
        end();
    }

private:
    static constexpr std::size_t project_step = 32;  ///< rows projected by one task

    void expects_usable() const {
        expects<state_error>(core_ != nullptr, "the step has ended");
        expects<state_error>(!lost_, "append ran out of memory, or its executor threw: the step can only be destroyed");
    }

    template <class T>
    auto allocator() {
        return LedgerAllocator<T, Purpose::workspace>(core_->ledger());
    }

    static std::size_t checked_product(std::size_t a, std::size_t b) {
        expects(b == 0 || a <= static_cast<std::size_t>(-1) / sizeof(float) / b, "a step of this size overflows");
        return a * b;
    }

    [[nodiscard]] const StepPlan& plan_of(std::size_t part, const PreparedLayer& layer) const noexcept {
        return plans_[part * core_->stacks() + layer.stack];
    }

    /// The step's rows of a stream: [n, width].
    [[nodiscard]] float* stream_rows(const PreparedLayer& layer, std::size_t stream) noexcept {
        float* rows = rows_.data();
        for (std::size_t i = 0; i < stream; ++i) rows += total_ * layer.encoders[i].width;
        return rows;
    }

    const float* load(const MatrixView& in) {
        input_.resize(in.rows * in.cols);
        for (std::size_t i = 0; i < in.rows; ++i) load_row(in.row(i), in.type, in.cols, input_.data() + i * in.cols);
        return input_.data();
    }

    // The bodies of tasks are kept out of line: inlined into the loops of different executors, compilers fuse multiplications
    // and additions differently, and results would depend on the executor in the last bit.

    /// Task (32 rows, stream) of append: rows of the step are projected.
    XQUANT_NOINLINE void project_rows(const PreparedLayer& layer, const float* input, std::size_t task) {
        const std::size_t d = layer.shape.width, stream = task % layer.encoders.size();
        const std::size_t first = task / layer.encoders.size() * project_step,
                          n = std::min(project_step, total_ - first);
        const StreamEncoder& encoder = layer.encoders[stream];
        ScratchPool::Loan scratch(core_->scratch(), backend::project_scratch(d, encoder.width, n));
        project(Backend{}, encoder, input + first * d, n, d, positions_.data() + first, core_->rope(layer),
                layer.shape.head_dim, stream_rows(layer, stream) + first * encoder.width, scratch.data());
    }

    /// Task (write, stream) of append: rows go into their page.
    XQUANT_NOINLINE void store(const PreparedLayer& layer, std::size_t layer_index, std::size_t task) {
        const std::size_t stream = task % layer.encoders.size();
        std::size_t index = task / layer.encoders.size();
        std::size_t part = 0;
        while (index >= plan_of(part, layer).writes.size()) index -= plan_of(part++, layer).writes.size();
        const StepPlan& plan = plan_of(part, layer);
        run_write(Backend{}, *core_, sums_, plan, plan.writes[index], layer_index, stream,
                  stream_rows(layer, stream) + parts_[part].first_row * layer.encoders[stream].width);
    }

    void check_values(std::size_t layer) {
        const PreparedLayer& prepared = core_->layers()[layer];
        for (std::size_t stream = 0; stream < prepared.encoders.size(); ++stream) {
            const std::size_t width = prepared.encoders[stream].width;
            const float* rows = stream_rows(prepared, stream);
            for (std::size_t row = 0; row < total_; ++row) {
                bool good = true;
                for (std::size_t c = 0; c < width; ++c) good &= std::abs(rows[row * width + c]) <= f16_max;
                if (good) continue;
                raise<value_error>("layer " + std::to_string(layer) + ", row " + std::to_string(row) +
                                   " of the step: not finite, or beyond f16's 65504 once projected");
            }
        }
    }

    TokenSpan span_of(const PreparedLayer& prepared, const Part& part, const Segment& segment) {
        const auto view = [&](std::size_t stream) {
            if (segment.page && prepared.role != CrossRole::none && segment.page->format().purpose == Purpose::codes) {
                return read_only(sums_.view(segment.page.get()));
            }
            if (segment.page) return read_only(segment.page->stream(prepared.place, stream));
            const std::size_t width = prepared.encoders[stream].width;
            return view_rows(stream_rows(prepared, stream) + part.first_row * width, static_cast<std::uint32_t>(width));
        };
        TokenSpan span{view(prepared.keys.front().stream),
                       view(prepared.values.front().stream),
                       segment.begin,
                       segment.end,
                       segment.first_position,
                       {}};
        if (prepared.shared.width > 0) span.shared = view(prepared.shared.stream);
        return span;
    }

    void end() noexcept {
        if (core_ == nullptr) return;
        for (const Part& part : parts_) part.slot->busy = false;
        parts_.clear();
        plans_.clear();
        core_ = nullptr;
    }

    Core* core_;
    Work<Part> parts_;
    Work<StepPlan> plans_;          ///< [parts][stacks]
    Work<float> rows_;              ///< the layer's rows: stream after stream, [n, width]
    Work<std::int64_t> positions_;  ///< [n] for which keys are turned where they are stored so
    Work<float> input_;             ///< x or q where they had to be copied
    Accumulators sums_;
    AttendTasks<Backend> attention_;
    std::size_t total_ = 0, next_ = 0;
    bool lost_ = false;  ///< append was left by an exception when rows were partly stored
};

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
