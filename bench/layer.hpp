// A random layer, and what exact attention makes of it.
#pragma once

#include <vector>

#include "data.hpp"
#include "shapes.hpp"

namespace bench {

/// Weights of a layer whose W_k and W_v read the first `used` channels of X and ignore the others: K and V are then the
/// same whether X has all D channels or only those. Attention never looks at W, so a cache that stores K, V or latents
/// may be filled from the narrow X, in a fraction of the time.
struct RandomLayer {
    RandomLayer(const Shape& of, std::size_t width, std::size_t used);

    /// Rows first .. first + n of X.
    [[nodiscard]] std::vector<float> x(std::size_t first, std::size_t n) const;

    xquant::LayerShape shape;     ///< with this width
    std::vector<float> w_k, w_v;  ///< [Hkv * Dh, width]
    xquant::Model model;
};

/// Queries of `rows` tokens, [rows, H * Dh]: large enough that some tokens matter much more than others.
std::vector<float> random_queries(const Shape& shape, std::size_t rows);

/// Rows that are compared with the exact answer: the first, the last, and two between.
std::vector<std::size_t> compared_rows(std::size_t rows);

/// Exact attention, in f64 and token by token, of compared_rows(rows) of a step of `rows` tokens that follow `tokens`
/// others: [compared rows, H * Dh]. Shared by all schemes: computed once.
const std::vector<double>& exact_attention(const Shape& shape, std::size_t used, std::size_t tokens, std::size_t rows);

/// |out - exact| / |exact| over compared_rows(rows) of out [rows, H * Dh].
double relative_error(const std::vector<float>& out, const std::vector<double>& exact, std::size_t rows);

}  // namespace bench
