#include "model.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <set>

#include "error.hpp"
#include "gguf.hpp"

namespace llm {
namespace {

using Array = Eigen::Map<Eigen::ArrayXf>;
using ConstArray = Eigen::Map<const Eigen::ArrayXf>;

/// Loops over row-wise work are cut into pieces of this many rows.
constexpr std::size_t rows_a_piece = 16;

template <class F>
void for_each_row(std::size_t n, ThreadPool& pool, F&& f) {
    pool.parallel_for((n + rows_a_piece - 1) / rows_a_piece, [&](std::size_t piece) {
        for (std::size_t t = piece * rows_a_piece; t < std::min(n, (piece + 1) * rows_a_piece); ++t) f(t);
    });
}

/// x [n, D] -> out [n, D]
void norm(const float* x, std::size_t n, const std::vector<float>& gain, float epsilon, float* out, ThreadPool& pool) {
    const auto width = static_cast<Eigen::Index>(gain.size());
    for_each_row(n, pool, [&](std::size_t t) {
        const ConstArray row(x + t * gain.size(), width);
        const float factor = 1 / std::sqrt(row.square().mean() + epsilon);
        Array(out + t * gain.size(), width) = row * factor * ConstArray(gain.data(), width);
    });
}

void add(float* x, const float* more, std::size_t values) {
    const auto n = static_cast<Eigen::Index>(values);
    Array(x, n) += ConstArray(more, n);
}

/// Reads the parts of a Llama model from a file, and remembers which tensors it took.
class Loader {
public:
    explicit Loader(const Gguf& gguf) : gguf_(gguf) {}

    [[noreturn]] void fail(const std::string& what) const { throw Error(fmt::format("{}: {}", gguf_.name(), what)); }

    Config config() const {
        if (const auto& architecture = gguf_.text("general.architecture"); architecture != "llama")
            fail(fmt::format("the architecture is '{}'; this engine knows 'llama'", architecture));
        for (const char* key : {"llama.rope.scaling.type", "llama.rope.scaling.factor", "llama.expert_count"})
            if (gguf_.has(key) && !(std::string_view(key) == "llama.expert_count" && gguf_.integer(key) == 0) &&
                !(std::string_view(key) == "llama.rope.scaling.type" && gguf_.text(key) == "none"))
                fail(fmt::format("'{}' asks for something that this engine doesn't do", key));
        Config c;
        c.layers = integer("llama.block_count");
        c.width = integer("llama.embedding_length");
        c.heads = integer("llama.attention.head_count");
        c.kv_heads = gguf_.has("llama.attention.head_count_kv") ? integer("llama.attention.head_count_kv") : c.heads;
        if (c.width % c.heads != 0 && !gguf_.has("llama.attention.key_length"))
            fail("the width is no multiple of the number of heads");
        c.head_dim =
            gguf_.has("llama.attention.key_length") ? integer("llama.attention.key_length") : c.width / c.heads;
        if (gguf_.has("llama.attention.value_length") && integer("llama.attention.value_length") != c.head_dim)
            fail("keys and values have heads of different sizes, which this engine doesn't do");
        c.rope_dims = gguf_.has("llama.rope.dimension_count") ? integer("llama.rope.dimension_count") : c.head_dim;
        c.feed_forward = integer("llama.feed_forward_length");
        c.context = integer("llama.context_length");
        c.rope_base = gguf_.has("llama.rope.freq_base") ? gguf_.number("llama.rope.freq_base") : 10000.0;
        c.norm_epsilon = static_cast<float>(gguf_.number("llama.attention.layer_norm_rms_epsilon"));
        c.vocabulary = static_cast<std::size_t>(gguf_.tensor("token_embd.weight").shape.back());
        if (c.heads % c.kv_heads != 0)
            fail(fmt::format("{} heads can't share {} key/value heads", c.heads, c.kv_heads));
        if (c.rope_dims > c.head_dim || c.rope_dims % 2 != 0)
            fail(fmt::format("RoPE over {} of {} channels", c.rope_dims, c.head_dim));
        if (!(c.rope_base > 0) || !std::isfinite(c.rope_base)) fail(fmt::format("a RoPE base of {}", c.rope_base));
        if (!(c.norm_epsilon >= 0) || !std::isfinite(c.norm_epsilon))
            fail(fmt::format("a norm epsilon of {}", c.norm_epsilon));
        return c;
    }

    /// A matrix [out, in] made of one tensor, or of several below each other.
    Matrix matrix(std::initializer_list<std::string> names, std::size_t out, std::size_t in) {
        // The shapes come first: what the metadata claims may be absurd, what the file holds is not.
        for (const std::string& name : names) check(name, {in, out});
        Matrix result{out * names.size(), in, std::vector<float>(out * names.size() * in)};
        float* to = result.values.data();
        for (const std::string& name : names) {
            gguf_.expand(gguf_.tensor(name), {to, out * in});
            to += out * in;
        }
        return result;
    }

    std::vector<float> vector(const std::string& name, std::size_t size) {
        check(name, {size});
        std::vector<float> result(size);
        gguf_.expand(gguf_.tensor(name), result);
        return result;
    }

    Layer layer(std::size_t index, const Config& c) {
        const auto name = [&](const char* part) { return fmt::format("blk.{}.{}.weight", index, part); };
        Layer l;
        l.attention_norm = vector(name("attn_norm"), c.width);
        l.W_q = matrix({name("attn_q")}, c.q_width(), c.width);
        l.W_k = matrix({name("attn_k")}, c.kv_width(), c.width);
        l.W_v = matrix({name("attn_v")}, c.kv_width(), c.width);
        l.W_o = matrix({name("attn_output")}, c.width, c.q_width());
        l.feed_forward_norm = vector(name("ffn_norm"), c.width);
        l.W_gate_up = matrix({name("ffn_gate"), name("ffn_up")}, c.feed_forward, c.width);
        l.W_down = matrix({name("ffn_down")}, c.width, c.feed_forward);
        return l;
    }

