// The decompositions behind svd.hpp, joint_svd.hpp and latent_basis.hpp: the only header that includes Eigen.
#pragma once

#include <xquant/config.hpp>

// Everything here runs on the processor: nvcc need not look for a device in Eigen.
#if defined(__CUDACC__) && !defined(EIGEN_NO_CUDA)
#define EIGEN_NO_CUDA
#endif

XQUANT_UNDEFINED_REGISTERS_BEGIN
#include <Eigen/Core>
#include <Eigen/Eigenvalues>
#include <Eigen/QR>
XQUANT_UNDEFINED_REGISTERS_END

#include <cstddef>
#include <vector>

#include <xquant/projection/latent_basis.hpp>
#include <xquant/projection/svd.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {

namespace detail {

/// The entry of largest magnitude in column j of one matrix becomes positive, and row j of the other turns with it.
template <class Columns, class Rows>
void fix_sign(Columns& columns, Rows& rows, Eigen::Index j) {
    Eigen::Index at = 0;
    columns.col(j).cwiseAbs().maxCoeff(&at);
    if (columns(at, j) < 0) {
        columns.col(j) *= -1;
        rows.row(j) *= -1;
    }
}

}  // namespace detail

template <class Real>
Basis svd_basis(const MatrixView& weight, std::size_t first, std::size_t n) {
    detail::expects(n <= weight.rows && first <= weight.rows - n, "svd_basis: rows ", first, " .. ", first, " + ", n,
                    " of a weight of ", weight.rows);
    detail::expects(n >= 1 && n <= weight.cols, "svd_basis: ", n, " rows; expected 1 to ", weight.cols,
                    ", the columns of the weight");
    using Matrix = Eigen::Matrix<Real, Eigen::Dynamic, Eigen::Dynamic>;
    using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    const auto d = static_cast<Eigen::Index>(weight.cols), columns = static_cast<Eigen::Index>(n);
    const std::vector<float> rows = detail::load_rows(weight, first, n);
    const Matrix w = Eigen::Map<const RowMajor>(rows.data(), columns, d).template cast<Real>().transpose();

    // B from W^T W, then W B = U S by reflections: U is orthonormal and U A is W to rounding, however small a singular
    // value is.
    const Eigen::SelfAdjointEigenSolver<Matrix> squares(w.transpose() * w);
    const Matrix b = squares.eigenvectors().rowwise().reverse();  // singular values fall
    const Eigen::HouseholderQR<Matrix> qr(w * b);
    Matrix u = Matrix::Identity(d, columns);
    u.applyOnTheLeft(qr.householderQ());
    Matrix a = qr.matrixQR().topRows(columns).template triangularView<Eigen::Upper>();
    a *= b.transpose();
    for (Eigen::Index j = 0; j < columns; ++j) {
        detail::fix_sign(u, a, j);
    }
    Basis basis{std::vector<float>(weight.cols * n), std::vector<float>(n * n)};
    Eigen::Map<RowMajor>(basis.u.data(), d, columns) = u.template cast<float>();
    Eigen::Map<RowMajor>(basis.a.data(), columns, columns) = a.template cast<float>();
    return basis;
}

template <class Real>
CommonBasis common_basis(const std::vector<double>& c, const std::vector<double>& m, std::size_t n) {
    using Matrix = Eigen::Matrix<Real, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    const auto size = static_cast<Eigen::Index>(n);
    const auto matrix = [&](const std::vector<double>& values) -> Matrix {
        return Eigen::Map<const Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>(values.data(),
                                                                                                        size, size)
            .template cast<Real>();
    };
    const Eigen::SelfAdjointEigenSolver<Matrix> spread(matrix(c));
    const auto least = static_cast<double>(spread.eigenvalues()(0)),
               most = static_cast<double>(spread.eigenvalues()(size - 1));
    if (!(least > 0) || !detail::is_finite(most)) {
        detail::raise<value_error>("the spread of rows of ", n,
                                   " channels is not positive definite: its eigenvalues are ", least, " to ", most);
    }
    const auto root = spread.eigenvalues().cwiseSqrt().eval();
    const Matrix whole = spread.eigenvectors() * root.asDiagonal();
    const Eigen::SelfAdjointEigenSolver<Matrix> cost(whole.transpose() * matrix(m) * whole);
    Matrix basis = whole * cost.eigenvectors();
    Matrix inverse =
        cost.eigenvectors().transpose() * root.cwiseInverse().asDiagonal() * spread.eigenvectors().transpose();
    CommonBasis out{std::vector<double>(n * n), std::vector<double>(n * n), std::vector<double>(n)};
    for (Eigen::Index j = 0; j < size; ++j) {
        detail::fix_sign(basis, inverse, j);
        const auto lambda = static_cast<double>(cost.eigenvalues()(j));
        if (!detail::is_finite(lambda)) {
            detail::raise<value_error>("what errors of rows of ", n, " channels cost is not finite");
        }
        out.lambda[static_cast<std::size_t>(j)] = lambda;
    }
    for (Eigen::Index i = 0; i < size; ++i) {
        for (Eigen::Index j = 0; j < size; ++j) {
            out.basis[static_cast<std::size_t>(i * size + j)] = static_cast<double>(basis(i, j));
            out.inverse[static_cast<std::size_t>(i * size + j)] = static_cast<double>(inverse(i, j));
        }
    }
    return out;
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
