/// What the model asks of a cache: one sequence, fed step by step. Which rows are kept, and in how many bits, is the
/// cache's affair.
///
///   begin(n) -> for every layer { append(layer, x); attend(layer, q, out); } -> commit()
///
/// Letters  D width of x, H query heads, Dh head_dim; all arrays are row-major f32.
#pragma once

#include <cstddef>

namespace llm {

struct CacheBytes {
    std::size_t codes = 0, scales = 0, tail = 0, sinks = 0, index = 0, weights = 0, workspace = 0;

    /// What grows with the sequence: everything but the prepared weights and the working memory of a step.
    std::size_t stored() const { return codes + scales + tail + sinks + index; }
};

class AttentionCache {
public:
    virtual ~AttentionCache() = default;
    virtual void reset() = 0;                                    // an empty sequence again
    virtual void begin(std::size_t n) = 0;                       // a step of n new tokens
    virtual void append(std::size_t layer, const float* x) = 0;  // x [n, D], after the norm, before W_q W_k W_v
    virtual void attend(std::size_t layer, const float* q,
                        float* out) = 0;  // q [n, H, Dh] after RoPE -> out [n, H, Dh]
    virtual void commit() = 0;
    virtual void seal() = 0;                          // encode what is still waiting outside the tail window
    virtual std::size_t size() const = 0;             // tokens
    virtual double bits_per_token_layer() const = 0;  // codes, scales and zeros of the tokens that are not sinks
    virtual CacheBytes bytes() const = 0;
};

}  // namespace llm
