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

/// out [columns, columns] = u^T m u, for a symmetric m [d, d] and u [d, columns].
inline std::vector<double> between(const std::vector<float>& m, const std::vector<float>& u, std::size_t d) {
    const std::size_t n = u.size() / d;
    std::vector<double> wide(u.begin(), u.end());
    const std::vector<double> half = product(std::vector<double>(m.begin(), m.end()), wide, d);  // [d, n]
    std::vector<double> out(n * n, 0.0);
    for (std::size_t k = 0; k < d; ++k) {
        for (std::size_t i = 0; i < n; ++i) {
            const double factor = wide[k * n + i];
            const double* XQUANT_RESTRICT from = half.data() + k * n;
            double* XQUANT_RESTRICT to = out.data() + i * n;
            for (std::size_t j = 0; j < n; ++j) to[j] += factor * from[j];
        }
    }
    return out;
}

/// a [rows, inner] b [inner, columns], summed in f64.
inline std::vector<float> matrix_product(const std::vector<float>& a, const std::vector<float>& b, std::size_t inner) {
    const std::size_t rows = a.size() / inner, columns = b.size() / inner;
    std::vector<float> out(rows * columns);
    std::vector<double> row(columns);
    for (std::size_t i = 0; i < rows; ++i) {
        std::fill(row.begin(), row.end(), 0.0);
        for (std::size_t k = 0; k < inner; ++k) {
            const double factor = static_cast<double>(a[i * inner + k]);
            const float* XQUANT_RESTRICT from = b.data() + k * columns;
            for (std::size_t j = 0; j < columns; ++j) row[j] += factor * static_cast<double>(from[j]);
        }
        for (std::size_t j = 0; j < columns; ++j) out[i * columns + j] = static_cast<float>(row[j]);
    }
    return out;
}

/// An orthonormal basis [D, 2R] of what K and V read of X.
inline std::vector<float> read_by_keys_and_values(const Layer& layer) {
    const std::size_t r = layer.shape.kv_width(), d = layer.shape.width;
    std::vector<float> rows = load_rows(layer.w_k, 0, r);
    const std::vector<float> values = load_rows(layer.w_v, 0, r);
    rows.insert(rows.end(), values.begin(), values.end());
    return svd_basis(MatrixView(rows.data(), 2 * r, d), 0, 2 * r).u;
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
        stream.matrix = cuts ? detail::matrix_product(u, basis.to, n) : std::move(basis.to);
        stream.metric = {n, std::move(basis.cost)};
        const std::vector<float> from =
            cuts ? detail::matrix_product(basis.from, detail::transpose(u, d, n), n) : std::move(basis.from);
        for (auto* heads : {&plan.keys, &plan.values}) {
            for (HeadPlan& head : *heads) {
                head.matrix = detail::matrix_product(from, head.matrix, d);
                head.width = n;
            }
        }
        return plan;
    }

    /// Widths and floats of prepare_difference(layer).
    static LayerFootprint<1> difference_footprint(const Layer& layer) {
        const std::size_t n = latent_width(layer);
        LayerFootprint<1> out = base::footprint(layer);
        out.widths = {n};
        out.matrix_floats += 2 * layer.shape.width * n;
        return out;
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
        stream.latent = turned(cuts ? detail::matrix_product(u, basis.to, n) : std::move(basis.to), n);
        stream.spread =
            cuts ? detail::matrix_product(basis.from, detail::transpose(u, d, n), n) : std::move(basis.from);
        const std::vector<float> dct = dct_matrix(dct_size(d));
        std::vector<float> scratch(d);
        for (std::size_t i = 0; i < n; ++i) rotate_row(stream.spread.data() + i * d, d, dct.data(), scratch.data());
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
                if (cuts) rows = detail::matrix_product(rows, u, d);
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
        std::vector<double> spreads =
            cuts ? detail::between(std::vector<float>(c, c + d * d), u, d) : std::vector<double>(c, c + d * d);
        double trace = 0;
        for (std::size_t i = 0; i < n; ++i) trace += spreads[i * n + i];
        for (std::size_t i = 0; i < n; ++i) spreads[i * n + i] += ridge * trace / static_cast<double>(n);
        return latent_basis(spreads, cost, n, bits, BasisMix::rotation);
    }

    /// R^T m for a matrix m [D, columns].
    static std::vector<float> turned(const std::vector<float>& m, std::size_t columns) {
        const std::size_t d = m.size() / columns;
        std::vector<float> by_column = detail::transpose(m, d, columns), scratch(d);
        const std::vector<float> dct = dct_matrix(dct_size(d));
        for (std::size_t i = 0; i < columns; ++i) rotate_row(by_column.data() + i * d, d, dct.data(), scratch.data());
        return detail::transpose(by_column, columns, d);
    }
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
