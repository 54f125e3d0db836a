#include "decoder.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "error.hpp"

namespace whisper {
namespace {

constexpr float epsilon = 1e-5F;
constexpr std::size_t rows_a_task = 16;

llm::Matrix matrix_of(const Arrays& arrays, const std::string& name, std::size_t rows, std::size_t columns) {
    const std::vector<float>& values = arrays.floats(name, {rows, columns});
    const std::size_t found = arrays.get(name).shape.front();
    return {found, values.size() / found, values};
}

Affine affine_of(const Arrays& arrays, const std::string& name, std::size_t rows, std::size_t columns) {
    Affine out{matrix_of(arrays, name, rows, columns), {}};
    if (arrays.has(name + ".bias")) out.bias = arrays.floats(name + ".bias", {out.weights.rows});
    return out;
}

llm::Norm norm_of(const Arrays& arrays, const std::string& name, std::size_t width) {
    return {arrays.floats(name + ".gain", {width}), arrays.floats(name + ".bias", {width})};
}

Attention attention_of(const Arrays& arrays, const std::string& name, std::size_t width) {
    const auto affine = [&](const char* part) { return affine_of(arrays, name + part, width, width); };
    return {norm_of(arrays, name + ".norm", width), affine(".q"), affine(".k"), affine(".v"), affine(".o")};
}

template <class F>
void for_each_row(std::size_t n, llm::ThreadPool& pool, F&& f) {
    pool.parallel_for((n + rows_a_task - 1) / rows_a_task, [&](std::size_t task) {
        for (std::size_t t = task * rows_a_task; t < std::min(n, (task + 1) * rows_a_task); ++t) f(t);
    });
}

/// Layer norm of x [n, D] -> out [n, D].
void apply(const llm::Norm& norm, const std::vector<float>& x, std::vector<float>& out, llm::ThreadPool& pool) {
    const std::size_t width = norm.gain.size();
    for_each_row(x.size() / width, pool, [&](std::size_t t) {
        const float* const from = x.data() + t * width;
        float* const to = out.data() + t * width;
        double mean = 0, square = 0;
        for (std::size_t i = 0; i < width; ++i) mean += static_cast<double>(from[i]);
        mean /= static_cast<double>(width);
        for (std::size_t i = 0; i < width; ++i) {
            const double centred = static_cast<double>(from[i]) - mean;
            square += centred * centred;
        }
        const double variance = square / static_cast<double>(width);
        const auto factor = static_cast<float>(1 / std::sqrt(variance + static_cast<double>(epsilon)));
        for (std::size_t i = 0; i < width; ++i)
            to[i] = (from[i] - static_cast<float>(mean)) * factor * norm.gain[i] + norm.bias[i];
    });
}

void multiply(const std::vector<float>& x, std::size_t n, const Affine& by, std::vector<float>& y,
              llm::ThreadPool& pool) {
    llm::multiply(x.data(), n, by.weights, by.bias, y.data(), pool);
}

void add(std::vector<float>& x, const std::vector<float>& more) {
    for (std::size_t i = 0; i < x.size(); ++i) x[i] += more[i];
}

}  // namespace

Decoder::Decoder(const Arrays& arrays) : embedding_(matrix_of(arrays, "embedding", 0, 0)) {
    const std::size_t D = embedding_.columns;
    heads_ = static_cast<std::size_t>(std::max(arrays.integers("heads").front(), 0));
    if (heads_ == 0 || D % heads_ != 0)
        throw llm::Error(fmt::format("{} heads do not divide a width of {}", heads_, D));
    positions_ = matrix_of(arrays, "positions", 0, D);
    norm_ = norm_of(arrays, "norm", D);
    for (std::size_t i = 0; arrays.has(fmt::format("layer.{}.self.q", i)); ++i) {
        const std::string name = fmt::format("layer.{}", i);
        DecoderLayer layer{attention_of(arrays, name + ".self", D), attention_of(arrays, name + ".cross", D),
                           norm_of(arrays, name + ".feed_forward.norm", D),
                           affine_of(arrays, name + ".feed_forward.up", 0, D), Affine()};
        layer.down = affine_of(arrays, name + ".feed_forward.down", D, layer.up.weights.rows);
        layers_.push_back(std::move(layer));
    }
    if (layers_.empty()) throw llm::Error("the file has no decoder layer");
}

std::vector<float> Decoder::forward(std::span<const llm::Token> ids, llm::AttentionCache& self, CrossCache& cross,
                                    llm::ThreadPool& pool) const {
    const std::size_t n = ids.size(), D = width(), first = self.size();
    if (first + n > positions_.rows)
        throw llm::Error(fmt::format("the model has positions for {} tokens, not for {}", positions_.rows, first + n));
    std::vector<float> x(n * D), a(n * D), q(n * D), attended(n * D), inner;
    for (std::size_t t = 0; t < n; ++t) {
        if (ids[t] < 0 || static_cast<std::size_t>(ids[t]) >= embedding_.rows)
            throw llm::Error(fmt::format("token {} is outside the vocabulary of {}", ids[t], embedding_.rows));
        const float* const row = embedding_.values.data() + static_cast<std::size_t>(ids[t]) * D;
        const float* const position = positions_.values.data() + (first + t) * D;
        for (std::size_t i = 0; i < D; ++i) x[t * D + i] = row[i] + position[i];
    }
    self.begin(n);
    for (std::size_t l = 0; l < layers_.size(); ++l) {
        const DecoderLayer& layer = layers_[l];
        apply(layer.self.norm, x, a, pool);
        multiply(a, n, layer.self.q, q, pool);
        self.append(l, a.data());
        self.attend(l, q.data(), attended.data());
        multiply(attended, n, layer.self.o, a, pool);
        add(x, a);

        apply(layer.cross.norm, x, a, pool);
        multiply(a, n, layer.cross.q, q, pool);
        cross.attend(l, n, q.data(), attended.data());
        multiply(attended, n, layer.cross.o, a, pool);
        add(x, a);

        apply(layer.feed_forward_norm, x, a, pool);
        inner.resize(n * layer.up.weights.rows);
        multiply(a, n, layer.up, inner, pool);
        for_each_row(n, pool, [&](std::size_t t) {
            float* const row = inner.data() + t * layer.up.weights.rows;
            for (std::size_t i = 0; i < layer.up.weights.rows; ++i)
                row[i] *= 0.5F * (1 + std::erf(row[i] * 0.70710678F));  // gelu, not its approximation
        });
        multiply(inner, n, layer.down, a, pool);
        add(x, a);
    }
    self.commit();
    apply(norm_, x, a, pool);
    return a;
}

std::vector<Window> windows_of(const Arrays& arrays, const Decoder& decoder) {
    std::vector<Window> out;
    for (std::size_t j = 0; arrays.has(fmt::format("window.{}.x", j)); ++j) {
        const std::string name = fmt::format("window.{}", j);
        Window window;
        window.x = arrays.floats(name + ".x", {0, decoder.width()});
        window.frames = window.x.size() / decoder.width();
        window.tokens = arrays.integers(name + ".tokens");
        const std::int32_t first = arrays.integers(name + ".first").front();
        if (first < 1 || static_cast<std::size_t>(first) >= window.tokens.size())
            throw llm::Error(
                fmt::format("{}: {} tokens, of which {} are the prompt", name, window.tokens.size(), first));
        window.first = static_cast<std::size_t>(first);
        out.push_back(std::move(window));
    }
    if (out.empty()) throw llm::Error("the file has no window");
    return out;
}

}  // namespace whisper
