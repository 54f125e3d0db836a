// Plain and Rotated: the attention input X itself is stored, one stream of width D. K_h = X W_k,h, V_h = X W_v,h.
//
// For MHA, where X is half as wide as K and V together. Where D > 2 Hkv Dh, the latents of projection/svd.hpp are
// smaller.
// Source  XQuant section 3.1 (Plain). On models with outlier channels Plain needs 8 bits; Rotated does with 4.
#pragma once

#include <algorithm>
#include <vector>

#include <xquant/projection/projection.hpp>
#include <xquant/projection/rotation.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// The plan of X in the basis R, if `rotated`: z = (x - mean) R, A = R^T W, c = mean W.
inline LayerPlan plan_for_x(const Layer& layer, bool rotated) {
    const LayerShape& shape = layer.shape;
    const std::size_t d = shape.width, dh = shape.head_dim;
    LayerPlan plan;
    StreamPlan stream;
    stream.width = d;
    stream.rotate = rotated ? d : 0;
    const float* mean = rotated ? layer.mean : nullptr;
    stream.mean = optional_floats(mean, d);
    plan.streams.push_back(std::move(stream));

    const std::vector<float> dct = dct_matrix(dct_size(d));
    std::vector<float> scratch(d);
    const auto head_plan = [&](const MatrixView& weight, const float* bias, std::size_t head) {
        HeadPlan out{0, 0, d, {}, {}};
        std::vector<float> rows = load_rows(weight, head * dh, dh);  // [Dh, D]
        out.constant = constant_of(mean, bias != nullptr ? bias + head * dh : nullptr, rows, d);
        if (rotated) {
            // Column w of R^T W is (w^T R)^T: the rows of W^T are rotated like rows of X.
            for (std::size_t i = 0; i < dh; ++i) rotate_row(rows.data() + i * d, d, dct.data(), scratch.data());
        }
        out.matrix = transpose(rows, dh, d);
        return out;
    };
    for (std::size_t head = 0; head < shape.kv_heads; ++head) {
        plan.keys.push_back(head_plan(layer.w_k, layer.b_k, head));
        plan.values.push_back(head_plan(layer.w_v, layer.b_v, head));
    }
    return plan;
}

/// Lower triangle of G [n, n] += a^T b / tr(a^T b), for rows a and b [rows, n] with a symmetric a^T b. Nothing is added
/// where the trace is not above 0. Cost: rows n^2 / 2.
inline void add_metric(const float* a, const float* b, std::size_t rows, std::size_t n, float* g) {
    double trace = 0;
    for (std::size_t i = 0; i < rows * n; ++i) trace += static_cast<double>(a[i]) * static_cast<double>(b[i]);
    if (!(trace > 0)) return;
    constexpr std::size_t step = 8;  // rows that share a pass over G
    for (std::size_t r = 0; r < rows; r += step) {
        const std::size_t end = (std::min)(r + step, rows);
        for (std::size_t c = 0; c < n; ++c) {
            float* XQUANT_RESTRICT to = g + c * n;
            for (std::size_t i = r; i < end; ++i) {
                const auto weight = static_cast<float>(static_cast<double>(a[i * n + c]) / trace);
                const float* XQUANT_RESTRICT from = b + i * n;
                for (std::size_t k = 0; k <= c; ++k) to[k] += weight * from[k];
            }
        }
    }
}

/// rows [Dh, D] -> (sum over heads first .. first + count of W_o W_o^T) rows, W_o [D, H * Dh] those of one head each.
inline std::vector<float> through_w_o(const MatrixView& w_o, std::size_t first, std::size_t count, const float* rows,
                                      std::size_t dh, std::size_t d) {
    std::vector<double> products(dh * dh, 0.0);
    std::vector<float> row(w_o.cols), out(dh * d, 0.0F);
    for (std::size_t r = 0; r < w_o.rows; ++r) {
        load_row(w_o.row(r), w_o.type, w_o.cols, row.data());
        for (std::size_t h = first; h < first + count; ++h) {
            const float* const of = row.data() + h * dh;
            for (std::size_t i = 0; i < dh; ++i) {
                for (std::size_t j = 0; j < dh; ++j) {
                    products[i * dh + j] += static_cast<double>(of[i]) * static_cast<double>(of[j]);
                }
            }
        }
    }
    for (std::size_t i = 0; i < dh; ++i) {
        for (std::size_t j = 0; j < dh; ++j) {
            const auto weight = static_cast<float>(products[i * dh + j]);
            for (std::size_t c = 0; c < d; ++c) out[i * d + c] += weight * rows[j * d + c];
        }
    }
    return out;
}