    /// A tensor that nobody asked for (a bias, RoPE factors) would change the answers: better no answer than a wrong
    /// one.
    void check_all_used() const {
        for (const auto& [name, head] : gguf_.tensors())
            if (!used_.contains(name))
                fail(fmt::format("tensor '{}' is no part of a Llama model as this engine knows it", name));
    }

private:
    std::size_t integer(const char* key) const {
        const std::uint64_t value = gguf_.integer(key);
        if (value == 0 || value > 0x7fffffff) fail(fmt::format("metadata '{}' is {}", key, value));
        return static_cast<std::size_t>(value);
    }

    void check(const std::string& name, const std::vector<std::uint64_t>& shape) {
        const TensorHead& head = gguf_.tensor(name);
        if (head.shape != shape) fail(fmt::format("tensor '{}' has shape {}, expected {}", name, head.shape, shape));
        used_.insert(name);
    }

    const Gguf& gguf_;
    std::set<std::string, std::less<>> used_;
};

}  // namespace

Model::Model(const Gguf& gguf) {
    Loader load(gguf);
    config_ = load.config();
    embedding_ = load.matrix({"token_embd.weight"}, config_.vocabulary, config_.width);
    output_norm_ = load.vector("output_norm.weight", config_.width);
    if (gguf.has_tensor("output.weight")) output_ = load.matrix({"output.weight"}, config_.vocabulary, config_.width);
    for (std::size_t i = 0; i < config_.layers; ++i) layers_.push_back(load.layer(i, config_));
    load.check_all_used();
}

std::vector<float> Model::forward(std::span<const Token> ids, AttentionCache& cache, ThreadPool& pool) const {
    const std::size_t n = ids.size(), D = config_.width, F = config_.feed_forward, first = cache.size();
    std::vector<float> x(n * D);
    for (std::size_t t = 0; t < n; ++t) {
        if (ids[t] < 0 || static_cast<std::size_t>(ids[t]) >= config_.vocabulary)
            throw Error(fmt::format("token {} is outside the model's vocabulary of {}", ids[t], config_.vocabulary));
        std::copy_n(embedding_.values.data() + static_cast<std::size_t>(ids[t]) * D, D, x.data() + t * D);
    }
    if (n == 0) return x;
    std::vector<float> a(n * D), q(n * config_.q_width()), attended(q.size()), gate_up(n * 2 * F);
    // Eigen computes the exp of values before the first aligned one in another way. Its own, aligned memory keeps
    // results the same from run to run.
    Eigen::ArrayXf inner(static_cast<Eigen::Index>(n * F));
    cache.begin(n);
    for (std::size_t i = 0; i < layers_.size(); ++i) {
        const Layer& layer = layers_[i];
        norm(x.data(), n, layer.attention_norm, config_.norm_epsilon, a.data(), pool);
        multiply(a.data(), n, layer.W_q, q.data(), pool);
        rope(q.data(), n, config_.heads, config_.head_dim, config_.rope_dims, config_.rope_base, first, pool);
        cache.append(i, a.data());
        cache.attend(i, q.data(), attended.data());
        multiply(attended.data(), n, layer.W_o, a.data(), pool);
        add(x.data(), a.data(), n * D);

        norm(x.data(), n, layer.feed_forward_norm, config_.norm_epsilon, a.data(), pool);
        multiply(a.data(), n, layer.W_gate_up, gate_up.data(), pool);
        for_each_row(n, pool, [&](std::size_t t) {
            const auto width = static_cast<Eigen::Index>(F);
            const ConstArray gate(gate_up.data() + t * 2 * F, width), up(gate_up.data() + t * 2 * F + F, width);
            Array(inner.data() + t * F, width) = gate / (1 + (-gate).exp()) * up;
        });
        multiply(inner.data(), n, layer.W_down, a.data(), pool);
        add(x.data(), a.data(), n * D);
    }
    cache.commit();
    norm(x.data(), n, output_norm_, config_.norm_epsilon, a.data(), pool);
    return a;
}

void Model::logits(const float* hidden, std::size_t n, float* out, ThreadPool& pool) const {
    multiply(hidden, n, output_.values.empty() ? embedding_ : output_, out, pool);
}

void rope(float* x, std::size_t n, std::size_t heads, std::size_t dim, std::size_t rope_dims, double base,
          std::size_t first, ThreadPool& pool) {
    std::vector<double> frequency(rope_dims / 2);
    for (std::size_t j = 0; j < frequency.size(); ++j)
        frequency[j] = std::pow(base, -2.0 * static_cast<double>(j) / static_cast<double>(rope_dims));
    for_each_row(n, pool, [&](std::size_t t) {
        for (std::size_t j = 0; j < frequency.size(); ++j) {
            const double angle = static_cast<double>(first + t) * frequency[j];
            const auto cosine = static_cast<float>(std::cos(angle)), sine = static_cast<float>(std::sin(angle));
            for (std::size_t h = 0; h < heads; ++h) {
                float* pair = x + (t * heads + h) * dim + 2 * j;
                const float even = pair[0], odd = pair[1];
                pair[0] = even * cosine - odd * sine;
                pair[1] = even * sine + odd * cosine;
            }
        }
    });
}

}  // namespace llm
