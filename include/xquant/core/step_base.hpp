// What the steps of all backends have in common: which sequences get how many tokens, their plans, the order of calls,
// and commit, when rows become part of a sequence.
#pragma once

#include <span>
#include <utility>

#include <xquant/core/accumulate.hpp>
#include <xquant/core/core.hpp>
#include <xquant/core/step_rows.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// A sequence of a step.
struct StepSequence : QueryRows {
    Slot* slot = nullptr;
    bool tree = false;  ///< whether its new tokens are one
};

/// Makes the sequence what the plan says. It only moves lists, so it cannot fail.
inline void commit_plan(SequenceState& state, StepPlan& plan) noexcept {
    state.segments.swap(plan.after);
    state.tokens = plan.tokens;
    state.next_position = plan.next_position;
}

/// The part of a step that does not depend on the backend. Destroying a step without commit leaves the cache as it was.
class StepBase {
public:
    StepBase(StepBase&& other) noexcept
        : core_(std::exchange(other.core_, nullptr)),
          parts_(std::move(other.parts_)),
          plans_(std::move(other.plans_)),
          tree_(std::move(other.tree_)),
          named_(std::move(other.named_)),
          sums_(std::move(other.sums_)),
          total_(other.total_),
          rows_given_(other.rows_given_),
          next_(other.next_),
          last_(other.last_),
          begun_(other.begun_),
          rows_refused_(other.rows_refused_),
          lost_(other.lost_) {}
    StepBase& operator=(StepBase&&) = delete;

    /// Tokens of the step, all sequences together.
    [[nodiscard]] std::size_t size() const noexcept { return total_; }

    /// The sequences now have the step's tokens. Throws state_error unless every layer was appended. Cannot fail
    /// otherwise.
    void commit() {
        expects_complete();
        for (std::size_t i = 0; i < parts_.size(); ++i) {
            expects<state_error>(!parts_[i].tree, "commit: the new tokens of sequence ", i,
                                 " of the step are a tree; say which rows stay: commit(kept)");
        }
        commit_plans();
    }

    /// The sequences now have these of the step's rows, a path from the root on of each. Throws state_error unless all
    /// layers were appended, shape_error unless the rows are such paths. Cannot fail otherwise.
    void commit(std::span<const std::size_t> kept) {
        expects_complete();
        expects_paths(kept);
        for (std::size_t i = 0, from = 0; i < parts_.size(); ++i) {
            const StepSequence& part = parts_[i];
            std::size_t to = from;
            while (to < kept.size() && kept[to] < part.first_row + part.rows) ++to;
            for (std::size_t page_group = 0; page_group < core_->page_groups(); ++page_group) {
                plans_[i * core_->page_groups() + page_group].keep(kept.subspan(from, to - from), part.first_row,
                                                                   part.rows);
            }
            from = to;
        }
        commit_plans();
    }

private:
    void expects_complete() const {
        expects_usable();
        expects<state_error>(next_ == core_->layers().size(), "commit: ", next_, " of ", core_->layers().size(),
                             " layers were appended; append all of them before commit");
    }

    /// Throws shape_error unless rows of the step are, part after part, paths from the root on.
    void expects_paths(std::span<const std::size_t> kept) const {
        std::size_t i = 0;
        for (const StepSequence& part : parts_) {
            std::int64_t last = -1;  // row of the part that the next one has to follow
            for (; i < kept.size() && kept[i] < part.first_row + part.rows; ++i) {
                expects(kept[i] >= part.first_row, "commit: entry ", i, " of the list is row ", kept[i],
                        ", and the entry before it is row ", i > 0 ? kept[i - 1] : 0,
                        "; rows come in order, each once");
                const std::size_t row = kept[i] - part.first_row;
                const std::int64_t parent = parent_of(part, row);
                expects(parent == last, "commit: entry ", i, " of the list is row ", kept[i], ", which follows ",
                        parent < 0 ? "what was stored" : "another row",
                        " of its sequence; expected a row that follows ",
                        last < 0 ? "what was stored" : "the entry before it");
                last = static_cast<std::int64_t>(row);
            }
        }
        expects(i == kept.size(), "commit: entry ", i, " of the list is row ", i < kept.size() ? kept[i] : 0,
                ", but the step has ", total_, " rows");
    }

