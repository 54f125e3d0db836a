// SplitSvd and HeadSvd: latents of X for GQA, from a singular value decomposition of W_k and W_v. Needs Eigen, through
// svd_basis.hpp.
//
//     W = U S B^T [D, n], thin:   z = X U is stored,   X W = z (S B^T).
//
// Nothing is cut off, so the change of basis is exact.
//
//     SplitSvd    one SVD of W_k, one of W_v: Z_k = X U_k, Z_v = X U_v, width Hkv * Dh each
//     HeadSvd     one SVD for each key head (z_h = X U_k,h, Dh x Dh matrices when reading: Hkv times less work), and V
//                 itself with each head rotated
//
// SplitSvdOf<Rank<N>>, HeadSvdOf<EnergyShare<995>> keep fewer directions: fewer channels, and K is no longer exact.
// HeadSvd's V has no spectrum to cut and stays whole.
//
// Tried   Eigen's BDCSVD: as exact, a fifth slower, and three times the compiler's time in every file that includes
//         this.
// Compile Eigen is most of what this header costs a compiler. Where XQUANT_SVD_COMPILED is defined it is left out, and
//         one file of the program has XQUANT_COMPILE_SVD() (instantiate.hpp).
// Layout  <PerChannel, PerToken>: the first latent channels of the keys are large for every token.
// Source  XQuant section 3.2 and appendix B (SplitSvd); HeadSvd is ours.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include <xquant/projection/projection.hpp>
#include <xquant/projection/rotation.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {

/// W = U A: U [D, n] with orthonormal columns, A = S B^T [n, n], singular values falling.
struct Basis {
    std::vector<float> u;  ///< [D, n]
    std::vector<float> a;  ///< [n, n]
};

/// Thin SVD of the rows first .. first + n of a weight [out, D], read as the columns of W [D, n], n <= D. Computed in
/// f64. The signs, free in an SVD, are fixed: the entry of largest magnitude in each column of U is positive. Throws
/// shape_error if n > D or the rows are not there. Cost O(D n^2 + n^3).
template <class Real = double>
Basis svd_basis(const MatrixView& weight, std::size_t first, std::size_t n);

namespace detail {

/// The sum of squares of a row [n] of A = S B^T: a singular value, squared.
inline double squared_length(const float* row, std::size_t n) noexcept {
    double square = 0;
    for (std::size_t j = 0; j < n; ++j) square += double{row[j]} * double{row[j]};
    return square;
}

}  // namespace detail

/// The singular values of the rows first .. first + n, falling. Cost as svd_basis.
inline std::vector<double> singular_values(const MatrixView& weight, std::size_t first, std::size_t n) {
    const Basis basis = svd_basis(weight, first, n);
    std::vector<double> out(n, 0.0);
    for (std::size_t i = 0; i < n; ++i) {
        out[i] = std::sqrt(detail::squared_length(basis.a.data() + i * n, n));
    }
    return out;
}

/// Keeps all directions of an SVD. A policy of your own has a function `rank` with these parameters, whose answer
/// depends on them alone.
struct FullRank {
    /// n: all directions of the n rows.
    static std::size_t rank(const MatrixView&, std::size_t, std::size_t n) noexcept { return n; }
};

/// At most N directions.
template <std::size_t N>
struct Rank {
    static_assert(N >= 1, "xquant: Rank<N> keeps at least one direction");
    /// N, or n where that is fewer.
    static std::size_t rank(const MatrixView&, std::size_t, std::size_t n) noexcept { return (std::min)(N, n); }
};

/// The fewest directions that hold this share of the sum of squared singular values, in thousandths.
template <unsigned PerMille>
struct EnergyShare {
    static_assert(PerMille >= 1 && PerMille <= 1000, "xquant: EnergyShare<PerMille> is 1 to 1000");
    /// Of the rows first .. first + n of a weight [out, D]. Cost: an SVD.
    static std::size_t rank(const MatrixView& weight, std::size_t first, std::size_t n) {
        detail::expects(!weight.empty(),
                        "EnergyShare finds its rank in Layer::w_k and w_v, which are empty; predict reads them in "
                        "Model::layers, and does not call Model::load_layer");
        double total = 0, sum = 0;
        const std::vector<double> values = singular_values(weight, first, n);
        for (const double value : values) total += value * value;
        std::size_t kept = 0;
        while (kept < n && sum < total * PerMille / 1000.0) sum += values[kept] * values[kept], ++kept;
        return std::max<std::size_t>(kept, 1);
    }
};

