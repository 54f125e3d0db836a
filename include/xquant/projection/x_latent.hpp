// XLatent: X, or what K and V read of it, in the basis in which errors cost least (projection/latent_basis.hpp). One
// stream per token, for WithFeedback<...>, and a layer with Layer::statistics.
//
//     XLatent<AllChannels>      z = x T [D]                     for MHA
//     XLatent<KeysAndValues>    z = x U T [2R], R = Hkv Dh      for GQA: U spans what [W_k W_v] reads of x
//     difference                z = (y - accumulator) L,   accumulator += z S,   L = T or U T and S its inverse or U's
//
// With CrossLayer<Delta>, layers below the base are SplitSvd, and the base is X rotated.
//
// Layout  <PerToken>
// Memory  D n entries for T or U T, n 2R for what reads latents, n^2 / 2 for feedback, n = D or 2R.
// Cost    to prepare: 30 n^3 and D^2 n.
#pragma once

#include <array>
#include <type_traits>

#include <xquant/projection/cost.hpp>
#include <xquant/projection/key_value_latent.hpp>
#include <xquant/projection/svd.hpp>
#include <xquant/projection/x.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// An orthonormal basis [D, 2R] of what K and V read of X.
inline std::vector<float> read_by_keys_and_values(const Layer& layer) {
    const std::size_t n = 2 * layer.shape.kv_width();
    const std::vector<float> rows = rows_of_both(layer);
    return svd_basis(MatrixView(rows.data(), n, layer.shape.width), 0, n).u;
}

}  // namespace detail

/// @tparam Over  AllChannels or KeysAndValues
template <class Over>
struct XLatent {
    static_assert(std::is_same_v<Over, AllChannels> || std::is_same_v<Over, KeysAndValues>,
                  "xquant: XLatent<Over> takes AllChannels or KeysAndValues");
    static constexpr std::size_t streams = 1;                          ///< stored rows per token and layer
    static constexpr bool cuts = std::is_same_v<Over, KeysAndValues>;  ///< whether what nothing reads is left out
    using below = SplitSvdOf<FullRank>;                                ///< CrossLayer<Delta>: of layers below the base
    using base = Rotated;                                              ///< CrossLayer<Delta>: of the base layer

    /// Widths and floats of prepare(layer). Throws shape_error if 2 Hkv Dh > D.
    static LayerFootprint<1> footprint(const Layer& layer) {
        const std::size_t n = latent_width(layer);
        return {{n}, n * (layer.shape.width + 2 * layer.shape.kv_width()), detail::constant_floats(layer, false)};
    }
    /// The plan of a layer for codes of four bits.
    static LayerPlan prepare(const Layer& layer) { return prepare(layer, {4}); }
    /// The plan of a layer for codes of so many bits. Throws value_error where statistics are not there.
    static LayerPlan prepare(const Layer& layer, const std::array<unsigned, 1>& bits) {
        const std::size_t n = latent_width(layer), d = layer.shape.width;
        LayerPlan plan = detail::plan_for_x(layer, false);
        const std::vector<float> u = cuts ? detail::read_by_keys_and_values(layer) : std::vector<float>();
        LatentBasis basis = basis_of(plan, layer, u, &LayerStatistics::x_spread, "x_spread", bits[0]);
        StreamPlan& stream = plan.streams[0];
        stream.width = n;
        stream.matrix = cuts ? detail::product<float>(u, basis.to, n) : std::move(basis.to);
        stream.metric = {n, std::move(basis.cost)};
        const std::vector<float> from =
            cuts ? detail::product<float>(basis.from, detail::transpose(u, d, n), n) : std::move(basis.from);
        for (auto* heads : {&plan.keys, &plan.values}) {
            for (HeadPlan& head : *heads) {
                head.matrix = detail::product<float>(from, head.matrix, d);
                head.width = n;
            }
        }
        return plan;
    }

