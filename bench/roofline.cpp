#include "roofline.hpp"

#include <time.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory_resource>
#include <numeric>
#include <vector>

#include <xquant/serving/huge_pages.hpp>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace bench {
namespace {

constexpr int rounds = 12;

/// The best rate of several rounds of f, which does `amount` of something.
template <class F>
double best_rate(double amount, F&& f) {
    double best = 0;
    for (int i = 0; i < rounds; ++i) {
        const double start = thread_seconds();
        f();
        best = std::max(best, amount / (thread_seconds() - start));
    }
    return best;
}

template <class Values>
std::uint64_t sum(const Values& values) {
    return std::accumulate(values.begin(), values.end(), std::uint64_t{0});
}

double measure_stream() {
    const std::size_t bytes = std::max<std::size_t>(4 * last_level_cache(), std::size_t{128} << 20U);
    xquant::HugePages memory;  // as the caches that are measured
    const std::pmr::vector<std::uint64_t> values(bytes / 8, 1, &memory);
    return best_rate(static_cast<double>(bytes), [&] { benchmark::DoNotOptimize(sum(values)); });
}

template <std::size_t Bytes>
struct Floats {
    typedef float Vector __attribute__((vector_size(Bytes)));
    Vector value;
};

/// Independent chains of multiply-adds: enough to hide their latency, few enough to stay in registers.
template <std::size_t Bytes, std::size_t Chains>
double measure_f32() {
    constexpr std::size_t steps = 1 << 20U;
    const auto work = static_cast<double>(steps * Chains * 2 * (Bytes / sizeof(float)));
    return best_rate(work, [] {
        Floats<Bytes> factor{}, add{};
        factor.value = factor.value + 0.5F;
        add.value = add.value + 1.0F;
        benchmark::DoNotOptimize(factor);
        benchmark::DoNotOptimize(add);
        std::array<Floats<Bytes>, Chains> chain{};
        benchmark::DoNotOptimize(chain);  // else the compiler sees that all chains are the same
        for (std::size_t i = 0; i < steps; ++i) {
            for (Floats<Bytes>& c : chain) c.value = c.value * factor.value + add.value;
        }
        benchmark::DoNotOptimize(chain);
    });
}

// clang-format off
#if defined(__AVX512VNNI__) && defined(__AVX512F__)
constexpr const char* int8_form = "dpbusd, 512 bits";
using Bytes = __m512i;
constexpr std::size_t lanes = 64;
Bytes fill(char value) { return _mm512_set1_epi8(value); }
Bytes multiply_add(Bytes sum, Bytes a, Bytes b) { return _mm512_dpbusd_epi32(sum, a, b); }
#elif defined(__AVX512BW__)
constexpr const char* int8_form = "maddubs, 512 bits";
using Bytes = __m512i;
constexpr std::size_t lanes = 64;
Bytes fill(char value) { return _mm512_set1_epi8(value); }
// The product takes the sum itself, or the compiler would compute it once.
Bytes multiply_add(Bytes sum, Bytes, Bytes b) { return _mm512_add_epi16(sum, _mm512_maddubs_epi16(sum, b)); }
#elif defined(__AVX2__)
constexpr const char* int8_form = "maddubs, 256 bits";
using Bytes = __m256i;
constexpr std::size_t lanes = 32;
Bytes fill(char value) { return _mm256_set1_epi8(value); }
// The product takes the sum itself, or the compiler would compute it once.
Bytes multiply_add(Bytes sum, Bytes, Bytes b) { return _mm256_add_epi16(sum, _mm256_maddubs_epi16(sum, b)); }
#else
constexpr const char* int8_form = "compiled C++, no vector instruction for it";
constexpr std::size_t lanes = 64;
struct Bytes {
    std::array<std::int32_t, lanes> values;
};
Bytes fill(char value) {
    Bytes out;
    out.values.fill(value);
    return out;
}
Bytes multiply_add(Bytes sum, const Bytes& a, const Bytes& b) {
    for (std::size_t i = 0; i < lanes; ++i) sum.values[i] += a.values[i] * b.values[i];
    return sum;
}
#endif
// clang-format on

double measure_int8() {
    constexpr std::size_t steps = 1 << 20U, chains = 10;
    return best_rate(static_cast<double>(steps * chains * 2 * lanes), [] {
        Bytes a = fill(3), b = fill(5);
        benchmark::DoNotOptimize(a);
        benchmark::DoNotOptimize(b);
        Bytes chain[chains];
        for (Bytes& c : chain) c = fill(0);
        benchmark::DoNotOptimize(chain);
        for (std::size_t i = 0; i < steps; ++i) {
            for (Bytes& c : chain) c = multiply_add(c, a, b);
        }
        benchmark::DoNotOptimize(chain);
    });
}

}  // namespace

double thread_seconds() {
    timespec now{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

std::size_t last_level_cache() {
    std::size_t bytes = 0;
    for (const benchmark::CPUInfo::CacheInfo& cache : benchmark::CPUInfo::Get().caches) {
        bytes = std::max(bytes, static_cast<std::size_t>(cache.size));
    }
    return bytes > 0 ? bytes : std::size_t{32} << 20U;
}

void evict_caches() {
    static const std::vector<std::uint64_t> values(2 * last_level_cache() / 8, 1);
    benchmark::DoNotOptimize(sum(values));
}

const Roofline& roofline() {
    static const Roofline measured = [] {
        Roofline out;
        out.stream = measure_stream();
        const double narrow = measure_f32<32, 12>(), wide = measure_f32<64, 12>();
        out.f32 = std::max(narrow, wide);
        out.f32_form = wide > narrow ? "multiply-add, 512 bits" : "multiply-add, 256 bits";
        out.int8 = measure_int8();
        out.int8_form = int8_form;
        return out;
    }();
    return measured;
}

void count(benchmark::State& state, const Work& work, double seconds) {
    const double each = seconds / static_cast<double>(state.iterations());
    const Roofline& peak = roofline();
    state.counters["bytes"] = work.bytes;
    state.counters["operations"] = work.operations;
    state.counters["GB/s"] = work.bytes / each * 1e-9;
    state.counters["GOP/s"] = work.operations / each * 1e-9;
    state.counters["stream%"] = 100 * work.bytes / each / peak.stream;
    state.counters["f32%"] = 100 * work.operations / each / peak.f32;
    state.counters["int8%"] = 100 * work.operations / each / peak.int8;
}

}  // namespace bench
