#include "compare.hpp"

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>

namespace llm {
namespace {

double mean(const std::vector<double>& values) {
    return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

struct Row {
    Eigen::Map<const Eigen::ArrayXf> logits;
    Eigen::Index top = 0;
    float max = 0;
    double log_sum = 0;  // log sum exp(logits - max)

    Row(const float* from, std::size_t size) : logits(from, static_cast<Eigen::Index>(size)) {
        max = logits.maxCoeff(&top);
    }
};

/// Vocabularies are long: sums are kept in double, one f32 block at a time, so that no copy of a row is made.
constexpr Eigen::Index block = 1024;

void sum_up(Row& row) {
    double sum = 0;
    for (Eigen::Index i = 0; i < row.logits.size(); i += block)
        sum +=
            static_cast<double>((row.logits.segment(i, std::min(block, row.logits.size() - i)) - row.max).exp().sum());
    row.log_sum = std::log(sum);
}

double divergence(const Row& exact, const Row& other) {
    double sum = 0;
    for (Eigen::Index i = 0; i < exact.logits.size(); i += block) {
        const Eigen::Index n = std::min(block, exact.logits.size() - i);
        const auto e = exact.logits.segment(i, n) - exact.max;
        const auto l = other.logits.segment(i, n) - other.max;
        sum += (e.exp() * (e - l)).cast<double>().sum();
    }
    return sum * std::exp(-exact.log_sum) - exact.log_sum + other.log_sum;
}

}  // namespace

double Predictions::perplexity() const { return std::exp(mean(nll)); }
double Predictions::kld_mean() const { return mean(kld); }
double Predictions::top1() const { return static_cast<double>(same) / static_cast<double>(nll.size()); }

double Predictions::kld_quantile(double q) const {
    std::vector<double> sorted = kld;
    std::sort(sorted.begin(), sorted.end());
    const double rank = q * static_cast<double>(sorted.size() - 1);
    const auto below = static_cast<std::size_t>(rank), above = std::min(below + 1, sorted.size() - 1);
    return std::lerp(sorted[below], sorted[above], rank - static_cast<double>(below));
}

void compare(const Model& model, std::span<const Token> ids, const float* hidden, const float* exact, ThreadPool& pool,
             Predictions& into) {
    constexpr std::size_t rows = 128;
    const std::size_t D = model.config().width, V = model.config().vocabulary, scored = ids.size() - 1;
    const bool itself = hidden == exact;
    std::vector<float> of_exact(std::min(rows, scored) * V), of_this(itself ? 0 : of_exact.size());
    std::vector<std::uint8_t> same(scored);
    const std::size_t before = into.nll.size();
    into.nll.resize(before + scored);
    into.kld.resize(before + scored);
    for (std::size_t start = 0; start < scored; start += rows) {
        const std::size_t n = std::min(rows, scored - start);
        model.logits(exact + start * D, n, of_exact.data(), pool);
        if (!itself) model.logits(hidden + start * D, n, of_this.data(), pool);
        pool.parallel_for(n, [&](std::size_t t) {
            Row e(of_exact.data() + t * V, V), l((itself ? of_exact : of_this).data() + t * V, V);
            sum_up(e);
            sum_up(l);
            const float next = l.logits[ids[start + t + 1]];
            into.nll[before + start + t] = static_cast<double>(l.max - next) + l.log_sum;
            into.kld[before + start + t] = itself ? 0 : divergence(e, l);
            same[start + t] = e.top == l.top;
        });
    }
    into.same += static_cast<std::size_t>(std::count(same.begin(), same.end(), 1));
}

}  // namespace llm
