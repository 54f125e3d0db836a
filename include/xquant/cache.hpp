// Cache<Backend>: what every cache can do, whatever its policies. Start reading here.
//
//     auto s = cache.create();                     // a sequence
//     auto step = cache.begin({{s, n}});           // n new tokens; everything that the step stores is allocated here
//     for each layer l:
//         step.append(l, x);                       // x [n, D], the attention input after its norm: encoded and stored
//                                                  // or append_kv(l, k, v), where Layer::input says so
//         step.attend(l, q, out);                  // q [n, H * Dh] after RoPE -> out [n, H * Dh]
//     step.commit();                               // until here nothing has changed
//
// A cache is made from policies (xcache.hpp), from a preset (preset.hpp), or by name (registry.hpp). Policies have
// become functions and data by then, so this class is compiled once for each backend, and a Cache<Backend>& refers to a
// cache of any scheme. Options, StepPart and the other plain types are in cache_types.hpp.
//
// Threads  Different sequences may be used by different threads at the same time, whatever pages they share. One
//          sequence has one writer (a step, truncate, erase, shift, set_next_position, gather, seal, compact,
//          requantize, drop), and nobody reads it meanwhile; any number of readers (attend without a step, fork, size,
//          next_position, position_of, token_at, shortest_prefix, for_each_page, save) may share it. create and bytes
//          may be called at any time. Constructor, destructor and moves are for one thread; so is a step, and so is a
//          cache on a device. append and attend run on the executor that they are given.
// Errors   Every call that throws leaves the cache, and every byte it counts, as they were, unless its comment says
//          otherwise.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <utility>

#include <xquant/cache_types.hpp>
#include <xquant/core/backend_parts.hpp>
#include <xquant/core/function_ref.hpp>
#include <xquant/executor.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {
struct CacheAccess;
}

/// A cache for all layers of one model and any number of sequences.
///
/// The bodies of its members are in core/cache_members.hpp, out of the class: instantiate.hpp has them compiled once.
///
/// @tparam Backend  the machine: backend::best, scalar, int8<...>, cuda. It never changes what is stored.
template <class Backend = backend::best>
class Cache {
    using Parts = detail::BackendParts<Backend>;

    /// What steps share with the cache.
    struct Body {
        Body(const Options& options, const Model& model, const detail::Recipe& recipe);
        detail::Core core;
        typename Parts::State state;
    };

public:
    using backend = Backend;  ///< the template parameter

    /// New tokens of one or several sequences on their way through the layers. Move-only, made by begin(); destroying
    /// it without commit() leaves the cache as it was. It follows a cache that is moved. Once the cache is destroyed or
    /// assigned to, every call throws state_error; what the step refers to is freed with the step.
    ///
    /// Rows of several sequences lie one after another, in the order of the list that begin() was given: with
    /// begin({{a, 2}, {b, 1}}), rows 0 and 1 are a's new tokens and row 2 is b's. Where parts name their rows
    /// (StepPart::rows), matrices have more rows than the largest number named, and tokens lie there; of x, k, v and q
    /// nothing else is read, and of out nothing else is written.
    class Step {
    public:
        /// The step that is moved from can only be destroyed.
        Step(Step&&) noexcept = default;
        Step& operator=(Step&&) = delete;

        /// Tokens of the step, all sequences together: n.
        [[nodiscard]] std::size_t size() const noexcept;

        /// Stores a layer's rows: they are projected, and what leaves the window of recent tokens is encoded. Layers
        /// come in order, each once.
        ///
        /// @param layer    0, 1, .. in order
        /// @param x        [n, D] f32, f16 or bf16: the attention input after its norm, before W_k. Read before this
        ///                 returns. On a device: device memory, read when the device gets there.
        /// @param threads  runs the tasks (executor.hpp); the answer does not depend on it. Ignored on a device.
        ///
        /// Throws shape_error, state_error (also for a layer that takes K and V, or reads another one's rows) and,
        /// before anything is stored, value_error for rows that are not finite or beyond f16's 65504 once projected
        /// (take_bad_rows() on a device): the layer can be appended again, with other rows. The layer before it cannot
        /// be attended to until then, since the step holds the rows of one layer. std::bad_alloc, budget_error (of the
        /// workspace), or what the executor throws: the step can only be destroyed; the cache is as it was.
        /// Cost: n R D products for a stream of R channels that has a matrix, and encoding.
        void append(std::size_t layer, const MatrixView& x, ExecutorRef threads = serial);