namespace detail {

/// The first `rank` directions of a basis of n.
inline Basis cut_basis(Basis basis, std::size_t n, std::size_t rank) {
    if (rank == n) return basis;
    const std::size_t d = basis.u.size() / n;
    for (std::size_t i = 0; i < d; ++i) {
        for (std::size_t j = 0; j < rank; ++j) basis.u[i * rank + j] = basis.u[i * n + j];
    }
    basis.u.resize(d * rank);
    basis.a.resize(rank * n);
    return basis;
}

/// Columns first .. first + count of a matrix [rows, cols].
inline std::vector<float> columns_of(const std::vector<float>& in, std::size_t cols, std::size_t first,
                                     std::size_t count) {
    const std::size_t rows = in.size() / cols;
    std::vector<float> out(rows * count);
    for (std::size_t i = 0; i < rows; ++i) {
        for (std::size_t j = 0; j < count; ++j) out[i * count + j] = in[i * cols + first + j];
    }
    return out;
}

}  // namespace detail

/// Latents of W_k and of W_v: the paper's form for GQA.
/// @tparam Keep  FullRank, Rank<N>, EnergyShare<PerMille>
template <class Keep>
struct SplitSvdOf {
    static constexpr std::size_t streams = 2;  ///< stored rows per token and layer

    /// Cost with EnergyShare: two SVDs.
    static LayerFootprint<2> footprint(const Layer& layer) {
        const std::size_t d = layer.shape.width, r = layer.shape.kv_width();
        const std::size_t k = Keep::rank(layer.w_k, 0, r), v = Keep::rank(layer.w_v, 0, r);
        return {{k, v}, (d + r) * (k + v), detail::constant_floats(layer, false)};
    }
    /// The plan of a layer. Cost: two SVDs. Throws shape_error if Hkv Dh > D.
    static LayerPlan prepare(const Layer& layer) {
        const std::size_t r = layer.shape.kv_width(), dh = layer.shape.head_dim;
        detail::expects(r <= layer.shape.width, "SplitSvd: kv_heads * head_dim = ", r,
                        " is more than width = ", layer.shape.width, "; X itself is smaller: Projection<Rotated>");
        LayerPlan plan;
        const auto add = [&](const MatrixView& weight, const float* bias, std::vector<HeadPlan>& heads) {
            const std::size_t rank = Keep::rank(weight, 0, r);
            Basis basis = detail::cut_basis(svd_basis(weight, 0, r), r, rank);
            for (std::size_t head = 0; head < layer.shape.kv_heads; ++head) {
                heads.push_back({plan.streams.size(), 0, rank, detail::columns_of(basis.a, r, head * dh, dh),
                                 detail::optional_floats(bias != nullptr ? bias + head * dh : nullptr, dh)});
            }
            StreamPlan stream;
            stream.width = rank;
            stream.matrix = std::move(basis.u);
            plan.streams.push_back(std::move(stream));
        };
        add(layer.w_k, layer.b_k, plan.keys);
        add(layer.w_v, layer.b_v, plan.values);
        return plan;
    }
};

/// One latent for each key head; V with each head rotated. The default for GQA.
///
/// Where the model norms its keys, the latents are normed before they are stored: K = norm(x U S) B^T gain. With the
/// singular values taken into U, a latent is as long as its key. Without that norm, tokens with short keys would share
/// a scale with tokens with long keys, and the keys' norm would enlarge their error.
///
/// Where the engine hands over K (before RoPE) and V, latents are made from them: z_h = (K_h - b) T_h with
/// T_h = B S^-1 [Dh, Dh], the inverse of A_h. Nothing of D channels is prepared, and K comes back whatever made it.
/// Directions whose singular value is below 1e-6 of the largest are left out.
template <class Keep>
struct HeadSvdOf {
    static constexpr std::size_t streams = 2;  ///< stored rows per token and layer
    static constexpr bool reads_w_k = true;    ///< the latents' basis comes from it
    /// Keys have to come before RoPE, as latents are stored.
    static constexpr bool takes(LayerInput input) noexcept { return !detail::comes_after_rope(input); }

