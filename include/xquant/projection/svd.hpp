// SplitSvd and HeadSvd: latents of X for GQA, from a singular value decomposition of W_k and W_v. The only header that
// needs Eigen.
//
//     W = U S B^T [D, n], thin: z = X U is stored, X W = z (S B^T). Nothing is cut off, so the change of basis is exact.
//
//     SplitSvd    one SVD of W_k, one of W_v: Z_k = X U_k, Z_v = X U_v, width Hkv * Dh each
//     HeadSvd     one SVD for each key head (z_h = X U_k,h, Dh x Dh matrices when reading: Hkv times less work), and V
//                 itself with each head rotated
//
// Layout  <PerChannel, PerToken>: the first latent channels of the keys are large for every token.
// Source  XQuant section 3.2 and appendix B (SplitSvd); HeadSvd is ours.
#pragma once

#include <Eigen/Core>
#include <Eigen/QR>
#include <Eigen/SVD>

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

/// Thin SVD of the rows first .. first + n of a weight [out, D], read as the columns of W [D, n], n <= D. Computed in f64.
/// The signs, free in an SVD, are fixed: the entry of largest magnitude in each column of U is positive.
/// Throws shape_error if n > D or the rows are not there. Cost O(D n^2 + n^3).
inline Basis svd_basis(const MatrixView& weight, std::size_t first, std::size_t n) {
    detail::expects(first + n <= weight.rows, "svd_basis: rows beyond the weight");
    detail::expects(n >= 1 && n <= weight.cols, "svd_basis: needs 1 to D columns");
    using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    const auto d = static_cast<Eigen::Index>(weight.cols), columns = static_cast<Eigen::Index>(n);
    const std::vector<float> rows = detail::load_rows(weight, first, n);
    const Matrix w = Eigen::Map<const RowMajor>(rows.data(), columns, d).cast<double>().transpose();

    // W = Q (R): the small square R carries the singular values, which is much cheaper to decompose.
    const Eigen::HouseholderQR<Matrix> qr(w);
    const Matrix r = qr.matrixQR().topRows(columns).template triangularView<Eigen::Upper>();
    const Eigen::BDCSVD<Matrix> svd(r, Eigen::ComputeFullU | Eigen::ComputeFullV);
    Matrix u = Matrix::Zero(d, columns);
    u.topRows(columns) = svd.matrixU();
    u.applyOnTheLeft(qr.householderQ());
    Matrix a = svd.singularValues().asDiagonal() * svd.matrixV().transpose();
    for (Eigen::Index j = 0; j < columns; ++j) {
        Eigen::Index at = 0;
        u.col(j).cwiseAbs().maxCoeff(&at);
        if (u(at, j) < 0) {
            u.col(j) *= -1.0;
            a.row(j) *= -1.0;
        }
    }
    Basis basis{std::vector<float>(weight.cols * n), std::vector<float>(n * n)};
    Eigen::Map<RowMajor>(basis.u.data(), d, columns) = u.cast<float>();
    Eigen::Map<RowMajor>(basis.a.data(), columns, columns) = a.cast<float>();
    return basis;
}

namespace detail {

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

/// The paper's form for GQA.
struct SplitSvd {
    static constexpr std::size_t streams = 2;
    static LayerFootprint<2> footprint(const Layer& layer) noexcept {
        const std::size_t d = layer.shape.width, r = layer.shape.kv_width();
        return {{r, r}, 2 * d * r + 2 * r * r};
    }
    static LayerPlan prepare(const Layer& layer) {
        const std::size_t r = layer.shape.kv_width(), dh = layer.shape.head_dim;
        detail::expects(r <= layer.shape.width, "SplitSvd needs kv_heads * head_dim <= width");
        Basis keys = svd_basis(layer.w_k, 0, r), values = svd_basis(layer.w_v, 0, r);
        LayerPlan plan;
        for (std::size_t head = 0; head < layer.shape.kv_heads; ++head) {
            plan.keys.push_back({0, 0, r, detail::columns_of(keys.a, r, head * dh, dh), {}});
            plan.values.push_back({1, 0, r, detail::columns_of(values.a, r, head * dh, dh), {}});
        }
        plan.streams = {{r, {}, std::move(keys.u), false, 0}, {r, {}, std::move(values.u), false, 0}};
        return plan;
    }
};

/// One latent for each key head; V with each head rotated. The default for GQA.
struct HeadSvd {
    static constexpr std::size_t streams = 2;
    static LayerFootprint<2> footprint(const Layer& layer) noexcept {
        const std::size_t d = layer.shape.width, r = layer.shape.kv_width(), dh = layer.shape.head_dim;
        return {{r, r}, 2 * d * r + 2 * r * dh + dct_size(dh) * dct_size(dh)};
    }
    static LayerPlan prepare(const Layer& layer) {
        const std::size_t d = layer.shape.width, r = layer.shape.kv_width(), dh = layer.shape.head_dim;
        detail::expects(dh <= d, "HeadSvd needs head_dim <= width");
        LayerPlan plan;
        std::vector<float> encode(d * r);  // [U_0 | U_1 | ...]
        const std::vector<float> back = detail::transpose(rotation_matrix(dh), dh, dh);
        for (std::size_t head = 0; head < layer.shape.kv_heads; ++head) {
            Basis basis = svd_basis(layer.w_k, head * dh, dh);
            for (std::size_t i = 0; i < d; ++i) {
                for (std::size_t j = 0; j < dh; ++j) encode[i * r + head * dh + j] = basis.u[i * dh + j];
            }
            plan.keys.push_back({0, head * dh, dh, std::move(basis.a), {}});
            plan.values.push_back({1, head * dh, dh, back, {}});
        }
        plan.streams = {{r, {}, std::move(encode), false, 0},
                        {r, {}, detail::transpose(detail::load_rows(layer.w_v, 0, r), r, d), false, dh}};
        return plan;
    }
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