    /// Widths and floats of prepare_difference(layer).
    static LayerFootprint<1> difference_footprint(const Layer& layer) {
        return detail::cut_footprint(base::footprint(layer), layer.shape.width, latent_width(layer));
    }
    /// The plan of a layer of CrossLayer<Delta> that stores a difference, for codes of three bits.
    static LayerPlan prepare_difference(const Layer& layer) { return prepare_difference(layer, {3}); }
    /// The plan of such a layer for codes of so many bits.
    static LayerPlan prepare_difference(const Layer& layer, const std::array<unsigned, 1>& bits) {
        const std::size_t n = latent_width(layer), d = layer.shape.width;
        const std::vector<float> u = cuts ? detail::read_by_keys_and_values(layer) : std::vector<float>();
        LatentBasis basis = basis_of(detail::plan_for_x(layer, false), layer, u, &LayerStatistics::difference_spread,
                                     "difference_spread", bits[0]);
        LayerPlan plan = base::prepare(layer);
        // Rows come as y = x R, and are stored as (y R^T) U T.
        StreamPlan& stream = plan.streams[0];
        stream.latent = detail::rotate_columns(cuts ? detail::product<float>(u, basis.to, n) : std::move(basis.to), d);
        stream.spread =
            cuts ? detail::product<float>(basis.from, detail::transpose(u, d, n), n) : std::move(basis.from);
        detail::rotate_rows(stream.spread, d);
        stream.metric = {n, std::move(basis.cost)};
        return plan;
    }

private:
    static constexpr double ridge = 0.01;  ///< of how x spreads

    static std::size_t latent_width(const Layer& layer) {
        const std::size_t n = 2 * layer.shape.kv_width(), d = layer.shape.width;
        if (!cuts) return d;
        detail::expects(n <= d, "XLatent<KeysAndValues>: 2 kv_heads * head_dim = ", n, " is more than width = ", d,
                        "; X itself is smaller: XLatent<AllChannels>");
        return n;
    }

    /// `plan` reads X by its heads.
    static LatentBasis basis_of(const LayerPlan& plan, const Layer& layer, const std::vector<float>& u,
                                std::vector<float> LayerStatistics::*spread, const char* name, unsigned bits) {
        const std::size_t d = layer.shape.width, dh = layer.shape.head_dim, n = cuts ? u.size() / d : d;
        const float* const c = detail::statistic(layer, spread, name, d * d);
        const std::size_t floats = layer.shape.kv_heads * dh * dh;
        const float* const key_cost = detail::statistic(layer, &LayerStatistics::key_cost, "key_cost", floats);
        const float* const value_cost = detail::statistic(layer, &LayerStatistics::value_cost, "value_cost", floats);
        std::vector<float> sum(n * n, 0.0F);
        for (const auto* heads : {&plan.keys, &plan.values}) {
            for (std::size_t h = 0; h < heads->size(); ++h) {
                std::vector<float> rows = detail::transpose((*heads)[h].matrix, d, dh);  // [Dh, D]
                if (cuts) rows = detail::product<float>(rows, u, d);
                const float* const m = (heads == &plan.keys ? key_cost : value_cost) + h * dh * dh;
                const std::vector<float> costs = detail::left_product(std::vector<double>(m, m + dh * dh), rows, dh);
                detail::add_product(rows.data(), costs.data(), dh, n, 1, sum.data());
            }
        }
        std::vector<double> cost(n * n);
        for (std::size_t i = 0; i < n; ++i) {
            for (std::size_t j = 0; j <= i; ++j)
                cost[i * n + j] = cost[j * n + i] = static_cast<double>(sum[i * n + j]);
        }
        std::vector<double> spreads(c, c + d * d);
        if (cuts) spreads = detail::product(detail::transpose(u, d, n), detail::product(spreads, u, d), d);
        return latent_basis(detail::with_ridge(std::move(spreads), n, ridge), cost, n, bits, BasisMix::rotation);
    }
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
