// The extension of the Python package xquant: xquant::runtime with Python's types, arrays and errors.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <xquant/calibration.hpp>
#include <xquant/runtime.hpp>
#include <xquant/version.hpp>

#if defined(XQUANT_PYTHON_CALIBRATOR)
#include <xquant/calibration/calibrator.hpp>
#endif

#if defined(XQUANT_PYTHON_FILES)
#include <xquant/persistence/calibration.hpp>
#endif

#include "../../pool.hpp"

namespace nb = nanobind;
using namespace nb::literals;
namespace runtime = xquant::runtime;
using xquant::detail::expects;

namespace {

using Array = nb::ndarray<nb::ro, nb::device::cpu>;
using FloatArray = nb::ndarray<float, nb::device::cpu>;

/// How an array of two dimensions, or of more whose last ones are read as one, lies in memory.
struct Rows {
    std::size_t count, columns, stride;
};

/// Throws shape_error unless the values of a row lie side by side.
template <class A>
Rows rows_of(const A& a, const char* name) {
    expects(a.ndim() >= 2, name, " has ", a.ndim(), " dimensions; expected 2 or more");
    std::size_t columns = 1;
    bool dense = a.stride(0) >= 0;
    for (std::size_t i = a.ndim(); i-- > 1;) {
        dense = dense && (a.shape(i) == 1 || a.stride(i) == static_cast<std::int64_t>(columns));
        columns *= a.shape(i);
    }
    expects(dense, name, ": the values of a row do not lie side by side; make a copy whose values do");
    return {a.shape(0), columns, a.shape(0) > 1 ? static_cast<std::size_t>(a.stride(0)) : columns};
}

/// The matrix that an array is. Throws shape_error. Nothing is copied.
xquant::MatrixView view(const Array& a, const char* name) {
    const auto [rows, columns, stride] = rows_of(a, name);
    const nb::dlpack::dtype type = a.dtype();
    if (type == nb::dtype<float>()) return {static_cast<const float*>(a.data()), rows, columns, stride};
    const bool half = type.bits == 16 && type.lanes == 1;
    if (half && type.code == static_cast<std::uint8_t>(nb::dlpack::dtype_code::Float)) {
        return {static_cast<const xquant::f16*>(a.data()), rows, columns, stride};
    }
    if (half && type.code == static_cast<std::uint8_t>(nb::dlpack::dtype_code::Bfloat)) {
        return {static_cast<const xquant::bf16*>(a.data()), rows, columns, stride};
    }
    xquant::detail::raise<xquant::shape_error>(name, " has another type than float32, float16 or bfloat16");
}

/// A vector of floats of this length.
const float* floats(const std::optional<nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>>& a,
                    std::size_t length, const char* name) {
    if (!a) return nullptr;
    expects(a->shape(0) == length, name, " has ", a->shape(0), " values; expected ", length);
    return a->data();
}

/// One attention layer, and the arrays that it refers to.
struct Layer {
    xquant::Layer of;
    std::vector<nb::object> kept;
};

using Vector = std::optional<nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>>;

template <class T>
T named(const std::string& value, const char* what, std::initializer_list<const char*> names) {
    std::size_t i = 0;
    std::string all;
    for (const char* name : names) {
        if (value == name) return static_cast<T>(i);
        all += (i++ == 0 ? "'" : ", '") + std::string(name) + "'";
    }
    xquant::detail::raise<xquant::shape_error>(what, " is '", value, "'; expected one of ", all);
}

xquant::Model model_of(const std::vector<Layer*>& layers, const xquant::Calibration* calibration = nullptr) {
    expects(!layers.empty(), "a model has no layers; expected one or more");
    xquant::Model model;
    for (const Layer* layer : layers) model.layers.push_back(layer->of);
    if (calibration != nullptr) calibration->attach(model);
    return model;
}

/// The settings of a cache, by the names of xquant::Options.
xquant::Options options_of(const nb::kwargs& settings) {
    xquant::Options out;
    for (const auto& [key, value] : settings) {
        const std::string name = nb::cast<std::string>(key);
        const auto number = [&value = value] { return nb::cast<std::size_t>(value); };
        if (name == "sinks") {
            out.sinks = number();
        } else if (name == "recent") {
            out.recent = number();
        } else if (name == "rows") {
            out.rows = named<xquant::DType>(nb::cast<std::string>(value), "rows", {"float32", "float16", "bfloat16"});
        } else if (name == "weights") {
            out.weights = named<xquant::WeightType>(nb::cast<std::string>(value), "weights",
                                                    {"float32", "float16", "bfloat16", "q8"});
        } else if (name == "strict") {
            out.strict = nb::cast<bool>(value);
        } else if (name == "base_layer") {
            out.base_layer = number();
        } else if (name == "last_layers") {
            out.last_layers = number();
        } else if (name == "budget") {
            out.budget = number();
        } else if (name == "workspace_budget") {
            out.workspace_budget = number();
        } else if (name == "rebuilt") {
            out.rebuilt = number();
        } else {
            throw nb::type_error(("xquant: there is no setting '" + name +
                                  "'; expected sinks, recent, rows, weights, strict, base_layer, last_layers, budget, "
                                  "workspace_budget or rebuilt")
                                     .c_str());
        }
    }
    return out;
}

nb::dict dict_of(const xquant::Bytes& bytes) {
    nb::dict out;
    out["codes"] = bytes.codes;
    out["scales"] = bytes.scales;
    out["tail"] = bytes.tail;
    out["sinks"] = bytes.sinks;
    out["accumulator"] = bytes.accumulator;
    out["index"] = bytes.index;
    out["weights"] = bytes.weights;
    out["workspace"] = bytes.workspace;
    out["mapped"] = bytes.mapped;
    out["rebuilt"] = bytes.rebuilt;
    out["stored"] = bytes.stored();
    out["total"] = bytes.total();
    return out;
}

/// A cache, its threads, and the width of each layer's queries.
struct Cache {
    std::unique_ptr<runtime::Cache> of;
    std::unique_ptr<xquant::bindings::Pool> threads;
    std::vector<std::size_t> query_width;
    std::vector<xquant::LayerInput> inputs;

