// What errors of a stream's rows cost, and the factor by which an encoder acts on it (quantizer/feedback.hpp).
//
//     an error e of a row costs e^T G e,   G = F^T D F,  F unit lower triangular, D diagonal:
//     e^T G e = sum over i of D_i (e_i + sum over j < i of F_ij e_j)^2
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include <xquant/error.hpp>
#include <xquant/projection/weights.hpp>

namespace xquant {

/// G of a stream's coded rows: zero outside blocks of channels along its diagonal.
struct StreamMetric {
    std::size_t block = 0;       ///< n, channels of a block: a divisor of the coded channels; 0: there is no metric
    std::vector<double> values;  ///< [blocks][n, n], symmetric and positive definite; lower triangles are read
};

/// F of a StreamMetric.
struct FeedbackView {
    std::size_t block = 0;  ///< n; 0: there is none
    WeightMatrix columns;   ///< [blocks], of each the columns below the diagonal, one behind the other
};

inline namespace XQUANT_ABI_NS {

/// Entries of the columns of a unit lower triangular matrix [n, n] below its diagonal.
constexpr std::size_t feedback_entries(std::size_t n) noexcept { return n * (n - 1) / 2; }
/// Where column i begins among them: entry (i + 1, i).
constexpr std::size_t feedback_column(std::size_t n, std::size_t i) noexcept { return i * n - i * (i + 1) / 2; }

namespace detail {

/// D F of a metric, G [n, n], in the lower triangle: entry (c, i) is D_c F_ci, D_c on the diagonal. Throws value_error
/// where G is not positive definite. Cost: n^3 / 6 multiplications and additions.
inline std::vector<double> reduced_metric(const double* values, std::size_t n) {
    constexpr std::size_t block = 64, strip = 512;  // what is read again and again stays in L2
    std::vector<double> g(values, values + n * n), factors(block);
    for (std::size_t end = n; end > 0;) {
        const std::size_t begin = end - (std::min)(block, end);
        // Rows of the block, the last one first, and what they leave of those before.
        for (std::size_t i = end; i-- > begin;) {
            const double* const row = g.data() + i * n;
            if (!(row[i] > 0)) {
                raise<value_error>("the metric of a stream is not positive definite: pivot ", i, " of ", n, " is ",
                                   row[i]);
            }
            for (std::size_t j = begin; j < i; ++j) {
                const double factor = row[j] / row[i];
                double* const to = g.data() + j * n;
                for (std::size_t k = 0; k <= j; ++k) to[k] -= factor * row[k];
            }
        }
        for (std::size_t first = 0; first < begin; first += strip) {
            for (std::size_t j = first; j < begin; ++j) {
                double* const to = g.data() + j * n;
                const std::size_t last = (std::min)(first + strip, j + 1);
                for (std::size_t i = begin; i < end; ++i) factors[i - begin] = g[i * n + j] / g[i * n + i];
                for (std::size_t i = begin; i < end; ++i) {
                    const double* const row = g.data() + i * n;
                    for (std::size_t k = first; k < last; ++k) to[k] -= factors[i - begin] * row[k];
                }
            }
        }
        end = begin;
    }
    return g;
}

/// The sum of D of a metric.
inline double metric_sum(const std::vector<double>& metric, std::size_t n) {
    const std::vector<double> g = reduced_metric(metric.data(), n);
    double sum = 0;
    for (std::size_t i = 0; i < n; ++i) sum += g[i * n + i];
    return sum;
}

}  // namespace detail

/// Appends F of a block of a metric, G [n, n], to `out`: its columns below the diagonal. Throws value_error where G is
/// not positive definite. Cost: n^3 / 6 multiplications and additions in f64.
inline void factor_metric(const double* values, std::size_t n, std::vector<float>& out) {
    const std::vector<double> g = detail::reduced_metric(values, n);
    for (std::size_t i = 0; i < n; ++i) {
        for (std::size_t c = i + 1; c < n; ++c) out.push_back(static_cast<float>(g[c * n + i] / g[c * n + c]));
    }
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
