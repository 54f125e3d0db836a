#include "layer.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>

namespace bench {
namespace {

std::vector<float> random_weight(std::size_t rows, std::size_t width, std::size_t used, std::uint64_t seed) {
    std::vector<float> out(rows * width, 0.0F);
    Random random(seed);
    const float scale = 1 / std::sqrt(static_cast<float>(used));
    for (std::size_t i = 0; i < rows; ++i) {
        for (std::size_t c = 0; c < used; ++c) out[i * width + c] = scale * random();
    }
    return out;
}

/// x [n, used] times rows first .. first + dh of w [, width]: [n, dh].
std::vector<double> project(const std::vector<float>& x, std::size_t used, const std::vector<float>& w,
                            std::size_t width, std::size_t first, std::size_t dh) {
    const std::size_t n = x.size() / used;
    std::vector<double> columns(used * dh), out(n * dh, 0.0);
    for (std::size_t i = 0; i < dh; ++i) {
        for (std::size_t c = 0; c < used; ++c) columns[c * dh + i] = static_cast<double>(w[(first + i) * width + c]);
    }
    for (std::size_t t = 0; t < n; ++t) {
        double* row = out.data() + t * dh;
        for (std::size_t c = 0; c < used; ++c) {
            const auto factor = static_cast<double>(x[t * used + c]);
            for (std::size_t i = 0; i < dh; ++i) row[i] += factor * columns[c * dh + i];
        }
    }
    return out;
}

void turn(double* head, std::size_t position, const xquant::Rope& rope) {
    for (std::size_t j = 0; j < rope.inverse_frequencies.size(); ++j) {
        const double angle = static_cast<double>(position) * rope.inverse_frequencies[j];
        const double a = head[2 * j], b = head[2 * j + 1];
        head[2 * j] = a * std::cos(angle) - b * std::sin(angle);
        head[2 * j + 1] = a * std::sin(angle) + b * std::cos(angle);
    }
}

std::vector<double> attend_exactly(const Shape& shape, std::size_t used, std::size_t tokens, std::size_t rows) {
    const RandomLayer layer(shape, used, used);
    const std::size_t heads = shape.layer.heads, dh = shape.layer.head_dim, group = heads / shape.layer.kv_heads;
    const std::vector<float> x = layer.x(0, tokens + rows), q = random_queries(shape, rows);
    const std::vector<std::size_t> compared = compared_rows(rows);
    std::vector<double> out(compared.size() * heads * dh, 0.0), weights(tokens + rows);
    for (std::size_t kv_head = 0; kv_head < shape.layer.kv_heads; ++kv_head) {
        std::vector<double> k = project(x, used, layer.w_k, used, kv_head * dh, dh);
        const std::vector<double> v = project(x, used, layer.w_v, used, kv_head * dh, dh);
        for (std::size_t t = 0; t < tokens + rows; ++t) turn(k.data() + t * dh, t, layer.model.layers[0].rope);
        for (std::size_t i = 0; i < compared.size() * group; ++i) {
            const std::size_t row = compared[i / group], head = kv_head * group + i % group;
            const float* query = q.data() + (row * heads + head) * dh;
            double* target = out.data() + (i / group * heads + head) * dh;
            double highest = -1e300, total = 0;
            for (std::size_t t = 0; t <= tokens + row; ++t) {
                double sum = 0;
                for (std::size_t c = 0; c < dh; ++c) sum += static_cast<double>(query[c]) * k[t * dh + c];
                weights[t] = sum / std::sqrt(static_cast<double>(dh));
                highest = std::max(highest, weights[t]);
            }
            for (std::size_t t = 0; t <= tokens + row; ++t) {
                const double weight = std::exp(weights[t] - highest);
                total += weight;
                for (std::size_t c = 0; c < dh; ++c) target[c] += weight * v[t * dh + c];
            }
            for (std::size_t c = 0; c < dh; ++c) target[c] /= total;
        }
    }
    return out;
}

}  // namespace

RandomLayer::RandomLayer(const Shape& of, std::size_t width, std::size_t used)
    : shape(of.layer),
      w_k(random_weight(of.layer.kv_width(), width, used, 2)),
      w_v(random_weight(of.layer.kv_width(), width, used, 3)) {
    shape.width = width;
    model = xquant::Model::uniform(1, shape, xquant::Rope::standard(shape.head_dim, of.rope_base));
    model.layers[0].w_k = xquant::MatrixView(w_k.data(), shape.kv_width(), width);
    model.layers[0].w_v = xquant::MatrixView(w_v.data(), shape.kv_width(), width);
}

std::vector<float> RandomLayer::x(std::size_t first, std::size_t n) const { return random_rows(first, n, shape.width); }

std::vector<float> random_queries(const Shape& shape, std::size_t rows) {
    return random_values(rows * shape.layer.heads * shape.layer.head_dim, 5, 2);
}

std::vector<std::size_t> compared_rows(std::size_t rows) {
    std::vector<std::size_t> out{0, rows / 3, 2 * rows / 3, rows - 1};
    out.erase(std::unique(out.begin(), out.end()), out.end());
    return out;
}

const std::vector<double>& exact_attention(const Shape& shape, std::size_t used, std::size_t tokens, std::size_t rows) {
    using Key = std::tuple<std::string, std::size_t, std::size_t, std::size_t>;
    static std::map<Key, std::vector<double>> known;
    const Key key{shape.name, used, tokens, rows};
    const auto at = known.find(key);
    return at != known.end() ? at->second : known[key] = attend_exactly(shape, used, tokens, rows);
}

double relative_error(const std::vector<float>& out, const std::vector<double>& exact, std::size_t rows) {
    const std::vector<std::size_t> compared = compared_rows(rows);
    const std::size_t width = out.size() / rows;
    double difference = 0, size = 0;
    for (std::size_t i = 0; i < compared.size(); ++i) {
        for (std::size_t c = 0; c < width; ++c) {
            const double expected = exact[i * width + c];
            difference += std::pow(static_cast<double>(out[compared[i] * width + c]) - expected, 2);
            size += expected * expected;
        }
    }
    return std::sqrt(difference / size);
}

}  // namespace bench
