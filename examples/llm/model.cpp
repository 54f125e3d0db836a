#include "model.hpp"

#include <fmt/format.h>

#include <Eigen/Core>
#include <algorithm>
#include <cmath>

#include "error.hpp"

namespace llm {
namespace {

using Array = Eigen::Map<Eigen::ArrayXf>;
using ConstArray = Eigen::Map<const Eigen::ArrayXf>;

Eigen::Index index(std::size_t i) { return static_cast<Eigen::Index>(i); }

/// Loops over row-wise work are cut into pieces of this many rows.
constexpr std::size_t rows_a_piece = 16;

template <class F>
void for_each_row(std::size_t n, ThreadPool& pool, F&& f) {
    pool.parallel_for((n + rows_a_piece - 1) / rows_a_piece, [&](std::size_t piece) {
        for (std::size_t t = piece * rows_a_piece; t < std::min(n, (piece + 1) * rows_a_piece); ++t) f(t);
    });
}

void rms_norm(const float* x, const std::vector<float>& gain, float epsilon, float* out) {
    const ConstArray row(x, index(gain.size()));
    const float factor = 1 / std::sqrt(row.square().mean() + epsilon);
    Array(out, index(gain.size())) = row * factor * ConstArray(gain.data(), index(gain.size()));
}

void layer_norm(const float* x, const Norm& norm, float epsilon, float* out) {
    const auto width = index(norm.gain.size());
    const ConstArray row(x, width);
    const float mean = row.mean();
    const float factor = 1 / std::sqrt((row - mean).square().mean() + epsilon);
    Array(out, width) =
        (row - mean) * factor * ConstArray(norm.gain.data(), width) + ConstArray(norm.bias.data(), width);
}

/// x [n, D] -> out [n, D], which may be x
void apply(const Norm& norm, float epsilon, const float* x, std::size_t n, float* out, ThreadPool& pool) {
    const std::size_t D = norm.gain.size();
    for_each_row(n, pool, [&](std::size_t t) {
        if (norm.bias.empty())
            rms_norm(x + t * D, norm.gain, epsilon, out + t * D);
        else
            layer_norm(x + t * D, norm, epsilon, out + t * D);
    });
}

void add(float* x, const float* more, std::size_t values) {
    Array(x, index(values)) += ConstArray(more, index(values));
}

/// act(x) = x / (1 + exp(-s)): s = x for silu, and for gelu (1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u)).
template <class X>
auto silu(const X& x) {
    return x / (1 + (-x).exp());
}
template <class X>
auto gelu(const X& x) {
    constexpr float twice_root = 1.5957691216f;  // 2 sqrt(2 / pi)
    return x / (1 + (-twice_root * (x + 0.044715f * x.cube())).exp());
}

}  // namespace

std::vector<float> Model::embed(std::span<const Token> ids, std::size_t first) const {
    const std::size_t D = config_.width;
    if (!positions_.values.empty() && first + ids.size() > positions_.rows)
        throw Error(
            fmt::format("the model has positions for {} tokens, not for {}", positions_.rows, first + ids.size()));
    const float scale = config_.architecture.scaled_embedding ? std::sqrt(static_cast<float>(D)) : 1;
    std::vector<float> x(ids.size() * D);
    for (std::size_t t = 0; t < ids.size(); ++t) {
        if (ids[t] < 0 || static_cast<std::size_t>(ids[t]) >= config_.vocabulary)
            throw Error(fmt::format("token {} is outside the model's vocabulary of {}", ids[t], config_.vocabulary));
        const float* row = embedding_.values.data() + static_cast<std::size_t>(ids[t]) * D;
        Array(x.data() + t * D, index(D)) = ConstArray(row, index(D)) * scale;
        if (!positions_.values.empty()) add(x.data() + t * D, positions_.values.data() + (first + t) * D, D);
    }
    return x;
}

std::vector<float> Model::forward(std::span<const Token> ids, AttentionCache& cache, ThreadPool& pool) const {
    const Architecture& has = config_.architecture;
    const std::size_t n = ids.size(), D = config_.width, F = config_.feed_forward, first = cache.size();
    const float epsilon = config_.norm_epsilon;
    std::vector<float> x = embed(ids, first);
    if (n == 0) return x;
    const std::size_t up_width = has.gated ? 2 * F : F;
    std::vector<float> a(n * D), q(n * config_.q_width()), attended(q.size()), gate_up(n * up_width);
    // Eigen computes the exp of values before the first aligned one in another way. Its own, aligned memory keeps
    // results the same from run to run.
    Eigen::ArrayXf inner(index(n * F));
    cache.begin(n);
    for (std::size_t i = 0; i < layers_.size(); ++i) {
        const Layer& layer = layers_[i];
        apply(layer.attention_norm, epsilon, x.data(), n, a.data(), pool);
        multiply(a.data(), n, layer.W_q, layer.b_q, q.data(), pool);
        norm_heads(layer.q_norm, epsilon, q.data(), n, config_.heads, pool);
        apply_rope(layer.rope, q.data(), n, config_.heads, config_.head_dim, first, pool);
        cache.append(i, a.data());
        cache.attend(i, q.data(), attended.data());
        multiply(attended.data(), n, layer.W_o, layer.b_o, a.data(), pool);
        if (has.post_norms) apply(layer.post_attention_norm, epsilon, a.data(), n, a.data(), pool);
        add(x.data(), a.data(), n * D);

        apply(layer.feed_forward_norm, epsilon, x.data(), n, a.data(), pool);
        multiply(a.data(), n, layer.W_gate_up, layer.b_up, gate_up.data(), pool);
        for_each_row(n, pool, [&](std::size_t t) {
            const ConstArray gate(gate_up.data() + t * up_width, index(F));
            Array to(inner.data() + t * F, index(F));
            if (has.activation == Activation::silu)
                to = silu(gate);
            else
                to = gelu(gate);
            if (has.gated) to *= ConstArray(gate_up.data() + t * up_width + F, index(F));
        });
        multiply(inner.data(), n, layer.W_down, layer.b_down, a.data(), pool);
        if (has.post_norms) apply(layer.post_feed_forward_norm, epsilon, a.data(), n, a.data(), pool);
        add(x.data(), a.data(), n * D);
    }
    cache.commit();
    apply(output_norm_, epsilon, x.data(), n, a.data(), pool);
    return a;
}

void Model::logits(const float* hidden, std::size_t n, float* out, ThreadPool& pool) const {
    multiply(hidden, n, output(), {}, out, pool);
}

void norm_heads(const std::vector<float>& gain, float epsilon, float* x, std::size_t n, std::size_t heads,
                ThreadPool& pool) {
    if (gain.empty()) return;
    for_each_row(n, pool, [&](std::size_t t) {
        for (std::size_t h = 0; h < heads; ++h) {
            float* head = x + (t * heads + h) * gain.size();
            rms_norm(head, gain, epsilon, head);
        }
    });
}

void apply_rope(const Rope& rope, float* x, std::size_t n, std::size_t heads, std::size_t dim, std::size_t first,
                ThreadPool& pool) {
    const std::size_t pairs = rope.dims / 2;
    if (pairs == 0) return;
    std::vector<double> frequency(pairs);
    for (std::size_t j = 0; j < pairs; ++j)
        frequency[j] = std::pow(rope.base, -2.0 * static_cast<double>(j) / static_cast<double>(rope.dims));
    const bool halves = rope.pairs == Pairs::halves;
    for_each_row(n, pool, [&](std::size_t t) {
        for (std::size_t j = 0; j < pairs; ++j) {
            const double angle = static_cast<double>(first + t) * frequency[j];
            const auto cosine = static_cast<float>(std::cos(angle)), sine = static_cast<float>(std::sin(angle));
            for (std::size_t h = 0; h < heads; ++h) {
                float* head = x + (t * heads + h) * dim;
                float &one = head[halves ? j : 2 * j], &other = head[halves ? j + pairs : 2 * j + 1];
                const float before = one;
                one = before * cosine - other * sine;
                other = before * sine + other * cosine;
            }
        }
    });
}

}  // namespace llm
