#include "calibrate.hpp"

#include <algorithm>
#include <memory>
#include <utility>

#include "exact_cache.hpp"

namespace llm {
namespace {

/// The exact cache, with an ear on what is appended.
class Listener final : public AttentionCache {
public:
    Listener(const Model& model, ThreadPool& pool, std::size_t skip)
        : skip_(skip),
          cache_(make_exact_cache(model, pool)),
          sums_(model.config().layers, std::vector<double>(model.config().width)),
          rows_(model.config().layers) {}

    const std::vector<std::vector<double>>& sums() const { return sums_; }
    std::vector<std::vector<float>> take_rows() { return std::move(rows_); }

    void reset() override { cache_->reset(); }
    void begin(std::size_t n) override { cache_->begin(step_ = n); }
    void append(std::size_t layer, const float* x) override {
        std::vector<double>& sum = sums_[layer];
        const std::size_t first = cache_->size();
        for (std::size_t t = 0; t < step_; ++t) {
            if (first + t < skip_) continue;
            const float* row = x + t * sum.size();
            for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += static_cast<double>(row[i]);
            if (rows_[layer].size() < most_rows * sum.size())
                rows_[layer].insert(rows_[layer].end(), row, row + sum.size());
        }
        cache_->append(layer, x);
    }
    void attend(std::size_t layer, const float* q, float* out) override { cache_->attend(layer, q, out); }
    void commit() override { cache_->commit(); }
    void seal() override { cache_->seal(); }
    std::size_t size() const override { return cache_->size(); }
    double bits_per_token_layer() const override { return cache_->bits_per_token_layer(); }
    CacheBytes bytes() const override { return cache_->bytes(); }

private:
    static constexpr std::size_t most_rows = 512;

    std::size_t skip_, step_ = 0;
    std::unique_ptr<AttentionCache> cache_;
    std::vector<std::vector<double>> sums_;  // [L][D]
    std::vector<std::vector<float>> rows_;   // [L][n, D]
};

}  // namespace

Calibration calibrate(const Model& model, const std::vector<std::vector<Token>>& chunks, ThreadPool& pool,
                      std::size_t skip) {
    Listener listener(model, pool, skip);
    std::size_t tokens = 0;
    for (const std::vector<Token>& ids : chunks) {
        listener.reset();
        model.forward(ids, listener, pool);
        tokens += ids.size() - std::min(skip, ids.size());
    }
    const auto counted = static_cast<double>(tokens);
    Calibration out;
    out.rows = listener.take_rows();
    for (const auto& sum : listener.sums()) {
        auto& of_layer = out.mean.emplace_back();
        for (const double value : sum) of_layer.push_back(static_cast<float>(value / counted));
    }
    return out;
}

}  // namespace llm
