// How the rows that a layer stores spread, channel by channel, and what an error of a head's K or V costs: from the
// layer's plan and its statistics.
//
//     a stream of K (or of V)    rows z with K = z A: z = K A^-1, so C_z = A^-T C A^-1, C of K or of V
//     a stream of X              rows z = x L: C_z = L^T E[x x^T] L
//
// C of K is that of a page less its mean where groups lie along a channel. Along a token it is that of whole keys, from
// E[x x^T]: their means count there. Keys after RoPE are looked at over all positions, evenly.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include <xquant/projection/cost.hpp>
#include <xquant/projection/latent_basis.hpp>
#include <xquant/projection/rotation.hpp>
#include <xquant/projection/x.hpp>
#include <xquant/statistics.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// How a stream's rows spread.
struct RowSpread {
    std::vector<double> variances;    ///< [coded channels]; squares, where means count
    std::vector<double> key_squares;  ///< [Hkv] of keys before k_norm, the mean of Dh squares; where X is stored
    std::string unknown;              ///< why it is not known, or empty
};

/// The inverse of m [n, n]; empty where it has none.
inline std::vector<double> inverse_of(std::vector<double> m, std::size_t n) {
    std::vector<double> out(n * n, 0.0);
    double most = 0;
    for (std::size_t i = 0; i < n; ++i) out[i * n + i] = 1;
    for (const double value : m) most = (std::max)(most, std::abs(value));
    for (std::size_t c = 0; c < n; ++c) {
        std::size_t pivot = c;
        for (std::size_t i = c + 1; i < n; ++i) {
            if (std::abs(m[i * n + c]) > std::abs(m[pivot * n + c])) pivot = i;
        }
        if (!(std::abs(m[pivot * n + c]) > 1e-9 * most)) return {};
        if (pivot != c) {
            std::swap_ranges(&m[c * n], &m[c * n] + n, &m[pivot * n]);
            std::swap_ranges(&out[c * n], &out[c * n] + n, &out[pivot * n]);
        }
        const double scale = 1 / m[c * n + c];
        for (std::size_t i = 0; i < n; ++i) {
            if (i == c) continue;
            const double factor = m[i * n + c] * scale;
            if (factor == 0) continue;
            for (std::size_t k = c; k < n; ++k) m[i * n + k] -= factor * m[c * n + k];
            for (std::size_t k = 0; k < n; ++k) out[i * n + k] -= factor * out[c * n + k];
        }
        for (std::size_t k = c; k < n; ++k) m[c * n + k] *= scale;
        for (std::size_t k = 0; k < n; ++k) out[c * n + k] *= scale;
    }
    return out;
}

/// T [n, n] with z A T = z for A [n, n]: the inverse, or where channels come back as nothing, one that leaves them 0,
/// A^T (A A^T + floor)^-1.
inline std::vector<double> way_back(const std::vector<double>& a, std::size_t n) {
    std::vector<double> out = inverse_of(a, n);
    if (!out.empty()) return out;
    const std::vector<double> transposed = transpose(a, n, n);
    const std::vector<double> squares = inverse_of(with_ridge(product(a, transposed, n), n, 1e-6), n);
    return squares.empty() ? out : product(transposed, squares, n);
}

/// m [Dh, Dh] averaged over the turns of RoPE: pairs lose what tells their two channels apart, and each other.
inline std::vector<double> over_positions(const std::vector<double>& m, const Layer& layer) {
    const std::size_t dh = layer.shape.head_dim, pairs = layer.rope.inverse_frequencies.size();
    const bool halves = layer.rope.pairing == RopePairing::halves;
    std::vector<double> out(m.size(), 0.0);
    for (std::size_t j = 0; j < pairs; ++j) {
        const std::size_t a = halves ? j : 2 * j, b = halves ? j + pairs : 2 * j + 1;
        out[a * dh + a] = out[b * dh + b] = (m[a * dh + a] + m[b * dh + b]) / 2;
    }
    for (std::size_t i = 2 * pairs; i < dh; ++i) {
        for (std::size_t j = 2 * pairs; j < dh; ++j) out[i * dh + j] = m[i * dh + j];
    }
    return out;
}

/// diag(T^T C T) for T [n, columns].
inline std::vector<double> variances_through(const std::vector<double>& c, const std::vector<double>& t,
                                             std::size_t n) {
    const std::size_t columns = t.size() / n;
    const std::vector<double> ct = product(c, t, n);
    std::vector<double> out(columns, 0.0);
    for (std::size_t i = 0; i < n; ++i) {
        for (std::size_t j = 0; j < columns; ++j) out[j] += t[i * columns + j] * ct[i * columns + j];
    }
    for (double& value : out) value = (std::max)(value, 0.0);
    return out;
}

/// E[x x^T] [D, D] of a layer; empty where it was not gathered.
inline std::vector<double> squares_of_x(const Layer& layer) {
    const std::vector<float>& from = layer.statistics->x_spread;
    if (from.size() != layer.shape.width * layer.shape.width) return {};
    return {from.begin(), from.end()};
}

