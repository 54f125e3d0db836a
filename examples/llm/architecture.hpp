/// What the architectures that this engine knows are made of. Everything that a file's metadata doesn't say stands
/// here; nothing else in the engine asks for an architecture's name.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

namespace llm {

/// Which channels of a head RoPE turns together: (2j, 2j + 1), or (j, j + half).
enum class Pairs { interleaved, halves };

/// silu(x) = x / (1 + e^-x);  gelu(x) = x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
enum class Activation { silu, gelu };

struct Architecture {
    std::string_view name;  // general.architecture, and what the keys of its metadata start with

    bool learned_positions = false;  // position_embd is added to the embedding, and there is no RoPE
    Pairs pairs = Pairs::interleaved;
    bool layer_norm = false;    // LayerNorm with a bias, not RMSNorm
    bool post_norms = false;    // also norms what attention and feed-forward give, before it is added to x
    bool head_norms = false;    // RMSNorm of each head of q and k, before RoPE
    bool fused_qkv = false;     // W_q, W_k and W_v are one tensor
    bool qkv_biases = false;    // of W_q, W_k and W_v
    bool other_biases = false;  // of all other matrices of a layer
    bool gated = true;          // feed-forward is (act(b W_gate) * (b W_up)) W_down, else act(b W_up) W_down
    Activation activation = Activation::silu;
    bool scaled_embedding = false;  // times sqrt(width)

    std::size_t window_period = 0;  // every layer but each window_period-th one has a sliding window; 0: none has
    double window_rope_base = 0;    // RoPE base of the layers with a window
};

std::span<const Architecture> architectures();

}  // namespace llm
