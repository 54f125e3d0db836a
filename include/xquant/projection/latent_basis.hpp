// The basis in which rows are coded so that their errors cost least, for an encoder that feeds errors back
// (quantizer/feedback.hpp). From C, how rows spread, and M, what errors of them cost:
//
//     C = B B^T,  B^T M B = diag(lambda)     rows y in the basis B have variance 1 in every channel, and share no cost
//     A = B P,  T = A^-1,  G = P^T diag(lambda + floor) P
//
// P mixes the channels. By a geometric mean decomposition, all of them weigh alike once errors are fed back; by a
// rotation, no channel stands out of its group.
//
// The floor keeps feedback in bounds: errors widen what is coded, by the more the smaller the least lambda is beside
// the others. Of the floors 10^-7 .. 1 of the largest lambda, the one with the least expected cost is taken.
//
// Source  Jiang, Hager, Li: The geometric mean decomposition (2005); QuIP (arXiv 2307.13304) for what feedback costs.
//         Their use together for a cache, and the floor, are ours.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <utility>
#include <vector>

#include <xquant/error.hpp>
#include <xquant/projection/metric.hpp>
#include <xquant/projection/projection.hpp>
#include <xquant/projection/rotation.hpp>

namespace xquant {

/// How latent_basis mixes channels.
enum class BasisMix : unsigned char {
    geometric_mean,  ///< for groups along a channel
    rotation         ///< for groups along a token: projection/rotation.hpp
};

inline namespace XQUANT_ABI_NS {

/// B of latent_basis.
struct CommonBasis {
    std::vector<double> basis,   ///< B [n, n]
        inverse;                 ///< B^-1 [n, n]
    std::vector<double> lambda;  ///< [n], rising
};

/// B with C = B B^T and B^T M B = diag(lambda), for C [n, n] positive definite and M [n, n] symmetric. Signs, free in
/// an eigenvector, are fixed: the entry of largest magnitude in each column of B is positive. Cost: about 25 n^3.
template <class Real = double>
CommonBasis common_basis(const std::vector<double>& c, const std::vector<double>& m, std::size_t n);

/// What latent_basis finds.
struct LatentBasis {
    std::vector<float> to,     ///< T [n, n]: a row k is coded as k T
        from;                  ///< A [n, n]: z A is a row again
    std::vector<double> cost;  ///< G [n, n]: an error e of z costs e G e^T, the floor counted
};

namespace detail {

/// a [rows, inner] b [inner, columns], summed in f64.
template <class Out = double, class A, class B>
std::vector<Out> product(const std::vector<A>& a, const std::vector<B>& b, std::size_t inner) {
    const std::size_t rows = a.size() / inner, columns = b.size() / inner;
    std::vector<Out> out(rows * columns);
    std::vector<double> sums(columns);
    for (std::size_t i = 0; i < rows; ++i) {
        double* XQUANT_RESTRICT to = sums.data();
        std::fill(sums.begin(), sums.end(), 0.0);
        for (std::size_t k = 0; k < inner; ++k) {
            const auto factor = static_cast<double>(a[i * inner + k]);
            const B* XQUANT_RESTRICT from = b.data() + k * columns;
            for (std::size_t j = 0; j < columns; ++j) to[j] += factor * static_cast<double>(from[j]);
        }
        for (std::size_t j = 0; j < columns; ++j) out[i * columns + j] = static_cast<Out>(to[j]);
    }
    return out;
}

inline double geometric_mean(const std::vector<double>& values) {
    double sum = 0;
    for (const double value : values) sum += std::log((std::max)(value, 1e-300));
    return std::exp(sum / static_cast<double>(values.size()));
}

/// What is added to lambda [n] for codes of `bits` bits.
inline double feedback_floor(const std::vector<double>& lambda, unsigned bits) {
    const double most = *std::max_element(lambda.begin(), lambda.end());
    // Values of variance 1 span 5.3 in a page; f is the mean square of rounding them.
    const double step = 5.3 / (std::ldexp(1.0, static_cast<int>(bits)) - 1), f = step * step / 12;
    double best = most, least = (std::numeric_limits<double>::max)();
    std::vector<double> raised(lambda.size());
    for (int eighth = -56; eighth <= 0; ++eighth) {
        const double floor = most * std::pow(10.0, eighth / 8.0);
        std::transform(lambda.begin(), lambda.end(), raised.begin(), [&](double value) { return value + floor; });
        const double mean = geometric_mean(raised);
        double widening = 0, cost = 0;
        for (std::size_t i = 0; i < lambda.size(); ++i) {
            widening += mean / raised[i];
            cost += lambda[i] * mean / raised[i];
        }
        widening *= f / static_cast<double>(lambda.size());  // what errors add to a channel's variance
        if (widening >= 0.9) continue;
        cost *= f / (1 - widening);
        if (cost < least) {
            least = cost;
            best = floor;
        }
    }
    return best;
}

/// P [n, n], orthogonal, with P^T diag(values) P = F^T D F for an F that is unit lower triangular and a D whose entries
/// are equal: the geometric mean of the values.
inline std::vector<double> geometric_mean_mix(const std::vector<double>& values) {
    const std::size_t n = values.size();
    std::vector<double> d(n), columns(n * n, 0.0);  // columns: P^T
    for (std::size_t i = 0; i < n; ++i) {
        d[i] = std::sqrt(values[i]);
        columns[i * n + i] = 1;
    }
    const double mean = geometric_mean(d);
    for (std::size_t k = 0; k + 1 < n; ++k) {
        const auto rest = d.begin() + static_cast<std::ptrdiff_t>(k) + 1;
        const auto partner = d[k] >= mean ? std::min_element(rest, d.end()) : std::max_element(rest, d.end());
        const auto p = static_cast<std::size_t>(partner - d.begin());
        double* const first = columns.data() + k * n;
        double* const second = first + n;
        if (p != k + 1) {
            std::swap(d[k + 1], d[p]);
            std::swap_ranges(second, second + n, columns.begin() + static_cast<std::ptrdiff_t>(p * n));
        }
        const double a = d[k], b = d[k + 1], between = a * a - b * b;
        double c = 1, s = 0;
        if (std::abs(between) >= 1e-12 * a * a) {
            c = std::sqrt(std::clamp((mean * mean - b * b) / between, 0.0, 1.0));
            s = std::sqrt(1 - c * c);
        }
        for (std::size_t j = 0; j < n; ++j) {
            const double x = first[j], y = second[j];
            first[j] = c * x + s * y;
            second[j] = c * y - s * x;
        }
        d[k] = mean;
        d[k + 1] = a * b / mean;
    }
    // F acts from the last channel to the first: the columns in reverse.
    std::vector<double> out(n * n);
    for (std::size_t i = 0; i < n; ++i) {
        for (std::size_t j = 0; j < n; ++j) out[i * n + j] = columns[(n - 1 - j) * n + i];
    }
    return out;
}

/// R^T of projection/rotation.hpp.
inline std::vector<double> rotation_mix(std::size_t n) {
    const std::vector<float> rotation = rotation_matrix(n);
    std::vector<double> out(n * n);
    for (std::size_t i = 0; i < n; ++i) {
        for (std::size_t j = 0; j < n; ++j) out[j * n + i] = static_cast<double>(rotation[i * n + j]);
    }
    return out;
}

/// m [n, n] + share * (mean of the diagonal) * I.
inline std::vector<double> with_ridge(std::vector<double> m, std::size_t n, double share) {
    double trace = 0;
    for (std::size_t i = 0; i < n; ++i) trace += m[i * n + i];
    for (std::size_t i = 0; i < n; ++i) m[i * n + i] += share * trace / static_cast<double>(n);
    return m;
}
inline std::vector<double> with_ridge(const float* m, std::size_t n, double share) {
    return with_ridge(std::vector<double>(m, m + n * n), n, share);
}

}  // namespace detail

/// The basis of rows that spread by C [n, n], positive definite, and whose errors cost M [n, n], to be coded in `bits`
/// bits. Throws value_error where the two are not finite or C is not positive definite. Cost: about 30 n^3.
inline LatentBasis latent_basis(const std::vector<double>& c, const std::vector<double>& m, std::size_t n,
                                unsigned bits, BasisMix mix) {
    CommonBasis common = common_basis(c, m, n);
    // Where errors cost nothing, all channels cost alike.
    const double most = (std::max)(common.lambda.back(), 1e-150);
    const double least = common.lambda.back() < most ? most : most * 1e-12;
    for (double& value : common.lambda) value = (std::max)(value, least);
    const double floor = detail::feedback_floor(common.lambda, bits);
    for (double& value : common.lambda) value += floor;
    const std::vector<double> p =
        mix == BasisMix::rotation ? detail::rotation_mix(n) : detail::geometric_mean_mix(common.lambda);
    const std::vector<double> p_transposed = detail::transpose(p, n, n);
    // k = B P z for columns: rows are coded by (P^T B^-1)^T, and come back by (B P)^T.
    const std::vector<double> to = detail::product(p_transposed, common.inverse, n),
                              from = detail::product(common.basis, p, n);
    LatentBasis out{std::vector<float>(n * n), std::vector<float>(n * n), p};
    for (std::size_t i = 0; i < n; ++i) {
        for (std::size_t j = 0; j < n; ++j) {
            out.to[j * n + i] = static_cast<float>(to[i * n + j]);
            out.from[j * n + i] = static_cast<float>(from[i * n + j]);
            out.cost[i * n + j] *= common.lambda[i];
        }
    }
    out.cost = detail::product(p_transposed, out.cost, n);
    return out;
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant

#if !defined(XQUANT_SVD_COMPILED)
#include <xquant/projection/svd_basis.hpp>
#endif