/// E[k k^T] [Dh, Dh] of one head's whole keys, after k_norm, from E[x x^T].
inline std::vector<double> whole_keys(const Layer& layer, const std::vector<double>& x, std::size_t head) {
    const std::size_t d = layer.shape.width, dh = layer.shape.head_dim;
    const std::vector<float> rows = load_rows(layer.w_k, head * dh, dh);
    std::vector<double> out = product(product(rows, x, d), transpose(rows, dh, d), d);
    for (std::size_t i = 0; i < dh && layer.b_k != nullptr; ++i) {
        for (std::size_t j = 0; j < dh; ++j) {
            out[i * dh + j] +=
                static_cast<double>(layer.b_k[head * dh + i]) * static_cast<double>(layer.b_k[head * dh + j]);
        }
    }
    if (layer.k_norm == nullptr) return out;
    double square = 0;
    for (std::size_t i = 0; i < dh; ++i) square += out[i * dh + i] / static_cast<double>(dh);
    for (std::size_t i = 0; i < dh; ++i) {
        for (std::size_t j = 0; j < dh; ++j) {
            out[i * dh + j] *= static_cast<double>(layer.k_norm[i]) * static_cast<double>(layer.k_norm[j]) / square;
        }
    }
    return out;
}

/// Whether keys come back from a plan before k_norm, which then works on their errors, too.
inline bool normed_when_read(const LayerPlan& plan, const Layer& layer) noexcept {
    return layer.k_norm != nullptr && !plan.keys_normed;
}

/// A of one head [width, Dh] in f64; of keys that are normed when they are read, with the gain.
inline std::vector<double> head_matrix(const LayerPlan& plan, const Layer& layer, const HeadPlan& head, bool keys) {
    const std::size_t dh = layer.shape.head_dim;
    std::vector<double> out(head.width * dh, 0.0);
    for (std::size_t i = 0; i < head.width; ++i) {
        for (std::size_t j = 0; j < dh; ++j) {
            const double value =
                head.matrix.empty() ? (i == j ? 1.0 : 0.0) : static_cast<double>(head.matrix[i * dh + j]);
            const double gain = keys && normed_when_read(plan, layer) ? static_cast<double>(layer.k_norm[j]) : 1.0;
            out[i * dh + j] = value * gain;
        }
    }
    return out;
}

/// C [Dh, Dh] of one head of what a stream of K or of V is made from; empty: not known.
inline std::vector<double> head_spread(const LayerPlan& plan, const Layer& layer, bool keys, bool centred,
                                       std::size_t head) {
    const std::size_t each = layer.shape.head_dim * layer.shape.head_dim;
    const std::vector<float>& known = keys ? layer.statistics->key_spread : layer.statistics->value_spread;
    if (known.size() != layer.shape.kv_heads * each) return {};
    std::vector<double> out(known.begin() + static_cast<std::ptrdiff_t>(head * each),
                            known.begin() + static_cast<std::ptrdiff_t>((head + 1) * each));
    if (keys && !centred) {
        const std::vector<double> x = squares_of_x(layer);
        if (x.empty() || layer.w_k.empty()) return {};
        out = whole_keys(layer, x, head);
    }
    return keys && plan.keys_after_rope ? over_positions(out, layer) : out;
}

/// Variances of a stream that K alone, or V alone, is made of. `centred`: less the mean of a page.
inline RowSpread spread_of_one(const LayerPlan& plan, const Layer& layer, std::size_t stream, bool keys, bool centred) {
    const std::size_t dh = layer.shape.head_dim, heads = layer.shape.kv_heads, r = heads * dh;
    const std::vector<HeadPlan>& of = keys ? plan.keys : plan.values;
    RowSpread out;
    if (plan.streams[stream].coded_width() != r) {
        out.unknown = "fewer channels than K or V has: what is cut off is not counted";
        return out;
    }
    const bool apart = read_apart(of, plan.streams[stream]);
    const char* const need =
        keys && !centred ? "statistics have no x_spread: calibrate with X" : "statistics are of other sizes";
    if (apart) {
        for (std::size_t h = 0; h < heads; ++h) {
            const std::vector<double> back = way_back(head_matrix(plan, layer, of[h], keys), dh);
            const std::vector<double> c = head_spread(plan, layer, keys, centred, h);
            if (back.empty() || c.empty()) {
                out.unknown = c.empty() ? need : "K and V have no way back to the stored rows";
                return out;
            }
            const std::vector<double> variances = variances_through(c, back, dh);
            out.variances.insert(out.variances.end(), variances.begin(), variances.end());
        }
        return out;
    }
    const std::vector<float>& joint = keys ? layer.statistics->joint_keys : layer.statistics->joint_values;
    if (joint.size() != r * r || (keys && !centred)) {
        out.unknown = need;
        return out;
    }
    std::vector<double> all(r * r, 0.0);
    for (std::size_t h = 0; h < heads; ++h) {
        const std::vector<double> a = head_matrix(plan, layer, of[h], keys);
        for (std::size_t i = 0; i < of[h].width; ++i) {
            std::copy_n(a.begin() + static_cast<std::ptrdiff_t>(i * dh), dh,
                        all.begin() + static_cast<std::ptrdiff_t>((of[h].first + i) * r + h * dh));
        }
    }
    const std::vector<double> back = way_back(all, r);
    if (back.empty()) {
        out.unknown = "K and V have no way back to the stored rows";
        return out;
    }
    out.variances = variances_through({joint.begin(), joint.end()}, back, r);
    return out;
}

