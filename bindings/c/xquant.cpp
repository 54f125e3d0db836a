// libxquant: the functions of xquant.h over xquant::runtime, whose loader is compiled into it.
#define XQUANT_RUNTIME_LEVELS XQUANT_C_LEVELS
#include <xquant/xquant.h>
#include <xquant/runtime/loader.hpp>
#include <xquant/version.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <exception>
#include <limits>
#include <new>
#include <string>
#include <utility>
#include <vector>

#if defined(XQUANT_C_FILES)
#include <xquant/persistence/calibration.hpp>
#endif

#include "../pool.hpp"

namespace runtime = xquant::runtime;

struct xq_calibration {
    xquant::Calibration of;
};
struct xq_cache {
    std::unique_ptr<runtime::Cache> of;
};
struct xq_step {
    std::unique_ptr<runtime::Step> of;
};
struct xq_loaded {
    xquant::Loaded of;
};
struct xq_plan {
    std::vector<xquant::PlannedScheme> of;
};

namespace {

/// What a callback of the program reported.
struct refused : xquant::error {
    using error::error;
};

thread_local std::string message;

xq_status failed(xq_status status, const char* text) noexcept {
    try {
        message = text;
    } catch (...) {
        message.clear();  // no memory for the sentence either
    }
    return status;
}

/// The status and the message of the exception that is being handled.
xq_status status_of_exception() noexcept {
    using namespace xquant;
    try {
        throw;
    } catch (const value_error& e) {
        return failed(XQ_VALUE_ERROR, e.what());
    } catch (const shape_error& e) {
        return failed(XQ_SHAPE_ERROR, e.what());
    } catch (const sequence_error& e) {
        return failed(XQ_SEQUENCE_ERROR, e.what());
    } catch (const state_error& e) {
        return failed(XQ_STATE_ERROR, e.what());
    } catch (const budget_error& e) {
        return failed(XQ_BUDGET_ERROR, e.what());
    } catch (const damage_error& e) {
        return failed(XQ_DAMAGE_ERROR, e.what());
    } catch (const mismatch_error& e) {
        return failed(XQ_MISMATCH_ERROR, e.what());
    } catch (const file_error& e) {
        return failed(XQ_FILE_ERROR, e.what());
    } catch (const runtime::level_error& e) {
        return failed(XQ_LEVEL_ERROR, e.what());
    } catch (const std::bad_alloc&) {
        return failed(XQ_MEMORY_ERROR, "xquant: no memory");
    } catch (const std::exception& e) {
        return failed(XQ_OTHER_ERROR, e.what());
    } catch (...) {
        return failed(XQ_OTHER_ERROR, "xquant: an error that is no std::exception");
    }
}

/// Runs f; its exceptions become a status.
template <class F>
xq_status guarded(F&& f) noexcept {
    try {
        f();
        return XQ_OK;
    } catch (...) {
        return status_of_exception();
    }
}

using xquant::detail::expects;

/// Throws shape_error for a null pointer.
template <class T>
T& there(T* pointer, const char* name) {
    expects(pointer != nullptr, name, " is a null pointer");
    return *pointer;
}

/// The struct of a program, which may know fewer fields than the library, or more.
template <class T>
T known_part(const void* given, std::size_t size, void (*set_defaults)(T*), const char* name) {
    expects(size >= sizeof(std::size_t), name, ".size is ", size, "; expected ", sizeof(T), ": call its init function");
    T out;
    set_defaults(&out);
    std::copy_n(static_cast<const unsigned char*>(given), (std::min)(size, sizeof out),
                reinterpret_cast<unsigned char*>(&out));
    return out;
}

xquant::MatrixView view(const xq_matrix& m, const char* name) {
    if (m.data == nullptr && m.rows == 0) return {};
    const std::size_t stride = m.stride == 0 ? m.cols : m.stride;
    switch (m.type) {
        case XQ_F32:
            return {static_cast<const float*>(m.data), m.rows, m.cols, stride};
        case XQ_F16:
            return {static_cast<const xquant::f16*>(m.data), m.rows, m.cols, stride};
        case XQ_BF16:
            return {static_cast<const xquant::bf16*>(m.data), m.rows, m.cols, stride};
    }
    xquant::detail::raise<xquant::shape_error>(name, ".type is ", static_cast<int>(m.type),
                                               "; expected XQ_F32, XQ_F16 or XQ_BF16");
}

template <class Enum>
Enum checked(int value, int most, const char* name) {
    expects(value >= 0 && value <= most, name, " is ", value, "; expected 0 to ", most);
    return static_cast<Enum>(value);
}

xquant::Layer layer_of(const xq_layer& given) {
    xquant::Layer out;
    out.shape = {given.width, given.heads, given.kv_heads, given.head_dim};
    out.input = checked<xquant::LayerInput>(given.input, XQ_KEYS_IN_PLACE, "xq_layer.input");
    out.w_k = view(given.w_k, "xq_layer.w_k");
    out.w_v = view(given.w_v, "xq_layer.w_v");
    out.w_o = view(given.w_o, "xq_layer.w_o");
    out.rope.pairing = checked<xquant::RopePairing>(given.pairing, XQ_HALVES, "xq_layer.pairing");
    if (given.inverse_frequencies != nullptr) {
        out.rope.inverse_frequencies.assign(given.inverse_frequencies, given.inverse_frequencies + given.rope_pairs);
    }
    out.rope.factor = given.rope_factor;
    out.softmax_scale = given.softmax_scale;
    out.soft_cap = given.soft_cap;
    out.window = given.window;
    out.chunk = given.chunk;
    out.b_k = given.b_k;
    out.b_v = given.b_v;
    out.k_norm = given.k_norm;
    out.k_norm_epsilon = given.k_norm_epsilon;
    out.alibi_slopes = given.alibi_slopes;
    out.sink_logits = given.sink_logits;
    out.mean = given.mean;
    out.calibration = view(given.calibration, "xq_layer.calibration");
    return out;
}

/// Layers lie as far apart as the program's struct is large.
xquant::Model model_of(const xq_layer* layers, std::size_t count, const xq_calibration* calibration = nullptr) {
    expects(count > 0, "a model has no layers; expected one or more");
    const std::size_t step = there(layers, "layers").size;
    xquant::Model model;
    for (std::size_t i = 0; i < count; ++i) {
        const auto* const at = reinterpret_cast<const unsigned char*>(layers) + i * step;
        std::size_t size = 0;
        std::copy_n(at, sizeof size, reinterpret_cast<unsigned char*>(&size));
        expects(size == step, "layer ", i, ": xq_layer.size is ", size, ", that of layer 0 ", step);
        model.layers.push_back(layer_of(known_part<xq_layer>(at, size, xq_layer_init, "xq_layer")));
    }
    if (calibration != nullptr) calibration->of.attach(model);
    return model;
}

xquant::Options options_of(const xq_options* given) {
    xquant::Options out;
    if (given == nullptr) return out;
    const auto o = known_part<xq_options>(given, given->size, xq_options_init, "xq_options");
    out.sinks = o.sinks;
    out.recent = o.recent;
    out.rows = checked<xquant::DType>(o.rows, XQ_BF16, "xq_options.rows");
    out.weights = checked<xquant::WeightType>(o.weights, XQ_WEIGHTS_Q8, "xq_options.weights");
    out.strict = o.strict != 0;
    out.base_layer = o.base_layer;
    out.last_layers = o.last_layers;
    out.budget = o.budget;
    out.workspace_budget = o.workspace_budget;
    out.rebuilt = o.rebuilt;
    return out;
}

/// Fills in as much of a program's struct as it knows, which its size says.
template <class T>
void write_known_part(T all, T* out, const char* name) {
    const std::size_t size = there(out, "out").size;
    expects(size >= sizeof(std::size_t), name, ".size is ", size, "; expected ", sizeof(T));
    all.size = size;
    std::copy_n(reinterpret_cast<const unsigned char*>(&all), (std::min)(size, sizeof all),
                reinterpret_cast<unsigned char*>(out));
}

void write_bytes(const xquant::Bytes& bytes, xq_bytes* out) {
    const xq_bytes all{0,           bytes.codes,   bytes.scales,    bytes.tail,   bytes.sinks,  bytes.accumulator,
                       bytes.index, bytes.weights, bytes.workspace, bytes.mapped, bytes.rebuilt};
    write_known_part(all, out, "xq_bytes");
}

xquant::Sequence sequence_of(xq_sequence s) { return {s.id, s.cache}; }
xq_sequence handle_of(xquant::Sequence s) { return {s.id, s.cache}; }

std::vector<xquant::Sequence> sequences_of(const xq_sequence* sequences, std::size_t count) {
    if (count > 0) there(sequences, "sequences");
    std::vector<xquant::Sequence> out;
    for (std::size_t i = 0; i < count; ++i) out.push_back(sequence_of(sequences[i]));
    return out;
}

runtime::Cache& cache_of(const xq_cache* cache) { return *there(cache, "cache").of; }
runtime::Step& step_of(const xq_step* step) { return *there(step, "step").of; }

xquant::Visibility visibility_of(xq_visibility visibility) {
    return checked<xquant::Visibility>(visibility, XQ_WHOLE, "visibility");
}

/// An executor of the program, as the library uses executors.
class Threads {
public:
    explicit Threads(const xq_executor* executor) noexcept : executor_(executor) {}