    void commit_plans() noexcept {
        for (std::size_t i = 0; i < plans_.size(); ++i) {
            commit_plan(parts_[i / core_->page_groups()].slot->states[i % core_->page_groups()], plans_[i]);
        }
        end();
    }

protected:
    /// The row of the part that row `row` of it follows, or -1: what is stored.
    [[nodiscard]] std::int64_t parent_of(const StepSequence& part, std::size_t row) const noexcept {
        return tree_.empty() ? static_cast<std::int64_t>(row) - 1 : tree_[part.first_row + row].parent;
    }
    /// The position of a row of a part.
    [[nodiscard]] std::int64_t position_of(const StepSequence& part, std::size_t row) const noexcept {
        return part.first_position +
               (tree_.empty() ? static_cast<std::int64_t>(row) : tree_[part.first_row + row].depth);
    }

    template <class T>
    using Work = LedgerVector<T, Purpose::workspace>;
    using Plans = Work<StepPlan>;

    /// Plans new tokens and allocates their pages. Throws sequence_error, shape_error, budget_error, std::bad_alloc.
    StepBase(Core& core, std::span<const StepPart> parts) : StepBase(core) {
        check_parts(parts);
        parts_.reserve(parts.size());
        plans_.reserve(parts.size() * core.page_groups());
        list_tree(parts);
        if (!parts.front().rows.empty()) rows_given_ = list_named_rows(core.ledger(), parts, named_);
        for (const StepPart& part : parts) {
            Slot& slot = core.find(part.sequence);
            add(slot, part.tokens, !part.parents.empty());
            total_ += part.tokens;
        }
        sums_.open(core, plans_);
    }

    /// Plans the encoding of all rows of a sequence outside its window, unfinished groups included; no new tokens.
    /// Throws budget_error, std::bad_alloc.
    StepBase(Core& core, Slot& slot) : StepBase(core) {
        parts_.reserve(1);
        plans_.reserve(core.page_groups());
        add(slot, 0, false);
        sums_.open(core, plans_, false);
    }

    ~StepBase() { end(); }

    /// From here on the sequences are part of this step: the last thing that a constructor does.
    void begin() noexcept {
        for (const StepSequence& part : parts_) part.slot->busy = true;
        begun_ = true;
    }

    [[nodiscard]] bool is_active() const noexcept { return core_ != nullptr; }

    void expects_usable() const {
        expects<state_error>(is_active(), "the step has ended");
        expects<state_error>(!core_->abandoned(), "the step's cache was destroyed or assigned to");
        expects<state_error>(!lost_, "append ran out of memory, or its executor threw: the step can only be destroyed");
    }

    /// What an engine hands over for a layer: [tokens, D] each. Views of what it does not hand over are empty.
    struct LayerRows {
        MatrixView x, keys, values;

        [[nodiscard]] const MatrixView& of(RowSource source) const noexcept {
            return source == RowSource::x ? x : source == RowSource::keys ? keys : values;
        }
    };

    /// Throws state_error unless a layer's turn has come, and it takes these rows; shape_error unless x is [tokens, D],
    /// or keys and values are [tokens, Hkv * Dh].
    const PreparedLayer& expects_next(std::size_t layer, const LayerRows& rows, bool given) const {
        const char* const verb = given ? "append_kv" : "append";
        expects_usable();
        const std::size_t layers = core_->layers().size();
        if (layer < layers && core_->layers()[layer].borrows()) {
            raise<state_error>(verb, ": layer ", layer, " reads the rows of layer ", core_->layers()[layer].rows_of,
                               ", as Layer::rows_of says, and has none of its own; attend to it");
        }
        expects<state_error>(next_ < layers, verb, ": layer ", layer, ", but all ", layers,
                             " layers have been appended");
        expects<state_error>(layer == next_, verb, ": layer ", layer, ", but layers come in order and the next one is ",
                             next_);
        const PreparedLayer& prepared = core_->layers()[layer];
        expects<state_error>(
            prepared.takes_keys_and_values() == given, verb, ": layer ", layer, " takes ",
            given ? "X, as Layer::input says: call append" : "K and V, as Layer::input says: call append_kv");
        const auto check = [&](const MatrixView& m, const char* name, std::size_t width, const char* letters) {
            const RowsAsked asked = rows_asked();
            expects(asked.fit(m) && m.cols == width && !m.empty() && m.stride >= m.cols, verb, ", layer ", layer, ": ",
                    name, " is ", m, "; expected [", asked.are, ", ", letters, "] = ", Shape{asked.rows, width},
                    asked.more());
            expects(m.type <= DType::bf16, verb, ", layer ", layer, ": ", name, " has elements of an unknown type, ",
                    static_cast<int>(m.type));
        };
        if (given) {
            check(rows.keys, "k", prepared.shape.kv_width(), "kv_heads * head_dim");
            check(rows.values, "v", prepared.shape.kv_width(), "kv_heads * head_dim");
        } else {
            check(rows.x, "x", prepared.shape.width, "width");
        }
        return prepared;
    }