    [[nodiscard]] runtime::ExecutorRef executor() const {
        return threads->threads() > 1 ? runtime::ExecutorRef(*threads) : runtime::ExecutorRef();
    }
    [[nodiscard]] std::size_t width_of(std::size_t layer) const {
        expects(layer < query_width.size(), "layer ", layer, " of a model of ", query_width.size());
        return query_width[layer];
    }
};

#if defined(XQUANT_PYTHON_CALIBRATOR)
/// A calibrator, its threads, and the layers whose weights it reads.
struct Calibrator {
    xquant::Model model;
    std::vector<nb::object> layers;
    std::unique_ptr<xquant::bindings::Pool> threads;
    std::unique_ptr<xquant::Calibrator> of;
};
#endif

/// A sequence. It is dropped with its last reference.
struct Sequence {
    std::shared_ptr<Cache> cache;
    xquant::Sequence of;
    bool there = true;

    Sequence(std::shared_ptr<Cache> in, xquant::Sequence handle) : cache(std::move(in)), of(handle) {}
    Sequence(const Sequence&) = delete;
    Sequence& operator=(const Sequence&) = delete;
    ~Sequence() {
        if (!there) return;
        try {
            cache->of->drop(of);
        } catch (const std::exception&) {  // a step still has it: it goes with the cache
        }
    }
    void drop() {
        cache->of->drop(of);
        there = false;
    }
};

std::unique_ptr<Sequence> wrapped(const std::shared_ptr<Cache>& cache, xquant::Sequence handle) {
    return std::make_unique<Sequence>(cache, handle);
}

std::vector<xquant::Sequence> handles(const std::vector<Sequence*>& sequences) {
    std::vector<xquant::Sequence> out;
    for (const Sequence* sequence : sequences) out.push_back(sequence->of);
    return out;
}

/// The array that attention writes: `out`, or a new one [rows, width].
struct Answer {
    nb::object array;
    float* data;
    std::size_t stride;
};
Answer answer_of(std::optional<FloatArray> out, std::size_t rows, std::size_t width) {
    if (!out) {
        auto memory = std::make_unique<float[]>(rows * width);
        float* const data = memory.get();
        nb::capsule owner(memory.release(), [](void* p) noexcept { delete[] static_cast<float*>(p); });
        nb::ndarray<nb::numpy, float, nb::ndim<2>> array(data, {rows, width}, owner);
        return {nb::cast(array), data, width};
    }
    const Rows given = rows_of(*out, "out");
    expects(given.count == rows && given.columns == width, "out is [", given.count, ", ", given.columns,
            "]; expected [", rows, ", ", width, "]");
    return {nb::cast(*out), out->data(), given.stride};
}

/// New tokens on their way through the layers: a context manager, which commits where nothing was raised.
struct Step {
    std::shared_ptr<Cache> cache;
    std::unique_ptr<runtime::Step> of;
    std::vector<nb::object> sequences;

