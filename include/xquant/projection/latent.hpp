// Latent: the latent that a model with multi-head latent attention makes itself, passed through.
//
//     stream 0  norm(x W_down^T) [R]  K_h from channel Dr on = z W_k,h^T, V_h = z W_v,h^T; for few queries, W_k,h is
//                                     folded into the queries
//     stream 1  x W_shared^T [Dr]     the first channels of every key, before RoPE
//
// Stream 1 is small (64 of 576 channels in DeepSeek-V2) and carries the position, so it is usually left in f16:
// PerStream<Uniform<4>, Unquantized<f16>>. It is stored before RoPE, so tokens move to other positions exactly.
// Cost    each head decodes the latent for itself, H times in all.
// Source  DeepSeek-V2 (arXiv 2405.04434), section 2.1.2, equations 9 to 11 and 41 to 47.
#pragma once

#include <xquant/projection/projection.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {

/// For layers with Layer::latent.
struct Latent {
    static constexpr std::size_t streams = 2;   ///< stored rows per token and layer
    static constexpr bool reads_latent = true;  ///< layers without Layer::latent are refused

    /// Widths and floats of prepare(layer).
    static LayerFootprint<2> footprint(const Layer& layer) noexcept {
        const std::size_t d = layer.shape.width, r = layer.latent.w_down.rows, dr = layer.latent.w_shared.rows;
        const std::size_t gain = layer.latent.norm != nullptr ? r : 0;
        return {{r, dr}, d * (r + dr) + 2 * r * layer.shape.kv_width(), gain};
    }

    /// The plan of a layer: stream 0 is the latent, stream 1 the shared channels of the keys.
    static LayerPlan prepare(const Layer& layer) {
        const std::size_t d = layer.shape.width, dh = layer.shape.head_dim, heads = layer.shape.kv_heads;
        const std::size_t r = layer.latent.w_down.rows, dr = layer.latent.w_shared.rows;
        LayerPlan plan;
        StreamPlan latent, shared;
        latent.width = r;
        latent.matrix = detail::transpose(detail::load_rows(layer.latent.w_down, 0, r), r, d);
        latent.row_norm = detail::optional_floats(layer.latent.norm, r);
        latent.row_norm_epsilon = layer.latent.norm_epsilon;
        shared.width = dr;
        shared.matrix = detail::transpose(detail::load_rows(layer.latent.w_shared, 0, dr), dr, d);
        plan.streams = {std::move(latent), std::move(shared)};
        plan.shared = {1, dr};
        for (std::size_t head = 0; head < heads; ++head) {
            plan.keys.push_back({0, 0, r, placed(layer.w_k, head, heads, dr, dh), {}});
            plan.values.push_back({0, 0, r, placed(layer.w_v, head, heads, 0, dh), {}});
        }
        return plan;
    }

private:
    /// A head's rows of a weight as the columns `at` .. of a matrix [R, Dh], 0 elsewhere.
    static std::vector<float> placed(const MatrixView& weight, std::size_t head, std::size_t heads, std::size_t at,
                                     std::size_t dh) {
        const std::size_t r = weight.cols, count = weight.rows / heads;
        const std::vector<float> rows = detail::load_rows(weight, head * count, count);
        std::vector<float> out(r * dh, 0.0F);
        for (std::size_t i = 0; i < count; ++i) {
            for (std::size_t j = 0; j < r; ++j) out[j * dh + at + i] = rows[i * r + j];
        }
        return out;
    }
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
