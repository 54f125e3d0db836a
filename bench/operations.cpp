// What do operations on sequences cost, and saving and loading? A program of its own: bin/xquant_bench_operations. Four
// layers of the shape of SmolLM2-135M; only saving, loading and requantizing depend on their number. Names:
// verb/scheme/T.
#include <benchmark/benchmark.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#ifdef XQUANT_BENCH_SVD
#include <xquant/projection/svd.hpp>
#endif
#include <xquant/persistence.hpp>
#include <xquant/xquant.hpp>

#include "compiled/best.hpp"

namespace {

using namespace xquant;
namespace preset = xquant::preset;
using Base = Cache<backend::best>;

constexpr std::size_t layers = 4;
constexpr LayerShape shape{.width = 576, .heads = 9, .kv_heads = 3, .head_dim = 64};

/// Numbers in [-1, 1) without a pattern.
std::vector<float> noise(std::size_t n, std::uint64_t seed) {
    std::vector<float> out(n);
    for (float& value : out) {
        seed = seed * 6364136223846793005U + 1442695040888963407U;
        value = static_cast<float>(static_cast<std::int32_t>(seed >> 40U) - (1 << 23)) * 0x1p-23F;
    }
    return out;
}

const Model& model() {
    static const std::vector<float> weights = noise(2 * layers * shape.kv_width() * shape.width, 1);
    static const Model made = [] {
        Model out = Model::uniform(layers, shape, Rope::standard(shape.head_dim));
        const std::size_t size = shape.kv_width() * shape.width;
        for (std::size_t i = 0; i < layers; ++i) {
            out.layers[i].w_k = MatrixView(weights.data() + 2 * i * size, shape.kv_width(), shape.width);
            out.layers[i].w_v = MatrixView(weights.data() + (2 * i + 1) * size, shape.kv_width(), shape.width);
        }
        return out;
    }();
    return made;
}

void fill(Base& cache, Sequence sequence, std::size_t tokens) {
    constexpr std::size_t some = 512;
    const std::vector<float> x = noise(some * shape.width, 3);
    for (std::size_t done = 0; done < tokens; done += some) {
        auto step = cache.begin({{sequence, some}});
        for (std::size_t i = 0; i < layers; ++i) step.append(i, MatrixView(x.data(), some, shape.width));
        step.commit();
    }
}

/// A cache with one sequence.
struct Filled {
    std::shared_ptr<Base> cache;
    Sequence sequence;
};

template <class Cache>
Filled& filled(std::size_t tokens) {
    static Filled made;
    static std::size_t has = 0;
    if (has != tokens) {
        made.cache = std::make_shared<Cache>(model(), Options{});
        made.sequence = made.cache->create();
        fill(*made.cache, made.sequence, tokens);
        has = tokens;
    }
    return made;
}

/// Times f(fork) on a fork of the sequence, which is made and dropped beside the clock.
template <class Cache, class F>
void on_fork(benchmark::State& state, F&& f) {
    const Filled& all = filled<Cache>(static_cast<std::size_t>(state.range(0)));
    for (auto _ : state) {
        const Sequence fork = all.cache->fork(all.sequence);
        const auto start = std::chrono::steady_clock::now();
        f(*all.cache, fork);
        state.SetIterationTime(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
        if (all.cache->size(fork) == static_cast<std::size_t>(state.range(0))) benchmark::DoNotOptimize(fork);
        all.cache->drop(fork);
    }
}

std::string file_name() {
    return (std::filesystem::temp_directory_path() / ("xquant_bench_" + std::to_string(::getpid()) + ".xq")).string();
}

void count_bytes(benchmark::State& state, const std::string& path) {
    state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(std::filesystem::file_size(path)));
}

template <class Cache>
void add(const char* scheme) {
    const auto name = [&](const char* verb) { return std::string(verb) + "/" + scheme; };
    const auto add_one = [&](const char* verb, auto&& f) {
        benchmark::RegisterBenchmark(name(verb).c_str(), f)
            ->Arg(4096)
            ->Arg(32768)
            ->UseManualTime()
            ->Unit(benchmark::kMicrosecond);
    };
    add_one("fork", [](benchmark::State& state) {
        const Filled& all = filled<Cache>(static_cast<std::size_t>(state.range(0)));
        for (auto _ : state) {
            const auto start = std::chrono::steady_clock::now();
            const Sequence fork = all.cache->fork(all.sequence);
            state.SetIterationTime(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
            all.cache->drop(fork);
        }
    });
    add_one("truncate", [](benchmark::State& state) {
        on_fork<Cache>(state, [](Base& cache, Sequence s) { cache.truncate(s, cache.size(s) - 100); });
    });
    add_one("erase", [](benchmark::State& state) {
        on_fork<Cache>(state, [](Base& cache, Sequence s) { cache.erase(s, 1000, 1100); });
    });
    add_one("shift", [](benchmark::State& state) {
        on_fork<Cache>(state, [](Base& cache, Sequence s) { cache.shift(s, 1000, 50); });
    });
    add_one("gather", [](benchmark::State& state) {
        on_fork<Cache>(state, [&](Base& cache, Sequence s) {
            const Sequence both[] = {filled<Cache>(static_cast<std::size_t>(state.range(0))).sequence, s};
            const std::size_t parents[] = {0, 0};
            cache.gather(both, parents);
        });
    });
    add_one("save", [](benchmark::State& state) {
        const Filled& all = filled<Cache>(static_cast<std::size_t>(state.range(0)));
        const std::string path = file_name();
        for (auto _ : state) {
            const auto start = std::chrono::steady_clock::now();
            save(*all.cache, std::vector<Sequence>{all.sequence}, path);
            state.SetIterationTime(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
        }
        count_bytes(state, path);
        std::remove(path.c_str());
    });
    for (const bool map : {true, false}) {
        add_one(map ? "load_mapped" : "load_copied", [map](benchmark::State& state) {
            const Filled& all = filled<Cache>(static_cast<std::size_t>(state.range(0)));
            const std::string path = file_name();
            save(*all.cache, std::vector<Sequence>{all.sequence}, path);
            for (auto _ : state) {
                const auto start = std::chrono::steady_clock::now();
                const Loaded loaded = load(*all.cache, path, LoadOptions{.map = map});
                state.SetIterationTime(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
                all.cache->drop(loaded.sequences.at(0));
            }
            count_bytes(state, path);
            std::remove(path.c_str());
        });
    }
}

[[maybe_unused]] const bool registered = [] {
    add<preset::f16_kv>("f16");
    add<preset::kv<4>>("kv4");
#ifdef XQUANT_BENCH_SVD
    add<preset::head_svd<4>>("svd_head4");
#endif
    add<preset::cross_layer_rotated_x<3>>("cl_x_rot3");
    // One page: the cost of the operation is that times the pages.
    using Requantized = XCache<Requantizable<Uniform<4>, Uniform<2>>, Layout<PerToken>>;
    benchmark::RegisterBenchmark(
        "requantize_page/x4_rot_to_2",
        [](benchmark::State& state) {
            Requantized cache(model(), Options{});
            const Sequence s = cache.create();
            fill(cache, s, 4096);
            for (auto _ : state) {
                const Sequence fork = cache.fork(s);
                bool first = true;
                const auto start = std::chrono::steady_clock::now();
                cache.requantize(std::vector<Sequence>{fork},
                                 [&first](const PageChoice&) { return std::exchange(first, false); });
                state.SetIterationTime(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
                cache.drop(fork);
            }
        })
        ->UseManualTime()
        ->Unit(benchmark::kMicrosecond);
    return true;
}();

}  // namespace

BENCHMARK_MAIN();
