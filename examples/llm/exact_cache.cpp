#include "exact_cache.hpp"

#include <fmt/format.h>

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <vector>

#include "model.hpp"

namespace llm {
namespace {

using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Stride = Eigen::OuterStride<>;
using Rows = Eigen::Map<RowMajor, 0, Stride>;
using ConstRows = Eigen::Map<const RowMajor, 0, Stride>;

Eigen::Index index(std::size_t i) { return static_cast<Eigen::Index>(i); }

class ExactCache final : public AttentionCache {
public:
    ExactCache(const Model& model, ThreadPool& pool, RoundedRows rounded)
        : model_(model),
          pool_(pool),
          rounded_(std::move(rounded)),
          keys_(model.config().layers),
          values_(model.config().layers) {}

    void reset() override {
        for (auto* rows : {&keys_, &values_})
            for (auto& of_layer : *rows) of_layer.clear();
        size_ = step_ = 0;
    }

    void begin(std::size_t n) override { step_ = n; }

    void append(std::size_t layer, const float* x) override {
        const Config& c = model_.config();
        const Layer& l = model_.layer(layer);
        const std::size_t R = c.kv_width();
        keys_[layer].resize((size_ + step_) * R);
        values_[layer].resize((size_ + step_) * R);
        float* keys = keys_[layer].data() + size_ * R;
        multiply(x, step_, l.W_k, l.b_k, keys, pool_);
        norm_heads(l.k_norm, c.norm_epsilon, keys, step_, c.kv_heads, pool_);
        apply_rope(l.rope, keys, step_, c.kv_heads, c.head_dim, size_, pool_);
        multiply(x, step_, l.W_v, l.b_v, values_[layer].data() + size_ * R, pool_);
        if (!rounded_.round_key) return;
        // Rows that the newest `tail` have pushed out since the last step.
        const auto end_of_rounded = [&](std::size_t n) {
            return std::max(rounded_.sinks, n > rounded_.tail ? n - rounded_.tail : 0);
        };
        const std::size_t begin = end_of_rounded(size_), end = std::min(end_of_rounded(size_ + step_), size_ + step_);
        if (begin >= end) return;
        pool_.parallel_for((end - begin) * c.kv_heads, [&](std::size_t i) {
            const std::size_t at = begin * R + i * c.head_dim;
            rounded_.round_key(keys_[layer].data() + at);
            rounded_.round_value(values_[layer].data() + at);
        });
    }

    void attend(std::size_t layer, const float* q, float* out) override {
        const Config& c = model_.config();
        const std::size_t queries = 64, blocks = (step_ + queries - 1) / queries;
        const std::size_t window = model_.layer(layer).window;
        pool_.parallel_for(blocks * c.heads, [&](std::size_t task) {
            const std::size_t h = task % c.heads, g = h * c.kv_heads / c.heads, first = task / c.heads * queries;
            const std::size_t n = std::min(queries, step_ - first);
            // Keys that some query of the block sees: [begin, end).
            const auto oldest = [&](std::size_t t) {  // that query t sees
                const std::size_t seen = size_ + t + 1;
                return window == 0 || seen <= window ? 0 : seen - window;
            };
            const std::size_t begin = oldest(first), end = size_ + first + n;
            const auto rows = [&](const std::vector<float>& all) {
                return ConstRows(all.data() + begin * c.kv_width() + g * c.head_dim, index(end - begin),
                                 index(c.head_dim), Stride(index(c.kv_width())));
            };
            const ConstRows Q(q + first * c.q_width() + h * c.head_dim, index(n), index(c.head_dim),
                              Stride(index(c.q_width())));
            RowMajor P(index(n), index(end - begin));
            P.noalias() = Q * rows(keys_[layer]).transpose();
            for (std::size_t t = 0; t < n; ++t) {
                auto row = P.row(index(t)).array();
                const std::size_t before = oldest(first + t) - begin, after = n - t - 1;
                auto seen = row.segment(index(before), index(end - begin - before - after));
                seen = ((seen - seen.maxCoeff()) * c.softmax_scale).exp().eval();
                seen /= seen.sum();
                row.head(index(before)).setZero();
                row.tail(index(after)).setZero();
            }
            Rows(out + first * c.q_width() + h * c.head_dim, index(n), index(c.head_dim), Stride(index(c.q_width())))
                .noalias() = P * rows(values_[layer]);
        });
    }

    void commit() override { size_ += std::exchange(step_, 0); }
    void seal() override {}
    void truncate(std::size_t n) override {
        if (n > size_) throw Error(fmt::format("the cache has {} tokens, fewer than {}", size_, n));
        if (rounded_.round_key) throw Error(cannot());
        size_ = n;  // the next append cuts the rows
    }
    std::size_t size() const override { return size_; }
    double bits_per_token_layer() const override {
        if (rounded_.round_key) return rounded_.bits_per_head * static_cast<double>(model_.config().kv_heads);
        return 32.0 * 2 * static_cast<double>(model_.config().kv_width());
    }

    CacheBytes bytes() const override {
        CacheBytes bytes;
        const std::size_t layers = model_.config().layers,
                          f32 = sizeof(float) * 2 * model_.config().kv_width() * layers;
        bytes.codes = f32 * size_;
        if (rounded_.round_key) {
            // What the format would take. Rows lie here in f32, as they come back from it.
            const std::size_t sinks = std::min(size_, rounded_.sinks), tail = std::min(size_ - sinks, rounded_.tail);
            bytes.codes = static_cast<std::size_t>(bits_per_token_layer() / 8) * layers * (size_ - sinks - tail);
            bytes.sinks = f32 / 2 * sinks;
            bytes.tail = f32 / 2 * tail;
        }
        return bytes;
    }

private:
    std::string cannot() const override {
        return rounded_.round_key ? "a simulated cache can be neither saved, loaded nor truncated"
                                  : "the exact cache is not a cache of the library: it can be neither saved nor loaded";
    }

    const Model& model_;
    ThreadPool& pool_;
    RoundedRows rounded_;
    std::vector<std::vector<float>> keys_, values_;  // of each layer [T, R], keys after RoPE
    std::size_t size_ = 0, step_ = 0;
};

}  // namespace

std::unique_ptr<AttentionCache> make_exact_cache(const Model& model, ThreadPool& pool) {
    return std::make_unique<ExactCache>(model, pool, RoundedRows{});
}

std::unique_ptr<AttentionCache> make_simulated_cache(const Model& model, ThreadPool& pool, RoundedRows rounded) {
    return std::make_unique<ExactCache>(model, pool, std::move(rounded));
}

}  // namespace llm
