// JointSvd: one latent of X for K and V together, from the SVD of [W_k W_v]. The paper's cross-layer form for GQA.
//
//     [W_k W_v] = U S B^T [D, 2R], thin alone      z = x U                 [K V] = z (S B^T)
//     difference                          z = (y - accumulator) U
//                                         accumulator += z U^T,   [K V] = accumulator [W_k W_v]
//
// With CrossLayer<Delta> the layers below the base are SplitSvd, the base is X itself, and S B^T is not needed: the
// accumulator has the full width D. U^T U = I, so what a layer reads back of its own subspace is x U + its own
// rounding, whatever the accumulator held before.
//
//     JointSvd<NoMix, FullRank>      as the paper has it
//     JointSvd<Hadamard, FullRank>   latents and base rotated: the better one
//
// Source  XQuant section 3.3 (figure A.1); the rotation is ours.
#pragma once

#include <type_traits>

#include <xquant/projection/key_value.hpp>
#include <xquant/projection/svd.hpp>
#include <xquant/projection/x.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {

/// @tparam Mix   NoMix, or Hadamard: base and latents are rotated (projection/rotation.hpp) before they are coded
/// @tparam Keep  FullRank, Rank<N>, EnergyShare<PerMille>
template <class Mix, class Keep>
struct JointSvd {
    static_assert(std::is_same_v<Mix, NoMix> || std::is_same_v<Mix, Hadamard>,
                  "xquant: JointSvd<Mix> takes NoMix or Hadamard");
    static constexpr std::size_t streams = 1;                     ///< stored rows per token and layer
    static constexpr bool mixed = std::is_same_v<Mix, Hadamard>;  ///< whether latents and base are rotated
    using below = SplitSvdOf<FullRank>;                           ///< CrossLayer<Delta>: of layers below the base
    using base = std::conditional_t<mixed, Rotated, Plain>;       ///< CrossLayer<Delta>: of the base layer

    /// Widths and floats of prepare(layer). Cost with EnergyShare: an SVD. Throws shape_error as prepare.
    static LayerFootprint<1> footprint(const Layer& layer) {
        const std::size_t d = layer.shape.width, r = layer.shape.kv_width(), n = rank(layer), m = dct_size(n);
        return {{n}, n * (d + 2 * r), (mixed ? m * m : 0) + detail::constant_floats(layer, false)};
    }
    /// The plan of a layer that stands alone. Cost: an SVD. Throws shape_error if 2 Hkv Dh > D.
    static LayerPlan prepare(const Layer& layer) {
        const std::size_t r = layer.shape.kv_width(), dh = layer.shape.head_dim, n = rank(layer);
        Basis basis = joint_basis(layer, n);
        if (mixed) basis.a = detail::rotate_columns(basis.a, n);
        LayerPlan plan;
        for (std::size_t head = 0; head < layer.shape.kv_heads; ++head) {
            const auto add = [&](const float* bias, std::size_t first, std::vector<HeadPlan>& heads) {
                heads.push_back({0, 0, n, detail::columns_of(basis.a, 2 * r, first + head * dh, dh),
                                 detail::optional_floats(bias != nullptr ? bias + head * dh : nullptr, dh)});
            };
            add(layer.b_k, 0, plan.keys);
            add(layer.b_v, r, plan.values);
        }
        StreamPlan stream;
        stream.width = n;
        stream.matrix = std::move(basis.u);
        stream.rotate = mixed ? n : 0;
        plan.streams.push_back(std::move(stream));
        return plan;
    }

    /// Widths and floats of prepare_difference(layer).
    static LayerFootprint<1> difference_footprint(const Layer& layer) {
        return detail::cut_footprint(base::footprint(layer), layer.shape.width, rank(layer));
    }
    /// The plan of a layer of CrossLayer<Delta> that stores a difference. Cost: an SVD.
    static LayerPlan prepare_difference(const Layer& layer) {
        const std::size_t d = layer.shape.width, n = rank(layer);
        LayerPlan plan = base::prepare(layer);
        std::vector<float> u = joint_basis(layer, n).u;
        if (mixed) {
            // Rows come as y = x R, and are stored as (y R^T) U R'.
            u = detail::rotate_columns(u, d);
            detail::rotate_rows(u, n);
        }
        plan.streams[0].latent = std::move(u);
        return plan;
    }

private:
    static std::size_t rank(const Layer& layer) {
        const std::size_t n = 2 * layer.shape.kv_width(), d = layer.shape.width;
        detail::expects(n <= d, "JointSvd: 2 kv_heads * head_dim = ", n, " is more than width = ", d,
                        "; X itself is smaller: Projection<Rotated>");
        if (std::is_same_v<Keep, FullRank> || layer.w_k.empty()) return Keep::rank(layer.w_k, 0, n);
        const std::vector<float> rows = detail::rows_of_both(layer);
        return Keep::rank(MatrixView(rows.data(), n, d), 0, n);
    }
    static Basis joint_basis(const Layer& layer, std::size_t kept) {
        const std::size_t n = 2 * layer.shape.kv_width();
        const std::vector<float> rows = detail::rows_of_both(layer);
        return detail::cut_basis(svd_basis(MatrixView(rows.data(), n, layer.shape.width), 0, n), n, kept);
    }
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
