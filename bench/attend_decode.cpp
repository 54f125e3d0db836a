// What does one new token's attention cost with T tokens cached, under each scheme? One layer, one thread.
// Names: attend_decode/scheme/shape/T/backend. Bytes are those stored for the T tokens.
#include <benchmark/benchmark.h>

#include <cmath>
#include <string>

#ifdef XQUANT_BENCH_SVD
#include <xquant/projection/svd.hpp>
#endif
#include <xquant/xquant.hpp>

#include "data.hpp"

namespace {

namespace xq = xquant;

using Exact = xq::XCache<xq::Unquantized<float>, xq::Layout<xq::PerToken>, xq::CrossLayer<xq::Off>,
                         xq::Projection<xq::KeyValue<xq::AfterRope>>>;

struct Case {
    xq::LayerShape shape;
    std::vector<float> w_k, w_v, x, q;
    xq::Model model;

    Case(const xq::LayerShape& layer, std::size_t tokens)
        : shape(layer),
          w_k(bench::rows(layer.kv_width() * layer.width, 2)),
          w_v(bench::rows(w_k.size(), 3)),
          x(bench::rows((tokens + 1) * layer.width, 4)),
          q(bench::rows(layer.heads * layer.head_dim, 5)),
          model(xq::Model::uniform(1, layer, xq::Rope::standard(layer.head_dim))) {
        model.layers[0].w_k = xq::MatrixView(w_k.data(), layer.kv_width(), layer.width);
        model.layers[0].w_v = xq::MatrixView(w_v.data(), layer.kv_width(), layer.width);
    }
};

/// A cache with `tokens` tokens, and a step with one more that was appended.
template <class Cache>
struct Loaded {
    Cache cache;
    typename Cache::Step step;

    Loaded(const Case& data, std::size_t tokens) : cache(data.model, {}), step(fill(cache, data, tokens)) {}

    static typename Cache::Step fill(Cache& cache, const Case& data, std::size_t tokens) {
        const xq::Sequence sequence = cache.create();
        constexpr std::size_t at_once = 1024;
        for (std::size_t done = 0; done < tokens; done += at_once) {
            const std::size_t n = std::min(at_once, tokens - done);
            auto prompt = cache.begin({{sequence, n}});
            prompt.append(0, xq::MatrixView(data.x.data() + done * data.shape.width, n, data.shape.width));
            prompt.commit();
        }
        auto last = cache.begin({{sequence, 1}});
        last.append(0, xq::MatrixView(data.x.data() + tokens * data.shape.width, 1, data.shape.width));
        return last;
    }

    std::vector<float> attend(const Case& data) {
        std::vector<float> out(data.q.size());
        step.attend(0, xq::MatrixView(data.q.data(), 1, data.q.size()), out.data());
        return out;
    }
};

template <class Cache>
void attend_decode(benchmark::State& state, xq::LayerShape shape, std::size_t tokens, double bound) {
    const Case data(shape, tokens);
    Loaded<Cache> loaded(data, tokens);
    const std::vector<float> exact = Loaded<Exact>(data, tokens).attend(data);
    std::vector<float> out = loaded.attend(data);
    double difference = 0, size = 0;
    for (std::size_t i = 0; i < out.size(); ++i) {
        difference += std::pow(static_cast<double>(out[i] - exact[i]), 2);
        size += std::pow(static_cast<double>(exact[i]), 2);
    }
    const double error = std::sqrt(difference / size);
    if (!(error <= bound)) return state.SkipWithError("wrong values");
    const xq::MatrixView q(data.q.data(), 1, data.q.size());
    for (auto _ : state) {
        loaded.step.attend(0, q, out.data());
        benchmark::ClobberMemory();
    }
    const auto bytes = static_cast<double>(loaded.cache.bytes().stored());
    state.SetBytesProcessed(static_cast<std::int64_t>(static_cast<double>(state.iterations()) * bytes));
    state.counters["error"] = error;
    state.counters["bytes_per_token"] = bytes / static_cast<double>(tokens);
    state.counters["ns_per_token_and_kv_head"] =
        benchmark::Counter(static_cast<double>(tokens * shape.kv_heads) * static_cast<double>(state.iterations()) / 1e9,
                           benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}

template <class Cache>
void add(const std::string& scheme, double bound) {
    const std::pair<const char*, xq::LayerShape> shapes[] = {{"smollm2_135m", {576, 9, 3, 64}},
                                                             {"llama3_8b", {4096, 32, 8, 128}}};
    for (const auto& [name, shape] : shapes) {
        if (shape.width > 1024 && scheme.starts_with("svd")) continue;  // minutes of SVD
        for (const std::size_t tokens : {std::size_t{512}, std::size_t{4096}}) {
            benchmark::RegisterBenchmark(
                ("attend_decode/" + scheme + "/" + name + "/" + std::to_string(tokens) + "/" + xq::backend::best::name)
                    .c_str(),
                attend_decode<Cache>, shape, tokens, bound);
        }
    }
}

[[maybe_unused]] const bool registered = [] {
    namespace preset = xq::preset;
    add<preset::f16_kv>("f16", 1e-2);
    add<preset::q8_0>("q8_0", 5e-2);
    add<preset::q4_0>("q4_0", 0.5);
    add<preset::kivi<4>>("kivi4", 0.5);
    add<preset::rotated_x<4>>("x4_rot", 0.5);
#ifdef XQUANT_BENCH_SVD
    add<preset::head_svd<4>>("svd_head4", 0.5);
#endif
    return true;
}();

}  // namespace
