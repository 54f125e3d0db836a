#include "compare.hpp"

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>

namespace llm {
namespace {

using Eigen::Index;
using ColumnMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic>;
using ConstColumns = Eigen::Map<const ColumnMajor>;

Index index(std::size_t i) { return static_cast<Index>(i); }

double mean(const std::vector<double>& values) {
    return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

/// Standard deviation of the mean of independent values.
double error_of_mean(const std::vector<double>& values) {
    if (values.size() < 2) return 0;
    const double centre = mean(values), n = static_cast<double>(values.size());
    double square = 0;
    for (const double value : values) square += (value - centre) * (value - centre);
    return std::sqrt(square / (n - 1) / n);
}

/// log sum exp(logits), the largest logit and the logit of the next token, all of one row, gathered tile by tile.
struct Sums {
    float max = -std::numeric_limits<float>::infinity();
    double sum = 0;  // of exp(logit - max)
    Token top = 0;
    float next = 0;

    double log_sum() const { return static_cast<double>(max) + std::log(sum); }
};

// The work is cut into tasks whose sizes depend on the shapes alone, so results don't depend on the number of threads:
// `rows` positions times `segment` tokens of the vocabulary, in tiles of logits that stay in a core's cache.
constexpr std::size_t rows = 256, segment = 32768, tile = 512;

/// hidden [n, D] -> sums [n], and mean_row [n, D] if that is not null. next [n]: the tokens that follow.
void pass(const Matrix& W, const float* hidden, std::size_t n, const Token* next, Sums* sums, float* mean_row,
          ThreadPool& pool) {
    const std::size_t D = W.columns, V = W.rows;
    const std::size_t segments = (V + segment - 1) / segment, blocks = (n + rows - 1) / rows;
    std::vector<Sums> part(segments * n);                                      // [segment][n]
    std::vector<float> part_mean(mean_row == nullptr ? 0 : segments * n * D);  // [segment][n, D], times exp(max)
    pool.parallel_for(blocks * segments, [&](std::size_t task) {
        const std::size_t first = task / segments * rows, count = std::min(rows, n - first);
        const std::size_t begin = task % segments * segment, end = std::min(V, begin + segment);
        Sums* const into = part.data() + task % segments * n + first;
        Eigen::Map<ColumnMajor> M(part_mean.empty() ? nullptr : part_mean.data() + (task % segments * n + first) * D,
                                  index(D), part_mean.empty() ? 0 : index(count));
        const ConstColumns H(hidden + first * D, index(D), index(count));
        ColumnMajor logits(index(tile), index(count));
        for (std::size_t at = begin; at < end; at += tile) {
            const auto outs = index(std::min(tile, end - at));
            const ConstColumns rows_of_W(W.values.data() + at * D, index(D), outs);
            logits.topRows(outs).noalias() = rows_of_W.transpose() * H;
            for (std::size_t t = 0; t < count; ++t) {
                Sums& s = into[t];
                auto row = logits.col(index(t)).head(outs).array();
                const std::size_t follows = static_cast<std::size_t>(next[first + t]);
                if (follows >= at && follows < at + static_cast<std::size_t>(outs)) s.next = row[index(follows - at)];
                const float max = row.maxCoeff();
                if (max > s.max) {
                    Index where = 0;
                    while (row[where] != max) ++where;
                    s.top = static_cast<Token>(at) + static_cast<Token>(where);
                    const float shrink = std::exp(s.max - max);
                    s.sum *= static_cast<double>(shrink);
                    if (M.cols() != 0) M.col(index(t)) *= shrink;
                    s.max = max;
                }
                row = (row - s.max).exp();
                s.sum += static_cast<double>(row.sum());
            }
            if (M.cols() != 0) M.noalias() += rows_of_W * logits.topRows(outs);
        }
    });
    pool.parallel_for(blocks, [&](std::size_t block) {
        for (std::size_t t = block * rows; t < std::min(n, (block + 1) * rows); ++t) {
            Sums& all = sums[t];
            for (std::size_t s = 0; s < segments; ++s) {
                const Sums& one = part[s * n + t];
                if (one.max > all.max) {
                    all.sum *= std::exp(static_cast<double>(all.max) - static_cast<double>(one.max));
                    all.max = one.max;
                    all.top = one.top;
                }
                all.sum += one.sum * std::exp(static_cast<double>(one.max) - static_cast<double>(all.max));
                if (const auto token = static_cast<std::size_t>(next[t]); token / segment == s) all.next = one.next;
            }
            if (mean_row == nullptr) continue;
            Eigen::Map<Eigen::VectorXf> m(mean_row + t * D, index(D));
            m.setZero();
            for (std::size_t s = 0; s < segments; ++s) {
                const double share = std::exp(static_cast<double>(part[s * n + t].max - all.max)) / all.sum;
                m += static_cast<float>(share) *
                     Eigen::Map<const Eigen::VectorXf>(part_mean.data() + (s * n + t) * D, index(D));
            }
        }
    });
}

}  // namespace

double Predictions::perplexity() const { return std::exp(mean(nll)); }
double Predictions::delta_percent() const { return 100 * (std::exp(mean(nll) - mean(exact_nll)) - 1); }
double Predictions::kld_mean() const { return mean(kld); }
double Predictions::top1() const { return static_cast<double>(same) / static_cast<double>(nll.size()); }
double Predictions::kld_error() const { return error_of_mean(kld); }

double Predictions::delta_percent_error() const {
    std::vector<double> difference(nll.size());
    std::transform(nll.begin(), nll.end(), exact_nll.begin(), difference.begin(), std::minus<>());
    return 100 * std::exp(mean(difference)) * error_of_mean(difference);
}

double Predictions::kld_quantile(double q) const {
    std::vector<double> sorted = kld;
    std::sort(sorted.begin(), sorted.end());
    const double rank = q * static_cast<double>(sorted.size() - 1);
    const auto below = static_cast<std::size_t>(rank), above = std::min(below + 1, sorted.size() - 1);
    return std::lerp(sorted[below], sorted[above], rank - static_cast<double>(below));
}

Reference make_reference(const Matrix& output, std::span<const Token> ids, const float* hidden, std::size_t first,
                         ThreadPool& pool) {
    const std::size_t D = output.columns, n = ids.size() - 1 - first;
    Reference r;
    r.first = first;
    r.hidden.assign(hidden + first * D, hidden + (first + n) * D);
    r.mean_row.resize(n * D);
    std::vector<Sums> sums(n);
    pass(output, r.hidden.data(), n, ids.data() + first + 1, sums.data(), r.mean_row.data(), pool);
    for (const Sums& s : sums) {
        r.log_sum.push_back(s.log_sum());
        r.nll.push_back(s.log_sum() - static_cast<double>(s.next));
        r.top.push_back(s.top);
    }
    return r;
}

void compare(const Matrix& output, std::span<const Token> ids, const float* hidden, const Reference& r,
             ThreadPool& pool, Predictions& into) {
    const std::size_t D = output.columns, n = r.nll.size();
    const float* const from = hidden + r.first * D;
    std::vector<Sums> sums(n);
    pass(output, from, n, ids.data() + r.first + 1, sums.data(), nullptr, pool);
    for (std::size_t t = 0; t < n; ++t) {
        double shift = 0;  // (h - h') m
        for (std::size_t i = t * D; i < (t + 1) * D; ++i)
            shift +=
                (static_cast<double>(r.hidden[i]) - static_cast<double>(from[i])) * static_cast<double>(r.mean_row[i]);
        into.kld.push_back(shift - r.log_sum[t] + sums[t].log_sum());
        into.nll.push_back(sums[t].log_sum() - static_cast<double>(sums[t].next));
        into.exact_nll.push_back(r.nll[t]);
        into.same += sums[t].top == r.top[t];
    }
}

void compare(const Reference& r, Predictions& into) {
    into.nll.insert(into.nll.end(), r.nll.begin(), r.nll.end());
    into.exact_nll.insert(into.exact_nll.end(), r.nll.begin(), r.nll.end());
    into.kld.resize(into.kld.size() + r.nll.size());
    into.same += r.nll.size();
}

}  // namespace llm
