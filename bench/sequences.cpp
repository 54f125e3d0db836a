// What do many sequences cost? Part of bin/xquant_bench_operations. One narrow layer, so that rows cost little beside
// the handling of sequences. Names: verb/sequences/N. `create` makes 100 beside N others; `begin`, `append`, `attend`
// and `gather` take all N, one token each; `requantize` looks at a page of each and rewrites the 8 that they share.
#include <benchmark/benchmark.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <xquant/xquant.hpp>

#include "compiled/best.hpp"

namespace {

using namespace xquant;
using Narrow = XCache<Requantizable<Uniform<4>, Uniform<2>>, Layout<PerToken>, CrossLayer<Off>, Projection<Plain>>;

constexpr LayerShape shape{.width = 16, .heads = 1, .kv_heads = 1, .head_dim = 8};

/// A cache with N sequences that begin with the same 1,028 tokens and have one more, in a page of its own.
struct Many {
    explicit Many(std::size_t n) {
        std::vector<float> weights(shape.kv_width() * shape.width);
        for (std::size_t i = 0; i < weights.size(); ++i) weights[i] = static_cast<float>(i % 7) - 3;
        Model model = Model::uniform(1, shape, Rope::standard(shape.head_dim));
        model.layers[0].w_k = model.layers[0].w_v = MatrixView(weights.data(), shape.kv_width(), shape.width);
        cache = std::make_unique<Narrow>(model, Options{.sinks = 4, .recent = 0});
        const Sequence first = cache->create();
        constexpr std::size_t tokens = 4 + 8 * 128;
        std::vector<float> x(tokens * shape.width);
        for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * i % 31) - 15;
        auto step = cache->begin({{first, tokens}});
        step.append(0, MatrixView(x.data(), tokens, shape.width));
        step.commit();
        for (std::size_t i = 0; i < n; ++i) {
            all.push_back(cache->fork(first));
            parts.push_back({all.back(), 1});
            parents.push_back(i / 2);
        }
        cache->drop(first);
        row.assign(n * shape.width, 0.5F);
        out.resize(n * shape.heads * shape.head_dim);
        auto own = cache->begin(parts);
        own.append(0, MatrixView(row.data(), n, shape.width));
        own.commit();
    }

    std::unique_ptr<Narrow> cache;
    std::vector<Sequence> all;
    std::vector<StepPart> parts;
    std::vector<std::size_t> parents;
    std::vector<float> row, out;
};

/// Times f(many, clock), which calls clock(work) for what counts.
template <class F>
void add(const char* verb, F f) {
    benchmark::RegisterBenchmark((std::string(verb) + "/sequences").c_str(),
                                 [f](benchmark::State& state) {
                                     Many many(static_cast<std::size_t>(state.range(0)));
                                     const auto clock = [&state](auto&& work) {
                                         const auto start = std::chrono::steady_clock::now();
                                         work();
                                         const auto end = std::chrono::steady_clock::now();
                                         state.SetIterationTime(std::chrono::duration<double>(end - start).count());
                                     };
                                     for (auto _ : state) f(many, clock);
                                 })
        ->Arg(1000)
        ->Arg(8000)
        ->Arg(32000)
        ->UseManualTime()
        ->Unit(benchmark::kMicrosecond);
}

[[maybe_unused]] const bool registered = [] {
    add("create", [](Many& many, const auto& clock) {
        clock([&] {
            for (int i = 0; i < 100; ++i) many.all.push_back(many.cache->create());
        });
        for (int i = 0; i < 100; ++i) {
            many.cache->drop(many.all.back());
            many.all.pop_back();
        }
    });
    add("begin", [](Many& many, const auto& clock) {
        clock([&] { benchmark::DoNotOptimize(many.cache->begin(many.parts).size()); });  // and its destruction
    });
    add("append", [](Many& many, const auto& clock) {
        auto step = many.cache->begin(many.parts);
        clock([&] { step.append(0, MatrixView(many.row.data(), many.parts.size(), shape.width)); });
    });
    add("attend", [](Many& many, const auto& clock) {
        auto step = many.cache->begin(many.parts);
        step.append(0, MatrixView(many.row.data(), many.parts.size(), shape.width));
        const MatrixView q(many.row.data(), many.parts.size(), shape.heads * shape.head_dim);
        clock([&] { step.attend(0, q, many.out.data()); });
    });
    add("gather", [](Many& many, const auto& clock) { clock([&] { many.cache->gather(many.all, many.parents); }); });
    add("requantize", [](Many& many, const auto& clock) {
        // On forks: pages go one way.
        std::vector<Sequence> forks;
        for (const Sequence s : many.all) forks.push_back(many.cache->fork(s));
        clock([&] { benchmark::DoNotOptimize(many.cache->requantize(forks).pages); });
        for (const Sequence s : forks) many.cache->drop(s);
    });
    return true;
}();

}  // namespace
