/// The basis of least cost: what it makes of how rows spread and of what their errors cost, and what it refuses.
#include <xquant/projection/latent_basis.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/complaint.hpp"
#include "support/model.hpp"
#include "support/statistics.hpp"

using namespace xquant;
using test::random_squares;

namespace {

using Matrix = std::vector<double>;

Matrix times(const Matrix& a, const Matrix& b, std::size_t n) {
    Matrix out(n * n, 0.0);
    for (std::size_t i = 0; i < n; ++i) {
        for (std::size_t j = 0; j < n; ++j) {
            for (std::size_t k = 0; k < n; ++k) out[i * n + j] += a[i * n + k] * b[k * n + j];
        }
    }
    return out;
}
Matrix turned(const Matrix& a, std::size_t n) {
    Matrix out(n * n);
    for (std::size_t i = 0; i < n; ++i) {
        for (std::size_t j = 0; j < n; ++j) out[i * n + j] = a[j * n + i];
    }
    return out;
}
Matrix in_f64(const std::vector<float>& values) { return {values.begin(), values.end()}; }
Matrix identity(std::size_t n) {
    Matrix out(n * n, 0.0);
    for (std::size_t i = 0; i < n; ++i) out[i * n + i] = 1;
    return out;
}
/// The largest difference of two matrices, infinite where one is not finite.
double distance(const Matrix& a, const Matrix& b) {
    double worst = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
        worst = std::isfinite(a[i] - b[i]) ? std::max(worst, std::abs(a[i] - b[i])) : HUGE_VAL;
    }
    return worst;
}
double largest(const Matrix& a) { return distance(a, Matrix(a.size(), 0.0)); }

/// What is expected of codes where `floor` is added to lambda: their mean square, widened by errors that are fed back.
/// Infinite where errors grow without bound.
double expected_cost(const Matrix& lambda, double floor, unsigned bits) {
    const double n = static_cast<double>(lambda.size());
    const double step = 5.3 / static_cast<double>((1U << bits) - 1);
    double logarithms = 0;
    for (const double value : lambda) logarithms += std::log(value + floor) / n;
    double share = 0, widening = 0;
    for (const double value : lambda) {
        const double error = std::exp(logarithms) / (value + floor) / n;  // of a channel whose errors are not shared
        share += value * error;
        widening += error;
    }
    widening *= step * step / 12;
    return widening < 0.9 ? share / (1 - widening) : HUGE_VAL;
}

struct Case {
    std::size_t n;
    unsigned bits;
    double c_spread, m_spread;
};
const std::vector<Case>& cases() {
    static const std::vector<Case> all{{1, 4, 1, 1},       {2, 3, 1e3, 10},  {7, 2, 1e2, 1e6},  {16, 3, 1e4, 1e2},
                                       {32, 4, 1e2, 1e12}, {48, 6, 10, 1e4}, {64, 16, 1e3, 1e3}};
    return all;
}

}  // namespace

TEST_CASE("B spreads as C does, makes M diagonal with costs that rise, and has signs of its own") {
    for (const Case& c : cases()) {
        INFO("n " << c.n);
        const std::size_t n = c.n;
        const Matrix spread = random_squares(n, 1, c.c_spread), cost = random_squares(n, 2, c.m_spread);
        const CommonBasis found = common_basis(spread, cost, n);
        CHECK(distance(times(found.basis, turned(found.basis, n), n), spread) < 1e-10 * largest(spread));
        CHECK(distance(times(found.basis, found.inverse, n), identity(n)) < 1e-9);
        Matrix diagonal(n * n, 0.0);
        for (std::size_t i = 0; i < n; ++i) diagonal[i * n + i] = found.lambda[i];
        CHECK(distance(times(turned(found.basis, n), times(cost, found.basis, n), n), diagonal) <
              1e-10 * found.lambda.back());
        CHECK(std::is_sorted(found.lambda.begin(), found.lambda.end()));
        CHECK(found.lambda.back() > 0);
        for (std::size_t j = 0; j < n; ++j) {
            double extreme = 0;
            for (std::size_t i = 0; i < n; ++i) {
                if (std::abs(found.basis[i * n + j]) > std::abs(extreme)) extreme = found.basis[i * n + j];
            }
            CHECK(extreme > 0);
        }
        const CommonBasis again = common_basis(spread, cost, n);
        CHECK(again.basis == found.basis);
        CHECK(again.inverse == found.inverse);
        CHECK(again.lambda == found.lambda);
    }
}

