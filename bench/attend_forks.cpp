// What does attention of N sequences cost that share T tokens and have one of their own, beside one of them alone? One
// layer, one thread. Names: attend_forks/scheme/shape/T/backend/N. `per_sequence` is the time of a sequence beside that
// of one alone, measured in turn.
#include "loaded.hpp"

namespace bench {
namespace {

/// A step of one token of each of some forks.
struct Forks {
    std::unique_ptr<Step> step;
    std::vector<float> q, out;

    Forks(Cache& cache, xquant::Sequence root, const RandomLayer& layer, const Shape& shape, std::size_t count) {
        std::vector<xquant::StepPart> parts;
        for (std::size_t i = 0; i < count; ++i) {
            sequences_.push_back(cache.fork(root));
            parts.push_back({sequences_.back(), 1});
        }
        step = cache.begin(parts);
        const std::vector<float> x = layer.x(1, count);
        step->append(xquant::MatrixView(x.data(), count, layer.shape.width));
        q = random_queries(shape, count);
        out.resize(q.size());
        cache_ = &cache;
    }
    Forks(const Forks&) = delete;
    Forks& operator=(const Forks&) = delete;
    ~Forks() {
        step.reset();
        for (const xquant::Sequence sequence : sequences_) cache_->drop(sequence);
    }

    double attend() {
        const double start = thread_seconds();
        step->attend(xquant::MatrixView(q.data(), sequences_.size(), q.size() / sequences_.size()), out.data());
        return thread_seconds() - start;
    }

private:
    std::vector<xquant::Sequence> sequences_;
    Cache* cache_ = nullptr;
};

void attend_forks(benchmark::State& state, const Backend& backend, const Scheme& scheme, const Shape& shape,
                  std::size_t tokens, std::size_t count) {
    Loaded& at = loaded(backend, scheme, shape, tokens, 1);
    if (!(at.error <= scheme.bound)) return state.SkipWithError("attention differs from the exact answer");
    const RandomLayer& layer = layer_of(scheme, shape, Filled::narrow);
    // Another sequence of that cache, since a step of the loaded one is open.
    const xquant::Sequence root = at.cache->create();
    fill(*at.cache, root, layer, tokens);
    {
        Forks one(*at.cache, root, layer, shape, 1), all(*at.cache, root, layer, shape, count);
        double alone = 0, together = 0;
        for (auto _ : state) {
            alone += one.attend();
            const double each = all.attend();
            state.SetIterationTime(each);
            together += each;
        }
        all.out.resize(one.out.size());  // the answer to the token that the other one has
        const double off = relative_error(all.out, {one.out.begin(), one.out.end()}, 1);
        if (!(off <= scheme.bound)) state.SkipWithError("a fork's answer differs from that of one alone");
        state.counters["per_sequence"] = together / static_cast<double>(count) / alone;
        state.counters["error"] = off;
    }
    at.cache->drop(root);
}

[[maybe_unused]] const bool registered = [] {
    for (const Backend& backend : backends()) {
        for (const Scheme& scheme : backend.schemes) {
            for (const Shape& shape : shapes) {
                for (const std::size_t tokens : {512U, 8192U}) {
                    for (const std::size_t count : {2U, 8U, 64U}) {
                        const std::string name = name_of("attend_forks", scheme.name, shape, tokens, backend.name);
                        benchmark::RegisterBenchmark(
                            (name + "/N" + std::to_string(count)).c_str(),
                            [&backend, &scheme, &shape, tokens, count](benchmark::State& state) {
                                attend_forks(state, backend, scheme, shape, tokens, count);
                            })
                            ->UseManualTime()
                            ->Unit(benchmark::kMicrosecond)
                            ->Iterations(iterations_for(scheme, shape, tokens, count));
                    }
                }
            }
        }
    }
    return true;
}();

}  // namespace
}  // namespace bench
