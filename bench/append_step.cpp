// What does it cost to add one token to a layer: begin, append, commit? Projection, writing, and every 128th time the
// encoding of a page are in it; attention is not. The weights come out of memory, as in a model. Names:
// append_step/scheme/shape/T/backend, where T tokens were there at first.
#include "loaded.hpp"

namespace bench {
namespace {

/// Two pages' worth, so that the encoding of a page is in the mean as often as in reality.
constexpr std::size_t steps = 256;

void append_step(benchmark::State& state, const Backend& backend, const Scheme& scheme, const Shape& shape,
                 std::size_t tokens) {
    // The sequence that was checked has a step open: others grow.
    Loaded& checked = loaded(backend, scheme, shape, tokens, 1, Filled::wide);
    if (!(checked.error <= scheme.bound)) return state.SkipWithError("attention differs from the exact answer");
    const RandomLayer& layer = layer_of(scheme, shape, Filled::wide);
    const xquant::Sequence sequence = checked.cache->create();
    const std::size_t width = layer.shape.width;
    const std::vector<float> x = layer.x(0, std::max(tokens, steps));
    {
        const std::unique_ptr<Step> step = checked.cache->begin(sequence, tokens);
        step->append(xquant::MatrixView(x.data(), tokens, width));
        step->commit();
    }
    double seconds = 0;
    std::size_t row = 0;
    for (auto _ : state) {
        evict_caches();
        const double start = thread_seconds();
        const std::unique_ptr<Step> step = checked.cache->begin(sequence, 1);
        step->append(xquant::MatrixView(x.data() + row * width, 1, width));
        step->commit();
        const double each = thread_seconds() - start;
        state.SetIterationTime(each);
        seconds += each;
        row = (row + 1) % steps;
    }
    checked.cache->drop(sequence);
    count(state, checked.cache->append_work(), seconds);
}

[[maybe_unused]] const bool registered = [] {
    for (const Backend& backend : backends()) {
        for (const Scheme& scheme : backend.schemes) {
            for (const Shape& shape : shapes) {
                for (const std::size_t tokens : {512U, 4096U}) {
                    benchmark::RegisterBenchmark(
                        name_of("append_step", scheme.name, shape, tokens, backend.name).c_str(),
                        [&backend, &scheme, &shape, tokens](benchmark::State& state) {
                            append_step(state, backend, scheme, shape, tokens);
                        })
                        ->UseManualTime()
                        ->Unit(benchmark::kMicrosecond)
                        ->Iterations(steps);
                }
            }
        }
    }
    return true;
}();

}  // namespace
}  // namespace bench