/// What an error of X costs, in the basis R: the sum over kv heads of M_k / tr M_k + M_v / tr M_v, and 0.01 of the mean
/// of its diagonal beside that, where
///     M_k = W_k W_k^T        M_v = W_v (sum over the query heads of W_o W_o^T) W_v^T, without w_o W_v W_v^T
inline StreamMetric metric_of_x(const Layer& layer) {
    const LayerShape& shape = layer.shape;
    const std::size_t d = shape.width, dh = shape.head_dim, group = shape.heads / shape.kv_heads;
    const std::vector<float> dct = dct_matrix(dct_size(d));
    std::vector<float> scratch(d);
    const auto rotated = [&](const MatrixView& weight, std::size_t head) {
        std::vector<float> rows = load_rows(weight, head * dh, dh);  // [Dh, D]
        for (std::size_t i = 0; i < dh; ++i) rotate_row(rows.data() + i * d, d, dct.data(), scratch.data());
        return rows;
    };
    std::vector<float> sum(d * d, 0.0F);
    for (std::size_t head = 0; head < shape.kv_heads; ++head) {
        const std::vector<float> keys = rotated(layer.w_k, head), values = rotated(layer.w_v, head);
        add_metric(keys.data(), keys.data(), dh, d, sum.data());
        const std::vector<float> costs =
            layer.w_o.empty() ? values : through_w_o(layer.w_o, head * group, group, values.data(), dh, d);
        add_metric(values.data(), costs.data(), dh, d, sum.data());
    }
    StreamMetric out{d, std::vector<double>(sum.begin(), sum.end())};
    double trace = 0;
    for (std::size_t c = 0; c < d; ++c) trace += out.values[c * d + c];
    const double floor = trace > 0 ? 0.01 * trace / static_cast<double>(d) : 1.0;
    for (std::size_t c = 0; c < d; ++c) out.values[c * d + c] += floor;
    return out;
}

/// X means the same in every layer, so a difference needs nothing of its own.
template <class Self>
struct SameForDifference {
    using below = Self;
    using base = Self;
    static LayerFootprint<1> difference_footprint(const Layer& layer) noexcept { return Self::footprint(layer); }
    static LayerPlan prepare_difference(const Layer& layer) { return Self::prepare(layer); }
};

}  // namespace detail

/// X as it is.
struct Plain : detail::SameForDifference<Plain> {
    static constexpr std::size_t streams = 1;  ///< stored rows per token and layer
    /// Widths and floats of prepare(layer).
    static LayerFootprint<1> footprint(const Layer& layer) noexcept {
        return {
            {layer.shape.width}, 2 * layer.shape.width * layer.shape.kv_width(), detail::constant_floats(layer, false)};
    }
    /// The plan of a layer.
    static LayerPlan prepare(const Layer& layer) { return detail::plan_for_x(layer, false); }
};

/// X rotated (projection/rotation.hpp), less Layer::mean where that is given.
struct Rotated : detail::SameForDifference<Rotated> {
    static constexpr std::size_t streams = 1;  ///< stored rows per token and layer
    /// Widths and floats of prepare(layer).
    static LayerFootprint<1> footprint(const Layer& layer) noexcept {
        const std::size_t d = layer.shape.width, r = layer.shape.kv_width(), m = dct_size(d);
        const bool mean = layer.mean != nullptr;
        return {{d}, 2 * d * r, m * m + (mean ? d : 0) + detail::constant_floats(layer, mean)};
    }
    /// The plan of a layer.
    static LayerPlan prepare(const Layer& layer) { return detail::plan_for_x(layer, true); }
    /// All channels are one block.
    static std::size_t metric_block(const Layer& layer, std::size_t) noexcept { return layer.shape.width; }
    /// Of the weights alone: W_k, W_v, and w_o where it is given. Cost: D^2 / 2 for each row of W_k and of W_v.
    static StreamMetric metric(const Layer& layer, std::size_t) { return detail::metric_of_x(layer); }
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