        /// append for a layer whose engine hands over K and V (Layer::input): rows are made from them, and W_k and W_v
        /// are not needed.
        ///
        /// @param layer    0, 1, .. in order
        /// @param k        [n, Hkv * Dh] f32, f16 or bf16: K as queries meet it, with bias and after k_norm, before or
        ///                 after RoPE as Layer::input says. Heads side by side. Read before this returns.
        /// @param v        [n, Hkv * Dh] f32, f16 or bf16, with bias
        /// @param threads  as in append
        ///
        /// Throws as append. Cost: n R Dh products for latents of a head, none for K and V themselves, and encoding.
        void append_kv(std::size_t layer, const MatrixView& k, const MatrixView& v, ExecutorRef threads = serial);

        /// Attention of a layer that was appended. Each row sees its own sequence up to and including itself, within
        /// the layer's window. May be called more than once, or not at all.
        ///
        /// The step has the rows of the layer that was appended last as they were given. Of the layers before it (of
        /// which others take keys and values, as in Gemma 3n) it reads its own rows as they are stored: sinks and tail
        /// in Options::rows, the rest from codes. Layers of CrossLayer<Delta> that add to sums cannot be read once the
        /// next one is appended (state_error), and on a device none can.
        ///
        /// @param layer       the layer that was appended last, or one before it
        /// @param q           [n, H * Dh] f32, f16 or bf16, after RoPE (and a norm of Q); heads side by side. Not
        ///                    scaled. A head that is not finite gives NaN for its Dh channels of out. (On a device, too
        ///                    where it is beyond f16's 65504 once scaled.)
        /// @param out         [n, H * Dh] f32, rows `out_stride` floats apart; all of it is written. On a device:
        ///                    device memory.
        /// @param out_stride  floats from a row of out to the next; 0: H * Dh
        /// @param threads     as in append
        ///
        /// Throws shape_error, state_error, std::bad_alloc, budget_error (of the workspace); the step goes on. Cost:
        /// reads the codes of every token that the rows see; 2 H Dh products a row and token, and what rebuilding K
        /// takes, of some pages once more (Options::rebuilt). Workspace: docs/operations.md.
        void attend(std::size_t layer, const MatrixView& q, float* out, std::size_t out_stride = 0,
                    ExecutorRef threads = serial) {
            attend(layer, q, out, Visibility::causal, out_stride, threads);
        }

        /// attend with another visibility. Visibility::whole: each row sees everything that its sequence had before the
        /// step, and all of the step's rows of its sequence, those behind its own as well: a prefix whose tokens see
        /// each other, an image. The layer's window holds, counted back from the row's own position (a row sees any
        /// distance ahead), and so do chunks (a row sees its own chunk alone). Give the rows that see each other in one
        /// step: rows of later steps cannot be seen. On a device: state_error, where it is not causal.
        void attend(std::size_t layer, const MatrixView& q, float* out, Visibility visibility,
                    std::size_t out_stride = 0, ExecutorRef threads = serial);

        /// The sequences have the step's tokens from here on, and the step has ended: its workspace is given back.
        /// Throws state_error unless every layer was appended, and where new tokens are a tree. Cannot fail otherwise.
        void commit();

        /// commit for drafts of which some tokens are accepted. The sequences have these tokens alone from here on, and
        /// the next token of each stands behind the last of them: what was stored of the others is freed, or filled
        /// again, as by truncate and erase.
        ///
        /// @param kept  rows of the step: for each sequence, in order, a path. Its first row follows what was stored,
        ///              and each row the one before it. Sequences of which no row is listed get no token. What drafts
        ///              pushed out of the tail stays in codes. Rows are counted over the list that begin() was given,
        ///              whatever StepPart::rows say.
        ///
        /// Throws state_error unless every layer was appended, shape_error unless the rows are such paths; the step
        /// goes on. Cannot fail otherwise. Cost: a look at each page of each sequence.
        void commit(std::span<const std::size_t> kept);
        /// commit for a list in braces: commit({0, 2, 5}).
        void commit(std::initializer_list<std::size_t> kept) {
            commit(std::span<const std::size_t>(kept.begin(), kept.size()));
        }

    private:
        friend class Cache;
        Step(std::shared_ptr<Body> body, typename Parts::Step&& step) noexcept
            : body_(std::move(body)), step_(std::move(step)) {}

