// One level of the runtime: the library and its schemes, compiled with the level's flags, behind the interface of
// runtime.hpp.
//
// This is the source of a shared object: include it in one .cpp file, define XQUANT_RUNTIME_LEVEL as the level's
// name, as in
//
//     #define XQUANT_RUNTIME_LEVEL "x86-64-v3"
//     #define XQUANT_RUNTIME_SVD 1                  // with Eigen: the schemes of registry_svd.hpp, and plans
//     #define XQUANT_RUNTIME_PERSISTENCE 1          // with xxHash: saving and loading
//     #include <xquant/runtime/level.hpp>
//
// and export xquant_runtime_level alone (cmake/XquantRuntime.cmake has the linker's version script). Then nothing
// that was compiled for this processor can take the place of a function of the program, and no function of the
// program that of one in here.
#pragma once

#include <string_view>
#include <utility>

#include <xquant/instantiate.hpp>
#include <xquant/runtime/entry.hpp>
#include <xquant/runtime/levels.hpp>

#include <xquant/transcode.hpp>

#if defined(XQUANT_RUNTIME_SVD)
#include <xquant/planner.hpp>
#include <xquant/registry_svd.hpp>
#else
#include <xquant/registry.hpp>
#endif

#if defined(XQUANT_RUNTIME_PERSISTENCE)
#include <xquant/persistence.hpp>
#endif

#if !defined(XQUANT_RUNTIME_LEVEL)
#error "xquant: define XQUANT_RUNTIME_LEVEL as the name of the level, such as \"x86-64-v3\""
#endif

