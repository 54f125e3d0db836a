/// A decoder-only transformer in f32, with its attention cache left open.
///
///   x = embedding[ids]  (scaled, or with positions added)
///   for every layer:  a = norm(x)                           -> cache.append      a [n, D]
///                     q = rope(head_norm(a W_q + b_q))      -> cache.attend -> o [n, H * Dh]
///                     x += post_norm(o W_o + b_o)
///                     b = norm(x);  x += post_norm((act(b W_gate) * (b W_up + b_up)) W_down + b_down)
///   hidden = norm(x),  logits = hidden W_output (the embedding, if the file has no output matrix)
///
/// Which of these pieces a model has is its architecture's affair (architecture.hpp): a piece that is missing is empty.
/// Keys and values are the cache's work: it gets their weights, norms, RoPE and window from here when it is made.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "architecture.hpp"
#include "attention_cache.hpp"
#include "linear.hpp"
#include "threads.hpp"
#include "tokenizer.hpp"

namespace llm {

class Gguf;

struct Config {
    Architecture architecture;
    std::size_t layers = 0;    // L
    std::size_t width = 0;     // D
    std::size_t heads = 0;     // H
    std::size_t kv_heads = 0;  // Hkv, divides H
    std::size_t head_dim = 0;  // Dh
    std::size_t feed_forward = 0;
    std::size_t vocabulary = 0;
    std::size_t context = 0;  // most tokens the model was made for
    float norm_epsilon = 0;
    float softmax_scale = 0;  // factor of q k

    std::size_t q_width() const { return heads * head_dim; }
    std::size_t kv_width() const { return kv_heads * head_dim; }  // R
};

/// Turns pair j by position * base^(-2j / dims).
struct Rope {
    std::size_t dims = 0;  // channels of a head that are turned, from the first; 0: none
    double base = 0;
    Pairs pairs = Pairs::interleaved;
};

/// RMSNorm   x / sqrt(mean(x^2) + eps) * gain
/// LayerNorm (x - mean(x)) / sqrt(variance(x) + eps) * gain + bias
struct Norm {
    std::vector<float> gain;  // empty: no norm
    std::vector<float> bias;  // empty: RMSNorm
};

/// Matrices are [out, in], biases [out] or empty.
struct Layer {
    Rope rope;
    std::size_t window = 0;                            // a query at p sees p - window + 1 .. p; 0: all up to p
    Norm attention_norm, feed_forward_norm;            // [D]
    Norm post_attention_norm, post_feed_forward_norm;  // [D]
    std::vector<float> q_norm, k_norm;                 // gains of RMSNorms over each head [Dh], or empty
    Matrix W_q, W_k, W_v, W_o;                         // [H * Dh, D], [R, D], [R, D], [D, H * Dh]
    std::vector<float> b_q, b_k, b_v, b_o;
    Matrix W_gate_up, W_down;         // [2 F, D]: gate, then up (or [F, D]: up alone);  [D, F]
    std::vector<float> b_up, b_down;  // only without a gate
};

class Model {
public:
    explicit Model(const Gguf& gguf);

    const Config& config() const { return config_; }
    const Layer& layer(std::size_t index) const { return layers_.at(index); }

    /// Bytes of K and V of one token in f16, over all layers: what the schemes are compared with.
    std::size_t f16_bytes_per_token() const { return 2 * 2 * config_.kv_width() * config_.layers; }

    /// One step: the tokens follow those that the cache holds. Returns their hidden states after the last norm, [n, D].
    std::vector<float> forward(std::span<const Token> ids, AttentionCache& cache, ThreadPool& pool) const;

    /// [vocabulary, D]
    const Matrix& output() const { return output_.values.empty() ? embedding_ : output_; }

    /// hidden [n, D] -> logits [n, vocabulary]
    void logits(const float* hidden, std::size_t n, float* out, ThreadPool& pool) const;

private:
    friend class Loader;

    std::vector<float> embed(std::span<const Token> ids, std::size_t first) const;

    Config config_;
    Matrix embedding_, positions_, output_;  // [vocabulary, D], [context, D] or empty; output_ empty: the embedding
    Norm output_norm_;
    std::vector<Layer> layers_;
};

/// x [n, heads, dim] in place; row t stands at position first + t. Angles in double, sine and cosine rounded to f32.
void apply_rope(const Rope& rope, float* x, std::size_t n, std::size_t heads, std::size_t dim, std::size_t first,
                ThreadPool& pool);

/// RMSNorm of every head of x [n, heads, Dh], in place. gain [Dh], or empty: nothing is done.
void norm_heads(const std::vector<float>& gain, float epsilon, float* x, std::size_t n, std::size_t heads,
                ThreadPool& pool);

}  // namespace llm
