// Caches out of a compiled library that picks the processor's code when the program runs: link xquant::runtime.
//
//     std::unique_ptr<xquant::runtime::Cache> cache = xquant::runtime::make_cache("kv4", model, {.recent = 64});
//     const xquant::Sequence s = cache->create();
//     auto step = cache->begin({{s, n}});
//     step->append(0, x);                           // x [n, D]
//     step->attend(0, q, out);                      // q [n, H * Dh] -> out [n, H * Dh]
//     step->commit();
//
// The library was compiled once for each of several levels of a processor's instructions (x86-64, x86-64-v3,
// x86-64-v4). Your program needs no flags for a processor, and the best level that the processor can run is loaded at
// the first call. The environment variable XQUANT_ISA names another: XQUANT_ISA=x86-64-v3.
// docs/embedding.md compares this with the headers.
//
// Here are declarations and plain types: no kernel, and no function whose machine code depends on your compiler's
// flags. Cache and Step have the verbs of xquant::Cache and its Step (cache.hpp says what each does, throws and
// costs), each behind a virtual call. The types that cross are those of the headers, and errors are caught as the
// types that they are. A program and the library that disagree about a type's size say so when they meet
// (level_error).
//
// Not here: policies of your own and register_scheme, whose code is your program's. Errors are exceptions: a program
// that is compiled without them ends at the first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include <xquant/cache_types.hpp>
#include <xquant/error.hpp>
#include <xquant/executor.hpp>
#include <xquant/model.hpp>
#include <xquant/plan_types.hpp>
#include <xquant/scheme_info.hpp>
#include <xquant/storage/page.hpp>

namespace xquant::runtime {

/// A level that was asked for and is not there, cannot be loaded, or does not fit the program.
struct level_error : error {
    using error::error;
};

/// Machine code of the library for one kind of processor.
struct LevelInfo {
    std::string name;     ///< "x86-64-v3", as the x86-64 ABI calls it; the last one has VNNI besides
    std::string backend;  ///< the backend of its caches: "scalar", "avx2_int8", "avx512_int8"
    std::string missing;  ///< instructions that it needs and this processor lacks: "avx512f, avx512bw"; empty: it runs
};

namespace detail {

/// What a program and the library have to agree on. Plain data, filled in by the compiler of either.
struct Interface {
    std::uint32_t revision =
        4;  ///< raised when runtime.hpp or runtime/entry.hpp changes what a compiled program relies on
    std::uint32_t model = sizeof(Model);
    std::uint32_t layer = sizeof(Layer);
    std::uint32_t options = sizeof(Options);
    std::uint32_t bytes = sizeof(Bytes);
    std::uint32_t sequence = sizeof(Sequence);
    std::uint32_t step_part = sizeof(StepPart);
    std::uint32_t query_part = sizeof(QueryPart);
    std::uint32_t matrix_view = sizeof(MatrixView);
    std::uint32_t page_choice = sizeof(PageChoice);
    std::uint32_t requantized = sizeof(Requantized);
    std::uint32_t page_view = sizeof(PageView);
    std::uint32_t load_options = sizeof(LoadOptions);
    std::uint32_t loaded = sizeof(Loaded);
    std::uint32_t scheme_info = sizeof(SchemeInfo);
    std::uint32_t scheme_form = sizeof(SchemeInfo::Form);
    std::uint32_t level_info = sizeof(LevelInfo);
    std::uint32_t machine = sizeof(Machine);
    std::uint32_t plan_request = sizeof(PlanRequest);
    std::uint32_t planned_scheme = sizeof(PlannedScheme);
    std::uint32_t budget_error_size = sizeof(budget_error);
    std::uint32_t value_error_size = sizeof(value_error);
    std::uint32_t string = sizeof(std::string);
};

/// What this translation unit was compiled with.
constexpr Interface compiled_with{};

inline namespace XQUANT_ABI_NS {

// Code that a program's own compiler makes of its executors and function objects, so it lives in the ABI namespace.

/// A task, as an executor is given it.
struct Task {
    void (*run)(void* of, std::size_t i);
    void* of;
    void operator()(std::size_t i) const { run(of, i); }
};

template <class Executor>
void run_tasks(void* executor, std::size_t n, void (*task)(void* of, std::size_t i), void* of) {
    static_cast<Executor*>(executor)->parallel_for(n, Task{task, of});
}

template <class F, class Result, class... Arguments>
Result call(void* function, Arguments... arguments) {
    return static_cast<Result>((*static_cast<F*>(function))(arguments...));
}

/// The address of an object, whatever it is.
template <class T>
XQUANT_INLINE void* address_of(T& object) noexcept {
    return const_cast<void*>(static_cast<const volatile void*>(std::addressof(object)));
}

}  // namespace XQUANT_ABI_NS
}  // namespace detail

/// A reference to an executor of yours (executor.hpp), which has to outlive the call; without one, the calling
/// thread. Two pointers cross, and a third for each task: xquant::ExecutorRef would do, but for its functions, which
/// have one name whatever the flags they are compiled with.
class ExecutorRef {
public:
    ExecutorRef() = default;

