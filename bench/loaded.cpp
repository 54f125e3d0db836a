#include "loaded.hpp"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <stdexcept>
#include <tuple>

#include <xquant/serving/huge_pages.hpp>

namespace bench {

const xquant::Options& options() {
    static xquant::Arena memory;
    static const xquant::Options chosen = [] {
        xquant::Options out;
        out.memory = &memory;
        const char* const name = std::getenv("XQUANT_BENCH_WEIGHTS");
        if (name == nullptr) return out;
        const auto type = xquant::find_weight_type(name);
        if (!type) {
            throw std::runtime_error("XQUANT_BENCH_WEIGHTS is '" + std::string(name) +
                                     "'; expected f32, f16, bf16 or q8");
        }
        out.weights = *type;
        return out;
    }();
    return chosen;
}

namespace {

std::size_t used_channels(const Shape& shape, Filled filled) {
    return filled == Filled::wide ? shape.layer.width : shape.layer.head_dim;
}

Cache& shared_cache(const Backend& backend, const Scheme& scheme, const Shape& shape, Filled filled) {
    using Key = std::tuple<std::string, std::string, std::string, Filled>;
    static_cast<void>(options());  // whose memory is to outlive the caches
    static std::map<Key, std::unique_ptr<Cache>> known;
    std::unique_ptr<Cache>& cache = known[Key{backend.name, scheme.name, shape.name, filled}];
    if (!cache) cache = scheme.make(layer_of(scheme, shape, filled).model, 0);
    return *cache;
}

void append(Step& step, const RandomLayer& layer, std::size_t first, std::size_t n) {
    const std::vector<float> x = layer.x(first, n);
    step.append(xquant::MatrixView(x.data(), n, layer.shape.width));
}

void make(Loaded& out, const RandomLayer& layer, const Shape& shape, std::size_t tokens, std::size_t rows) {
    out.sequence = out.cache->create();
    fill(*out.cache, out.sequence, layer, tokens);
    out.rows = rows;
    out.step = out.cache->begin(out.sequence, rows);
    append(*out.step, layer, tokens, rows);
    out.q = random_queries(shape, rows);
    out.out.resize(out.q.size());
}

}  // namespace

void fill(Cache& cache, xquant::Sequence sequence, const RandomLayer& layer, std::size_t tokens) {
    constexpr std::size_t at_once = 1024;
    for (std::size_t done = 0; done < tokens; done += at_once) {
        const std::size_t n = std::min(at_once, tokens - done);
        const std::unique_ptr<Step> step = cache.begin(sequence, n);
        append(*step, layer, done, n);
        step->commit();
    }
}

const RandomLayer& layer_of(const Scheme& scheme, const Shape& shape, Filled filled) {
    static std::map<std::tuple<std::string, std::size_t, std::size_t>, RandomLayer> known;
    const std::size_t used = used_channels(shape, filled), width = scheme.stores_x ? shape.layer.width : used;
    const auto at = known.try_emplace({shape.name, width, used}, shape, width, used).first;
    return at->second;
}

Loaded& loaded(const Backend& backend, const Scheme& scheme, const Shape& shape, std::size_t tokens, std::size_t rows,
               Filled filled) {
    using Key = std::tuple<std::string, std::string, std::string, std::size_t, std::size_t, Filled>;
    Cache& cache = shared_cache(backend, scheme, shape, filled);
    static std::map<Key, Loaded> known;  // after the caches: steps end before them
    const auto [at, is_new] = known.try_emplace(Key{backend.name, scheme.name, shape.name, tokens, rows, filled});
    Loaded& out = at->second;
    if (is_new) {
        out.cache = &cache;
        make(out, layer_of(scheme, shape, filled), shape, tokens, rows);
        out.attend();
        out.error = relative_error(out.out, exact_attention(shape, used_channels(shape, filled), tokens, rows), rows);
    }
    return out;
}

std::int64_t iterations_for(const Scheme& scheme, const Shape& shape, std::size_t tokens, std::size_t rows) {
    const auto count = [](std::size_t n) { return static_cast<double>(n); };
    const xquant::LayerShape& layer = shape.layer;
    double each = 4 * count(rows * layer.heads);
    if (scheme.stores_x) each += 2 * count(layer.width * layer.kv_heads);
    const double seconds = each * count(layer.head_dim) * count(tokens + rows / 2) / 3e10;
    return std::clamp(static_cast<std::int64_t>(0.05 / seconds), std::int64_t{1}, std::int64_t{25});
}

}  // namespace bench
