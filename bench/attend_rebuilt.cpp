// What does one new token's attention cost with T tokens cached, where rebuilt keys of a share of all full pages are
// kept (Options::rebuilt)? One layer, one thread, caches of the processor cold.
// Names: attend_rebuilt/scheme/shape/T/backend/share, the share in percent. `rebuilt/token` are the bytes that are kept
// for it, beside those that are stored.
#include "loaded.hpp"

namespace bench {
namespace {

/// Bytes of the keys of one page, with the page's table, as the cache's layout has them.
std::size_t page_bytes(const Shape& shape) {
    const std::size_t width = shape.layer.kv_heads * shape.layer.head_dim, tokens = xquant::coded_page_tokens;
    const auto whole = [](std::size_t bytes) { return (bytes + 63) / 64 * 64; };
    return 128 + whole(tokens * width) + whole(4 * tokens * shape.layer.kv_heads) + sizeof(void*);
}

/// A cache whose rebuilt keys are there, and a step of one token.
struct Rebuilt {
    std::unique_ptr<Cache> cache;
    xquant::Sequence sequence;
    std::unique_ptr<Step> step;
    std::vector<float> q, out;

    Rebuilt(const Scheme& scheme, const Shape& shape, std::size_t tokens, std::size_t percent) {
        static_cast<void>(options());  // whose memory is to outlive the cache
        const RandomLayer& layer = layer_of(scheme, shape, Filled::narrow);
        const std::size_t pages = (tokens - options().sinks - options().recent) / xquant::coded_page_tokens;
        cache = scheme.make(layer.model, pages * percent / 100 * page_bytes(shape));
        sequence = cache->create();
        fill(*cache, sequence, layer, tokens);
        step = cache->begin(sequence, 1);
        const std::vector<float> x = layer.x(tokens, 1);
        step->append(xquant::MatrixView(x.data(), 1, layer.shape.width));
        q = random_queries(shape, 1);
        out.resize(q.size());
        // Two reads, and then some pages with each: until nothing is added.
        for (std::size_t i = 0; i < 3; ++i) attend();
        for (std::size_t before = 0; before != cache->rebuilt_bytes();) {
            before = cache->rebuilt_bytes();
            attend();
        }
    }
    Rebuilt(const Rebuilt&) = delete;
    Rebuilt& operator=(const Rebuilt&) = delete;
    ~Rebuilt() { step.reset(); }

    void attend() { step->attend(xquant::MatrixView(q.data(), 1, q.size()), out.data()); }
};

void attend_rebuilt(benchmark::State& state, const Scheme& scheme, const Shape& shape, std::size_t tokens,
                    std::size_t percent) {
    Rebuilt at(scheme, shape, tokens, percent);
    const double error = relative_error(at.out, exact_attention(shape, shape.layer.head_dim, tokens, 1), 1);
    if (!(error <= scheme.bound)) return state.SkipWithError("attention differs from the exact answer");
    double seconds = 0;
    for (auto _ : state) {
        evict_caches();
        const double start = thread_seconds();
        at.attend();
        const double each = thread_seconds() - start;
        state.SetIterationTime(each);
        seconds += each;
    }
    state.counters["stored/token"] = at.cache->stored_bytes(tokens) / static_cast<double>(tokens);
    state.counters["rebuilt/token"] = static_cast<double>(at.cache->rebuilt_bytes()) / static_cast<double>(tokens);
    state.counters["error"] = error;
}

[[maybe_unused]] const bool registered = [] {
    for (const Backend& backend : backends()) {
        for (const Scheme& scheme : backend.schemes) {
            if (!scheme.rebuilds) continue;
            for (const Shape& shape : {shapes[0], shapes[1]}) {
                for (const std::size_t tokens : {512U, 8192U}) {
                    for (const std::size_t percent : {0U, 25U, 50U, 100U}) {
                        const std::string name = name_of("attend_rebuilt", scheme.name, shape, tokens, backend.name);
                        benchmark::RegisterBenchmark((name + "/" + std::to_string(percent)).c_str(),
                                                     [&scheme, shape, tokens, percent](benchmark::State& state) {
                                                         attend_rebuilt(state, scheme, shape, tokens, percent);
                                                     })
                            ->UseManualTime()
                            ->Unit(benchmark::kMicrosecond)
                            ->Iterations(iterations_for(scheme, shape, tokens, 1));
                    }
                }
            }
        }
    }
    return true;
}();

}  // namespace
}  // namespace bench
