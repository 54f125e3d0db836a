// What every cache can do, whatever its policies: they have become functions and data, so this is compiled once for each
// backend, and an engine may hold caches of different schemes by a reference to CacheBase.
#pragma once

#include <initializer_list>
#include <memory>
#include <span>
#include <utility>

#include <xquant/detail/learn.hpp>
#include <xquant/detail/operations.hpp>
#include <xquant/detail/predict.hpp>
#include <xquant/detail/requantize.hpp>
#include <xquant/detail/step.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// The way in for what is not part of every cache, such as saving.
struct CacheAccess {
    template <class Cache>
    static auto& core(Cache& cache) noexcept {
        return *cache.core_;
    }
};

/// What a backend brings to a cache. Backends whose pages lie on a device specialize it.
template <class Backend>
struct BackendParts {
    using Step = detail::Step<Backend>;
    static constexpr bool on_device = false;

    /// Kept beside the core.
    struct State {
        State(Core&, const Options&) noexcept {}
        void prepare(const Core&) noexcept {}
    };
    static Step begin(Core& core, State&, std::span<const StepPart> parts) { return Step(core, parts); }
    static void seal(Core& core, State&, Slot& slot) { seal_sequence(Backend{}, core, slot); }
};

template <class Backend>
class CacheBase {
    using Parts = BackendParts<Backend>;

public:
    using Step = typename Parts::Step;
    using backend = Backend;

    /// An empty sequence.
    [[nodiscard]] Sequence create() { return core_->create(); }

    /// Forgets a sequence and frees what no other one shares. Throws sequence_error if it is part of a step.
    void drop(Sequence sequence) { core_->drop(sequence); }

    /// A second sequence with the same tokens, or the first `tokens` of them: how many prompts share a prefix. Pages are shared and
    /// counted once; either sequence goes on in pages of its own, and nothing is ever copied.
    /// Throws sequence_error if it is part of a step, shape_error as truncate does, std::bad_alloc; nothing has changed then.
    /// Cost: a reference for each page.
    [[nodiscard]] Sequence fork(Sequence sequence) { return fork_sequence(*core_, sequence, size(sequence)); }
    [[nodiscard]] Sequence fork(Sequence sequence, std::size_t tokens) {
        return fork_sequence(*core_, sequence, tokens);
    }

    /// Keeps the first `tokens` tokens and forgets the rest, rows that were encoded among them: what is left stays as it is
    /// stored. Pages that nothing else shares are freed or filled again.
    /// Throws sequence_error if it is part of a step, shape_error if it has fewer tokens, or if layers with a sliding window
    /// have freed rows that the next token would see; std::bad_alloc. Nothing has changed then. Cost: a reference for each page.
    void truncate(Sequence sequence, std::size_t tokens) { truncate_sequence(*core_, sequence, tokens); }

    /// Takes out tokens begin .. end. Those that follow move up by end - begin positions, exactly: X, latents and keys before
    /// RoPE carry no position, and keys that were stored after RoPE meet queries that are turned back by as much.
    /// Pages are freed when none of their tokens is left. Throws and costs as truncate.
    void erase(Sequence sequence, std::size_t begin, std::size_t end) { erase_tokens(*core_, sequence, begin, end); }

    /// Moves tokens `begin` .. (and the next one) by `delta` positions, exactly as erase does: opens a gap, or closes one.
    /// Throws shape_error where a token would stand at or before the one that precedes it; else throws and costs as truncate.
    void shift(Sequence sequence, std::size_t begin, std::int64_t delta) {
        shift_tokens(*core_, sequence, begin, delta);
    }

    /// Sequence i becomes what sequence parents[i], counted in the same list, was: one step of beam search.
    /// Throws sequence_error if one is part of a step or appears twice, shape_error if a parent is not in the list,
    /// std::bad_alloc; nothing has changed then. Cost: a reference for each page of each sequence.
    void gather(std::span<const Sequence> sequences, std::span<const std::size_t> parents) {
        gather_sequences(*core_, sequences, parents);
    }

    /// Tokens of a sequence.
    [[nodiscard]] std::size_t size(Sequence sequence) const { return core_->find(sequence).states.front().tokens; }

    /// The position of the next token of a sequence: size() where none was erased or shifted.
    [[nodiscard]] std::int64_t next_position(Sequence sequence) const {
        return core_->find(sequence).states.front().next_position;
    }

    /// Starts a step that adds tokens to one or several sequences. Everything the step will store is allocated here.
    /// Throws sequence_error, shape_error, std::bad_alloc; nothing has changed then.
    [[nodiscard]] Step begin(std::span<const StepPart> parts) { return Parts::begin(*core_, *state_, parts); }
    [[nodiscard]] Step begin(std::initializer_list<StepPart> parts) {
        return begin(std::span<const StepPart>(parts.begin(), parts.size()));
    }