    [[nodiscard]] runtime::Step& there() const {
        expects<xquant::state_error>(of != nullptr, "the step has ended");
        return *of;
    }
};

using Parts = std::vector<std::pair<nb::object, nb::object>>;

std::unique_ptr<Step> begin(const std::shared_ptr<Cache>& cache, const nb::object& parts) {
    auto out = std::make_unique<Step>();
    std::vector<xquant::StepPart> list;
    std::vector<std::vector<std::int32_t>> trees;
    const auto add = [&](nb::handle sequence, nb::handle tokens) {
        xquant::StepPart part{nb::cast<Sequence*>(sequence)->of, 0, {}, {}};
        if (nb::isinstance<nb::int_>(tokens)) {
            part.tokens = nb::cast<std::size_t>(tokens);
        } else {
            trees.push_back(nb::cast<std::vector<std::int32_t>>(tokens));
            part.tokens = trees.back().size();
            part.parents = trees.back();
        }
        list.push_back(part);
        out->sequences.push_back(nb::borrow(sequence));
    };
    if (nb::isinstance<nb::dict>(parts)) {
        for (const auto& [sequence, tokens] : nb::cast<nb::dict>(parts)) add(sequence, tokens);
    } else {
        for (const nb::handle part : parts) add(part[0], part[1]);
    }
    out->cache = cache;
    out->of = cache->of->begin(list);
    return out;
}

/// Python's exceptions, by the library's types.
struct Errors {
    nb::object base, shape, value, sequence, state, budget, file, damage, mismatch, level;
};
Errors* errors = nullptr;

nb::object make_error(nb::module_& m, const char* name, const char* about, nb::tuple bases) {
    const std::string full = "xquant." + std::string(name);
    PyObject* const made = PyErr_NewExceptionWithDoc(full.c_str(), about, bases.ptr(), nullptr);
    if (made == nullptr) throw nb::python_error();
    nb::object out = nb::steal(made);
    m.attr(name) = out;
    return out;
}

void translate(const std::exception_ptr& thrown, void*) {
    const auto set = [](const nb::object& type, const std::exception& e) { PyErr_SetString(type.ptr(), e.what()); };
    try {
        std::rethrow_exception(thrown);
    } catch (const xquant::value_error& e) {
        set(errors->value, e);
    } catch (const xquant::shape_error& e) {
        set(errors->shape, e);
    } catch (const xquant::sequence_error& e) {
        set(errors->sequence, e);
    } catch (const xquant::state_error& e) {
        set(errors->state, e);
    } catch (const xquant::budget_error& e) {
        set(errors->budget, e);
    } catch (const xquant::damage_error& e) {
        set(errors->damage, e);
    } catch (const xquant::mismatch_error& e) {
        set(errors->mismatch, e);
    } catch (const xquant::file_error& e) {
        set(errors->file, e);
    } catch (const runtime::level_error& e) {
        set(errors->level, e);
    } catch (const xquant::error& e) {
        set(errors->base, e);
    }
}

void add_errors(nb::module_& m) {
    errors = new Errors;  // as long as the process
    const auto builtin = [](PyObject* type) { return nb::borrow(type); };
    errors->base = make_error(m, "Error", "Base of the errors of xquant.", nb::make_tuple(builtin(PyExc_Exception)));
    const auto derived = [&](const char* name, const char* about, PyObject* also) {
        return make_error(m, name, about, nb::make_tuple(errors->base, builtin(also)));
    };
    errors->shape = derived("ShapeError", "A size, setting or name that does not fit.", PyExc_ValueError);
    errors->value =
        derived("NumberError", "A value that cannot be stored: not finite, or too large.", PyExc_ValueError);
    errors->sequence =
        derived("SequenceError", "A sequence that does not exist, or that another step is using.", PyExc_LookupError);
    errors->state = derived("StateError", "A call out of order.", PyExc_RuntimeError);
    errors->budget = derived("BudgetError", "A budget does not allow what was asked for.", PyExc_MemoryError);
    errors->file = derived("FileError", "A file that cannot be written or read.", PyExc_OSError);
    errors->level = derived("LevelError", "No code of the library for this processor.", PyExc_ImportError);
    errors->damage = make_error(m, "DamageError", "A file whose bytes are not those that were written.",
                                nb::make_tuple(errors->file));
    errors->mismatch =
        make_error(m, "MismatchError", "A file of another scheme, shape or model.", nb::make_tuple(errors->file));
    nb::register_exception_translator(translate);
}

void set_up_layer(Layer* self, std::size_t heads, std::size_t kv_heads, std::size_t head_dim, std::size_t width,
                  const std::string& input, std::optional<Array> w_k, std::optional<Array> w_v,
                  std::optional<Array> w_o, const std::vector<double>& inverse_frequencies, const std::string& pairing,
                  double rope_factor, double softmax_scale, double soft_cap, std::size_t window, std::size_t chunk,
                  const Vector& b_k, const Vector& b_v, const Vector& k_norm, double k_norm_epsilon,
                  const Vector& alibi_slopes, const Vector& sink_logits, const Vector& mean) {
    new (self) Layer;
    xquant::Layer& out = self->of;
    out.shape = {width, heads, kv_heads, head_dim};
    out.input =
        named<xquant::LayerInput>(input, "input", {"x", "keys_before_rope", "keys_after_rope", "keys_in_place"});
    out.rope = {named<xquant::RopePairing>(pairing, "pairing", {"interleaved", "halves"}), inverse_frequencies,
                rope_factor};
    const auto matrix = [&](std::optional<Array>& a, const char* name) {
        if (!a) return xquant::MatrixView{};
        self->kept.push_back(nb::cast(*a));
        return view(*a, name);
    };
    const auto vector = [&](const Vector& a, std::size_t length, const char* name) {
        if (a) self->kept.push_back(nb::cast(*a));
        return floats(a, length, name);
    };
    out.w_k = matrix(w_k, "w_k");
    out.w_v = matrix(w_v, "w_v");
    out.w_o = matrix(w_o, "w_o");
    out.softmax_scale = softmax_scale;
    out.soft_cap = soft_cap;
    out.window = window;
    out.chunk = chunk;
    out.b_k = vector(b_k, out.shape.kv_width(), "b_k");
    out.b_v = vector(b_v, out.shape.kv_width(), "b_v");
    out.k_norm = vector(k_norm, head_dim, "k_norm");
    out.k_norm_epsilon = k_norm_epsilon;
    out.alibi_slopes = vector(alibi_slopes, heads, "alibi_slopes");
    out.sink_logits = vector(sink_logits, heads, "sink_logits");
    out.mean = vector(mean, width, "mean");
}

std::shared_ptr<Cache> make_cache(const std::string& scheme, const std::vector<Layer*>& layers, std::size_t threads,
                                  const xquant::Calibration* calibration, const nb::kwargs& settings) {
    const xquant::Model model = model_of(layers, calibration);
    const xquant::Options options = options_of(settings);
    auto out = std::make_shared<Cache>();
    for (const xquant::Layer& layer : model.layers) {
        out->query_width.push_back(layer.shape.heads * layer.shape.head_dim);
        out->inputs.push_back(layer.input);
    }
    const nb::gil_scoped_release no_gil;
    out->threads = std::make_unique<xquant::bindings::Pool>(threads);
    out->of = runtime::make_cache(scheme, model, options);
    return out;
}

nb::object attend_step(const Step& step, std::size_t layer, const Array& q, std::optional<FloatArray> out, bool whole) {
    runtime::Step& of = step.there();
    const xquant::MatrixView queries = view(q, "q");
    Answer answer = answer_of(std::move(out), of.size(), step.cache->width_of(layer));
    {
        const nb::gil_scoped_release no_gil;
        of.attend(layer, queries, answer.data, whole ? xquant::Visibility::whole : xquant::Visibility::causal,
                  answer.stride, step.cache->executor());
    }
    return answer.array;
}

nb::object attend_stored(const std::shared_ptr<Cache>& cache, std::size_t layer, const Parts& parts, const Array& q,
                         std::optional<FloatArray> out, bool whole) {
    std::vector<xquant::QueryPart> list;
    std::size_t rows = 0;
    for (const auto& [sequence, count] : parts) {
        list.push_back({nb::cast<Sequence*>(sequence)->of, nb::cast<std::size_t>(count)});
        rows += list.back().rows;
    }
    const xquant::MatrixView queries = view(q, "q");
    Answer answer = answer_of(std::move(out), rows, cache->width_of(layer));
    {
        const nb::gil_scoped_release no_gil;
        cache->of->attend(layer, list, queries, answer.data,
                          whole ? xquant::Visibility::whole : xquant::Visibility::causal, answer.stride,
                          cache->executor());
    }
    return answer.array;
}

nb::bytes save_to_bytes(const std::shared_ptr<Cache>& cache, const std::vector<Sequence*>& sequences,
                        const std::string& note) {
    std::string bytes;
    {
        const nb::gil_scoped_release no_gil;
        const std::vector<xquant::Sequence> list = handles(sequences);
        bytes.reserve(cache->of->saved_bytes(list, note));
        const auto sink = [&bytes](std::span<const std::byte> part) {
            bytes.append(reinterpret_cast<const char*>(part.data()), part.size());
        };
        cache->of->save(list, sink, note);
    }
    return nb::bytes(bytes.data(), bytes.size());
}

nb::tuple loaded(const std::shared_ptr<Cache>& cache, const xquant::Loaded& found) {
    nb::list sequences;
    for (const xquant::Sequence sequence : found.sequences) sequences.append(nb::cast(wrapped(cache, sequence)));
    return nb::make_tuple(sequences, found.note);
}

nb::tuple load_from_bytes(const std::shared_ptr<Cache>& cache, const nb::bytes& data) {
    xquant::Loaded found;
    {
        const std::span<const std::byte> all(static_cast<const std::byte*>(data.data()), data.size());
        const nb::gil_scoped_release no_gil;
        auto source = [left = all](std::span<std::byte> to) mutable {
            expects<xquant::damage_error>(to.size() <= left.size(), "saved cache: the bytes end too soon");
            std::copy_n(left.begin(), to.size(), to.begin());
            left = left.subspan(to.size());
        };
        found = cache->of->load(source);
    }
    return loaded(cache, found);
}

std::unique_ptr<Sequence> transcode(const Sequence& from, const std::shared_ptr<Cache>& cache) {
    xquant::Sequence made;
    {
        const nb::gil_scoped_release no_gil;
        made = from.cache->of->transcode(from.of, *cache->of, cache->executor());
    }
    return wrapped(cache, made);
}

void add_sequence(nb::module_& m) {
    nb::class_<Sequence>(
        m, "Sequence",
        "Tokens of one text in a cache, made by Cache.create, fork or load. It is dropped with the last "
        "reference to it; forks of it live on.")
        .def("__len__", [](const Sequence& s) { return s.cache->of->size(s.of); })
        .def("__repr__",
             [](const Sequence& s) {
                 return s.there ? "<xquant.Sequence of " + std::to_string(s.cache->of->size(s.of)) + " tokens>"
                                : std::string("<xquant.Sequence, dropped>");
             })
        .def(
            "fork",
            [](const Sequence& s, std::optional<std::size_t> tokens) {
                return wrapped(s.cache, tokens ? s.cache->of->fork(s.of, *tokens) : s.cache->of->fork(s.of));
            },
            "tokens"_a = nb::none(), "A second sequence with the first `tokens` tokens, or all. Pages are shared.")
        .def(
            "truncate", [](const Sequence& s, std::size_t tokens) { s.cache->of->truncate(s.of, tokens); }, "tokens"_a,
            "Keeps the first `tokens` tokens.")
        .def(
            "erase",
            [](const Sequence& s, std::size_t begin, std::size_t end, bool keep_gap) {
                s.cache->of->erase(s.of, begin, end, keep_gap ? xquant::Gap::keep : xquant::Gap::close);
            },
            "begin"_a, "end"_a, "keep_gap"_a = false,
            "Takes out tokens begin .. end; those behind them move up, exactly, or stay (keep_gap).")
        .def(
            "shift",
            [](const Sequence& s, std::size_t begin, std::int64_t delta, std::optional<std::size_t> end) {
                if (end) return s.cache->of->shift(s.of, begin, *end, delta);
                s.cache->of->shift(s.of, begin, delta);
            },
            "begin"_a, "delta"_a, "end"_a = nb::none(),
            "Moves tokens begin .. end by delta positions, exactly; without end all from begin on, and the next one.")
        .def(
            "seal", [](const Sequence& s) { s.cache->of->seal(s.of); },
            "Encodes every row outside the window now: for a sequence that rests.")
        .def(
            "compact", [](const Sequence& s) { s.cache->of->compact(s.of); },
            "Moves rows together where tokens were erased.")
        .def("transcode", &transcode, "cache"_a,
             "A sequence of another cache of this model, of what this one has stored: what rested in a small scheme "
             "goes on in a fast one. This sequence does not change.")
        .def("drop", &Sequence::drop, "Forgets the tokens now.")
        .def_prop_rw(
            "next_position", [](const Sequence& s) { return s.cache->of->next_position(s.of); },
            [](const Sequence& s, std::int64_t position) { s.cache->of->set_next_position(s.of, position); },
            "The position of the next token.")
        .def(
            "position_of", [](const Sequence& s, std::size_t token) { return s.cache->of->position_of(s.of, token); },
            "token"_a, "The position of a token.")
        .def_prop_ro(
            "shortest_prefix", [](const Sequence& s) { return s.cache->of->shortest_prefix(s.of); },
            "From how many tokens on truncate and fork accept every number.");
}

void add_step(nb::module_& m) {
    nb::class_<Step>(
        m, "Step",
        "New tokens on their way through the layers, made by Cache.step. As a context manager it commits at "
        "the end of the block, and leaves the cache as it was where the block raises.")
        .def("__len__", [](const Step& s) { return s.there().size(); })
        .def("__enter__", [](nb::object self) { return self; })
        .def(
            "__exit__",
            [](Step& s, const nb::object& type, const nb::object&, const nb::object&) {
                if (s.of != nullptr && type.is_none()) s.of->commit();
                s.of.reset();
                s.sequences.clear();
                return false;
            },
            "type"_a.none(), "value"_a.none(), "traceback"_a.none())
        .def(
            "append",
            [](const Step& s, std::size_t layer, const Array& x) {
                runtime::Step& of = s.there();
                const xquant::MatrixView rows = view(x, "x");
                const nb::gil_scoped_release no_gil;
                of.append(layer, rows, s.cache->executor());
            },
            "layer"_a, "x"_a,
            "Stores a layer's rows x [n, D], float32, float16 or bfloat16, NumPy or anything with DLPack. Layers come "
            "in "
            "order.")
        .def(
            "append_kv",
            [](const Step& s, std::size_t layer, const Array& k, const Array& v) {
                runtime::Step& of = s.there();
                const xquant::MatrixView keys = view(k, "k"), values = view(v, "v");
                const nb::gil_scoped_release no_gil;
                of.append_kv(layer, keys, values, s.cache->executor());
            },
            "layer"_a, "k"_a, "v"_a, "Stores a layer's k and v [n, Hkv * Dh], or [n, Hkv, Dh].")
        .def("attend", &attend_step, "layer"_a, "q"_a, "out"_a = nb::none(), "whole"_a = false,
             "Attention of a layer that was appended: q [n, H * Dh] (or [n, H, Dh]) after RoPE. Returns float32 "
             "[n, H * Dh], or writes `out` and returns it. whole: rows see those behind them as well.")
        .def(
            "commit",
            [](Step& s, const std::optional<std::vector<std::size_t>>& kept) {
                runtime::Step& of = s.there();
                if (kept) {
                    of.commit(*kept);
                } else {
                    of.commit();
                }
                s.of.reset();
                s.sequences.clear();
            },
            "kept"_a = nb::none(),
            "The sequences have the step's tokens from here on: all, or of drafts the rows `kept`, a path. The step "
            "has "
            "ended then.");
}

void add_cache(nb::module_& m) {
    nb::class_<Cache>(m, "Cache", "A cache for all layers of one model and any number of sequences.")
        .def(nb::new_(&make_cache), "scheme"_a, "layers"_a, "threads"_a = 1, "calibration"_a = nb::none(), "settings"_a,
             "A cache of a scheme, \"NAME\" or \"NAME:group=N\" (see schemes()).\n\n"
             "threads: how many work in append and attend; 0: one for each processor.\n"
             "calibration: what load_calibration read, for schemes that need statistics.\n"
             "settings: sinks=4, recent=128, rows=\"float16\", weights=\"float16\", strict=False, base_layer=2,\n"
             "last_layers=0, budget=0, workspace_budget=0, rebuilt=0; tokens, layers and bytes as in\n"
             "xquant::Options. A budget of 0 is no limit.")
        .def(
            "create", [](const std::shared_ptr<Cache>& c) { return wrapped(c, c->of->create()); }, "An empty sequence.")
        .def(
            "step", &begin, "parts"_a,
            "Starts a step that adds tokens: {sequence: tokens}, or a list of (sequence, tokens). A list of numbers in "
            "place of a number of tokens is a tree of drafts: which token of the step each one follows, or -1.")
        .def("attend", &attend_stored, "layer"_a, "parts"_a, "q"_a, "out"_a = nb::none(), "whole"_a = false,
             "Attention over what sequences have stored, without a step: parts [(sequence, rows)], q [all rows, H * "
             "Dh].")
        .def(
            "gather",
            [](const Cache& c, const std::vector<Sequence*>& sequences, const std::vector<std::size_t>& parents) {
                c.of->gather(handles(sequences), parents);
            },
            "sequences"_a, "parents"_a, "Sequence i becomes what sequence parents[i] of the list was: beam search.")
        .def(
            "bytes", [](const Cache& c) { return dict_of(c.of->bytes()); },
            "What is allocated, by purpose: codes, scales, tail, sinks, accumulator, index, weights, workspace, "
            "mapped, "
            "rebuilt; and the sums stored and total.")
        .def(
            "bits_per_token_layer",
            [](const Cache& c, std::size_t tokens) { return c.of->bits_per_token_layer(tokens); }, "tokens"_a = 1024,
            "Bits of codes, scales and zeros for `tokens` encoded tokens, per token and layer.")
        .def(
            "save",
            [](const Cache& c, const std::vector<Sequence*>& sequences, const std::string& path,
               const std::string& note) {
                const nb::gil_scoped_release no_gil;
                c.of->save(handles(sequences), path, note);
            },
            "sequences"_a, "path"_a, "note"_a = "",
            "Saves sequences in a file, which replaces `path` once it is complete.")
        .def("save_bytes", &save_to_bytes, "sequences"_a, "note"_a = "", "The bytes that save would write.")
        .def(
            "load",
            [](const std::shared_ptr<Cache>& c, const std::string& path) {
                xquant::Loaded found;
                {
                    const nb::gil_scoped_release no_gil;
                    found = c->of->load(path);
                }
                return loaded(c, found);
            },
            "path"_a, "Adds the sequences of a file: ([sequences], note). Pages are read where they lie in it.")
        .def("load_bytes", &load_from_bytes, "data"_a, "load from what save_bytes returned.")
        .def_prop_ro(
            "layers", [](const Cache& c) { return c.query_width.size(); }, "How many layers the model has.");
}

std::vector<xquant::PlannedScheme> plan(const std::vector<Layer*>& layers, const std::vector<std::string>& schemes,
                                        std::size_t context, std::size_t sequences, std::size_t memory,
                                        const xquant::Calibration* calibration, const std::string& machine,
                                        std::size_t threads, const nb::kwargs& settings) {
    const xquant::Model model = model_of(layers, calibration);
    const xquant::PlanRequest request{context, sequences, memory, options_of(settings)};
    const nb::gil_scoped_release no_gil;
    const xquant::Machine measured = runtime::machine(machine, threads);
    xquant::bindings::Pool pool(threads);
    return runtime::plan(model, measured, request, schemes, pool);
}

void add_plan(nb::module_& m) {
    using xquant::PlannedScheme;
    nb::class_<PlannedScheme>(m, "PlannedScheme", "A scheme, as a cache of it would be.")
        .def_ro("name", &PlannedScheme::name, "As Cache takes it.")
        .def_ro("unavailable", &PlannedScheme::unavailable, "Why there is no such cache of this model, or \"\".")
        .def_ro("cache", &PlannedScheme::cache, "Bytes of all sequences.")
        .def_ro("weights", &PlannedScheme::weights, "Bytes of prepared weights.")
        .def_prop_ro("bytes", &PlannedScheme::bytes, "Bytes of both.")
        .def_ro("read", &PlannedScheme::read, "Bytes that a token of every sequence reads.")
        .def_ro("seconds", &PlannedScheme::seconds, "Seconds of the cache for one new token of every sequence.")
        .def_ro("divergence", &PlannedScheme::divergence,
                "Mean Kullback-Leibler divergence from the exact cache, in nats; None: not known.")
        .def_ro("unknown", &PlannedScheme::unknown, "Why the divergence is not known, or \"\".")
        .def_ro("fits", &PlannedScheme::fits, "Into the memory that was asked for.")
        .def_ro("dominated_by", &PlannedScheme::dominated_by,
                "A scheme that is as good in every respect and better in one, or \"\".")
        .def("__repr__", [](const PlannedScheme& s) {
            return "<xquant.PlannedScheme " + s.name +
                   (s.available() ? ", " + std::to_string(s.bytes()) + " bytes>" : ", not available>");
        });
    m.def(
        "plan", &plan, "layers"_a, "schemes"_a = std::vector<std::string>(), "context"_a = 4096, "sequences"_a = 1,
        "memory"_a = 0, "calibration"_a = nb::none(), "machine"_a = "", "threads"_a = 1, "settings"_a,
        "What schemes would take, how long a token takes and what they cost in predictions, before a cache is made.\n\n"
        "schemes: names; none: all. context: tokens cached of each of `sequences` sequences. memory: bytes; 0: no\n"
        "limit. calibration: what load_calibration read; without one, divergences are not known. machine: the file\n"
        "of what this machine can do with so many threads: measured, and written, where it is not there; \"\":\n"
        "measured each time, in a second or two. settings: as Cache takes them.");
}

#if defined(XQUANT_PYTHON_CALIBRATOR)
using FloatRows = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;

/// The values of rows [n, ...] of this width. Throws shape_error.
const float* rows_of_width(const FloatRows& a, const char* name, std::size_t n, std::size_t width) {
    const Rows rows = rows_of(a, name);
    expects(rows.count == n && rows.columns == width, name, " is [", rows.count, ", ", rows.columns, "]; expected [", n,
            ", ", width, "]");
    return a.data();
}

void set_up_calibrator(Calibrator* self, const nb::list& layers, std::size_t sinks, bool joint, std::size_t threads) {
    Calibrator out;
    for (const nb::handle layer : layers) out.layers.push_back(nb::borrow(layer));
    out.model = model_of(nb::cast<std::vector<Layer*>>(layers));
    for (std::size_t i = 0; i < out.model.layers.size(); ++i) {
        expects(out.model.layers[i].input == xquant::LayerInput::keys_before_rope, "layer ", i, ": input is ",
                xquant::to_string(out.model.layers[i].input), "; a Calibrator learns from keys_before_rope");
    }
    xquant::CalibratorOptions options;
    options.sinks = sinks;
    options.joint = joint;
    out.threads = std::make_unique<xquant::bindings::Pool>(threads);
    out.of = std::make_unique<xquant::Calibrator>(out.model, options);
    new (self) Calibrator(std::move(out));
}

void add_context(Calibrator& self, std::size_t layer, const FloatRows& k, const FloatRows& v, const FloatRows& q) {
    expects(layer < self.model.layers.size(), "layer ", layer, " of a model of ", self.model.layers.size());
    const xquant::LayerShape& shape = self.model.layers[layer].shape;
    expects(k.ndim() >= 2, "k has ", k.ndim(), " dimensions; expected 2 or more");
    const std::size_t n = k.shape(0);
    const float* const keys = rows_of_width(k, "k", n, shape.kv_width());
    const float* const values = rows_of_width(v, "v", n, shape.kv_width());
    const float* const queries = rows_of_width(q, "q", n, shape.heads * shape.head_dim);
    const nb::gil_scoped_release no_gil;
    self.of->add_kv(layer, n, keys, values, queries, xquant::ExecutorRef(*self.threads));
}

void add_calibrator(nb::module_& m) {
    nb::class_<Calibrator>(m, "Calibrator", "Gathers a Calibration from the rows of a text.")
        .def("__init__", &set_up_calibrator, "layers"_a, nb::kw_only(), "sinks"_a = 4, "joint"_a = true,
             "threads"_a = 1,
             "layers: with the input keys_before_rope, and w_o where errors of the model's own stream are to count.\n"
             "sinks: first tokens of a context that are left out. joint: for joint* as well, [Hkv * Dh]^2 numbers a "
             "layer.")
        .def("add_kv", &add_context, "layer"_a, "k"_a, "v"_a, "q"_a,
             "A context's rows of a layer, from position 0 on, 512 to 2,048 tokens: k before RoPE and v [n, Hkv, Dh], "
             "q [n, H, Dh] after RoPE; float32 without gaps.")
        .def_prop_ro(
            "tokens", [](const Calibrator& c) { return c.of->tokens(); }, "Tokens of layer 0 so far, without sinks.")
        .def(
            "finish", [](const Calibrator& c) { return c.of->finish(); }, "The statistics of what was added.");
}
#else
/// Without Eigen there are no bases to learn.
struct Calibrator {};

void add_calibrator(nb::module_& m) {
    nb::class_<Calibrator>(m, "Calibrator", "The package was compiled without Eigen: there is no Calibrator.")
        .def("__init__", [](Calibrator*, const nb::args&, const nb::kwargs&) {
            xquant::detail::raise<xquant::state_error>("the package was compiled without Eigen");
        });
}
#endif

void add_calibration(nb::module_& m) {
    nb::class_<xquant::Calibration>(m, "Calibration",
                                    "Statistics of a model's keys and values: load_calibration, or Calibrator.finish.")
        .def_ro("tokens", &xquant::Calibration::tokens, "Tokens that they were gathered from.")
        .def_ro("contexts", &xquant::Calibration::contexts, "Places of the text.")
        .def(
            "save",
            [](const xquant::Calibration& c, const std::string& path, const std::vector<Layer*>& layers) {
#if defined(XQUANT_PYTHON_FILES)
                xquant::save_calibration(c, model_of(layers), path);
#else
                static_cast<void>(c);
                static_cast<void>(path);
                static_cast<void>(layers);
                xquant::detail::raise<xquant::state_error>("the package was compiled without xxHash");
#endif
            },
            "path"_a, "layers"_a, "Writes a file for load_calibration and xquant-llm, which replaces `path`.");
    add_calibrator(m);
}

}  // namespace

