// What does one new token's attention cost with T tokens cached? One layer, one thread, caches of the processor cold.
// Names: attend_decode/scheme/shape/T/backend. Bytes are those stored for the T tokens.
#include "loaded.hpp"

namespace bench {
namespace {

void attend_decode(benchmark::State& state, const Backend& backend, const Scheme& scheme, const Shape& shape,
                   std::size_t tokens) {
    Loaded& at = loaded(backend, scheme, shape, tokens, 1);
    if (!(at.error <= scheme.bound)) return state.SkipWithError("attention differs from the exact answer");
    double seconds = 0;
    for (auto _ : state) {
        evict_caches();
        const double start = thread_seconds();
        at.attend();
        const double each = thread_seconds() - start;
        state.SetIterationTime(each);
        seconds += each;
    }
    const Work work = at.cache->attend_work(tokens, 1);
    count(state, work, seconds);
    state.counters["bytes/token"] = work.bytes / static_cast<double>(tokens);
    state.counters["kv_heads"] = static_cast<double>(shape.layer.kv_heads);
    state.counters["error"] = at.error;
}

[[maybe_unused]] const bool registered = [] {
    for (const Backend& backend : backends()) {
        for (const Scheme& scheme : backend.schemes) {
            for (const Shape& shape : shapes) {
                for (const std::size_t tokens : {512U, 4096U, 32768U}) {
                    benchmark::RegisterBenchmark(
                        name_of("attend_decode", scheme.name, shape, tokens, backend.name).c_str(),
                        [&backend, &scheme, &shape, tokens](benchmark::State& state) {
                            attend_decode(state, backend, scheme, shape, tokens);
                        })
                        ->UseManualTime()
                        ->Unit(benchmark::kMicrosecond)
                        ->Iterations(iterations_for(scheme, shape, tokens, 1));
                }
            }
        }
    }
    return true;
}();

}  // namespace
}  // namespace bench
