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

/// Each row [n] times R.
inline void rotate_rows(std::vector<float>& rows, std::size_t n) {
    std::vector<float> scratch(n);
    const std::vector<float> dct = dct_matrix(dct_size(n));
    for (std::size_t first = 0; first < rows.size(); first += n) {
        rotate_row(rows.data() + first, n, dct.data(), scratch.data());
    }
}

/// R^T m for a matrix m [n, columns].
inline std::vector<float> rotate_columns(const std::vector<float>& m, std::size_t n) {
    const std::size_t columns = m.size() / n;
    std::vector<float> by_column = transpose(m, n, columns);
    rotate_rows(by_column, n);
    return transpose(by_column, columns, n);
}

/// Both weights, one under the other: [2R, D].
inline std::vector<float> rows_of_both(const Layer& layer) {
    std::vector<float> rows = load_rows(layer.w_k, 0, layer.shape.kv_width());
    const std::vector<float> values = load_rows(layer.w_v, 0, layer.shape.kv_width());
    rows.insert(rows.end(), values.begin(), values.end());
    return rows;
}

/// The footprint of a difference that is coded as n channels of a latent, and has the rows [D] of `base`.
inline LayerFootprint<1> cut_footprint(LayerFootprint<1> base, std::size_t d, std::size_t n) noexcept {
    base.widths = {n};
    base.matrix_floats += 2 * d * n;
    return base;
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
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