    /// Throws state_error unless a layer was appended and can be read, shape_error unless q and out are
    /// [tokens, H * Dh]. Sets out_stride where it is 0.
    const PreparedLayer& expects_queries(std::size_t layer, const MatrixView& q, const float* out,
                                         Visibility visibility, std::size_t& out_stride) const {
        expects_usable();
        expects<state_error>(next_ > 0, "attend: layer ", layer, ", but no layer has been appended");
        const std::size_t stored = stored_by(layer);
        expects<state_error>(stored <= last_, "attend: layer ", layer, ", but the layer that was appended last is ",
                             last_);
        expects<state_error>(stored < last_ || !rows_refused_, "attend: layer ", layer,
                             ", whose rows gave way to those of layer ", next_,
                             " in an append that failed; append layer ", next_, " first");
        const PreparedLayer& prepared = core_->layers()[layer];
        expects<state_error>(stored == last_ || prepared.role == CrossRole::none, "attend: layer ", layer,
                             " is read from sums over the layers, which have gone on to layer ", last_,
                             "; attend to it before the next layer is appended");
        expects<state_error>(visibility != Visibility::whole || tree_.empty(), "attend, layer ", layer,
                             ": new tokens of the step are a tree, which Visibility::causal alone serves");
        check_queries(prepared.shape, layer, q, rows_asked(), out, visibility, out_stride);
        return prepared;
    }

    [[nodiscard]] const StepPlan& plan_of(std::size_t part, const PreparedLayer& layer) const noexcept {
        return plans_[part * core_->page_groups() + layer.page_group];
    }

    /// The layer that stores the rows which a layer reads.
    [[nodiscard]] std::size_t stored_by(std::size_t layer) const noexcept {
        const auto& layers = core_->layers();
        return layer < layers.size() && layers[layer].borrows() ? layers[layer].rows_of : layer;
    }

    /// A layer's rows are there; the next one to be appended is the next that has rows of its own.
    void pass(std::size_t layer) noexcept {
        last_ = layer;
        for (++next_; next_ < core_->layers().size() && core_->layers()[next_].borrows();) ++next_;
    }

    /// The rows that matrices of the step have.
    [[nodiscard]] RowsAsked rows_asked() const noexcept {
        if (named_.empty()) return {total_, "tokens of the step"};
        return {rows_given_, "rows up to the last that StepPart::rows name", true};
    }
    [[nodiscard]] RowMap row_map() const noexcept { return {{named_.data(), named_.size()}}; }

    template <class T>
    LedgerAllocator<T, Purpose::workspace> allocator() {
        return LedgerAllocator<T, Purpose::workspace>(core_->ledger());
    }

    Core* core_;
    Work<StepSequence> parts_;
    Plans plans_;         ///< [parts][page_groups]
    Work<TreeRow> tree_;  ///< of all rows of the step, if some part is a tree; else empty
    NamedRows named_;     ///< of all rows of the step, if its parts name them; else empty
    Accumulators sums_;
    std::size_t total_ = 0;       ///< rows
    std::size_t rows_given_ = 0;  ///< rows that matrices have at least, where parts name them
    std::size_t next_ = 0;        ///< layer to be appended
    std::size_t last_ = 0;        ///< layer that was appended last, if next_ > 0
    bool begun_ = false;          ///< the sequences are marked
    bool rows_refused_ = false;   ///< the step's own rows are those of an append that failed, not of the layer before
    bool lost_ = false;           ///< append was left by an exception when rows were partly stored

private:
    explicit StepBase(Core& core)
        : core_(&core),
          parts_(LedgerAllocator<StepSequence, Purpose::workspace>(core.ledger())),
          plans_(LedgerAllocator<StepPlan, Purpose::workspace>(core.ledger())),
          tree_(LedgerAllocator<TreeRow, Purpose::workspace>(core.ledger())),
          named_(LedgerAllocator<NamedRow, Purpose::workspace>(core.ledger())),
          sums_(core) {}