/// Variances of a stream that is made of X and read by K and V.
inline RowSpread spread_of_x(const LayerPlan& plan, const Layer& layer, std::size_t stream) {
    const StreamPlan& of = plan.streams[stream];
    const std::size_t d = layer.shape.width, n = of.width, dh = layer.shape.head_dim;
    RowSpread out;
    std::vector<double> x = squares_of_x(layer);
    if (x.empty() || of.source != RowSource::x) {
        out.unknown = "statistics have no x_spread: calibrate with X";
        return out;
    }
    if (!of.latent.empty() || of.norm || of.unit_norm || !of.row_norm.empty() || of.rope || of.by_head) {
        out.unknown = "rows of X that are normed, turned or cut";
        return out;
    }
    for (std::size_t i = 0; i < of.mean.size(); ++i) {
        for (std::size_t j = 0; j < d; ++j)
            x[i * d + j] -= static_cast<double>(of.mean[i]) * static_cast<double>(of.mean[j]);
    }
    std::vector<float> made = of.matrix;
    if (made.empty()) {
        made.assign(d * d, 0.0F);
        for (std::size_t i = 0; i < d; ++i) made[i * d + i] = 1;
    }
    std::vector<float> scratch(n);
    const std::vector<float> dct = of.rotate > 0 ? dct_matrix(dct_size(of.rotate)) : std::vector<float>();
    for (std::size_t first = 0; first < made.size() && of.rotate > 0; first += of.rotate) {
        rotate_row(made.data() + first, of.rotate, dct.data(), scratch.data());
    }
    for (std::size_t row = 0; row < d && of.mixed > 0; ++row) {
        for (std::size_t b = 0; b < n; b += of.mixed) {
            const std::vector<float> part(made.begin() + static_cast<std::ptrdiff_t>(row * n + b),
                                          made.begin() + static_cast<std::ptrdiff_t>(row * n + b + of.mixed));
            const std::vector<float> mix(of.mix.begin() + static_cast<std::ptrdiff_t>(b * of.mixed),
                                         of.mix.begin() + static_cast<std::ptrdiff_t>((b + of.mixed) * of.mixed));
            const std::vector<float> mixed = product<float>(part, mix, of.mixed);
            std::copy(mixed.begin(), mixed.end(), made.begin() + static_cast<std::ptrdiff_t>(row * n + b));
        }
    }
    out.variances = variances_through(x, {made.begin(), made.end()}, d);
    const std::vector<double> whole = squares_of_x(layer);
    for (std::size_t h = 0; h < layer.shape.kv_heads && layer.k_norm != nullptr; ++h) {
        const std::vector<float> rows = load_rows(layer.w_k, h * dh, dh);
        const std::vector<float> columns = transpose(rows, dh, d);
        const std::vector<double> squares = variances_through(whole, {columns.begin(), columns.end()}, d);
        double sum = 0;
        for (const double value : squares) sum += value / static_cast<double>(dh);
        out.key_squares.push_back(sum);
    }
    return out;
}

/// How the rows of a stream spread; `centred`: where a group's zero takes the mean of a page off.
inline RowSpread spread_of(const LayerPlan& plan, const Layer& layer, std::size_t stream, bool centred) {
    const bool keys = plan.keys.front().stream == stream, values = plan.values.front().stream == stream;
    if (keys && values) return spread_of_x(plan, layer, stream);
    if (keys || values) return spread_of_one(plan, layer, stream, keys, centred);
    RowSpread out;
    out.unknown = "a stream that neither K nor V is made of";
    return out;
}

/// M [Dh, Dh]: what an error of a head's K or V, as it comes back from stored rows, costs.
inline std::vector<double> cost_of_head(const LayerPlan& plan, const Layer& layer, bool keys, std::size_t head,
                                        const RowSpread& spread) {
    const std::size_t dh = layer.shape.head_dim, each = dh * dh;
    const float* const from = (keys ? layer.statistics->key_cost : layer.statistics->value_cost).data() + head * each;
    std::vector<double> out(from, from + each);
    if (!keys) return out;
    if (plan.keys_after_rope) return over_positions(out, layer);
    if (!normed_when_read(plan, layer)) return out;
    // The norm divides errors by the length of the key; where K alone is stored, spread_of_one has divided rows by it.
    const double square = spread.key_squares.empty() ? 1.0 : (std::max)(spread.key_squares[head], 1e-30);
    for (std::size_t i = 0; i < dh; ++i) {
        for (std::size_t j = 0; j < dh; ++j) {
            out[i * dh + j] *= static_cast<double>(layer.k_norm[i]) * static_cast<double>(layer.k_norm[j]) / square;
        }
    }
    return out;
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