NB_MODULE(_core, m) {
    m.doc() = "The extension of xquant.";
    add_errors(m);
    nb::class_<Layer>(
        m, "Layer",
        "One attention layer of a model: H query heads, Hkv key and value heads of Dh channels, and X of D "
        "channels (width).")
        .def("__init__", &set_up_layer, "heads"_a, "kv_heads"_a, "head_dim"_a, "width"_a = 0, nb::kw_only(),
             "input"_a = "x", "w_k"_a = nb::none(), "w_v"_a = nb::none(), "w_o"_a = nb::none(),
             "inverse_frequencies"_a = std::vector<double>(), "pairing"_a = "interleaved", "rope_factor"_a = 1.0,
             "softmax_scale"_a = 0.0, "soft_cap"_a = 0.0, "window"_a = 0, "chunk"_a = 0, "b_k"_a = nb::none(),
             "b_v"_a = nb::none(), "k_norm"_a = nb::none(), "k_norm_epsilon"_a = 1e-6, "alibi_slopes"_a = nb::none(),
             "sink_logits"_a = nb::none(), "mean"_a = nb::none(),
             "input: what the engine hands over, \"x\", \"keys_before_rope\", \"keys_after_rope\" or\n"
             "\"keys_in_place\". w_k, w_v [Hkv * Dh, D] and w_o [D, H * Dh]: weights as checkpoints store them, for\n"
             "schemes that read them. inverse_frequencies [at most Dh / 2]: radians a position (rope_frequencies);\n"
             "empty: no RoPE. Vectors are float32. The other fields are those of xquant::Layer.");
    add_sequence(m);
    add_step(m);
    add_cache(m);
    add_calibration(m);
    add_plan(m);
    m.def(
        "load_calibration",
        [](const std::string& path, const std::vector<Layer*>& layers) {
#if defined(XQUANT_PYTHON_FILES)
            return xquant::load_calibration(path, model_of(layers));
#else
            static_cast<void>(path);
            static_cast<void>(layers);
            xquant::detail::raise<xquant::state_error>("the package was compiled without xxHash");
            return xquant::Calibration{};
#endif
        },
        "path"_a, "layers"_a, "Reads what `xquant-llm calibrate` wrote for a model of these layers.");
    m.def(
        "predict",
        [](const std::string& scheme, const std::vector<Layer*>& layers, std::size_t tokens,
           const xquant::Calibration* calibration, const nb::kwargs& settings) {
            const xquant::Model model = model_of(layers, calibration);
            return dict_of(runtime::predict(scheme, model, options_of(settings), tokens));
        },
        "scheme"_a, "layers"_a, "tokens"_a, "calibration"_a = nb::none(), "settings"_a,
        "The bytes() of a scheme's cache with one sequence of `tokens` tokens, before there is one.");
    nb::class_<xquant::SchemeInfo>(m, "SchemeInfo", "A scheme that Cache knows.")
        .def_ro("name", &xquant::SchemeInfo::name, "As Cache takes it.")
        .def_ro("summary", &xquant::SchemeInfo::summary, "What is stored, in a line.")
        .def_prop_ro(
            "groups",
            [](const xquant::SchemeInfo& s) {
                std::vector<std::size_t> out;
                for (const auto& form : s.forms) out.push_back(form.group);
                return out;
            },
            "Sizes of groups that share a scale, the default first.")
        .def_prop_ro(
            "bits_per_value", [](const xquant::SchemeInfo& s) { return s.forms.front().bits_per_value; },
            "Scales, zeros and outliers included.")
        .def_prop_ro(
            "needs_statistics", [](const xquant::SchemeInfo& s) { return s.needs == xquant::Needs::statistics; },
            "Whether Cache has to be given a calibration.")
        .def("__repr__",
             [](const xquant::SchemeInfo& s) { return "<xquant.SchemeInfo " + s.name + ": " + s.summary + ">"; });
    m.def(
        "schemes", [] { return runtime::schemes(); }, "All schemes.");
    m.def(
        "level", [] { return std::make_pair(runtime::level().name, runtime::level().backend); },
        "The processor level whose code runs, and its backend: (\"x86-64-v4\", \"avx512_int8\").");
    m.def(
        "rope_frequencies",
        [](std::size_t head_dim, double base) { return xquant::Rope::standard(head_dim, base).inverse_frequencies; },
        "head_dim"_a, "base"_a = 10000.0, "base^(-2j / head_dim): the inverse frequencies of plain RoPE.");
    m.attr("__version__") =
        xquant::detail::text_of(XQUANT_VERSION_MAJOR, ".", XQUANT_VERSION_MINOR, ".", XQUANT_VERSION_PATCH);
}
