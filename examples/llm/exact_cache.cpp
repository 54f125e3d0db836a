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
    ExactCache(const Model& model, ThreadPool& pool)
        : model_(model), pool_(pool), keys_(model.config().layers), values_(model.config().layers) {}

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
        size_ = n;  // the next append cuts the rows
    }
    std::size_t size() const override { return size_; }
    double bits_per_token_layer() const override { return 32.0 * 2 * static_cast<double>(model_.config().kv_width()); }

    CacheBytes bytes() const override {
        CacheBytes bytes;
        bytes.codes = sizeof(float) * 2 * size_ * model_.config().kv_width() * model_.config().layers;
        return bytes;
    }

private:
    std::string cannot() const override {
        return "the exact cache is not a cache of the library: it can be neither saved nor loaded";
    }

    const Model& model_;
    ThreadPool& pool_;
    std::vector<std::vector<float>> keys_, values_;  // of each layer [T, R], keys after RoPE
    std::size_t size_ = 0, step_ = 0;
};

}  // namespace

std::unique_ptr<AttentionCache> make_exact_cache(const Model& model, ThreadPool& pool) {
    return std::make_unique<ExactCache>(model, pool);
}

}  // namespace llm