namespace xquant::runtime::detail {
inline namespace XQUANT_ABI_NS {

using Kernels = backend::best;

static_assert(known_level(XQUANT_RUNTIME_LEVEL) != nullptr, "xquant: XQUANT_RUNTIME_LEVEL is no level");
static_assert(std::string_view(known_level(XQUANT_RUNTIME_LEVEL)->backend) == Kernels::name,
              "xquant: the compiler's flags are not those of XQUANT_RUNTIME_LEVEL: they give another backend");
static_assert(XQUANT_HAS_EXCEPTIONS, "xquant: the runtime reports errors as exceptions");

/// The program's executor, as the library uses executors.
class Threads {
public:
    explicit Threads(const ExecutorRef& program) noexcept : program_(&program) {}

    template <class F>
    void parallel_for(std::size_t n, F&& f) const {
        using Function = std::remove_reference_t<F>;
        program_->run(
            n, [](void* of, std::size_t i) { (*static_cast<Function*>(of))(i); }, address_of(f));
    }

private:
    const ExecutorRef* program_;
};

class LevelStep final : public Step {
public:
    explicit LevelStep(xquant::Cache<Kernels>::Step&& step) noexcept : step_(std::move(step)) {}

    [[nodiscard]] std::size_t size() const noexcept override { return step_.size(); }
    void append(std::size_t layer, const MatrixView& x, ExecutorRef threads) override {
        if (threads.empty()) return step_.append(layer, x);
        step_.append(layer, x, Threads(threads));
    }
    void append_kv(std::size_t layer, const MatrixView& k, const MatrixView& v, ExecutorRef threads) override {
        if (threads.empty()) return step_.append_kv(layer, k, v);
        step_.append_kv(layer, k, v, Threads(threads));
    }
    void attend(std::size_t layer, const MatrixView& q, float* out, Visibility visibility, std::size_t out_stride,
                ExecutorRef threads) override {
        if (threads.empty()) return step_.attend(layer, q, out, visibility, out_stride);
        step_.attend(layer, q, out, visibility, out_stride, Threads(threads));
    }
    void commit() override { step_.commit(); }
    void commit(std::span<const std::size_t> kept) override { step_.commit(kept); }

private:
    xquant::Cache<Kernels>::Step step_;
};

class LevelCache final : public Cache {
public:
    explicit LevelCache(std::unique_ptr<xquant::Cache<Kernels>> cache) noexcept : cache_(std::move(cache)) {}

    [[nodiscard]] Sequence create() override { return cache_->create(); }
    void drop(Sequence sequence) override { cache_->drop(sequence); }
    [[nodiscard]] Sequence fork(Sequence sequence) override { return cache_->fork(sequence); }
    [[nodiscard]] Sequence fork(Sequence sequence, std::size_t tokens) override {
        return cache_->fork(sequence, tokens);
    }
    void truncate(Sequence sequence, std::size_t tokens) override { cache_->truncate(sequence, tokens); }
    void erase(Sequence sequence, std::size_t begin, std::size_t end, Gap gap) override {
        cache_->erase(sequence, begin, end, gap);
    }
    void shift(Sequence sequence, std::size_t begin, std::int64_t delta) override {
        cache_->shift(sequence, begin, delta);
    }
    void shift(Sequence sequence, std::size_t begin, std::size_t end, std::int64_t delta) override {
        cache_->shift(sequence, begin, end, delta);
    }
    void set_next_position(Sequence sequence, std::int64_t position) override {
        cache_->set_next_position(sequence, position);
    }
    void gather(std::span<const Sequence> sequences, std::span<const std::size_t> parents) override {
        cache_->gather(sequences, parents);
    }
    [[nodiscard]] std::size_t size(Sequence sequence) const override { return cache_->size(sequence); }
    [[nodiscard]] std::int64_t next_position(Sequence sequence) const override {
        return cache_->next_position(sequence);
    }
    [[nodiscard]] std::int64_t position_of(Sequence sequence, std::size_t token) const override {
        return cache_->position_of(sequence, token);
    }
    [[nodiscard]] std::size_t token_at(Sequence sequence, std::int64_t position) const override {
        return cache_->token_at(sequence, position);
    }
    [[nodiscard]] std::size_t shortest_prefix(Sequence sequence) const override {
        return cache_->shortest_prefix(sequence);
    }
    [[nodiscard]] std::unique_ptr<Step> begin(std::span<const StepPart> parts) override {
        return std::make_unique<LevelStep>(cache_->begin(parts));
    }
    void attend(std::size_t layer, std::span<const QueryPart> parts, const MatrixView& q, float* out,
                Visibility visibility, std::size_t out_stride, ExecutorRef threads) const override {
        if (threads.empty()) return cache_->attend(layer, parts, q, out, visibility, out_stride);
        cache_->attend(layer, parts, q, out, visibility, out_stride, Threads(threads));
    }
    void seal(Sequence sequence) override { cache_->seal(sequence); }
    void compact(Sequence sequence) override { cache_->compact(sequence); }
    Requantized requantize(std::span<const Sequence> sequences, Callback<bool(const PageChoice&)> choose) override {
        return cache_->requantize(sequences, choose);
    }
    Requantized requantize(std::span<const Sequence> sequences) override { return cache_->requantize(sequences); }
    [[nodiscard]] Sequence transcode(Sequence sequence, Cache& to, ExecutorRef threads) const override {
        auto& other = *static_cast<LevelCache&>(to).cache_;  // one level is loaded: all caches are of it
        if (threads.empty()) return xquant::transcode(*cache_, sequence, other);
        return xquant::transcode(*cache_, sequence, other, Threads(threads));
    }
    [[nodiscard]] Bytes bytes() const noexcept override { return cache_->bytes(); }
    [[nodiscard]] std::size_t peak_accumulator_bytes() const noexcept override {
        return cache_->peak_accumulator_bytes();
    }
    [[nodiscard]] double bits_per_token_layer(std::size_t tokens) const override {
        return cache_->bits_per_token_layer(tokens);
    }
    [[nodiscard]] const Options& options() const noexcept override { return cache_->options(); }
    void for_each_page(Sequence sequence, Callback<void(const PageView&)> f) const override {
        cache_->for_each_page(sequence, f);
    }

#if defined(XQUANT_RUNTIME_PERSISTENCE)
    void save(std::span<const Sequence> sequences, Callback<void(std::span<const std::byte>)> sink,
              std::string_view note) const override {
        xquant::save(*cache_, sequences, sink, std::string(note));
    }
    void save(std::span<const Sequence> sequences, const std::string& path, std::string_view note) const override {
        xquant::save(*cache_, sequences, path, std::string(note));
    }
    [[nodiscard]] std::uint64_t saved_bytes(std::span<const Sequence> sequences, std::string_view note) const override {
        return xquant::saved_bytes(*cache_, sequences, std::string(note));
    }
    Loaded load(Callback<void(std::span<std::byte>)> source, const LoadOptions& options) override {
        return xquant::load(*cache_, source, options);
    }
    Loaded load(const std::string& path, const LoadOptions& options) override {
        return xquant::load(*cache_, path, options);
    }
#else
    void save(std::span<const Sequence>, Callback<void(std::span<const std::byte>)>, std::string_view) const override {
        refuse_files();
    }
    void save(std::span<const Sequence>, const std::string&, std::string_view) const override { refuse_files(); }
    [[nodiscard]] std::uint64_t saved_bytes(std::span<const Sequence>, std::string_view) const override {
        refuse_files();
    }
    Loaded load(Callback<void(std::span<std::byte>)>, const LoadOptions&) override { refuse_files(); }
    Loaded load(const std::string&, const LoadOptions&) override { refuse_files(); }
#endif

private:
#if !defined(XQUANT_RUNTIME_PERSISTENCE)
    [[noreturn]] static void refuse_files() {
        xquant::detail::raise<state_error>("the runtime library was compiled without xxHash, which saved caches need");
    }
#endif

    std::unique_ptr<xquant::Cache<Kernels>> cache_;
};

inline std::unique_ptr<Cache> make_level_cache(std::string_view scheme, const Model& model, const Options& options) {
    return std::make_unique<LevelCache>(xquant::make_cache<Kernels>(scheme, model, options));
}

#if defined(XQUANT_RUNTIME_SVD)
inline std::vector<PlannedScheme> plan_of_level(const Model& model, const Machine& machine, const PlanRequest& request,
                                                std::span<const std::string> names, ExecutorRef threads) {
    if (threads.empty()) return xquant::plan(model, machine, request, names);
    return xquant::plan(model, machine, request, names, Threads(threads));
}
inline Machine machine_of_level(const std::string& path, std::size_t threads) { return machine_of_file(path, threads); }
#else
[[noreturn]] inline void refuse_plans() {
    xquant::detail::raise<state_error>("the runtime library was compiled without Eigen, which plans need");
}
inline std::vector<PlannedScheme> plan_of_level(const Model&, const Machine&, const PlanRequest&,
                                                std::span<const std::string>, ExecutorRef) {
    refuse_plans();
}
inline Machine machine_of_level(const std::string&, std::size_t) { refuse_plans(); }
#endif

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::runtime::detail

// All of it, so that a program may be linked with the object file in place of the shared object: tests/runtime
// compares the two.
XQUANT_COMPILE_CACHE(xquant::backend::best);
template std::unique_ptr<xquant::Cache<>> xquant::make_cache<xquant::backend::best>(std::string_view,
                                                                                    const xquant::Model&,
                                                                                    const xquant::Options&);

extern "C" __attribute__((visibility("default"))) const xquant::runtime::detail::Level* xquant_runtime_level() {
    using namespace xquant::runtime::detail;
#if defined(XQUANT_RUNTIME_SVD)
    [[maybe_unused]] static const bool has_svd_presets = xquant::detail::add_svd_presets();
#endif
    static constexpr Level level{
        &compiled_with,   XQUANT_RUNTIME_LEVEL, Kernels::name,     &make_level_cache, &xquant::predict,
        &xquant::schemes, &xquant::find_scheme, &machine_of_level, &plan_of_level,
    };
    return &level;
}