    /// Refers to `executor`, which has to outlive the call that this is given to.
    template <class E>
        requires(executor<std::remove_reference_t<E>> && !std::is_same_v<std::remove_cvref_t<E>, ExecutorRef>)
    XQUANT_INLINE ExecutorRef(E&& executor)  // NOLINT: a reference to it is meant
    noexcept : executor_(detail::address_of(executor)), run_(&detail::run_tasks<std::remove_reference_t<E>>) {}

    /// For the library: calls task(of, 0) .. task(of, n - 1).
    void run(std::size_t n, void (*task)(void* of, std::size_t i), void* of) const { run_(executor_, n, task, of); }
    /// Whether it refers to none: the calling thread.
    [[nodiscard]] bool empty() const noexcept { return run_ == nullptr; }

private:
    void* executor_ = nullptr;
    void (*run_)(void* executor, std::size_t n, void (*task)(void* of, std::size_t i), void* of) = nullptr;
};

template <class Signature>
class Callback;

/// A reference to a function object of yours, which has to outlive the call.
template <class Result, class... Arguments>
class Callback<Result(Arguments...)> {
public:
    /// Refers to `function`.
    template <class F>
        requires(std::is_invocable_r_v<Result, F&, Arguments...> && !std::is_same_v<std::remove_cvref_t<F>, Callback>)
    XQUANT_INLINE Callback(F&& function)  // NOLINT: a reference to it is meant
    noexcept
        : function_(detail::address_of(function)),
          call_(&detail::call<std::remove_reference_t<F>, Result, Arguments...>) {}

    /// Calls the function.
    Result operator()(Arguments... arguments) const { return call_(function_, arguments...); }

private:
    void* function_;
    Result (*call_)(void*, Arguments...);
};

/// New tokens of one or several sequences on their way through the layers, as xquant::Cache::Step. Made by
/// Cache::begin; the cache must outlive it. Rows lie one sequence after another, or where StepPart::rows say. Destroyed
/// without commit(), it leaves the cache as it was.
class Step {
public:
    Step(const Step&) = delete;
    Step& operator=(const Step&) = delete;
    virtual ~Step() = default;

    /// Tokens of the step, all sequences together: n.
    [[nodiscard]] virtual std::size_t size() const noexcept = 0;

    /// Stores a layer's rows x [n, D]; layers come in order. Read before this returns.
    /// Throws shape_error, state_error, value_error before anything is stored: the layer can be appended again, and the
    /// one before it cannot be attended to until then. After std::bad_alloc, or what the executor throws, the step can
    /// only be destroyed. Cost: n R D products for a stream of R channels that has a matrix, and encoding.
    virtual void append(std::size_t layer, const MatrixView& x, ExecutorRef threads = {}) = 0;

    /// append for a layer whose engine hands over K and V (Layer::input): k and v [n, Hkv * Dh]. Throws as append.
    virtual void append_kv(std::size_t layer, const MatrixView& k, const MatrixView& v, ExecutorRef threads = {}) = 0;

