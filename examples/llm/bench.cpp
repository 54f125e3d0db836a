#include "bench.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <time.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>

#include "error.hpp"
#include "gguf.hpp"
#include "model.hpp"
#include "plan.hpp"
#include "progress.hpp"
#include "schemes.hpp"
#include "statistics.hpp"

namespace llm {
namespace {

/// Processor time if there is one thread, so that other programs on the machine do not count; else wall time.
class Clock {
public:
    explicit Clock(std::size_t threads) : id_(threads == 1 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC) {}

    double seconds() const {
        timespec now{};
        clock_gettime(id_, &now);
        return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
    }
    const char* name() const { return id_ == CLOCK_MONOTONIC ? "wall" : "processor"; }

private:
    clockid_t id_;
};

/// A cache that counts the time spent in it: what the rest of a step takes does not depend on the depth.
class TimedCache final : public AttentionCache {
public:
    TimedCache(std::unique_ptr<AttentionCache> cache, Clock clock) : cache_(std::move(cache)), clock_(clock) {}

    double seconds = 0;

    void reset() override { cache_->reset(); }
    void begin(std::size_t n) override {
        timed([&] { cache_->begin(n); });
    }
    void append(std::size_t layer, const float* x) override {
        timed([&] { cache_->append(layer, x); });
    }
    void attend(std::size_t layer, const float* q, float* out) override {
        timed([&] { cache_->attend(layer, q, out); });
    }
    void commit() override {
        timed([&] { cache_->commit(); });
    }
    void seal() override { cache_->seal(); }
    std::size_t size() const override { return cache_->size(); }
    double bits_per_token_layer() const override { return cache_->bits_per_token_layer(); }
    CacheBytes bytes() const override { return cache_->bytes(); }

private:
    template <class F>
    void timed(F&& f) {
        const double start = clock_.seconds();
        f();
        seconds += clock_.seconds() - start;
    }

