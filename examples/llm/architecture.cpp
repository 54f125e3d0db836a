#include "architecture.hpp"

namespace llm {

std::span<const Architecture> architectures() {
    // Sources  Llama 2307.09288, Qwen2 2407.10671, Qwen3 2505.09388, Gemma 3 2503.19786 (arXiv), GPT-2 Radford et al.
    //          2019
    static constexpr Architecture all[] = {
        {.name = "llama"},
        {.name = "qwen2", .pairs = Pairs::halves, .qkv_biases = true},
        {.name = "qwen3", .pairs = Pairs::halves, .head_norms = true},
        {.name = "gemma3",
         .pairs = Pairs::halves,
         .post_norms = true,
         .head_norms = true,
         .activation = Activation::gelu,
         .scaled_embedding = true,
         .window_period = 6,
         .window_rope_base = 10000},
        {.name = "gpt2",
         .learned_positions = true,
         .layer_norm = true,
         .fused_qkv = true,
         .qkv_biases = true,
         .other_biases = true,
         .gated = false,
         .activation = Activation::gelu},
    };
    return all;
}

}  // namespace llm