    /// Attention of a layer that was appended: q [n, H * Dh] after RoPE, out [n, H * Dh] with rows `out_stride` floats
    /// apart (0: H * Dh). Of layers before the last one, the step's own rows are read as they are stored. A head of q
    /// that is not finite gives NaN.
    /// Throws shape_error, state_error, std::bad_alloc; the step goes on. Cost: reads the codes of every token that the
    /// rows see; 2 H Dh products a row and token, and what rebuilding K takes.
    virtual void attend(std::size_t layer, const MatrixView& q, float* out, Visibility visibility,
                        std::size_t out_stride = 0, ExecutorRef threads = {}) = 0;
    /// attend with Visibility::causal.
    XQUANT_INLINE void attend(std::size_t layer, const MatrixView& q, float* out, std::size_t out_stride = 0,
                              ExecutorRef threads = {}) {
        attend(layer, q, out, Visibility::causal, out_stride, threads);
    }

    /// The sequences have the step's tokens from here on, and the step has ended. Throws state_error unless every layer
    /// was appended, and where new tokens are a tree.
    virtual void commit() = 0;
    /// commit for drafts: of each sequence these rows of the step alone, a path, become part of it.
    /// Throws state_error, shape_error; the step goes on.
    virtual void commit(std::span<const std::size_t> kept) = 0;
    /// commit for a list in braces: commit({0, 2, 5}).
    XQUANT_INLINE void commit(std::initializer_list<std::size_t> kept) {
        commit(std::span<const std::size_t>(kept.begin(), kept.size()));
    }

protected:
    Step() = default;
};

/// A cache for all layers of one model and any number of sequences, as xquant::Cache. Made by make_cache. What
/// cache.hpp says of threads, errors and costs holds here, too: a call that throws has changed nothing, unless its
/// comment there says otherwise.
class Cache {
public:
    Cache(const Cache&) = delete;
    Cache& operator=(const Cache&) = delete;
    virtual ~Cache() = default;

    /// An empty sequence. Throws std::bad_alloc.
    [[nodiscard]] virtual Sequence create() = 0;
    /// Forgets a sequence, and frees what no other one shares. Throws sequence_error.
    virtual void drop(Sequence sequence) = 0;
    /// A second sequence with the same tokens. Pages are shared. Throws sequence_error, std::bad_alloc.
    [[nodiscard]] virtual Sequence fork(Sequence sequence) = 0;
    /// A second sequence with the first `tokens` tokens. Throws as truncate.
    [[nodiscard]] virtual Sequence fork(Sequence sequence, std::size_t tokens) = 0;
    /// Keeps the first `tokens` tokens. Throws sequence_error, shape_error, std::bad_alloc.
    virtual void truncate(Sequence sequence, std::size_t tokens) = 0;
    /// Takes out tokens begin .. end; the tokens behind them move up, exactly, or stay (Gap::keep). Throws as truncate.
    virtual void erase(Sequence sequence, std::size_t begin, std::size_t end, Gap gap = Gap::close) = 0;
    /// Moves the tokens from `begin` on, and the next token, by `delta` positions, exactly. Throws as truncate.
    virtual void shift(Sequence sequence, std::size_t begin, std::int64_t delta) = 0;
    /// Moves tokens begin .. end alone, between their neighbours. Throws as truncate.
    virtual void shift(Sequence sequence, std::size_t begin, std::size_t end, std::int64_t delta) = 0;
    /// Says where the next token will stand. Throws sequence_error, shape_error.
    virtual void set_next_position(Sequence sequence, std::int64_t position) = 0;
    /// Sequence i becomes what sequence parents[i] of the same list was. Throws sequence_error, shape_error,
    /// std::bad_alloc.
    virtual void gather(std::span<const Sequence> sequences, std::span<const std::size_t> parents) = 0;
    /// Tokens of a sequence. Throws sequence_error.
    [[nodiscard]] virtual std::size_t size(Sequence sequence) const = 0;
    /// The position of the next token of a sequence. Throws sequence_error.
    [[nodiscard]] virtual std::int64_t next_position(Sequence sequence) const = 0;
    /// The position of a token; of token size(): that of the next one. Throws sequence_error, shape_error.
    [[nodiscard]] virtual std::int64_t position_of(Sequence sequence, std::size_t token) const = 0;
    /// How many tokens stand before a position. Throws sequence_error.
    [[nodiscard]] virtual std::size_t token_at(Sequence sequence, std::int64_t position) const = 0;
    /// From how many tokens on truncate and fork accept every number up to size(). Throws sequence_error.
    [[nodiscard]] virtual std::size_t shortest_prefix(Sequence sequence) const = 0;