    std::unique_ptr<AttentionCache> cache_;
    Clock clock_;
};

struct Subject {
    std::string scheme;
    TimedCache cache;
};

void check(const BenchOptions& o) {
    if (o.schemes.empty() || o.depths.empty()) throw Error("--schemes and --depths must name at least one each");
    for (const std::string& scheme : o.schemes) {
        if (learns_from_text(parse_scheme(scheme).needs))
            throw Error(fmt::format("scheme '{}' needs a calibration text, which `bench` doesn't have", scheme));
    }
    if (o.tokens == 0 || o.repetitions == 0) throw Error("--tokens and --repetitions must be 1 or more");
    if (std::adjacent_find(o.depths.begin(), o.depths.end(), std::greater_equal<>()) != o.depths.end())
        throw Error("--depths must rise");
}

/// Rows until the cache has `depth` tokens. They are random and skip the model: what a step costs does not depend on
/// them.
void fill(AttentionCache& cache, const Config& config, std::size_t depth) {
    constexpr std::size_t step = 512;
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    while (cache.size() < depth) {
        const std::size_t n = std::min(step, depth - cache.size());
        std::vector<float> x(n * config.width);
        for (float& value : x) value = normal(random);
        cache.begin(n);
        for (std::size_t layer = 0; layer < config.layers; ++layer) cache.append(layer, x.data());
        cache.commit();
    }
}

BenchSample measure(Subject& subject, const Model& model, std::size_t tokens, ThreadPool& pool) {
    const std::size_t vocabulary = model.config().vocabulary;
    std::vector<float> logits(vocabulary);
    BenchSample sample;
    sample.scheme = subject.scheme;
    sample.depth = subject.cache.size();
    subject.cache.seconds = 0;
    const Clock clock(pool.threads());
    const double start = clock.seconds();
    for (std::size_t i = 0; i < tokens; ++i) {
        const auto id = static_cast<Token>((sample.depth + 17 * i) % vocabulary);
        const std::vector<float> hidden = model.forward({&id, 1}, subject.cache, pool);
        model.logits(hidden.data(), 1, logits.data(), pool);
    }
    sample.token = (clock.seconds() - start) / static_cast<double>(tokens);
    sample.cache = subject.cache.seconds / static_cast<double>(tokens);
    sample.rebuilt = subject.cache.bytes().rebuilt;
    return sample;
}

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    const std::size_t n = values.size();
    return n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

/// Medians of the samples of a scheme at one of the depths asked for: {depth, token, cache}.
BenchSample medians(const std::vector<BenchSample>& samples, const std::string& scheme, std::size_t depth_index,
                    const BenchOptions& o) {
    std::vector<double> depth, token, cache;
    for (const BenchSample& sample : samples) {
        const bool beyond = depth_index + 1 < o.depths.size() && sample.depth >= o.depths[depth_index + 1];
        if (sample.scheme != scheme || sample.depth < o.depths[depth_index] || beyond) continue;
        depth.push_back(static_cast<double>(sample.depth));
        token.push_back(sample.token);
        cache.push_back(sample.cache);
    }
    return {scheme, static_cast<std::size_t>(median(depth)), median(token), median(cache)};
}

void print(const std::vector<BenchSample>& samples, const BenchOptions& o) {
    fmt::print("{:<15}{:>9}{:>13}{:>13}{:>12}{:>24}\n", "scheme", "depth", "tokens/s", "ms/token", "in cache",
               "us/token for 1000 more");
    for (const std::string& scheme : o.schemes) {
        const BenchSample first = medians(samples, scheme, 0, o);
        for (std::size_t i = 0; i < o.depths.size(); ++i) {
            const BenchSample s = medians(samples, scheme, i, o);
            fmt::print("{:<15}{:>9}{:>13.1f}{:>13.2f}{:>12.2f}", scheme, s.depth, 1 / s.token, 1e3 * s.token,
                       1e3 * s.cache);
            if (i > 0)
                fmt::print("{:>24.1f}", 1e9 * (s.cache - first.cache) / static_cast<double>(s.depth - first.depth));
            fmt::print("\n");
        }
    }
}

std::string to_json(const std::vector<BenchSample>& samples, const BenchOptions& o, std::size_t threads) {
    nlohmann::ordered_json json{{"threads", threads},  {"clock", Clock(threads).name()},
                                {"tokens", o.tokens},  {"sinks", o.sinks},
                                {"tail", o.tail},      {"depths", o.depths},
                                {"rebuilt", o.rebuilt}};
    json["samples"] = nlohmann::ordered_json::array();
    for (const BenchSample& s : samples)
        json["samples"].push_back({{"scheme", s.scheme},
                                   {"depth", s.depth},
                                   {"token_seconds", s.token},
                                   {"cache_seconds", s.cache},
                                   {"rebuilt_bytes", s.rebuilt}});
    return json.dump(2) + "\n";
}

}  // namespace

std::vector<BenchSample> bench_samples(const Model& model, const BenchOptions& o, ThreadPool& pool) {
    check(o);
    // Samples make the cache longer; the next depth must still be ahead.
    const std::size_t grown = o.tokens * o.repetitions;
    for (std::size_t i = 0; i < o.depths.size(); ++i) {
        const std::size_t limit = i + 1 < o.depths.size() ? o.depths[i + 1] : model.config().context;
        if (o.depths[i] > limit || grown > limit - o.depths[i])
            throw Error(
                fmt::format("depth {} and {} x {} tokens go beyond {}", o.depths[i], o.repetitions, o.tokens, limit));
    }
    SchemeOptions options;
    options.sinks = o.sinks;
    options.tail = o.tail;
    options.rebuilt = o.rebuilt.empty() ? 0 : parse_bytes(o.rebuilt);
    options.pool = &pool;
    std::optional<xquant::Calibration> statistics;
    if (!o.calibration.empty()) options.statistics = &statistics.emplace(read_statistics(o.calibration, model));
    std::vector<std::unique_ptr<Subject>> subjects;
    for (const std::string& scheme : o.schemes)
        subjects.push_back(std::make_unique<Subject>(
            Subject{scheme, TimedCache(make_cache(scheme, model, options), Clock(pool.threads()))}));

    std::vector<BenchSample> samples;
    Progress progress(subjects.size() * (o.depths.back() + grown * o.depths.size()));
    for (const std::size_t depth : o.depths) {
        for (const auto& subject : subjects) {
            progress.label(fmt::format("filling {}", subject->scheme));
            const std::size_t before = subject->cache.size();
            fill(subject->cache, model.config(), depth);
            progress.advance(subject->cache.size() - before);
        }
        for (std::size_t i = 0; i < o.repetitions; ++i) {
            for (const auto& subject : subjects) {
                progress.label(fmt::format("{} at {}", subject->scheme, depth));
                samples.push_back(measure(*subject, model, o.tokens, pool));
                progress.advance(o.tokens);
            }
        }
    }
    return samples;
}

void bench(const BenchOptions& o) {
    check(o);
    std::optional<Gguf> gguf = Gguf::open(o.model);
    std::ofstream json;
    if (!o.json.empty()) {
        json.open(o.json);
        if (!json) throw Error(fmt::format("{}: can't be written", o.json));
    }
    ThreadPool pool(o.threads);
    const Model model(*gguf);
    gguf.reset();  // its bytes are no longer needed
    const std::vector<BenchSample> samples = bench_samples(model, o, pool);
    fmt::print("{} time, {} thread{}\n", Clock(pool.threads()).name(), pool.threads(), pool.threads() > 1 ? "s" : "");
    print(samples, o);
    if (json.is_open() && !(json << to_json(samples, o, pool.threads()) << std::flush))
        throw Error(fmt::format("{}: can't be written", o.json));
}

}  // namespace llm
