/// A model of the Llama architecture in f32, with its attention cache left open.
///
///   x = embedding[ids]
///   for every layer:  a = norm(x)            -> cache.append      a [n, D]
///                     q = rope(a W_q)        -> cache.attend -> o [n, H * Dh]
///                     x += o W_o
///                     b = norm(x);  x += (silu(b W_gate) * (b W_up)) W_down
///   hidden = norm(x),  logits = hidden W_output (the embedding, if the file has no output matrix)
///
/// RMSNorm  norm(x) = x / sqrt(mean(x^2) + eps) * gain
/// RoPE     turns the channels (2j, 2j + 1) of a head by position * base^(-2j / rope_dims), as GGUF orders them
/// Keys and values are the cache's work: it gets W_k, W_v and the RoPE parameters from here when it is made.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "attention_cache.hpp"
#include "linear.hpp"
#include "threads.hpp"
#include "tokenizer.hpp"

namespace llm {

class Gguf;

struct Config {
    std::size_t layers = 0;     // L
    std::size_t width = 0;      // D
    std::size_t heads = 0;      // H
    std::size_t kv_heads = 0;   // Hkv, divides H
    std::size_t head_dim = 0;   // Dh
    std::size_t rope_dims = 0;  // channels of a head that RoPE turns, from the first
    std::size_t feed_forward = 0;
    std::size_t vocabulary = 0;
    std::size_t context = 0;  // most tokens the model was made for
    double rope_base = 0;
    float norm_epsilon = 0;

    std::size_t q_width() const { return heads * head_dim; }
    std::size_t kv_width() const { return kv_heads * head_dim; }  // R
};

struct Layer {
    std::vector<float> attention_norm, feed_forward_norm;  // gains [D]
    Matrix W_q, W_k, W_v, W_o;                             // [H * Dh, D], [R, D], [R, D], [D, H * Dh]
    Matrix W_gate_up, W_down;                              // [2 F, D]: gate, then up;  [D, F]
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

    /// hidden [n, D] -> logits [n, vocabulary]
    void logits(const float* hidden, std::size_t n, float* out, ThreadPool& pool) const;

private:
    Config config_;
    Matrix embedding_, output_;  // [vocabulary, D]; output_ is empty where it is the embedding
    std::vector<float> output_norm_;
    std::vector<Layer> layers_;
};

/// x [n, heads, dim] in place; row t stands at position first + t. Angles in double, sine and cosine rounded to f32.
void rope(float* x, std::size_t n, std::size_t heads, std::size_t dim, std::size_t rope_dims, double base,
          std::size_t first, ThreadPool& pool);

}  // namespace llm
