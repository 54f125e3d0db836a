#include "model.hpp"

#include <cmath>
#include <random>

namespace mpi {
namespace {

/// Uniform numbers in -scale .. scale. Not std::uniform_real_distribution, whose numbers differ among libraries.
std::vector<float> random_values(std::size_t n, double scale, std::uint64_t seed) {
    std::mt19937_64 random(seed);
    std::vector<float> values(n);
    for (float& value : values)
        value = static_cast<float>(scale * (static_cast<double>(random() >> 11U) * 0x1p-52 - 1));
    return values;
}

}  // namespace

Layer make_layer(const Shape& shape, std::size_t index) {
    const std::size_t D = shape.width, Q = shape.heads * shape.head_dim, R = shape.kv_heads * shape.head_dim;
    std::uint64_t seed = 1000 * (index + 1);
    const auto matrix = [&](std::size_t in, std::size_t out) {
        return random_values(in * out, std::sqrt(3.0 / static_cast<double>(in)), seed++);
    };
    Layer layer;
    layer.w_q = matrix(D, Q);
    layer.w_k = matrix(D, R);
    layer.w_v = matrix(D, R);
    layer.w_o = matrix(Q, D);
    layer.w_up = matrix(D, shape.inner);
    layer.w_down = matrix(shape.inner, D);
    return layer;
}

xquant::Model describe(const Shape& shape, const Part& part, const std::vector<Layer>& layers) {
    const std::size_t D = shape.width, Dh = shape.head_dim;
    xquant::Model model = xquant::Model::uniform(
        part.layers(), {.width = D, .heads = part.heads() * shape.group(), .kv_heads = part.heads(), .head_dim = Dh},
        xquant::Rope::standard(Dh));
    for (std::size_t i = 0; i < part.layers(); ++i) {
        const std::size_t first = part.first_head * Dh * D;
        model.layers[i].w_k = xquant::MatrixView(layers[i].w_k.data() + first, part.heads() * Dh, D);
        model.layers[i].w_v = xquant::MatrixView(layers[i].w_v.data() + first, part.heads() * Dh, D);
    }
    return model;
}

std::vector<float> make_prompt(const Shape& shape, std::size_t n) {
    return random_values(n * shape.width, std::sqrt(3.0), 1);
}

void multiply(const float* x, std::size_t n, const float* w, std::size_t rows, std::size_t columns, std::size_t stride,
              float* y) {
    for (std::size_t t = 0; t < n; ++t) {
        float* to = y + t * columns;
        for (std::size_t j = 0; j < columns; ++j) to[j] = 0;
        for (std::size_t i = 0; i < rows; ++i) {
            const float factor = x[t * rows + i];
            const float* row = w + i * stride;
            for (std::size_t j = 0; j < columns; ++j) to[j] += factor * row[j];
        }
    }
}

void norm(const float* x, std::size_t n, std::size_t width, float* out) {
    for (std::size_t t = 0; t < n; ++t) {
        float sum = 0;
        for (std::size_t i = 0; i < width; ++i) sum += x[t * width + i] * x[t * width + i];
        const float factor = 1 / std::sqrt(sum / static_cast<float>(width) + 1e-5F);
        for (std::size_t i = 0; i < width; ++i) out[t * width + i] = x[t * width + i] * factor;
    }
}

void rope(float* q, std::size_t n, std::size_t heads, std::size_t head_dim, std::size_t first) {
    const xquant::Rope frequencies = xquant::Rope::standard(head_dim);
    for (std::size_t t = 0; t < n; ++t) {
        for (std::size_t j = 0; j < head_dim / 2; ++j) {
            const double angle = static_cast<double>(first + t) * frequencies.inverse_frequencies[j];
            const auto cosine = static_cast<float>(std::cos(angle)), sine = static_cast<float>(std::sin(angle));
            for (std::size_t h = 0; h < heads; ++h) {
                float* pair = q + (t * heads + h) * head_dim + 2 * j;
                const float one = pair[0], other = pair[1];
                pair[0] = one * cosine - other * sine;
                pair[1] = one * sine + other * cosine;
            }
        }
    }
}

void feed_forward(const Shape& shape, const Layer& layer, float* x, std::size_t n) {
    const std::size_t D = shape.width, F = shape.inner;
    std::vector<float> a(n * D), inner(n * F);
    norm(x, n, D, a.data());
    multiply(a.data(), n, layer.w_up.data(), D, F, F, inner.data());
    for (float& value : inner) value /= 1 + std::exp(-value);
    multiply(inner.data(), n, layer.w_down.data(), F, D, D, a.data());
    for (std::size_t i = 0; i < n * D; ++i) x[i] += a[i];
}

}  // namespace mpi
