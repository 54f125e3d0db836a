// What does attention of 512 new tokens cost with T cached, beside ggml, which llama.cpp computes it with? One layer,
// one thread, the same keys, values and queries. Names: attend_prompt/who/shape/T. `who` is a scheme of ours, or
// ggml's flash attention over f16 or q8_0, or its product, softmax and product over f16.
#include "../caches_of.hpp"
#include "../loaded.hpp"
#include "compiled/best.hpp"
#include "ggml_attention.hpp"

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <tuple>

#ifdef XQUANT_BENCH_SVD
#include <xquant/projection/key_value_latent.hpp>
#endif

namespace bench {
namespace {

constexpr std::size_t rows = 512;

/// K after RoPE, V and the queries of a prompt behind `tokens` tokens, as caches of ours are filled with.
struct Prompt {
    Prompt(const Shape& shape, std::size_t tokens) : q(random_queries(shape, rows)) {
        const std::size_t used = shape.layer.head_dim, width = shape.layer.kv_width(), all = tokens + rows;
        const RandomLayer layer(shape, used, used);
        const std::vector<float> x = layer.x(0, all);
        const auto project = [&](const std::vector<float>& weights) {
            std::vector<float> columns(used * width), out(all * width, 0.0F);
            for (std::size_t c = 0; c < width; ++c) {
                for (std::size_t j = 0; j < used; ++j) columns[j * width + c] = weights[c * used + j];
            }
            for (std::size_t t = 0; t < all; ++t) {
                for (std::size_t j = 0; j < used; ++j) {
                    const float factor = x[t * used + j];
                    for (std::size_t c = 0; c < width; ++c) out[t * width + c] += factor * columns[j * width + c];
                }
            }
            return out;
        };
        k = project(layer.w_k);
        v = project(layer.w_v);
        const auto& turns = layer.model.layers[0].rope.inverse_frequencies;
        for (std::size_t t = 0; t < all; ++t) {
            for (std::size_t j = 0; j < width / 2; ++j) {
                const double angle = static_cast<double>(t) * turns[j % turns.size()];
                float* const pair = k.data() + t * width + 2 * j;
                const auto a = static_cast<double>(pair[0]), b = static_cast<double>(pair[1]);
                pair[0] = static_cast<float>(a * std::cos(angle) - b * std::sin(angle));
                pair[1] = static_cast<float>(a * std::sin(angle) + b * std::cos(angle));
            }
        }
    }

    std::vector<float> k, v, q;
};

/// Products of queries with keys and of weights with values, the same for all: of what a row sees.
double operations(const Shape& shape, std::size_t tokens) {
    const double seen = static_cast<double>(tokens) + static_cast<double>(rows + 1) / 2;
    return 4 * seen * static_cast<double>(rows * shape.layer.heads * shape.layer.head_dim);
}

/// Times f, whose answer differs from the exact one by `error`.
template <class F>
void measure(benchmark::State& state, const Shape& shape, std::size_t tokens, double bytes, double error, double bound,
             F&& f) {
    state.counters["error"] = error;
    if (!(error <= bound)) return state.SkipWithError("attention differs from the exact answer");
    double seconds = 0;
    for (auto _ : state) {
        evict_caches();
        const double start = thread_seconds();
        f();
        const double each = thread_seconds() - start;
        state.SetIterationTime(each);
        seconds += each;
    }
    count(state, {bytes, operations(shape, tokens)}, seconds);
}

void ours(benchmark::State& state, const Backend& backend, const Scheme& scheme, const Shape& shape,
          std::size_t tokens) {
    Loaded& at = loaded(backend, scheme, shape, tokens, rows);
    measure(state, shape, tokens, at.cache->stored_bytes(tokens + rows), at.error, scheme.bound, [&] { at.attend(); });
}

struct Form {
    const char* name;
    GgmlForm form;
    double bound, bytes;  ///< of the error; of a value
};

/// ggml's tensors, and the error of its answer: as caches of ours, made at the first call.
struct KnownGgml {
    KnownGgml(const Form& of, const Shape& shape, std::size_t tokens) {
        const Prompt prompt(shape, tokens);
        const xquant::LayerShape& layer = shape.layer;
        const GgmlPrompt sizes{layer.heads, layer.kv_heads, layer.head_dim, tokens + rows, rows};
        attention = std::make_unique<GgmlAttention>(sizes, of.form, prompt.k, prompt.v, prompt.q);
        attention->run();
        error = relative_error(attention->answer(), exact_attention(shape, layer.head_dim, tokens, rows), rows);
    }