    template <class F>
    void parallel_for(std::size_t n, F&& f) const {
        using Function = std::remove_reference_t<F>;
        executor_->parallel_for(
            executor_->user, n, [](void* of, std::size_t i) { (*static_cast<Function*>(of))(i); },
            const_cast<void*>(static_cast<const void*>(std::addressof(f))));
    }

private:
    const xq_executor* executor_;
};

/// Calls f(runtime::ExecutorRef).
template <class F>
void with_threads(const xq_executor* executor, F&& f) {
    if (executor == nullptr) return f(runtime::ExecutorRef{});
    expects(executor->parallel_for != nullptr, "xq_executor.parallel_for is a null pointer");
    const Threads threads(executor);
    f(runtime::ExecutorRef(threads));
}

std::string text_or_empty(const char* text) { return text == nullptr ? std::string() : std::string(text); }

[[maybe_unused, noreturn]] void refuse_files() {
    xquant::detail::raise<xquant::state_error>(
        "the library was compiled without xxHash, which files of statistics need");
}

}  // namespace

struct xq_pool {
    explicit xq_pool(std::size_t threads) : threads(threads) {
        executor.user = this;
        executor.parallel_for = [](void* user, std::size_t n, void (*task)(void*, std::size_t), void* of) {
            static_cast<xq_pool*>(user)->threads.run(n, task, of);
        };
    }

