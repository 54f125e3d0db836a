// KeyValueLatent: K before RoPE and V in bases in which their errors cost least (projection/latent_basis.hpp). For
// WithFeedback<...>, and a layer with Layer::statistics.
//
//     KeyValueLatent<EachHead>    a basis [Dh, Dh] for each head's K and for its V; K_h = z_h A_h when read
//     KeyValueLatent<AllHeads>    one basis [R, R] for all heads' K and one for V, R = Hkv Dh: less error, and Hkv
//                                 times the work when read
//
// No weights are needed: an engine may hand over K and V in place of X. Biases are taken off before the basis, and put
// back when read; where the model norms its keys, K is what the norm makes.
//
// Layout  <PerChannel, PerToken>
// Cost    to prepare: 60 n^3 for a basis, n = Dh or R. To write a row: n R more for K, and as many for V.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <type_traits>

#include <xquant/projection/latent_basis.hpp>
#include <xquant/projection/projection.hpp>
#include <xquant/statistics.hpp>

namespace xquant {

inline namespace XQUANT_ABI_NS {
namespace detail {

/// Statistics of a layer, one of them: [blocks][n, n]. Throws value_error where they are not there or not of that size.
inline const float* statistic(const Layer& layer, std::vector<float> LayerStatistics::*which, const char* name,
                              std::size_t floats) {
    if (layer.statistics == nullptr) {
        raise<value_error>(
            "Layer::statistics is null, and the projection chooses its bases by them: gather them with a "
            "Calibrator, or choose a scheme that needs none (svd_head4, x4_rot, kv4)");
    }
    const std::vector<float>& values = layer.statistics->*which;
    if (values.size() != floats) {
        raise<value_error>("Layer::statistics has ", values.size(), " floats of ", name,
                           "; the layer's shape asks for ", floats);
    }
    return values.data();
}

/// Scales of latents whose heads share a scale when coded: of two neighbours, the one whose errors cost more gets the
/// finer steps. A head whose errors cost next to nothing gets steps that are up to ten times as large. Divides and
/// multiplies in place.
inline void balance(std::vector<LatentBasis>& bases, std::size_t n) {
    std::vector<double> sums;
    for (const LatentBasis& basis : bases) sums.push_back(metric_sum(basis.cost, n));
    const double most = *std::max_element(sums.begin(), sums.end());
    for (std::size_t i = 0; i < bases.size(); ++i) {
        LatentBasis& basis = bases[i];
        const double scale = std::pow((std::max)(sums[i] / most, 1e-4), 0.25);
        for (float& value : basis.to) value = static_cast<float>(static_cast<double>(value) * scale);
        for (float& value : basis.from) value = static_cast<float>(static_cast<double>(value) / scale);
        for (double& value : basis.cost) value /= scale * scale;
    }
}

}  // namespace detail

/// @tparam Over  EachHead or AllHeads
template <class Over>
struct KeyValueLatent {
    static_assert(std::is_same_v<Over, EachHead> || std::is_same_v<Over, AllHeads>,
                  "xquant: KeyValueLatent<Over> takes EachHead or AllHeads");
    static constexpr std::size_t streams = 2;                      ///< stored rows per token and layer
    static constexpr bool joint = std::is_same_v<Over, AllHeads>;  ///< whether heads share a basis
    /// Keys have to come before RoPE, as they are stored.
    static constexpr bool takes(LayerInput input) noexcept { return !detail::comes_after_rope(input); }

    /// Widths and floats of prepare(layer).
    static LayerFootprint<2> footprint(const Layer& layer) noexcept {
        const std::size_t r = layer.shape.kv_width(), n = basis_width(layer);
        const bool from_x = layer.input == LayerInput::x;
        const bool key_bias = layer.b_k != nullptr && (from_x || layer.k_norm == nullptr);
        // A bias is taken off K and V that are handed over, or added where it is part of what k_norm norms; it is put
        // back by constants.
        const std::size_t written =
            (key_bias && (!from_x || layer.k_norm != nullptr) ? r : 0) + (layer.b_v != nullptr && !from_x ? r : 0);
        const std::size_t read = (key_bias && layer.k_norm == nullptr ? r : 0) + (layer.b_v != nullptr ? r : 0);
        return {{r, r}, 2 * r * n + (from_x ? 2 * layer.shape.width * r : 0), 2 * r * n + written + read, {n, n}};
    }
    /// The plan of a layer for codes of four bits.
    static LayerPlan prepare(const Layer& layer) { return prepare(layer, {4, 4}); }
    /// The plan of a layer for codes of so many bits: stream 0 is K, stream 1 is V. Throws value_error where statistics
    /// are not there.
    static LayerPlan prepare(const Layer& layer, const std::array<unsigned, 2>& bits) {
        const LayerShape& shape = layer.shape;
        const std::size_t n = basis_width(layer), r = shape.kv_width(), dh = shape.head_dim;
        const bool normed = layer.k_norm != nullptr, from_x = layer.input == LayerInput::x;
        LayerPlan plan;
        plan.keys_normed = normed;
        for (const bool key : {true, false}) {
            const float* const bias = key ? layer.b_k : layer.b_v;
            StreamPlan stream;
            stream.width = r;
            if (from_x) {
                stream.matrix = detail::transpose(detail::load_rows(key ? layer.w_k : layer.w_v, 0, r), r, shape.width);
                if (key && normed) {
                    stream.bias = detail::optional_floats(bias, r);
                    stream.norm = true;
                }
            } else {
                stream.source = key ? RowSource::keys : RowSource::values;
                for (std::size_t i = 0; i < r && bias != nullptr && !(key && normed); ++i)
                    stream.bias.push_back(-bias[i]);
            }
            const std::vector<LatentBasis> bases = bases_of(layer, key, bits[key ? 0 : 1]);
            stream.mixed = stream.metric.block = n;
            for (const LatentBasis& basis : bases) {
                stream.mix.insert(stream.mix.end(), basis.to.begin(), basis.to.end());
                stream.metric.values.insert(stream.metric.values.end(), basis.cost.begin(), basis.cost.end());
            }
            for (std::size_t head = 0; head < shape.kv_heads; ++head) {
                HeadPlan out{plan.streams.size(), joint ? 0 : head * dh, n, {}, {}};
                out.matrix = joint ? columns(bases.front().from, n, head * dh, dh) : bases[head].from;
                if (bias != nullptr && !(key && normed)) out.constant.assign(bias + head * dh, bias + head * dh + dh);
                (key ? plan.keys : plan.values).push_back(std::move(out));
            }
            plan.streams.push_back(std::move(stream));
        }
        return plan;
    }

private:
    /// Channels that share a basis.
    static std::size_t basis_width(const Layer& layer) noexcept {
        return joint ? layer.shape.kv_width() : layer.shape.head_dim;
    }

    /// Keys' pages are centred, so little of what they spread is noise; values have tokens that are far smaller than
    /// others and cost most, whose share the ridge keeps.
    static constexpr double key_ridge = 1e-4, value_ridge = joint ? 0.1 : 0.3, key_cost_ridge = 0.01;

    static std::vector<LatentBasis> bases_of(const Layer& layer, bool key, unsigned bits) {
        const std::size_t dh = layer.shape.head_dim, heads = layer.shape.kv_heads, n = basis_width(layer);
        const float* const costs =
            detail::statistic(layer, key ? &LayerStatistics::key_cost : &LayerStatistics::value_cost,
                              key ? "key_cost" : "value_cost", heads * dh * dh);
        const float* const spreads =
            joint ? detail::statistic(layer, key ? &LayerStatistics::joint_keys : &LayerStatistics::joint_values,
                                      key ? "joint_keys" : "joint_values", n * n)
                  : detail::statistic(layer, key ? &LayerStatistics::key_spread : &LayerStatistics::value_spread,
                                      key ? "key_spread" : "value_spread", heads * dh * dh);
        const auto cost_of = [&](std::size_t head) {
            return detail::with_ridge(costs + head * dh * dh, dh, key ? key_cost_ridge : 0.0);
        };
        const BasisMix mix = key ? BasisMix::geometric_mean : BasisMix::rotation;
        const double ridge = key ? key_ridge : value_ridge;
        std::vector<LatentBasis> out;
        if (joint) {
            std::vector<double> cost(n * n, 0.0);
            for (std::size_t head = 0; head < heads; ++head) {
                const std::vector<double> of_head = cost_of(head);
                for (std::size_t i = 0; i < dh; ++i) {
                    for (std::size_t j = 0; j < dh; ++j) {
                        cost[(head * dh + i) * n + head * dh + j] = of_head[i * dh + j];
                    }
                }
            }
            out.push_back(latent_basis(detail::with_ridge(spreads, n, ridge), cost, n, bits, mix));
        } else {
            for (std::size_t head = 0; head < heads; ++head) {
                out.push_back(
                    latent_basis(detail::with_ridge(spreads + head * n * n, n, ridge), cost_of(head), n, bits, mix));
            }
        }
        if (!key) detail::balance(out, n);
        return out;
    }

    /// Columns first .. first + count of a matrix [n, n].
    static std::vector<float> columns(const std::vector<float>& matrix, std::size_t n, std::size_t first,
                                      std::size_t count) {
        std::vector<float> out;
        for (std::size_t i = 0; i < n; ++i) {
            const float* const row = matrix.data() + i * n + first;
            out.insert(out.end(), row, row + count);
        }
        return out;
    }
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