TEST_CASE("rows come back from their latents, which have variance 1 and share no variance") {
    for (const BasisMix mix : {BasisMix::geometric_mean, BasisMix::rotation}) {
        for (const Case& c : cases()) {
            INFO("n " << c.n << ", mix " << static_cast<int>(mix));
            const std::size_t n = c.n;
            const Matrix spread = random_squares(n, 1, c.c_spread), cost = random_squares(n, 2, c.m_spread);
            const LatentBasis found = latent_basis(spread, cost, n, c.bits, mix);
            REQUIRE(found.to.size() == n * n);
            const Matrix to = in_f64(found.to), from = in_f64(found.from);
            // In f32, and T and A are as far from rotations as C's least and greatest eigenvalues are apart.
            const double rounding = 1e-5 * largest(to) * largest(from) * static_cast<double>(n);
            INFO(rounding);
            REQUIRE(rounding < 0.1);
            CHECK(distance(times(to, from, n), identity(n)) < rounding);
            CHECK(distance(times(turned(to, n), times(spread, to, n), n), identity(n)) < rounding);
            // E[z z^T] = I and k = z A: rows spread by A^T A.
            CHECK(distance(times(turned(from, n), from, n), spread) < 1e-5 * largest(spread));
        }
    }
}

TEST_CASE("an error of a latent costs what it costs in its row, and the floor") {
    for (const BasisMix mix : {BasisMix::geometric_mean, BasisMix::rotation}) {
        for (const Case& c : cases()) {
            INFO("n " << c.n << ", mix " << static_cast<int>(mix));
            const std::size_t n = c.n;
            const Matrix spread = random_squares(n, 1, c.c_spread), cost = random_squares(n, 2, c.m_spread);
            const LatentBasis found = latent_basis(spread, cost, n, c.bits, mix);
            const Matrix from = in_f64(found.from);
            Matrix lambda = common_basis(spread, cost, n).lambda;
            for (double& value : lambda) value = std::max(value, 1e-12 * lambda.back());
            const double floor = detail::feedback_floor(lambda, c.bits);
            CHECK(floor > 0);
            test::Random random(3);
            double largest_part = 0;
            for (std::size_t trial = 0; trial < 20; ++trial) {
                const Matrix e = in_f64(random.rows(n));
                Matrix row(n, 0.0);  // e A
                for (std::size_t i = 0; i < n; ++i) {
                    for (std::size_t j = 0; j < n; ++j) row[j] += e[i] * from[i * n + j];
                }
                double in_row = 0, in_latent = 0, square = 0;
                for (std::size_t i = 0; i < n; ++i) {
                    square += e[i] * e[i];
                    for (std::size_t j = 0; j < n; ++j) {
                        in_row += row[i] * cost[i * n + j] * row[j];
                        in_latent += e[i] * found.cost[i * n + j] * e[j];
                    }
                }
                CHECK(std::abs(in_latent - in_row - floor * square) < 1e-5 * (in_latent + lambda.back()));
                largest_part = std::max(largest_part, in_row / in_latent);
            }
            CHECK(largest_part > 0.3);  // the floor is not all that there is
            CHECK(distance(found.cost, turned(found.cost, n)) < 1e-12 * largest(found.cost));
        }
    }
}