        std::shared_ptr<Body> body_;  // before step_, which refers to it
        typename Parts::Step step_;
    };

    virtual ~Cache();
    /// Steps and sequences go on with the cache that was moved to. The other one holds nothing: it can be destroyed or
    /// assigned to, and calls that need more throw state_error.
    Cache(Cache&&) noexcept;
    /// Takes over the other cache. What this one held is freed, as if it were destroyed.
    Cache& operator=(Cache&& other) noexcept;

    /// An empty sequence. Throws std::bad_alloc. Cost: constant.
    [[nodiscard]] Sequence create();

    /// Forgets a sequence and frees what no other one shares. Throws sequence_error if it is part of a step.
    /// Cost: a reference for each page.
    void drop(Sequence sequence);

    /// A second sequence with the same tokens. Pages are shared and counted once; either sequence goes on in pages of
    /// its own, and nothing is ever copied. Throws sequence_error if it is part of a step, std::bad_alloc.
    /// Cost: a reference for each page.
    [[nodiscard]] Sequence fork(Sequence sequence);
    /// A second sequence with the first `tokens` tokens alone: prompts that share a prefix share its pages. Throws as
    /// fork(sequence), and shape_error as truncate does.
    [[nodiscard]] Sequence fork(Sequence sequence, std::size_t tokens);

    /// Keeps the first `tokens` tokens and forgets the rest, rows that were encoded among them: what is left stays as
    /// it is stored, and the next token stands where the first one that went stood. Pages that nothing else shares are
    /// freed or filled again. Throws sequence_error if it is part of a step, shape_error if it has fewer tokens, or if
    /// layers with a sliding window have freed rows that the next token would see; std::bad_alloc. Cost: a reference
    /// for each page.
    void truncate(Sequence sequence, std::size_t tokens);

    /// Takes out tokens begin .. end. With Gap::close the tokens behind them, and the next one, move up by end - begin
    /// positions, exactly: X, latents and keys before RoPE carry no position, and for keys that were stored after RoPE
    /// the queries are turned back by the same distance. With Gap::keep all others stay where they stand; so does the
    /// next token, even where the last ones go. Pages are freed when none of their tokens is left. Throws and costs as
    /// truncate.
    void erase(Sequence sequence, std::size_t begin, std::size_t end, Gap gap = Gap::close);

    /// Moves the tokens from `begin` on, and the next token, by `delta` positions, as exactly as erase does: it opens a
    /// gap, or closes one. Throws shape_error where a token would stand at or before the one that precedes it; else
    /// throws and costs as truncate. Where layers with windows alone have freed the token before, it counts as standing
    /// right before the first one that is left.
    void shift(Sequence sequence, std::size_t begin, std::int64_t delta);
    /// Moves tokens begin .. end alone by `delta` positions: the others, and the next token, stay. Throws shape_error
    /// where a token would stand at or before the one that precedes it, or at or behind the one that follows (with
    /// end = size(): the next one); else as shift(sequence, begin, delta).
    void shift(Sequence sequence, std::size_t begin, std::size_t end, std::int64_t delta);

    /// Says where the next token will stand; the tokens that are there stay. Throws sequence_error if the sequence is
    /// part of a step, shape_error at or before the last token, beyond 2^48 in size, or where layers with a sliding
    /// window have freed rows that the next token would see. Cost: a look at each page.
    void set_next_position(Sequence sequence, std::int64_t position);

    /// Sequence i of the list becomes what sequence parents[i] of the list was: one step of beam search.
    /// Throws sequence_error if one is part of a step or appears twice, shape_error if a parent is not in the list,
    /// std::bad_alloc. Cost: a reference for each page of each sequence.
    void gather(std::span<const Sequence> sequences, std::span<const std::size_t> parents);

    /// Tokens of a sequence.
    [[nodiscard]] std::size_t size(Sequence sequence) const;

    /// The position of the next token of a sequence: size() where none was erased or shifted.
    [[nodiscard]] std::int64_t next_position(Sequence sequence) const;

    /// The position of a token; of token size(): that of the next one. Throws shape_error if there are fewer tokens, or
    /// if all layers have windows and have freed it. Cost: a look at each page.
    [[nodiscard]] std::int64_t position_of(Sequence sequence, std::size_t token) const;

