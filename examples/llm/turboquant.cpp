#include "turboquant.hpp"

#include <fmt/format.h>

#include <Eigen/Core>
#include <Eigen/QR>
#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <random>

#include "exact_cache.hpp"
#include "model.hpp"

namespace llm {
namespace {

using Matrix = Eigen::MatrixXf;
using Vector = Eigen::VectorXf;

float to_f16(float value) { return static_cast<float>(static_cast<Eigen::half>(value)); }

/// Normal values. std::normal_distribution differs between standard libraries.
Matrix normal_matrix(std::size_t n, std::uint32_t seed) {
    std::mt19937 random(seed);
    const auto uniform = [&] { return (static_cast<double>(random()) + 0.5) / 4294967296.0; };
    const auto size = static_cast<Eigen::Index>(n);
    return Matrix::NullaryExpr(size, size, [&] {
        const double radius = std::sqrt(-2 * std::log(uniform()));
        return static_cast<float>(radius * std::cos(2 * std::numbers::pi * uniform()));
    });
}

Matrix random_rotation(std::size_t n) {
    const Eigen::HouseholderQR<Matrix> qr(normal_matrix(n, 1));
    return qr.householderQ();
}

/// Rounds rows of one head.
class Rounding {
public:
    Rounding(std::size_t n, unsigned bits, bool residual)
        : root_(std::sqrt(static_cast<float>(n))),
          levels_(normal_levels(residual ? bits - 1 : bits)),
          rotation_(random_rotation(n)),
          sketch_(residual ? normal_matrix(n, 2) : Matrix()) {}

    void operator()(float* row) const {
        Eigen::Map<Vector> x(row, rotation_.rows());
        const float norm = to_f16(x.norm());
        if (norm == 0) {
            x.setZero();
            return;
        }
        Vector y = rotation_ * x * (root_ / norm);
        for (float& value : y) value = nearest(value);
        Vector back = rotation_.transpose() * y * (norm / root_);
        if (sketch_.size() > 0) {
            const Vector left = x - back;
            const Vector signs = (sketch_ * left).unaryExpr([](float v) { return v < 0 ? -1.0F : 1.0F; });
            const float factor = std::sqrt(std::numbers::pi_v<float> / 2) / static_cast<float>(x.size());
            back += to_f16(left.norm()) * factor * (sketch_.transpose() * signs);
        }
        x = back;
    }

private:
    float nearest(float value) const {
        const auto above = std::lower_bound(levels_.begin(), levels_.end(), value);
        if (above == levels_.begin()) return *above;
        if (above == levels_.end()) return levels_.back();
        return *above - value < value - *(above - 1) ? *above : *(above - 1);
    }

    float root_;
    std::vector<float> levels_;
    Matrix rotation_, sketch_;
};

}  // namespace

bool parse_turboquant(const std::string& name, TurboQuant& out) {
    const auto names = turboquant_names();
    const auto found = std::find(names.begin(), names.end(), name);
    if (found == names.end()) return false;
    const auto i = static_cast<unsigned>(found - names.begin());
    out = {4 - i / 2, i % 2 == 1};
    return true;
}

std::vector<std::string> turboquant_names() {
    std::vector<std::string> names;
    for (const unsigned bits : {4U, 3U, 2U}) {
        names.push_back(fmt::format("turboquant{}", bits));
        names.push_back(names.back() + "_residual");
    }
    return names;
}

std::vector<float> normal_levels(unsigned bits) {
    const std::size_t count = std::size_t{1} << bits;
    const auto density = [](double x) { return std::exp(-x * x / 2) / std::sqrt(2 * std::numbers::pi); };
    const auto below = [](double x) { return std::erfc(-x / std::numbers::sqrt2) / 2; };
    std::vector<double> levels(count);
    for (std::size_t k = 0; k < count; ++k)
        levels[k] = 6 * (static_cast<double>(k) + 0.5) / static_cast<double>(count) - 3;
    for (int round = 0; round < 2000; ++round) {
        const std::vector<double> before = levels;
        for (std::size_t k = 0; k < count; ++k) {
            constexpr double far = std::numeric_limits<double>::infinity();
            const double low = k == 0 ? -far : (before[k - 1] + before[k]) / 2;
            const double high = k + 1 == count ? far : (before[k] + before[k + 1]) / 2;
            levels[k] = (density(low) - density(high)) / (below(high) - below(low));
        }
    }
    return {levels.begin(), levels.end()};
}

std::function<void(float*)> turboquant_rounding(std::size_t n, TurboQuant form) {
    return Rounding(n, form.bits, form.residual);
}

double turboquant_bits(TurboQuant form, std::size_t n) {
    return 2.0 * form.bits * static_cast<double>(n) + 16 * (form.residual ? 3 : 2);
}

std::unique_ptr<AttentionCache> make_turboquant_cache(TurboQuant form, const Model& model, ThreadPool& pool,
                                                      std::size_t sinks, std::size_t tail) {
    const std::size_t n = model.config().head_dim;
    RoundedRows rounded;
    rounded.round_key = turboquant_rounding(n, form);
    rounded.round_value = turboquant_rounding(n, {form.bits, false});
    rounded.bits_per_head = turboquant_bits(form, n);
    rounded.sinks = sinks;
    rounded.tail = tail;
    return make_simulated_cache(model, pool, std::move(rounded));
}

}  // namespace llm