    /// Encodes every row outside the window now, unfinished groups included, and frees their f16 copies: for a sequence
    /// that rests. A group that was cut short stays short; later tokens start a new page.
    /// Cost: encoding at most 127 rows of each layer.
    void seal(Sequence sequence) { Parts::seal(*core_, *state_, core_->find_idle(sequence)); }

    /// Rewrites coded pages with the second quantizer of Requantizable<Fresh, Old>: fewer bytes, more error, and no way back. Of
    /// the pages of these sequences, choose(PageChoice) picks some; a page that several of them share is rewritten once and
    /// stays shared, one that other sequences share as well is left to those as it was.
    /// Throws state_error where the cache has no second quantizer, sequence_error as truncate; nothing has changed then. If
    /// memory runs out the pages done so far stay done, and the report says so. Options::budget may be exceeded by the one page
    /// that is being rewritten. Cost: decoding and encoding the pages.
    template <class Choose>
    Requantized requantize(std::span<const Sequence> sequences, Choose&& choose) {
        static_assert(!Parts::on_device, "xquant: requantize is not there for caches on a device");
        return requantize_pages(Backend{}, *core_, sequences, choose);
    }
    /// The same for all full pages.
    Requantized requantize(std::span<const Sequence> sequences) {
        return requantize(sequences, [](const PageChoice& page) { return page.filled == coded_page_tokens; });
    }

    /// Whether rows were appended since this was last asked that are not finite, or beyond f16's 65504: attention over them means
    /// nothing. Caches on a device find out when the device gets there; others throw in append. Waits for the device.
    [[nodiscard]] bool take_bad_rows() {
        if constexpr (Parts::on_device) return state_->take_bad_rows();
        return false;
    }

    /// What is allocated, by purpose; adds up to what the memory resource was asked for.
    [[nodiscard]] Bytes bytes() const noexcept { return core_->ledger().bytes(); }

    /// The most bytes that the accumulators of a step took so far. They live as long as the step; 0 without
    /// CrossLayer<Delta>.
    [[nodiscard]] std::size_t peak_accumulator_bytes() const noexcept { return core_->peak_accumulator(); }

    /// Bits of codes, scales, zeros and outliers for `tokens` encoded tokens, per token and layer: the figure of the literature.
    /// f16 rows, accumulators, page rounding and weights are not in it; bytes() has everything.
    [[nodiscard]] double bits_per_token_layer(std::size_t tokens) const {
        double bits = 0;
        for (std::size_t layer = 0; layer < core_->layers().size(); ++layer) {
            for (std::size_t stream = 0; stream < core_->layers()[layer].encoders.size(); ++stream) {
                bits += static_cast<double>(core_->codec(layer, stream).format.ideal_bits(tokens));
            }
        }
        return tokens == 0 ? 0 : bits / static_cast<double>(tokens * core_->layers().size());
    }

    [[nodiscard]] const Options& options() const noexcept { return core_->options(); }

    /// Stored bytes of a sequence, page by page, as views: for tools that inspect or save it. Layers with the same window
    /// have pages of their own, so positions start again where the model has several windows.
    template <class F>
    void for_each_page(Sequence sequence, F&& f) const {
        for (const SequenceState& state : core_->find(sequence).states) {
            for (const Segment& segment : state.segments) {
                f(PageView{segment.page->format().purpose, segment.begin, segment.end, segment.first_position,
                           segment.moved, std::as_const(*segment.page.get()).data()});
            }
        }
    }

protected:
    CacheBase(const Model& model, const Options& options, const Recipe& recipe)
        : core_(std::make_unique<Core>(options, stacks_of(model, recipe.accumulator != nullptr), recipe.streams(),
                                       recipe.requantizes())),
          state_(std::make_unique<typename Parts::State>(*core_, options)) {
        if (recipe.accumulator != nullptr) {
            core_->set_accumulator(recipe.accumulator(model.layers.front().shape.width));
        }
        const Rope* previous = nullptr;
        for (std::size_t i = 0; i < model.layers.size(); ++i) {
            const Layer& layer = model.layers[i];
            check_layer(layer);
            core_->add_layer(layer, recipe.layers[i].role, recipe.layers[i].prepare(layer), previous,
                             &learn_stream<Backend>);
            previous = &layer.rope;
        }
        state_->prepare(*core_);
    }
    ~CacheBase() = default;
    CacheBase(CacheBase&&) noexcept = default;
    CacheBase& operator=(CacheBase&& other) noexcept {
        CacheBase taken(std::move(other));
        std::swap(core_, taken.core_);
        std::swap(state_, taken.state_);
        return *this;
    }

private:
    friend struct CacheAccess;

    std::unique_ptr<Core> core_;
    std::unique_ptr<typename Parts::State> state_;
};

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