    /// How many tokens stand before a position: the first token that stands there or behind it, or size(). Tokens that
    /// all layers have freed (where all have windows) count as standing before, whatever the position. Cost: a look at
    /// each page.
    [[nodiscard]] std::size_t token_at(Sequence sequence, std::int64_t position) const;

    /// From how many tokens on truncate(sequence, n) and fork(sequence, n) accept every n up to size(): 0 where no
    /// layer has a window, or none has freed anything. (0 itself is accepted always.) Cost: a look at each page.
    [[nodiscard]] std::size_t shortest_prefix(Sequence sequence) const;

    /// Starts a step that adds tokens to one or several sequences. Everything the step will store is allocated here.
    /// Throws sequence_error, shape_error, budget_error, std::bad_alloc; on a device, state_error while another step is
    /// under way.
    ///
    /// Drafts for speculative decoding may be a tree (StepPart::parents), of which Step::commit(kept) keeps one path. A
    /// token of depth d stands at next_position + d, where its queries (and given keys) are to be turned. It sees what
    /// was stored, its ancestors, and itself. Its rows are stored in the order of the list, and count as the newest
    /// tokens in that order: with Options::recent no less than the tree has tokens, none of them is encoded before it
    /// is accepted. Attention reads what was stored once for each run of tokens that follow one another, and takes
    /// workspace for the pages of each such run. On a device: state_error.
    [[nodiscard]] Step begin(std::span<const StepPart> parts);
    /// begin for a list in braces: begin({{a, 2}, {b, 1}}).
    [[nodiscard]] Step begin(std::initializer_list<StepPart> parts) {
        return begin(std::span<const StepPart>(parts.begin(), parts.size()));
    }

    /// Attention over what sequences have stored, without a step: nothing is added, no sequence changes. Decoders of
    /// encoder-decoder models attend to the encoder's rows by it, which were appended once.
    ///
    /// Visibility::causal: the n rows of a sequence are its last n tokens. Each stands at its token's position, and
    /// sees the tokens up to and including its own, within the layer's window or chunk. Visibility::whole: each row
    /// sees all tokens of the sequence, whatever their number; layers with a window or chunks are refused. (ALiBi
    /// counts from the last token's position for the last row, from one less for the row before it, and so on.)
    ///
    /// Rows are read as they are stored: sinks and tail in Options::rows, the rest from codes. With Options::strict,
    /// too, rows that wait for their group to fill are read from the tail.
    ///
    /// @param layer       0, 1, ..
    /// @param parts       sequences that are not part of a step, and how many query rows each has: n in all. Their rows
    ///                    lie one after another in q and out, in the order of the list.
    /// @param q           [n, H * Dh] as in Step::attend
    /// @param out         [n, H * Dh] f32, rows `out_stride` floats apart; all of it is written
    /// @param visibility  what the rows see
    /// @param out_stride  floats from a row of out to the next; 0: H * Dh
    /// @param threads     as in Step::append
    ///
    /// Throws sequence_error; shape_error, also where rows would see what a window has freed; state_error on a device
    /// and for layers of CrossLayer<Delta> that add to sums, which only a step has; std::bad_alloc, budget_error (of
    /// the workspace). Cost and workspace: as Step::attend; all of it is given back.
    void attend(std::size_t layer, std::span<const QueryPart> parts, const MatrixView& q, float* out,
                Visibility visibility = Visibility::causal, std::size_t out_stride = 0,
                ExecutorRef threads = serial) const;
    /// attend for a list in braces: attend(0, {{a, 2}, {b, 1}}, q, out).
    void attend(std::size_t layer, std::initializer_list<QueryPart> parts, const MatrixView& q, float* out,
                Visibility visibility = Visibility::causal, std::size_t out_stride = 0,
                ExecutorRef threads = serial) const {
        attend(layer, std::span<const QueryPart>(parts.begin(), parts.size()), q, out, visibility, out_stride, threads);
    }

    /// Encodes every row outside the window now, unfinished groups included, and frees their f16 copies: for a sequence
    /// that rests. A group that was cut short stays short; later tokens start a new page. Throws sequence_error if it
    /// is part of a step, budget_error, std::bad_alloc. Cost: encoding at most 127 rows of each layer.
    void seal(Sequence sequence);