    /// Starts a step that adds tokens to one or several sequences, and allocates everything that it will store.
    /// Throws sequence_error, shape_error, budget_error, std::bad_alloc.
    [[nodiscard]] virtual std::unique_ptr<Step> begin(std::span<const StepPart> parts) = 0;
    /// begin for a list in braces: begin({{a, 1}, {b, 7}}).
    [[nodiscard]] XQUANT_INLINE std::unique_ptr<Step> begin(std::initializer_list<StepPart> parts) {
        return begin(std::span<const StepPart>(parts.begin(), parts.size()));
    }

    /// Attention over what sequences have stored, without a step: q and out [n, H * Dh] as in Step::attend, n rows of
    /// all parts. causal: the last tokens of each sequence. whole: any number of rows, which see all of its tokens.
    /// Throws sequence_error, shape_error, state_error, budget_error, std::bad_alloc. Cost: as Step::attend.
    virtual void attend(std::size_t layer, std::span<const QueryPart> parts, const MatrixView& q, float* out,
                        Visibility visibility = Visibility::causal, std::size_t out_stride = 0,
                        ExecutorRef threads = {}) const = 0;
    /// attend for a list in braces: attend(0, {{a, 1}, {b, 7}}, q, out).
    XQUANT_INLINE void attend(std::size_t layer, std::initializer_list<QueryPart> parts, const MatrixView& q,
                              float* out, Visibility visibility = Visibility::causal, std::size_t out_stride = 0,
                              ExecutorRef threads = {}) const {
        attend(layer, std::span<const QueryPart>(parts.begin(), parts.size()), q, out, visibility, out_stride, threads);
    }

    /// Encodes every row outside the window now: for a sequence that rests. Throws sequence_error, budget_error,
    /// std::bad_alloc. Cost: encoding at most 127 rows of each layer.
    virtual void seal(Sequence sequence) = 0;
    /// Moves the rows of a sequence together where tokens were erased, as they are stored. Throws sequence_error,
    /// budget_error, std::bad_alloc. Cost: copying the pages behind the first hole.
    virtual void compact(Sequence sequence) = 0;
    /// Rewrites the pages that choose(PageChoice) picks with the scheme's second quantizer. Of the schemes that have a
    /// name none has one so far: state_error.
    virtual Requantized requantize(std::span<const Sequence> sequences, Callback<bool(const PageChoice&)> choose) = 0;
    /// requantize for all full pages.
    virtual Requantized requantize(std::span<const Sequence> sequences) = 0;
    /// A sequence of another cache of this model, of what this one has stored of `sequence`, as xquant::transcode: a
    /// sequence that rested in a small scheme becomes one of a fast scheme. This cache does not change.
    /// Throws sequence_error, shape_error, state_error, budget_error, std::bad_alloc; `to` has no new sequence then.
    [[nodiscard]] virtual Sequence transcode(Sequence sequence, Cache& to, ExecutorRef threads = {}) const = 0;

    /// What is allocated, by purpose.
    [[nodiscard]] virtual Bytes bytes() const noexcept = 0;
    /// The most bytes that the accumulators of a step took so far; 0 but for cross-layer schemes.
    [[nodiscard]] virtual std::size_t peak_accumulator_bytes() const noexcept = 0;
    /// Bits of codes, scales, zeros and outliers for `tokens` encoded tokens, per token and layer.
    [[nodiscard]] virtual double bits_per_token_layer(std::size_t tokens) const = 0;
    /// What the cache was made with.
    [[nodiscard]] virtual const Options& options() const noexcept = 0;
    /// Calls f(PageView) for every page of a sequence. Throws sequence_error, and what f throws.
    virtual void for_each_page(Sequence sequence, Callback<void(const PageView&)> f) const = 0;

