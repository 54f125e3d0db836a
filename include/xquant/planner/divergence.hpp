// What errors of a layer's stored rows cost, before any row is stored: from the layer's plan, its codecs and its
// statistics.
//
//     errors       of stored channels after rounding, r: planner/rounding.hpp, for rows that spread as the statistics
//                  say; with feedback, an error is e = F^-1 r, and what is rounded spreads by e - r more
//     costs        of K: the sum over heads of E[(e A_h) M_k,h (e A_h)^T]; of V likewise
//     divergence   cost / cost of 3-bit codes of `head3` here, times the divergence that these were measured to cause
//                  (LayerStatistics::key_sensitivity, value_sensitivity); K and V, and layers, add up
//
// Second order: it holds while divergences are small, of rows that are all read from codes but for the sinks. What is
// not known: how errors of one layer meet those of the next, and rows that spread unlike normal numbers.
// Where K is stored after RoPE, or X is, x_spread has to be there (Calibrator's option `x`).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include <xquant/mixed_bits.hpp>
#include <xquant/planner/rounding.hpp>
#include <xquant/planner/spread.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// What errors of a layer's K and of its V cost.
struct ErrorCosts {
    double keys = 0, values = 0;
    std::string unknown;  ///< why they are not known, or empty
};

/// F^-1 of a block [n, n] of a metric, unit lower triangular.
inline std::vector<double> inverse_factor(const double* metric, std::size_t n) {
    const std::vector<double> g = reduced_metric(metric, n);
    std::vector<double> out(n * n, 0.0);
    for (std::size_t c = 0; c < n; ++c) {
        double* const to = out.data() + c * n;
        to[c] = 1;
        for (std::size_t i = 0; i < c; ++i) {
            const double factor = g[c * n + i] / g[c * n + c];
            const double* const from = out.data() + i * n;
            for (std::size_t k = 0; k <= i; ++k) to[k] -= factor * from[k];
        }
    }
    return out;
}

/// Inverse factors of a metric, block after block; empty: rows are rounded to the nearest.
inline std::vector<std::vector<double>> inverse_factors(const StreamMetric& metric) {
    std::vector<std::vector<double>> out;
    const std::size_t each = metric.block * metric.block;
    for (std::size_t first = 0; first < metric.values.size(); first += each) {
        out.push_back(inverse_factor(metric.values.data() + first, metric.block));
    }
    return out;
}

/// Variances of r [width], the rounding of a stream's channels, for rows of these variances.
inline std::vector<double> rounding_with_feedback(const StreamCodec& codec, const std::vector<double>& variances,
                                                  const std::vector<std::vector<double>>& inverse) {
    std::vector<double> rounded = rounding_errors(codec, variances), widened = variances;
    if (inverse.empty()) return rounded;
    const std::size_t n = variances.size() / inverse.size();
    for (int pass = 0; pass < 3; ++pass) {
        for (std::size_t c = 0; c < variances.size(); ++c) {
            const double* const row = inverse[c / n].data() + c % n * n;
            double more = 0;
            for (std::size_t k = 0; k < c % n; ++k) more += row[k] * row[k] * rounded[c / n * n + k];
            widened[c] = variances[c] + more;
        }
        rounded = rounding_errors(codec, widened);
    }
    return rounded;
}

/// E[(e A) M (e A)^T] of one head: rows [Dh, n] what the head makes of an error, `rounded` [n] the variances of r.
inline double head_cost(const std::vector<float>& rows, const std::vector<double>& cost, std::size_t dh,
                        const double* rounded, const std::vector<double>* inverse) {
    const std::size_t n = rows.size() / dh;
    std::vector<double> made(rows.begin(), rows.end());
    if (inverse != nullptr) {
        std::fill(made.begin(), made.end(), 0.0);
        for (std::size_t i = 0; i < dh; ++i) {
            double* const to = made.data() + i * n;
            for (std::size_t c = 0; c < n; ++c) {
                const auto factor = static_cast<double>(rows[i * n + c]);
                const double* const from = inverse->data() + c * n;
                for (std::size_t k = 0; k <= c; ++k) to[k] += factor * from[k];
            }
        }
    }
    double sum = 0;
    for (std::size_t c = 0; c < n; ++c) {
        double square = 0;
        for (std::size_t i = 0; i < dh; ++i) {
            double at = 0;
            for (std::size_t j = 0; j < dh; ++j) at += cost[i * dh + j] * made[j * n + c];
            square += made[i * n + c] * at;
        }
        sum += square * rounded[c];
    }
    return sum;
}

/// What errors of a layer that is stored so cost.
inline ErrorCosts error_costs(const LayerParts& parts, const Layer& layer) {
    const LayerPlan& plan = parts.plan;
    const std::size_t dh = layer.shape.head_dim, each = dh * dh;
    ErrorCosts out;
    if (layer.latent.present() || layer.borrows()) {
        out.unknown = "costs of the model's own latent, and of borrowed rows, are not gathered";
        return out;
    }
    if (layer.statistics == nullptr || layer.statistics->key_cost.size() != layer.shape.kv_heads * each ||
        layer.statistics->value_cost.size() != layer.shape.kv_heads * each) {
        out.unknown = "no statistics of the model's layers";
        return out;
    }
    for (std::size_t s = 0; s < plan.streams.size(); ++s) {
        const StreamCodec& codec = parts.codecs[s];
        if (!codec.format.quantized()) continue;
        if (codec.choose != nullptr) {
            out.unknown = "errors beside outliers are not predicted";
            return out;
        }
        RowSpread spread = spread_of(plan, layer, s, codec.format.group_tokens > 1);
        if (!spread.unknown.empty()) {
            out.unknown = std::move(spread.unknown);
            return out;
        }
        const StreamPlan& stream = plan.streams[s];
        const std::vector<std::vector<double>> inverse = inverse_factors(stream.metric);
        const std::vector<double> rounded = rounding_with_feedback(codec, spread.variances, inverse);
        for (const auto* heads : {&plan.keys, &plan.values}) {
            if (heads->front().stream != s) continue;
            const bool keys = heads == &plan.keys;
            for (std::size_t h = 0; h < heads->size(); ++h) {
                const HeadPlan& head = (*heads)[h];
                const bool part = stream.metric.block > 0 && stream.metric.block < stream.width;
                const bool whole = !part && head.width < stream.width && !inverse.empty();
                std::vector<float> rows = head_rows(head, stream, dh);
                std::size_t first = head.first;
                if (whole) {  // the head reads some of the channels that take up each other's errors
                    rows = rows_in_block(rows, head, dh, stream.width);
                    first = 0;
                }
                if (part && (head.width != stream.metric.block || first % stream.metric.block != 0)) {
                    out.unknown = "heads that read parts of blocks of the metric";
                    return out;
                }
                const std::vector<double>* const of =
                    inverse.empty() ? nullptr : &inverse[part ? first / stream.metric.block : 0];
                (keys ? out.keys : out.values) +=
                    head_cost(rows, cost_of_head(plan, layer, keys, h, spread), dh, rounded.data() + first, of);
            }
        }
    }
    return out;
}

/// Costs of 3-bit codes in the basis of each head, by which divergences were measured.
inline ErrorCosts measured_costs(const Layer& layer) {
    using Reference = MixedBits<KeyValueLatent<EachHead>, 128>;
    return error_costs(Reference::prepare(layer, {3, 3}), layer);
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