    /// Moves the rows of a sequence together where tokens were erased, as they are stored: its pages take the bytes of
    /// a sequence that never had the holes, and attention reads whole tiles again. Rows that are coded in groups of
    /// several tokens stay where they are, and a page whose rows need not move stays shared. Throws sequence_error if
    /// it is part of a step, budget_error, std::bad_alloc: the new pages are there before the old ones are freed. Cost:
    /// copying the pages behind the first hole.
    void compact(Sequence sequence);

    /// Rewrites coded pages with the second quantizer of Requantizable<Fresh, Old>: fewer bytes, more error, and no way
    /// back. Of the pages of these sequences, choose(PageChoice) picks some (by default all full ones). A page that
    /// several of them share is rewritten once and stays shared; sequences outside the list keep the old page. If
    /// memory runs out, the pages done so far stay done, and the report says so. Options::budget may be exceeded by the
    /// one page that is being rewritten. Throws state_error where the cache has no second quantizer, sequence_error as
    /// truncate; nothing has changed then. Cost: decoding and encoding the pages.
    template <class Choose = FullPages>
    Requantized requantize(std::span<const Sequence> sequences, Choose&& choose = {}) {
        static_assert(!Parts::on_device, "xquant: requantize is not there for caches on a device");
        return requantize_chosen(sequences, choose);
    }

    /// On a device: whether rows that are not finite, or beyond f16's 65504, were appended since the last call.
    /// Attention over such rows means nothing. Waits for the device. Other caches throw in append, and answer false.
    [[nodiscard]] bool take_bad_rows();

    /// What is allocated, by purpose; adds up to what the memory resource was asked for.
    [[nodiscard]] Bytes bytes() const noexcept;

    /// The most bytes that the accumulators of a step took so far. They live as long as the step; 0 without
    /// CrossLayer<Delta>.
    [[nodiscard]] std::size_t peak_accumulator_bytes() const noexcept;

    /// Bits of codes, scales, zeros and outliers for `tokens` encoded tokens, per token and layer: the figure of the
    /// literature. f16 rows, accumulators, page rounding and weights are not in it; bytes() has everything.
    [[nodiscard]] double bits_per_token_layer(std::size_t tokens) const;

    /// The settings that it was made with. Throws state_error if the cache was moved from.
    [[nodiscard]] const Options& options() const;

    /// Calls f(PageView) for every page of a sequence: for tools that inspect or save it. Layers with the same window
    /// have pages of their own, so positions start again where the model has several windows. The bytes of a view are
    /// good until the sequence changes; on a device, they are device memory.
    template <class F>
    void for_each_page(Sequence sequence, F&& f) const {
        for (const detail::SequenceState& state : core().find(sequence).states) {
            for (const detail::Segment& segment : state.segments) {
                f(PageView{segment.page->format().kind, segment.begin, segment.end, segment.first_position,
                           segment.rope_lag, std::as_const(*segment.page.get()).data()});
            }
        }
    }

protected:
    /// For xcache.hpp and registry.hpp, which know policies. Throws shape_error for shapes that do not fit, value_error
    /// for numbers that are not finite or outside the range that Layer gives them, state_error where floats are not
    /// rounded to the nearest (core/arithmetic.hpp), std::bad_alloc. Cost: that of the projections.
    Cache(const Model& model, const Options& options, const detail::Recipe& recipe);

private:
    friend struct detail::CacheAccess;
    static constexpr Serial serial{};

    Requantized requantize_chosen(std::span<const Sequence> sequences,
                                  detail::FunctionRef<bool(const PageChoice&)> choose);

    /// Throws state_error if the cache was moved from.
    [[nodiscard]] Body& body() const;
    [[nodiscard]] detail::Core& core() const { return body().core; }

    std::shared_ptr<Body> body_;  ///< null: moved from
};

namespace detail {

/// The way in for what is not part of every cache: saving (persistence/), making one by name (registry.hpp).
struct CacheAccess {
    template <class Backend>
    static Core& core(const Cache<Backend>& cache) {
        return cache.core();
    }
    template <class Backend>
    static std::unique_ptr<Cache<Backend>> make(const Model& model, const Options& options, const Recipe& recipe) {
        return std::unique_ptr<Cache<Backend>>(new Cache<Backend>(model, options, recipe));
    }
    /// The policies of an XCache as data.
    template <class XCache>
    static Recipe recipe(const Model& model, const Options& options) {
        return XCache::recipe(model, options);
    }
};

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant

#include <xquant/core/cache_members.hpp>
