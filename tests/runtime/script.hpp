// Every verb of a cache, once, on any cache that has them: xquant::Cache of the headers, and xquant::runtime::Cache.
// What came out is written down, so that the two can be compared.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include <xquant/cache_types.hpp>
#include <xquant/executor.hpp>
#include <xquant/model.hpp>
#include <xquant/storage/page.hpp>

#include "support/model.hpp"

namespace script {

/// What a cache said and stored.
struct Record {
    std::vector<float> answers;         ///< of attention, step by step
    std::vector<std::int64_t> numbers;  ///< sizes, positions, bytes, bits
    std::vector<std::byte> stored;      ///< pages of all sequences
};

/// Three layers of grouped queries, with heads as wide as usual.
inline test::Setup model() {
    return {{.width = 128, .heads = 2, .kv_heads = 1, .head_dim = 64}, xquant::RopePairing::interleaved, 3};
}

inline xquant::Options options() { return {.sinks = 4, .recent = 16}; }

template <class Step>
Step& step_of(Step& step) {
    return step;
}
template <class Step>
Step& step_of(std::unique_ptr<Step>& step) {
    return *step;
}

template <class Cache, class Executor>
class Script {
public:
    Script(Cache& cache, const xquant::Model& model, const Executor& threads)
        : cache_(&cache), model_(&model), threads_(&threads) {}

    Record run() {
        using xquant::Sequence;
        Cache& cache = *cache_;
        const Sequence a = cache.create();
        step({{a, 150}});
        const Sequence b = cache.fork(a), c = cache.fork(a, 70);
        step({{b, 1}, {c, 130}, {a, 1}});
        note({b, c, a});
        cache.truncate(b, 120);
        step({{b, 5}});
        cache.erase(a, 10, 40);
        note({a});
        step({{a, 1}});
        cache.compact(a);
        note({a});
        step({{a, 1}});
        cache.shift(a, 60, 7);
        step({{a, 3}, {c, 2}});
        note({a, b, c});
        cache.erase(c, 20, 50, xquant::Gap::keep);
        cache.shift(c, 20, 60, -9);
        cache.set_next_position(c, 300);
        step({{c, 2}});
        note({c});
        for (const std::size_t token : {0, 19, 20, 59, 60, 170}) put(cache.position_of(c, token));
        for (const std::int64_t position : {-1, 20, 45, 1000}) {
            put(static_cast<std::int64_t>(cache.token_at(c, position)));
        }
        put(static_cast<std::int64_t>(cache.shortest_prefix(c)));
        const Sequence all[] = {a, b, c};
        const std::size_t parents[] = {2, 0, 2};
        cache.gather(all, parents);
        step({{b, 1}, {c, 1}});
        cache.seal(c);
        step({{c, 2}});
        step({{a, 5, {-1, 0, 0, 2, -1}}, {b, 2}}, {0, 2, 3, 5});
        note({a, b});
        ask({{a, 7}, {b, 100}}, xquant::Visibility::causal);
        ask({{c, 3}, {a, 400}}, xquant::Visibility::whole);
        {
            auto abandoned = cache.begin({{a, 40}});
            put(static_cast<std::int64_t>(step_of(abandoned).size()));
        }
        const Sequence gone = cache.create();
        cache.drop(gone);
        note({a, b, c});
        const xquant::Bytes bytes = cache.bytes();
        for (const std::size_t part : {bytes.codes, bytes.scales, bytes.tail, bytes.sinks, bytes.accumulator,
                                       bytes.index, bytes.weights, bytes.mapped, cache.peak_accumulator_bytes()}) {
            put(static_cast<std::int64_t>(part));
        }
        put(std::llround(1000 * cache.bits_per_token_layer(1024)));
        put(static_cast<std::int64_t>(cache.options().recent));
        return std::move(record_);
    }

private:
    struct Part {
        xquant::Sequence sequence;
        std::size_t tokens;
        std::vector<std::int32_t> parents{};  ///< for a tree of drafts
    };

    void put(std::int64_t number) { record_.numbers.push_back(number); }