    // Files, as in persistence.hpp: the headers read them, and the other way round. All five throw state_error where
    // the library was compiled without xxHash.

    /// Hands sequences to `sink`, front to back, piece by piece: the bytes that a file of them has. Throws
    /// sequence_error, and what the sink throws.
    virtual void save(std::span<const Sequence> sequences, Callback<void(std::span<const std::byte>)> sink,
                      std::string_view note = {}) const = 0;
    /// save into a file, which replaces `path` once it is complete and on the disk. Throws sequence_error, file_error.
    virtual void save(std::span<const Sequence> sequences, const std::string& path,
                      std::string_view note = {}) const = 0;
    /// How many bytes save writes of these sequences. Throws sequence_error.
    [[nodiscard]] virtual std::uint64_t saved_bytes(std::span<const Sequence> sequences,
                                                    std::string_view note = {}) const = 0;
    /// Adds saved sequences, whose bytes `source` fills in, front to back. Throws damage_error, mismatch_error,
    /// budget_error, std::bad_alloc, and what the source throws.
    virtual Loaded load(Callback<void(std::span<std::byte>)> source, const LoadOptions& options = {}) = 0;
    /// load from a file. Throws file_error besides.
    virtual Loaded load(const std::string& path, const LoadOptions& options = {}) = 0;

protected:
    Cache() = default;
};

// The library's functions. All of them load a level at their first call, but for levels(), and may be called by any
// threads. They throw level_error where that fails, and again at the next call. Their last parameter is filled in by
// the compiler: leave it out.

/// A cache of a scheme, "NAME" or "NAME:group=N", as xquant::make_cache.
/// Throws shape_error for unknown names, and as the constructor of XCache.
[[nodiscard]] std::unique_ptr<Cache> make_cache(std::string_view scheme, const Model& model,
                                                const Options& options = {},
                                                const detail::Interface& program = detail::compiled_with);

/// The bytes() of a scheme's cache with one sequence of `tokens` tokens, as xquant::predict. Throws as find_scheme.
[[nodiscard]] Bytes predict(std::string_view scheme, const Model& model, const Options& options, std::size_t tokens,
                            const detail::Interface& program = detail::compiled_with);

/// What this machine can do with the level that runs: read from a file, or measured, in a second or two, where the file
/// is not there, and written to it. Without a path: measured. As xquant::machine_of_file. Throws value_error,
/// shape_error; state_error where the library was compiled without Eigen.
[[nodiscard]] Machine machine(const std::string& path, std::size_t threads = 1,
                              const detail::Interface& program = detail::compiled_with);

/// What schemes would take, how long a token takes and what they cost in predictions, as xquant::plan; no names: all
/// schemes. Throws shape_error, value_error; state_error where the library was compiled without Eigen.
[[nodiscard]] std::vector<PlannedScheme> plan(const Model& model, const Machine& machine, const PlanRequest& request,
                                              std::span<const std::string> names = {}, ExecutorRef threads = {},
                                              const detail::Interface& program = detail::compiled_with);

/// All schemes; schemes that need an SVD are among them if the library was compiled with Eigen.
[[nodiscard]] std::vector<SchemeInfo> schemes(const detail::Interface& program = detail::compiled_with);

/// The scheme of a name. Throws shape_error if there is none, with the names that are nearest or the groups that
/// there are.
[[nodiscard]] SchemeInfo find_scheme(std::string_view name, const detail::Interface& program = detail::compiled_with);

/// The level whose code runs.
[[nodiscard]] LevelInfo level(const detail::Interface& program = detail::compiled_with);

/// The levels that the library was compiled for, the least first, and what this processor lacks of each. Loads none.
[[nodiscard]] std::vector<LevelInfo> levels(const detail::Interface& program = detail::compiled_with);

}  // namespace xquant::runtime
