// The singular value decomposition behind svd.hpp and joint_svd.hpp: the only header that includes Eigen.
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

#include <xquant/projection/svd.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {

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
        Eigen::Index at = 0;
        u.col(j).cwiseAbs().maxCoeff(&at);
        if (u(at, j) < 0) {
            u.col(j) *= Real(-1);
            a.row(j) *= Real(-1);
        }
    }
    Basis basis{std::vector<float>(weight.cols * n), std::vector<float>(n * n)};
    Eigen::Map<RowMajor>(basis.u.data(), d, columns) = u.template cast<float>();
    Eigen::Map<RowMajor>(basis.a.data(), columns, columns) = a.template cast<float>();
    return basis;
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