TEST_CASE("behind a geometric mean decomposition all channels weigh alike, and their product is that of the costs") {
    for (const Case& c : cases()) {
        INFO("n " << c.n);
        const std::size_t n = c.n;
        const Matrix spread = random_squares(n, 1, c.c_spread), cost = random_squares(n, 2, c.m_spread);
        Matrix raised = common_basis(spread, cost, n).lambda;
        const double least = 1e-12 * raised.back();
        for (double& value : raised) value = std::max(value, least);
        const double floor = detail::feedback_floor(raised, c.bits);
        double logarithm = 0;
        for (double& value : raised) logarithm += std::log(value += floor);
        for (const BasisMix mix : {BasisMix::geometric_mean, BasisMix::rotation}) {
            const LatentBasis found = latent_basis(spread, cost, n, c.bits, mix);
            const Matrix reduced = detail::reduced_metric(found.cost.data(), n);
            double sum = 0, least_weight = HUGE_VAL, most_weight = 0;
            for (std::size_t i = 0; i < n; ++i) {
                const double weight = reduced[i * n + i];
                sum += std::log(weight);
                least_weight = std::min(least_weight, weight);
                most_weight = std::max(most_weight, weight);
            }
            CHECK(std::abs(sum - logarithm) < 1e-6 * static_cast<double>(n));
            if (mix == BasisMix::rotation) continue;
            const double mean = std::exp(logarithm / static_cast<double>(n));
            CHECK(least_weight > (1 - 1e-5) * mean);
            CHECK(most_weight < (1 + 1e-5) * mean);
        }
    }
}

TEST_CASE("a geometric mean decomposition is a rotation, whatever the values") {
    const std::vector<Matrix> all{{1},
                                  {4, 1},
                                  {1, 4},
                                  {3, 3, 3},
                                  {1e-9, 1, 1, 1e9},
                                  {5, 5, 1e-6},
                                  {1, 2, 3, 4, 5, 6, 7, 8, 9},
                                  {9, 8, 7, 6, 5, 4, 3, 2, 1},
                                  {1e-3, 1e3, 1e-3, 1e3, 1e-3}};
    for (const Matrix& values : all) {
        const std::size_t n = values.size();
        INFO("n " << n << ", first " << values[0]);
        const Matrix p = detail::geometric_mean_mix(values);
        CHECK(distance(times(turned(p, n), p, n), identity(n)) < 1e-12 * static_cast<double>(n));
        Matrix diagonal(n * n, 0.0);
        double logarithm = 0;
        for (std::size_t i = 0; i < n; ++i) {
            diagonal[i * n + i] = values[i];
            logarithm += std::log(values[i]) / static_cast<double>(n);
        }
        const Matrix g = times(turned(p, n), times(diagonal, p, n), n);
        const Matrix reduced = detail::reduced_metric(g.data(), n);
        const double spread = *std::max_element(values.begin(), values.end()) / std::exp(logarithm);
        for (std::size_t i = 0; i < n; ++i) {
            CHECK(std::abs(reduced[i * n + i] / std::exp(logarithm) - 1) < 1e-13 * spread * spread + 1e-12);
        }
    }
}

TEST_CASE("the floor is the one of its list that is expected to cost least") {
    test::Random random(8);
    std::size_t between = 0, trials = 0;
    for (const unsigned bits : {2U, 3U, 4U, 6U, 16U}) {
        for (const double decades : {0.0, 1.0, 3.0, 6.0, 9.0}) {
            for (const std::size_t n : {1U, 5U, 32U, 128U}) {
                Matrix lambda(n);
                for (double& value : lambda) value = 1e-3 * std::pow(10.0, decades * static_cast<double>(random()) / 2);
                const double most = *std::max_element(lambda.begin(), lambda.end());
                const double found = detail::feedback_floor(lambda, bits);
                double least = HUGE_VAL, at = 0;
                for (int eighth = -56; eighth <= 0; ++eighth) {
                    const double floor = most * std::pow(10.0, static_cast<double>(eighth) / 8);
                    const double cost = expected_cost(lambda, floor, bits);
                    if (cost < least) {
                        least = cost;
                        at = floor;
                    }
                }
                INFO("bits " << bits << ", decades " << decades << ", n " << n << ": " << found / most << ", expected "
                             << at / most);
                REQUIRE(least < HUGE_VAL);
                CHECK(expected_cost(lambda, found, bits) <= least * (1 + 1e-9));
                CHECK((found >= most * 0.99e-7 && found <= most * 1.01));
                between += found > most * 1.5e-7 && found < most * 0.9 ? 1U : 0U;
                ++trials;
            }
        }
    }
    CHECK(between > trials / 4);
}

