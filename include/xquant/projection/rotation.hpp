// An orthogonal rotation for any width, fast enough to run on every new row.
//
//     R = kron(C, H)      n = m * p, p the largest power of two that divides n
//     H [p, p] Sylvester's Hadamard matrix / sqrt(p), C [m, m] the orthonormal DCT-II:
//     C[k, j] = c_k cos(pi (2j + 1) k / 2m), c_0 = sqrt(1/m), else sqrt(2/m)
//
// Row y = x R: block j of y is sum_k C[k, j] (x_k H). It spreads an outlier channel over all channels, so that groups
// along a row need less range. Reading costs nothing: x W = y (R^T W), and R^T W is folded once.
// Cost    n log2(p) + n m additions for a row.
// Source  ours; QuaRot (arXiv 2404.00456) and QuIP# (arXiv 2402.04396) use Hadamard rotations for the same purpose.
#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

#include <xquant/config.hpp>

namespace xquant {

inline namespace XQUANT_ABI_NS {

/// The largest power of two that divides n.
constexpr std::size_t hadamard_size(std::size_t n) noexcept { return n & (~n + 1); }
/// Blocks of hadamard_size(n) in n; the DCT runs across them.
constexpr std::size_t dct_size(std::size_t n) noexcept { return n / hadamard_size(n); }

/// The orthonormal DCT-II, C [m, m].
inline std::vector<float> dct_matrix(std::size_t m) {
    std::vector<float> c(m * m);
    constexpr double pi = 3.14159265358979323846;
    const auto size = static_cast<double>(m);
    for (std::size_t k = 0; k < m; ++k) {
        for (std::size_t j = 0; j < m; ++j) {
            const double norm = std::sqrt((k == 0 ? 1.0 : 2.0) / size);
            c[k * m + j] =
                static_cast<float>(norm * std::cos(pi * static_cast<double>((2 * j + 1) * k) / (2.0 * size)));
        }
    }
    return c;
}

/// x [n] becomes x R, in place. `dct` [m, m] from dct_matrix, `scratch` [n].
inline void rotate_row(float* XQUANT_RESTRICT x, std::size_t n, const float* dct,
                       float* XQUANT_RESTRICT scratch) noexcept {
    const std::size_t p = hadamard_size(n), m = n / p;
    for (std::size_t half = 1; half < p; half *= 2) {
        for (std::size_t block = 0; block < n; block += 2 * half) {
            for (std::size_t i = block; i < block + half; ++i) {
                const float a = x[i], b = x[i + half];
                x[i] = a + b;
                x[i + half] = a - b;
            }
        }
    }
    const float norm = 1.0F / std::sqrt(static_cast<float>(p));
    if (m == 1) {
        for (std::size_t i = 0; i < n; ++i) x[i] *= norm;
        return;
    }
    for (std::size_t j = 0; j < m; ++j) {
        float* XQUANT_RESTRICT out = scratch + j * p;
        for (std::size_t i = 0; i < p; ++i) out[i] = 0;
        for (std::size_t k = 0; k < m; ++k) {
            const float factor = dct[k * m + j] * norm;
            const float* XQUANT_RESTRICT in = x + k * p;
            for (std::size_t i = 0; i < p; ++i) out[i] += factor * in[i];
        }
    }
    for (std::size_t i = 0; i < n; ++i) x[i] = scratch[i];
}

/// Each block of `width` channels of x [n] is rotated by itself; width divides n.
inline void rotate_blocks(float* x, std::size_t n, std::size_t width, const float* dct, float* scratch) noexcept {
    for (std::size_t first = 0; first < n; first += width) rotate_row(x + first, width, dct, scratch);
}

/// The rotation as a matrix, R [n, n].
inline std::vector<float> rotation_matrix(std::size_t n) {
    std::vector<float> r(n * n, 0.0F), scratch(n);
    const std::vector<float> dct = dct_matrix(dct_size(n));
    for (std::size_t i = 0; i < n; ++i) {
        r[i * n + i] = 1;
        rotate_row(r.data() + i * n, n, dct.data(), scratch.data());
    }
    return r;
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