    /// Cost with EnergyShare: an SVD for each head.
    static LayerFootprint<2> footprint(const Layer& layer) {
        const std::size_t d = layer.shape.width, r = layer.shape.kv_width(), dh = layer.shape.head_dim;
        std::size_t latent = 0, own = 0;  // channels of all heads, and of each where all have as many
        for (std::size_t head = 0; head < layer.shape.kv_heads; ++head) {
            const std::size_t rank = Keep::rank(layer.w_k, head * dh, dh);
            own = latent == head * rank ? rank : 0;
            latent += rank;
        }
        if (layer.input != LayerInput::x) {
            const std::size_t k = layer.b_k != nullptr && layer.k_norm == nullptr ? latent + r : 0,
                              v = layer.b_v != nullptr ? 2 * r : 0;
            return {{latent, r}, dh * (latent + r), dh * latent + dct_size(dh) * dct_size(dh) + k + v, {own, dh}};
        }
        return {{latent, r},
                (d + dh) * (latent + r),
                dct_size(dh) * dct_size(dh) + detail::constant_floats(layer, false) + (normed(layer, latent) ? dh : 0),
                {own, dh}};
    }
    /// The plan of a layer. Cost: an SVD for each key head. Throws shape_error if Dh > D, or for K and V that cannot be
    /// served.
    static LayerPlan prepare(const Layer& layer) {
        const std::size_t d = layer.shape.width, r = layer.shape.kv_width(), dh = layer.shape.head_dim;
        detail::expects(!layer.w_k.empty(),
                        "HeadSvd finds its latents in Layer::w_k, which is empty; it is read when the "
                        "cache is made, and not kept");
        detail::expects(dh <= d, "HeadSvd: head_dim = ", dh, " is more than width = ", d);
        LayerPlan plan;
        plan.streams.resize(2);
        const std::vector<float> back = detail::transpose(rotation_matrix(dh), dh, dh);
        std::vector<Basis> bases;
        StreamPlan &latent = plan.streams[0], &values = plan.streams[1];
        for (std::size_t head = 0; head < layer.shape.kv_heads; ++head) {
            const auto bias = [&](const float* all) {
                return detail::optional_floats(all != nullptr ? all + head * dh : nullptr, dh);
            };
            const std::size_t rank = Keep::rank(layer.w_k, head * dh, dh);
            bases.push_back(detail::cut_basis(svd_basis(layer.w_k, head * dh, dh), dh, rank));
            plan.keys.push_back({0, latent.width, rank, std::move(bases.back().a), bias(layer.b_k)});
            plan.values.push_back({1, head * dh, dh, back, bias(layer.b_v)});
            latent.width += rank;
        }
        values.width = r;
        values.rotate = dh;
        if (layer.input != LayerInput::x) {
            take_keys_and_values(layer, plan);
            return plan;
        }
        latent.matrix.resize(d * latent.width);  // [U_0 | U_1 | ...]
        for (std::size_t head = 0; head < bases.size(); ++head) {
            const std::size_t rank = plan.keys[head].width;
            for (std::size_t i = 0; i < d; ++i) {
                std::copy_n(bases[head].u.data() + i * rank, rank,
                            latent.matrix.data() + i * latent.width + plan.keys[head].first);
            }
        }
        values.matrix = detail::transpose(detail::load_rows(layer.w_v, 0, r), r, d);
        if (normed(layer, latent.width)) norm(layer, plan);
        return plan;
    }

private:
    /// Whether latents are normed: the model norms keys, and latents have full rank, so that they are as long as keys.
    static bool normed(const Layer& layer, std::size_t latent) noexcept {
        return layer.k_norm != nullptr && latent == layer.shape.kv_width();
    }

