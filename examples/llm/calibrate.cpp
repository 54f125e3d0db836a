#include "calibrate.hpp"

#include <algorithm>
#include <utility>

#include "listening_cache.hpp"

namespace llm {
namespace {

class Listener final : public ListeningCache {
public:
    Listener(const Model& model, ThreadPool& pool, std::size_t skip)
        : ListeningCache(model, pool),
          skip_(skip),
          sums_(model.config().layers, std::vector<double>(model.config().width)),
          rows_(model.config().layers) {}

    const std::vector<std::vector<double>>& sums() const { return sums_; }
    std::vector<std::vector<float>> take_rows() { return std::move(rows_); }

    void append(std::size_t layer, const float* x) override {
        std::vector<double>& sum = sums_[layer];
        const std::size_t first = size();
        for (std::size_t t = 0; t < step(); ++t) {
            if (first + t < skip_) continue;
            const float* row = x + t * sum.size();
            for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += static_cast<double>(row[i]);
            if (rows_[layer].size() < most_rows * sum.size())
                rows_[layer].insert(rows_[layer].end(), row, row + sum.size());
        }
        ListeningCache::append(layer, x);
    }

private:
    static constexpr std::size_t most_rows = 512;

    std::size_t skip_;
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