TEST_CASE("the same statistics make the same basis, and another unit of them the same codes") {
    constexpr std::size_t n = 24;
    const Matrix spread = random_squares(n, 1), cost = random_squares(n, 2);
    for (const BasisMix mix : {BasisMix::geometric_mean, BasisMix::rotation}) {
        const LatentBasis once = latent_basis(spread, cost, n, 4, mix), twice = latent_basis(spread, cost, n, 4, mix);
        CHECK(once.to == twice.to);
        CHECK(once.from == twice.from);
        CHECK(once.cost == twice.cost);
        Matrix dear = cost;
        for (double& value : dear) value *= 0x1p-60;
        const LatentBasis cheaper = latent_basis(spread, dear, n, 4, mix);
        CHECK(cheaper.to == once.to);
        CHECK(cheaper.from == once.from);
        Matrix scaled = cheaper.cost;
        for (double& value : scaled) value *= 0x1p60;
        CHECK(distance(scaled, once.cost) < 1e-12 * largest(once.cost));
        Matrix wide = spread;
        for (double& value : wide) value *= 0x1p20;
        const LatentBasis wider = latent_basis(wide, cost, n, 4, mix);
        for (std::size_t i = 0; i < n * n; ++i) {
            REQUIRE(std::abs(wider.to[i] * 0x1p10F - once.to[i]) <=
                    1e-5F * static_cast<float>(largest(in_f64(once.to))));
        }
    }
}

TEST_CASE("costs that are nothing leave a basis in which all channels cost alike") {
    constexpr std::size_t n = 12;
    const Matrix spread = random_squares(n, 1);
    for (const BasisMix mix : {BasisMix::geometric_mean, BasisMix::rotation}) {
        for (const double size : {0.0, 1e-300}) {
            INFO("costs of " << size);
            Matrix cost(n * n, 0.0);
            for (std::size_t i = 0; i < n; ++i) cost[i * n + i] = size;
            const LatentBasis found = latent_basis(spread, cost, n, 4, mix);
            CHECK(distance(times(in_f64(found.to), in_f64(found.from), n), identity(n)) < 1e-4);
            std::vector<float> columns;
            CHECK_NOTHROW(factor_metric(found.cost.data(), n, columns));
            for (const float value : columns) REQUIRE(std::abs(value) < 100);
        }
    }
}

TEST_CASE("statistics that are no statistics are refused") {
    constexpr std::size_t n = 6;
    const double nan = std::numeric_limits<double>::quiet_NaN(), infinite = std::numeric_limits<double>::infinity();
    const Matrix spread = random_squares(n, 1), cost = random_squares(n, 2);
    const auto refused = [&](const Matrix& c, const Matrix& m) {
        for (const BasisMix mix : {BasisMix::geometric_mean, BasisMix::rotation}) {
            try {
                static_cast<void>(latent_basis(c, m, n, 4, mix));
                return false;
            } catch (const value_error&) {
            }
        }
        return true;
    };
    CHECK_FALSE(refused(spread, cost));
    CHECK(refused(Matrix(n * n, 0.0), cost));
    CHECK(refused(Matrix(n * n, 1.0), cost));  // of rank 1
    Matrix negative = spread;
    for (double& value : negative) value = -value;
    CHECK(refused(negative, cost));
    for (const double wrong : {nan, infinite, -infinite}) {
        for (const std::size_t at : {0U, 1U, 35U}) {
            INFO(wrong << " at " << at);
            Matrix c = spread, m = cost;
            c[at] = c[at / n + at % n * n] = wrong;
            m[at] = m[at / n + at % n * n] = wrong;
            CHECK(refused(c, cost));
            CHECK(refused(spread, m));
        }
    }
    CHECK(test::contains(test::complaint<value_error>([&] {
                             static_cast<void>(latent_basis(Matrix(n * n, 0.0), cost, n, 4, BasisMix::rotation));
                         }),
                         "the spread of rows of 6 channels is not positive definite"));
}