    /// Latents are made from K, whose inverse A_h is, and values from V.
    static void take_keys_and_values(const Layer& layer, LayerPlan& plan) {
        StreamPlan &latent = plan.streams[0], &values = plan.streams[1];
        const std::size_t dh = layer.shape.head_dim, heads = layer.shape.kv_heads, rank = plan.keys.front().width;
        const bool norms = layer.k_norm != nullptr;
        for (const HeadPlan& head : plan.keys) {
            detail::expects(head.width == rank,
                            "HeadSvd takes K and V where all heads keep as many directions; here they "
                            "keep ",
                            rank, " and ", head.width);
        }
        detail::expects(
            !norms || normed(layer, latent.width), "HeadSvd keeps ", rank, " of ", dh,
            " directions and stores keys before k_norm, and the engine hands over K after it: hand over X, or "
            "keep all directions");
        latent.source = RowSource::keys;
        latent.by_head = true;
        latent.matrix.assign(heads * dh * rank, 0.0F);
        if (layer.b_k != nullptr && !norms) latent.bias.assign(latent.width, 0.0F);
        for (std::size_t h = 0; h < heads; ++h) {
            HeadPlan& head = plan.keys[h];
            if (norms) head.constant.clear();
            double largest = 0;
            for (std::size_t i = 0; i < rank; ++i) {
                float* row = head.matrix.data() + i * dh;
                const double square = detail::squared_length(row, dh);
                if (i == 0) largest = square;
                const bool there = square > 1e-12 * largest;
                for (std::size_t j = 0; j < dh; ++j) {
                    const double direction = there ? double{row[j]} / std::sqrt(square) : 0.0;
                    const double gain = norms ? double{layer.k_norm[j]} : 1.0;
                    double back = there ? double{row[j]} / square : 0.0;
                    if (norms) {
                        row[j] = static_cast<float>(direction * gain);
                        // A channel whose gain is 0 is 0 in every key.
                        back = gain != 0 ? direction / gain : 0.0;
                    }
                    latent.matrix[(h * dh + j) * rank + i] = static_cast<float>(back);
                    if (!latent.bias.empty()) {
                        latent.bias[h * rank + i] -= layer.b_k[h * dh + j] * static_cast<float>(back);
                    }
                }
            }
        }
        values.source = RowSource::values;
        for (std::size_t i = 0; i < values.width && layer.b_v != nullptr; ++i) values.bias.push_back(-layer.b_v[i]);
        plan.keys_normed = norms;
    }

    /// Moves the singular values from A to T, the bias to T's side and the gain of the norm into A.
    static void norm(const Layer& layer, LayerPlan& plan) {
        StreamPlan& latent = plan.streams[0];
        const std::size_t d = layer.shape.width, dh = layer.shape.head_dim;
        latent.unit_norm = true;
        plan.keys_normed = true;
        if (layer.b_k != nullptr) latent.bias.assign(latent.width, 0.0F);
        for (HeadPlan& head : plan.keys) {
            head.constant.clear();
            for (std::size_t i = 0; i < dh; ++i) {
                float* row = head.matrix.data() + i * dh;
                const double square = detail::squared_length(row, dh);
                // A direction that no key has: both stay 0.
                const double size = std::sqrt(square), inverse = size > 0 ? 1 / size : 0.0;
                const std::size_t column = head.first + i;
                for (std::size_t c = 0; c < d; ++c)
                    latent.matrix[c * latent.width + column] *= static_cast<float>(size);
                for (std::size_t j = 0; j < dh; ++j) row[j] = static_cast<float>(double{row[j]} * inverse);
                for (std::size_t j = 0; j < dh && layer.b_k != nullptr; ++j) {
                    latent.bias[column] += layer.b_k[head.first + j] * row[j];
                }
                for (std::size_t j = 0; j < dh; ++j) row[j] *= layer.k_norm[j];
            }
        }
    }
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant

#if !defined(XQUANT_SVD_COMPILED)
#include <xquant/projection/svd_basis.hpp>
#endif