    void check_parts(std::span<const StepPart> parts) const {
        expects(!parts.empty(), "begin: a step needs at least one sequence");
        constexpr std::size_t most = (std::size_t{1} << 31U) - 1;
        std::size_t total = 0;
        ListedOnce listed;
        for (std::size_t i = 0; i < parts.size(); ++i) {
            Slot& slot = core_->find(parts[i].sequence);
            expects<sequence_error>(!slot.busy, "begin: sequence ", i, " of the list is already part of a step");
            expects(parts[i].tokens > 0, "begin: sequence ", i,
                    " of the list gets no token; a step adds at least one to each");
            expects(parts[i].tokens <= most && total <= most - parts[i].tokens,
                    "begin: a step adds fewer than 2^31 tokens; entry ", i, " of the list asks for ", parts[i].tokens,
                    " after ", total, " others");
            check_parents(parts[i], i);
            const std::size_t rows = parts[i].rows.size();
            expects((rows == 0) == parts[0].rows.empty(), "begin: sequence ", i, " of the list names ",
                    rows == 0 ? "no rows" : "rows", ", and sequence 0 names ", rows == 0 ? "some" : "none",
                    "; all parts of a step name rows, or none does");
            expects(rows == 0 || rows == parts[i].tokens, "begin: ", rows, " rows for the ", parts[i].tokens,
                    " tokens of sequence ", i, " of the list; expected one for each, or none");
            const std::int64_t next = slot.states.front().next_position + static_cast<std::int64_t>(parts[i].tokens);
            expects(next < largest_position, "begin: ", parts[i].tokens, " tokens would take sequence ", i,
                    " of the list to position ", next, "; positions stay below 2^48");
            total += parts[i].tokens;
            listed.add(slot, "begin");
        }
    }

    /// Throws shape_error unless the parents of entry i of the list come before their children.
    static void check_parents(const StepPart& part, std::size_t i) {
        const std::span<const std::int32_t> parents = part.parents;
        expects(parents.empty() || parents.size() == part.tokens, "begin: ", parents.size(), " parents for the ",
                part.tokens, " tokens of sequence ", i, " of the list; expected one for each, or none");
        for (std::size_t row = 0; row < parents.size(); ++row) {
            expects(parents[row] >= -1 && parents[row] < static_cast<std::int64_t>(row), "begin: the parent of token ",
                    row, " of sequence ", i, " of the list is ", parents[row],
                    "; expected a token before it, or -1 for what is stored");
        }
    }

    /// Parents and depths of all rows, if some part has parents.
    void list_tree(std::span<const StepPart> parts) {
        std::size_t total = 0;
        bool some = false;
        for (const StepPart& part : parts) {
            total += part.tokens;
            some |= !part.parents.empty();
        }
        if (!some) return;
        tree_.reserve(total);
        for (const StepPart& part : parts) {
            const std::size_t first = tree_.size();
            for (std::size_t row = 0; row < part.tokens; ++row) {
                const std::int32_t parent =
                    part.parents.empty() ? static_cast<std::int32_t>(row) - 1 : part.parents[row];
                tree_.push_back({parent, parent < 0 ? 0 : tree_[first + static_cast<std::size_t>(parent)].depth + 1});
            }
        }
    }

    void add(Slot& slot, std::size_t tokens, bool tree) {
        for (std::size_t page_group = 0; page_group < core_->page_groups(); ++page_group) {
            plans_.push_back(core_->plan(slot, page_group, tokens, tokens == 0,
                                         {tree_.data() + (tree ? total_ : 0), tree ? tokens : 0}));
        }
        parts_.push_back({{total_, tokens, slot.states.front().next_position}, &slot, tree});
    }

    void end() noexcept {
        if (core_ == nullptr) return;
        for (const StepSequence& part : parts_) {
            if (begun_) part.slot->busy = false;
        }
        // All workspace goes back now, whenever the step is destroyed.
        free_list(parts_);
        free_list(plans_);
        free_list(tree_);
        free_list(named_);
        sums_.close();
        core_->scratch().trim();
        core_ = nullptr;
    }
};

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