    xquant::bindings::Pool threads;
    xq_executor executor{};
};

extern "C" {

const char* xq_message(void) { return message.c_str(); }

const char* xq_version(void) {
    static const std::string version =
        xquant::detail::text_of(XQUANT_VERSION_MAJOR, ".", XQUANT_VERSION_MINOR, ".", XQUANT_VERSION_PATCH);
    return version.c_str();
}

xq_status xq_level(const char** name, const char** backend) {
    return guarded([&] {
        static const runtime::LevelInfo level = runtime::level();
        if (name != nullptr) *name = level.name.c_str();
        if (backend != nullptr) *backend = level.backend.c_str();
    });
}

int xq_has(xq_feature feature) {
    switch (feature) {
        case XQ_FEATURE_SVD:
#if defined(XQUANT_C_SVD)
            return 1;
#else
            return 0;
#endif
        case XQ_FEATURE_FILES:
#if defined(XQUANT_C_FILES)
            return 1;
#else
            return 0;
#endif
    }
    return 0;
}

void xq_layer_init(xq_layer* layer) {
    if (layer == nullptr) return;
    *layer = {};
    layer->size = sizeof *layer;
    layer->rope_factor = 1;
    layer->k_norm_epsilon = 1e-6;
}

void xq_rope_frequencies(std::size_t head_dim, double base, double* out) {
    for (std::size_t j = 0; j < head_dim / 2; ++j) {
        out[j] = std::pow(base, -2.0 * static_cast<double>(j) / static_cast<double>(head_dim));
    }
}

void xq_options_init(xq_options* options) {
    if (options == nullptr) return;
    const xquant::Options defaults;
    *options = {};
    options->size = sizeof *options;
    options->sinks = defaults.sinks;
    options->recent = defaults.recent;
    options->rows = static_cast<xq_type>(defaults.rows);
    options->weights = static_cast<xq_weights>(defaults.weights);
    options->base_layer = defaults.base_layer;
}

xq_status xq_calibration_load(const char* path, const xq_layer* layers, std::size_t count, xq_calibration** out) {
    return guarded([&] {
        there(path, "path");
        there(out, "out");
#if defined(XQUANT_C_FILES)
        *out = new xq_calibration{xquant::load_calibration(path, model_of(layers, count))};
#else
        static_cast<void>(layers);
        static_cast<void>(count);
        refuse_files();
#endif
    });
}
void xq_calibration_free(xq_calibration* calibration) { delete calibration; }

xq_status xq_cache_create(const char* scheme, const xq_layer* layers, std::size_t count, const xq_options* options,
                          const xq_calibration* calibration, xq_cache** out) {
    return guarded([&] {
        there(scheme, "scheme");
        there(out, "out");
        const xquant::Model model = model_of(layers, count, calibration);
        *out = new xq_cache{runtime::make_cache(scheme, model, options_of(options))};
    });
}
void xq_cache_free(xq_cache* cache) { delete cache; }

static const std::vector<xquant::SchemeInfo>& all_schemes() {
    static const std::vector<xquant::SchemeInfo> schemes = runtime::schemes();
    return schemes;
}
std::size_t xq_scheme_count(void) {
    std::size_t count = 0;
    guarded([&] { count = all_schemes().size(); });
    return count;
}
xq_status xq_scheme_name(std::size_t i, const char** name, const char** about) {
    return guarded([&] {
        const auto& schemes = all_schemes();
        expects(i < schemes.size(), "scheme ", i, " of ", schemes.size());
        if (name != nullptr) *name = schemes[i].name.c_str();
        if (about != nullptr) *about = schemes[i].summary.c_str();
    });
}

xq_status xq_cache_bytes(const xq_cache* cache, xq_bytes* out) {
    return guarded([&] { write_bytes(cache_of(cache).bytes(), out); });
}
xq_status xq_predict(const char* scheme, const xq_layer* layers, std::size_t count, const xq_options* options,
                     const xq_calibration* calibration, std::size_t tokens, xq_bytes* out) {
    return guarded([&] {
        there(scheme, "scheme");
        const xquant::Model model = model_of(layers, count, calibration);
        write_bytes(runtime::predict(scheme, model, options_of(options), tokens), out);
    });
}
xq_status xq_bits_per_token_layer(const xq_cache* cache, std::size_t tokens, double* out) {
    return guarded([&] { there(out, "out") = cache_of(cache).bits_per_token_layer(tokens); });
}

xq_status xq_sequence_create(xq_cache* cache, xq_sequence* out) {
    return guarded([&] {
        there(out, "out");
        *out = handle_of(cache_of(cache).create());
    });
}
xq_status xq_sequence_drop(xq_cache* cache, xq_sequence sequence) {
    return guarded([&] { cache_of(cache).drop(sequence_of(sequence)); });
}
xq_status xq_sequence_fork(xq_cache* cache, xq_sequence sequence, std::size_t tokens, xq_sequence* out) {
    return guarded([&] {
        there(out, "out");
        runtime::Cache& of = cache_of(cache);
        const xquant::Sequence from = sequence_of(sequence);
        *out = handle_of(tokens == SIZE_MAX ? of.fork(from) : of.fork(from, tokens));
    });
}
xq_status xq_sequence_truncate(xq_cache* cache, xq_sequence sequence, std::size_t tokens) {
    return guarded([&] { cache_of(cache).truncate(sequence_of(sequence), tokens); });
}
xq_status xq_sequence_erase(xq_cache* cache, xq_sequence sequence, std::size_t begin, std::size_t end, int keep_gap) {
    return guarded([&] {
        const xquant::Gap gap = keep_gap != 0 ? xquant::Gap::keep : xquant::Gap::close;
        cache_of(cache).erase(sequence_of(sequence), begin, end, gap);
    });
}
xq_status xq_sequence_shift(xq_cache* cache, xq_sequence sequence, std::size_t begin, std::size_t end,
                            std::int64_t delta) {
    return guarded([&] {
        runtime::Cache& of = cache_of(cache);
        if (end == SIZE_MAX) return of.shift(sequence_of(sequence), begin, delta);
        of.shift(sequence_of(sequence), begin, end, delta);
    });
}
xq_status xq_sequence_set_next_position(xq_cache* cache, xq_sequence sequence, std::int64_t position) {
    return guarded([&] { cache_of(cache).set_next_position(sequence_of(sequence), position); });
}
xq_status xq_sequence_gather(xq_cache* cache, const xq_sequence* sequences, const std::size_t* parents,
                             std::size_t count) {
    return guarded([&] {
        if (count > 0) there(parents, "parents");
        cache_of(cache).gather(sequences_of(sequences, count), {parents, count});
    });
}
xq_status xq_sequence_seal(xq_cache* cache, xq_sequence sequence) {
    return guarded([&] { cache_of(cache).seal(sequence_of(sequence)); });
}
xq_status xq_sequence_compact(xq_cache* cache, xq_sequence sequence) {
    return guarded([&] { cache_of(cache).compact(sequence_of(sequence)); });
}
xq_status xq_sequence_size(const xq_cache* cache, xq_sequence sequence, std::size_t* out) {
    return guarded([&] { there(out, "out") = cache_of(cache).size(sequence_of(sequence)); });
}
xq_status xq_sequence_next_position(const xq_cache* cache, xq_sequence sequence, std::int64_t* out) {
    return guarded([&] { there(out, "out") = cache_of(cache).next_position(sequence_of(sequence)); });
}
xq_status xq_sequence_shortest_prefix(const xq_cache* cache, xq_sequence sequence, std::size_t* out) {
    return guarded([&] { there(out, "out") = cache_of(cache).shortest_prefix(sequence_of(sequence)); });
}

xq_status xq_sequence_transcode(const xq_cache* from, xq_sequence sequence, xq_cache* to, const xq_executor* threads,
                                xq_sequence* out) {
    return guarded([&] {
        there(out, "out");
        const runtime::Cache& of = cache_of(from);
        runtime::Cache& other = *there(to, "to").of;
        with_threads(threads, [&](runtime::ExecutorRef on) {
            *out = handle_of(of.transcode(sequence_of(sequence), other, on));
        });
    });
}

void xq_plan_request_init(xq_plan_request* request) {
    if (request == nullptr) return;
    const xquant::PlanRequest defaults;
    *request = {};
    request->size = sizeof *request;
    request->context = defaults.context;
    request->sequences = defaults.sequences;
    request->machine_threads = 1;
}
xq_status xq_plan_create(const xq_layer* layers, std::size_t count, const xq_options* options,
                         const xq_calibration* calibration, const xq_plan_request* request, const xq_executor* threads,
                         xq_plan** out) {
    return guarded([&] {
        there(out, "out");
        const auto r = known_part<xq_plan_request>(request, there(request, "request").size, xq_plan_request_init,
                                                   "xq_plan_request");
        if (r.scheme_count > 0) there(r.schemes, "xq_plan_request.schemes");
        std::vector<std::string> names;
        for (std::size_t i = 0; i < r.scheme_count; ++i) {
            names.emplace_back(&there(r.schemes[i], "a name of xq_plan_request.schemes"));
        }
        const xquant::Model model = model_of(layers, count, calibration);
        const xquant::Machine machine = runtime::machine(text_or_empty(r.machine), r.machine_threads);
        const xquant::PlanRequest asked{r.context, r.sequences, r.memory, options_of(options)};
        with_threads(threads, [&](runtime::ExecutorRef on) {
            *out = new xq_plan{runtime::plan(model, machine, asked, names, on)};
        });
    });
}
void xq_plan_free(xq_plan* plan) { delete plan; }
std::size_t xq_plan_count(const xq_plan* plan) { return plan == nullptr ? 0 : plan->of.size(); }
xq_status xq_plan_scheme(const xq_plan* plan, std::size_t i, xq_planned* out) {
    return guarded([&] {
        const auto& schemes = there(plan, "plan").of;
        expects(i < schemes.size(), "scheme ", i, " of a plan of ", schemes.size());
        const xquant::PlannedScheme& s = schemes[i];
        const xq_planned all{0,
                             s.name.c_str(),
                             s.unavailable.c_str(),
                             s.cache,
                             s.weights,
                             s.read,
                             s.seconds,
                             s.divergence.value_or(std::numeric_limits<double>::quiet_NaN()),
                             s.unknown.c_str(),
                             s.fits ? 1 : 0,
                             s.dominated_by.c_str()};
        write_known_part(all, out, "xq_planned");
    });
}

xq_status xq_pool_create(std::size_t threads, xq_pool** out) {
    return guarded([&] {
        there(out, "out");
        *out = new xq_pool(threads);
    });
}
void xq_pool_free(xq_pool* pool) { delete pool; }
const xq_executor* xq_pool_executor(const xq_pool* pool) { return pool == nullptr ? nullptr : &pool->executor; }

xq_status xq_step_begin(xq_cache* cache, const xq_part* parts, std::size_t count, xq_step** out) {
    return guarded([&] {
        there(out, "out");
        if (count > 0) there(parts, "parts");
        std::vector<xquant::StepPart> list;
        for (std::size_t i = 0; i < count; ++i) {
            const xq_part& part = parts[i];
            list.push_back({sequence_of(part.sequence), part.tokens, {}, {}});
            if (part.parents != nullptr) list.back().parents = {part.parents, part.tokens};
            if (part.rows != nullptr) list.back().rows = {part.rows, part.tokens};
        }
        *out = new xq_step{cache_of(cache).begin(list)};
    });
}
void xq_step_free(xq_step* step) { delete step; }
std::size_t xq_step_size(const xq_step* step) { return step == nullptr ? 0 : step->of->size(); }
xq_status xq_step_append(xq_step* step, std::size_t layer, xq_matrix x, const xq_executor* threads) {
    return guarded([&] {
        runtime::Step& of = step_of(step);
        with_threads(threads, [&](runtime::ExecutorRef on) { of.append(layer, view(x, "x"), on); });
    });
}
xq_status xq_step_append_kv(xq_step* step, std::size_t layer, xq_matrix k, xq_matrix v, const xq_executor* threads) {
    return guarded([&] {
        runtime::Step& of = step_of(step);
        with_threads(threads, [&](runtime::ExecutorRef on) { of.append_kv(layer, view(k, "k"), view(v, "v"), on); });
    });
}
xq_status xq_step_attend(xq_step* step, std::size_t layer, xq_matrix q, float* out, std::size_t out_stride,
                         xq_visibility visibility, const xq_executor* threads) {
    return guarded([&] {
        runtime::Step& of = step_of(step);
        there(out, "out");
        with_threads(threads, [&](runtime::ExecutorRef on) {
            of.attend(layer, view(q, "q"), out, visibility_of(visibility), out_stride, on);
        });
    });
}
xq_status xq_step_commit(xq_step* step) {
    return guarded([&] { step_of(step).commit(); });
}
xq_status xq_step_commit_kept(xq_step* step, const std::size_t* kept, std::size_t count) {
    return guarded([&] {
        if (count > 0) there(kept, "kept");
        step_of(step).commit(std::span<const std::size_t>(kept, count));
    });
}

xq_status xq_attend(const xq_cache* cache, std::size_t layer, const xq_query* parts, std::size_t count, xq_matrix q,
                    float* out, std::size_t out_stride, xq_visibility visibility, const xq_executor* threads) {
    return guarded([&] {
        there(out, "out");
        if (count > 0) there(parts, "parts");
        std::vector<xquant::QueryPart> list;
        for (std::size_t i = 0; i < count; ++i) list.push_back({sequence_of(parts[i].sequence), parts[i].rows});
        const runtime::Cache& of = cache_of(cache);
        with_threads(threads, [&](runtime::ExecutorRef on) {
            of.attend(layer, list, view(q, "q"), out, visibility_of(visibility), out_stride, on);
        });
    });
}

xq_status xq_save(const xq_cache* cache, const xq_sequence* sequences, std::size_t count, const char* path,
                  const char* note) {
    return guarded([&] {
        there(path, "path");
        cache_of(cache).save(sequences_of(sequences, count), std::string(path), text_or_empty(note));
    });
}
xq_status xq_save_to(const xq_cache* cache, const xq_sequence* sequences, std::size_t count, const char* note,
                     int (*sink)(void* user, const void* bytes, std::size_t n), void* user) {
    return guarded([&] {
        expects(sink != nullptr, "sink is a null pointer");
        const auto write = [&](std::span<const std::byte> bytes) {
            const int answer = sink(user, bytes.data(), bytes.size());
            if (answer != 0) throw refused("xquant: the sink answered " + std::to_string(answer));
        };
        cache_of(cache).save(sequences_of(sequences, count), write, text_or_empty(note));
    });
}
xq_status xq_load(xq_cache* cache, const char* path, xq_loaded** out) {
    return guarded([&] {
        there(path, "path");
        there(out, "out");
        *out = new xq_loaded{cache_of(cache).load(std::string(path))};
    });
}
xq_status xq_load_from(xq_cache* cache, int (*source)(void* user, void* bytes, std::size_t n), void* user,
                       xq_loaded** out) {
    return guarded([&] {
        expects(source != nullptr, "source is a null pointer");
        there(out, "out");
        const auto read = [&](std::span<std::byte> bytes) {
            const int answer = source(user, bytes.data(), bytes.size());
            if (answer != 0) throw refused("xquant: the source answered " + std::to_string(answer));
        };
        *out = new xq_loaded{cache_of(cache).load(read)};
    });
}
void xq_loaded_free(xq_loaded* loaded) { delete loaded; }
std::size_t xq_loaded_count(const xq_loaded* loaded) { return loaded == nullptr ? 0 : loaded->of.sequences.size(); }
xq_sequence xq_loaded_sequence(const xq_loaded* loaded, std::size_t i) {
    return i < xq_loaded_count(loaded) ? handle_of(loaded->of.sequences[i]) : xq_sequence{0, 0};
}
const char* xq_loaded_note(const xq_loaded* loaded) { return loaded == nullptr ? "" : loaded->of.note.c_str(); }

}  // extern "C"
