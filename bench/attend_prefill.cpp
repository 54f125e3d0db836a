// What does attention of 512 new tokens cost with T tokens cached? As in prefill by chunks: the query rows share what
// is rebuilt. One layer, one thread. Names: attend_prefill/scheme/shape/T/backend. Bytes are those stored for the T
// tokens.
#include "loaded.hpp"

namespace bench {
namespace {

constexpr std::size_t rows = 512;

void attend_prefill(benchmark::State& state, const Backend& backend, const Scheme& scheme, const Shape& shape,
                    std::size_t tokens) {
    Loaded& at = loaded(backend, scheme, shape, tokens, rows);
    if (!(at.error <= scheme.bound)) return state.SkipWithError("attention differs from the exact answer");
    double seconds = 0;
    for (auto _ : state) {
        const double start = thread_seconds();
        at.attend();
        const double each = thread_seconds() - start;
        state.SetIterationTime(each);
        seconds += each;
    }
    count(state, at.cache->attend_work(tokens + rows, rows), seconds);
    state.counters["error"] = at.error;
}

[[maybe_unused]] const bool registered = [] {
    for (const Backend& backend : backends()) {
        for (const Scheme& scheme : backend.schemes) {
            for (const Shape& shape : shapes) {
                for (const std::size_t tokens : {512U, 4096U, 8192U, 32768U}) {
                    benchmark::RegisterBenchmark(
                        name_of("attend_prefill", scheme.name, shape, tokens, backend.name).c_str(),
                        [&backend, &scheme, &shape, tokens](benchmark::State& state) {
                            attend_prefill(state, backend, scheme, shape, tokens);
                        })
                        ->UseManualTime()
                        ->Unit(benchmark::kMillisecond)
                        ->Iterations(iterations_for(scheme, shape, tokens, rows));
                }
            }
        }
    }
    return true;
}();

}  // namespace
}  // namespace bench