    /// Keeps rows `kept` of drafts; all rows if there are none.
    void step(std::initializer_list<Part> parts, std::initializer_list<std::size_t> kept = {}) {
        std::vector<xquant::StepPart> list;
        bool tree = false;
        for (const Part& part : parts) {
            list.push_back({part.sequence, part.tokens, part.parents});
            tree |= !part.parents.empty();
        }
        auto made = cache_->begin(list);
        auto& step = step_of(made);
        const std::size_t n = step.size();
        for (std::size_t layer = 0; layer < model_->layers.size(); ++layer) {
            const xquant::LayerShape& shape = model_->layers[layer].shape;
            const std::size_t width = shape.heads * shape.head_dim;
            const bool given = model_->layers[layer].input != xquant::LayerInput::x;
            const std::vector<float> x = random_.rows(n * shape.width), q = random_.rows(n * width, 2);
            const xquant::MatrixView rows(x.data(), n, shape.width), keys(x.data(), n, shape.kv_width(), shape.width),
                values(x.data() + shape.width - shape.kv_width(), n, shape.kv_width(), shape.width);
            std::vector<float> out(n * width, std::numeric_limits<float>::quiet_NaN());
            if (layer % 2 == 0) {
                if (given) step.append_kv(layer, keys, values, *threads_);
                if (!given) step.append(layer, rows, *threads_);
                step.attend(layer, xquant::MatrixView(q.data(), n, width), out.data(), 0, *threads_);
            } else {
                if (given) step.append_kv(layer, keys, values);
                if (!given) step.append(layer, rows);
                step.attend(layer, xquant::MatrixView(q.data(), n, width), out.data());
            }
            record_.answers.insert(record_.answers.end(), out.begin(), out.end());
            if (!tree) {
                step.attend(layer, xquant::MatrixView(q.data(), n, width), out.data(), xquant::Visibility::whole, 0,
                            *threads_);
                record_.answers.insert(record_.answers.end(), out.begin(), out.end());
            }
            if (layer == 1) {
                step.attend(0, xquant::MatrixView(q.data(), n, width), out.data(), xquant::Visibility::causal);
                record_.answers.insert(record_.answers.end(), out.begin(), out.end());
            }
        }
        if (kept.size() > 0) {
            step.commit(kept);
        } else {
            step.commit();
        }
    }

    /// Attention without a step.
    void ask(std::initializer_list<xquant::QueryPart> parts, xquant::Visibility visibility) {
        const xquant::LayerShape& shape = model_->layers[1].shape;
        std::size_t n = 0;
        for (const xquant::QueryPart& part : parts) n += part.rows;
        const std::size_t width = shape.heads * shape.head_dim;
        const std::vector<float> q = random_.rows(n * width, 2);
        std::vector<float> out(n * width, std::numeric_limits<float>::quiet_NaN());
        cache_->attend(1, parts, xquant::MatrixView(q.data(), n, width), out.data(), visibility, 0, *threads_);
        record_.answers.insert(record_.answers.end(), out.begin(), out.end());
        cache_->attend(0, parts, xquant::MatrixView(q.data(), n, width), out.data(), visibility);
        record_.answers.insert(record_.answers.end(), out.begin(), out.end());
    }

    void note(std::initializer_list<xquant::Sequence> sequences) {
        for (const xquant::Sequence sequence : sequences) {
            put(static_cast<std::int64_t>(cache_->size(sequence)));
            put(cache_->next_position(sequence));
            cache_->for_each_page(sequence, [this](const xquant::PageView& page) {
                put(static_cast<std::int64_t>(page.kind));
                put(static_cast<std::int64_t>(page.begin));
                put(static_cast<std::int64_t>(page.end));
                put(page.first_position);
                put(page.rope_lag);
                record_.stored.insert(record_.stored.end(), page.bytes.begin(), page.bytes.end());
            });
        }
    }

    Cache* cache_;
    const xquant::Model* model_;
    const Executor* threads_;
    test::Random random_{11};
    Record record_;
};

template <class Cache, class Executor>
Record run(Cache& cache, const xquant::Model& model, const Executor& threads) {
    return Script<Cache, Executor>(cache, model, threads).run();
}

/// The difference of two lists of answers, as a share of their size.
inline double distance(const std::vector<float>& found, const std::vector<float>& expected) {
    if (found.size() != expected.size()) return std::numeric_limits<double>::infinity();
    double difference = 0, size = 0;
    for (std::size_t i = 0; i < found.size(); ++i) {
        difference += std::pow(double{found[i]} - double{expected[i]}, 2);
        size += std::pow(double{expected[i]}, 2);
    }
    const double share = std::sqrt(difference / size);
    return std::isfinite(share) ? share : std::numeric_limits<double>::infinity();
}

}  // namespace script
