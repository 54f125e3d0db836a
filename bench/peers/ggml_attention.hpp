// Attention of a prompt by ggml, llama.cpp's library of operations, on one thread.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <vector>

namespace bench {

/// How ggml computes it: one operation over all (its flash attention), or a product, a softmax and a product. The first
/// one also reads a cache of 8-bit codes.
enum class GgmlForm { flash_f16, flash_q8_0, unfused_f16 };

/// `rows` query rows at the end of `tokens` tokens, which see each other causally.
struct GgmlPrompt {
    std::size_t heads, kv_heads, head_dim, tokens, rows;
};

/// Keeps ggml's tensors and graph.
class GgmlAttention {
public:
    /// @param k, v  [tokens, kv_heads * head_dim], keys after RoPE
    /// @param q     [rows, heads * head_dim], after RoPE
    GgmlAttention(const GgmlPrompt& prompt, GgmlForm form, const std::vector<float>& k, const std::vector<float>& v,
                  const std::vector<float>& q);
    ~GgmlAttention();
    GgmlAttention(const GgmlAttention&) = delete;
    GgmlAttention& operator=(const GgmlAttention&) = delete;

    /// Runs the graph on the calling thread. Throws std::runtime_error where ggml refuses.
    void run();
    /// The answer of the last run, [rows, heads * head_dim].
    [[nodiscard]] std::vector<float> answer() const;

private:
    struct Graph;
    std::unique_ptr<Graph> graph_;
};

}  // namespace bench