    std::unique_ptr<GgmlAttention> attention;
    double error = 0;
};

void ggmls(benchmark::State& state, const Form& of, const Shape& shape, std::size_t tokens) {
    static std::map<std::tuple<std::string, std::string, std::size_t>, KnownGgml> known;
    const KnownGgml& at = known.try_emplace({of.name, shape.name, tokens}, of, shape, tokens).first->second;
    const double values = 2 * static_cast<double>((tokens + rows) * shape.layer.kv_width());
    measure(state, shape, tokens, of.bytes * values, at.error, of.bound, [&] { at.attention->run(); });
}

/// The schemes that are compared. head4's bases are those of a layer of which nothing is known: they take as long as
/// any.
const Backend& compared() {
    static const Backend all = [] {
        Backend out{backends().back().name, {}};
        for (const Scheme& scheme : backends().back().schemes) {
            if (!scheme.stores_x && scheme.name != "kivi4") out.schemes.push_back(scheme);
        }
#ifdef XQUANT_BENCH_SVD
        using Head = xq::preset::head_latent<4>;
        out.schemes.push_back(
            {"head4", false, 0.3, [](const xq::Model& model, std::size_t) -> std::unique_ptr<Cache> {
                 const xq::LayerShape& shape = model.layers.front().shape;
                 const std::size_t dh = shape.head_dim;
                 static std::deque<xq::LayerStatistics> kept;  // caches refer to theirs
                 xq::LayerStatistics& alike = kept.emplace_back();
                 for (auto* blocks : {&alike.key_spread, &alike.key_cost, &alike.value_spread, &alike.value_cost}) {
                     blocks->assign(shape.kv_heads * dh * dh, 0.0F);
                     for (std::size_t i = 0; i < shape.kv_heads * dh; ++i) {
                         (*blocks)[i * dh + i % dh] = 1 + static_cast<float>(i % dh) / 16;
                     }
                 }
                 xq::Model known = model;
                 known.layers.front().statistics = &alike;
                 return std::make_unique<CacheOf<Head>>(known, options());
             }});
#endif
        return out;
    }();
    return all;
}

[[maybe_unused]] const bool registered = [] {
    // Sums of products of values in f16; of V in 8 bits and of queries in 8 bits.
    static const Form forms[] = {{"ggml_flash_f16", GgmlForm::flash_f16, 4e-3, 2},
                                 {"ggml_flash_q8_0", GgmlForm::flash_q8_0, 4e-2, 34.0 / 32},
                                 {"ggml_unfused_f16", GgmlForm::unfused_f16, 4e-3, 2}};
    for (const Shape& shape : shapes) {
        for (const std::size_t tokens : {512U, 8192U}) {
            const auto add = [&](const std::string& who, auto&& run) {
                benchmark::RegisterBenchmark(
                    ("attend_prompt/" + who + "/" + shape.name + "/T" + std::to_string(tokens)).c_str(), run)
                    ->UseManualTime()
                    ->Unit(benchmark::kMillisecond)
                    ->Iterations(1);
            };
            for (const Form& form : forms) {
                add(form.name, [&, tokens](benchmark::State& state) { ggmls(state, form, shape, tokens); });
            }
            for (const Scheme& scheme : compared().schemes) {
                add(scheme.name,
                    [&, tokens](benchmark::State& state) { ours(state, compared(), scheme, shape, tokens); });
            }
        }
    }
    return true;
}();

}  // namespace
}  // namespace bench
