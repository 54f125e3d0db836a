#include "exact_cache.hpp"

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
        const std::size_t R = c.kv_width();
        keys_[layer].resize((size_ + step_) * R);
        values_[layer].resize((size_ + step_) * R);
        multiply(x, step_, model_.layer(layer).W_k, keys_[layer].data() + size_ * R, pool_);
        multiply(x, step_, model_.layer(layer).W_v, values_[layer].data() + size_ * R, pool_);
        rope(keys_[layer].data() + size_ * R, step_, c.kv_heads, c.head_dim, c.rope_dims, c.rope_base, size_, pool_);
    }

    void attend(std::size_t layer, const float* q, float* out) override {
        const Config& c = model_.config();
        const std::size_t queries = 64, blocks = (step_ + queries - 1) / queries;
        const float factor = 1 / std::sqrt(static_cast<float>(c.head_dim));
        pool_.parallel_for(blocks * c.heads, [&](std::size_t task) {
            const std::size_t h = task % c.heads, g = h * c.kv_heads / c.heads, first = task / c.heads * queries;
            const std::size_t n = std::min(queries, step_ - first),
                              seen = size_ + first + n;  // keys that some query sees
            const ConstRows Q(q + first * c.q_width() + h * c.head_dim, index(n), index(c.head_dim),
                              Stride(index(c.q_width())));
            const ConstRows K(keys_[layer].data() + g * c.head_dim, index(seen), index(c.head_dim),
                              Stride(index(c.kv_width())));
            const ConstRows V(values_[layer].data() + g * c.head_dim, index(seen), index(c.head_dim),
                              Stride(index(c.kv_width())));
            RowMajor P(index(n), index(seen));
            P.noalias() = Q * K.transpose();
            for (std::size_t t = 0; t < n; ++t) {
                auto row = P.row(index(t)).array();
                auto past = row.head(index(size_ + first + t + 1));
                past = ((past - past.maxCoeff()) * factor).exp().eval();
                past /= past.sum();
                row.tail(index(n - t - 1)).setZero();
            }
            Rows(out + first * c.q_width() + h * c.head_dim, index(n), index(c.head_dim), Stride(index(c.q_width())))
                .noalias() = P * V;
        });
    }

    void commit() override { size_ += std::exchange(step_, 0); }
    void seal() override {}
    std::size_t size() const override { return size_; }
    double bits_per_token_layer() const override { return 32.0 * 2 * static_cast<double>(model_.config().kv_width()); }

    CacheBytes bytes() const override {
        CacheBytes bytes;
        bytes.codes = sizeof(float) * 2 * size_ * model_.config().kv_width() * model_.config().layers;
        return bytes;
    }

private:
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
