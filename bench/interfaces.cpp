// What does a step of one token cost through each interface: the headers, the compiled library in C++, the compiled
// library in C? A cache of one layer and few tokens, f16, so that little but the calls is measured; begin, append_kv,
// attend, commit. Times over the headers are those of the interface, since all three do the work by the same kernels
// where this program is compiled for the level that runs. Names: step/INTERFACE.
#include <benchmark/benchmark.h>

#include <cstddef>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

#include <xquant/xquant.h>
#include <xquant/registry.hpp>
#include <xquant/runtime.hpp>
#include <xquant/xquant.hpp>

namespace {

constexpr std::size_t heads = 9, kv_heads = 3, head_dim = 64, first = 16, most = 64;

/// One layer, and a row of everything.
struct Inputs {
    xquant::Model model;
    std::vector<float> k = rows(kv_heads), v = rows(kv_heads), q = rows(heads), out = rows(heads);

    Inputs() {
        xquant::Layer layer;
        layer.shape = {0, heads, kv_heads, head_dim};
        layer.input = xquant::LayerInput::keys_before_rope;
        layer.rope = xquant::Rope::standard(head_dim, 10000);
        model.layers.push_back(layer);
    }
    [[nodiscard]] static std::vector<float> rows(std::size_t n) {
        static std::mt19937 random(1);
        std::normal_distribution<float> normal;
        std::vector<float> out(first * n * head_dim);
        for (float& value : out) value = normal(random);
        return out;
    }
};

/// A step of n tokens, in C++.
template <class Cache>
void step(Cache& cache, xquant::Sequence sequence, Inputs& in, std::size_t n) {
    auto made = cache.begin({{sequence, n}});
    const auto add = [&](auto& to) {
        to.append_kv(0, {in.k.data(), n, kv_heads * head_dim}, {in.v.data(), n, kv_heads * head_dim});
        to.attend(0, {in.q.data(), n, heads * head_dim}, in.out.data());
        to.commit();
    };
    if constexpr (requires { *made; }) {
        add(*made);
    } else {
        add(made);
    }
}

template <class Cache>
void measure(benchmark::State& state, Cache& cache) {
    Inputs in;
    xquant::Sequence sequence = cache.create();
    step(cache, sequence, in, first);
    for (auto _ : state) {
        if (cache.size(sequence) == most) {
            state.PauseTiming();
            cache.drop(sequence);
            sequence = cache.create();
            step(cache, sequence, in, first);
            state.ResumeTiming();
        }
        step(cache, sequence, in, 1);
    }
    if (in.out[0] == 0) state.SkipWithError("attention answered zeros");
}

void headers(benchmark::State& state) {
    const Inputs in;
    const auto cache = xquant::make_cache("f16", in.model);
    measure(state, *cache);
}

void runtime(benchmark::State& state) {
    const Inputs in;
    const auto cache = xquant::runtime::make_cache("f16", in.model);
    measure(state, *cache);
}

void expect(xq_status status) {
    if (status != XQ_OK) throw std::runtime_error(xq_message());
}

void c_step(xq_cache* cache, xq_sequence sequence, Inputs& in, std::size_t n) {
    const xq_part part{sequence, n, nullptr, nullptr};
    xq_step* made = nullptr;
    expect(xq_step_begin(cache, &part, 1, &made));
    expect(xq_step_append_kv(made, 0, xq_floats(in.k.data(), n, kv_heads * head_dim),
                             xq_floats(in.v.data(), n, kv_heads * head_dim), nullptr));
    expect(xq_step_attend(made, 0, xq_floats(in.q.data(), n, heads * head_dim), in.out.data(), 0, XQ_CAUSAL, nullptr));
    expect(xq_step_commit(made));
    xq_step_free(made);
}

void c(benchmark::State& state) {
    Inputs in;
    const std::vector<double>& frequencies = in.model.layers[0].rope.inverse_frequencies;
    xq_layer layer;
    xq_layer_init(&layer);
    layer.heads = heads;
    layer.kv_heads = kv_heads;
    layer.head_dim = head_dim;
    layer.input = XQ_KEYS_BEFORE_ROPE;
    layer.inverse_frequencies = frequencies.data();
    layer.rope_pairs = frequencies.size();
    xq_cache* cache = nullptr;
    expect(xq_cache_create("f16", &layer, 1, nullptr, nullptr, &cache));
    xq_sequence sequence;
    std::size_t size = 0;
    const auto begin = [&] {
        expect(xq_sequence_create(cache, &sequence));
        c_step(cache, sequence, in, first);
    };
    begin();
    for (auto _ : state) {
        expect(xq_sequence_size(cache, sequence, &size));
        if (size == most) {
            state.PauseTiming();
            expect(xq_sequence_drop(cache, sequence));
            begin();
            state.ResumeTiming();
        }
        c_step(cache, sequence, in, 1);
    }
    if (in.out[0] == 0) state.SkipWithError("attention answered zeros");
    xq_cache_free(cache);
}

BENCHMARK(headers)->Name("step/headers");
BENCHMARK(runtime)->Name("step/runtime");
BENCHMARK(c)->Name("step/c");

}  // namespace

BENCHMARK_MAIN();
