/// Tiny models of every architecture with random weights, as GGUF files and as plain matrices, and a tiny byte-level
/// vocabulary.
#pragma once

#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "gguf_writer.hpp"
#include "utf8.hpp"

namespace llm::test {

/// Tokens: 0 .. 2 special, then the 256 bytes, then the merged ones.
constexpr int first_byte_token = 3;

inline std::vector<std::string> byte_tokens() {
    std::vector<std::string> tokens;
    std::uint32_t next = 0x100;
    for (std::uint32_t byte = 0; byte < 256; ++byte) {
        const bool itself = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || (byte >= 174);
        std::string token;
        append_utf8(token, itself ? byte : next++);
        tokens.push_back(token);
    }
    return tokens;
}

/// merges: pairs "a b" in rank order; each makes one more token
inline GgufWriter& add_vocabulary(GgufWriter& file, const std::vector<std::string>& merges,
                                  const std::string& pre = "smollm") {
    std::vector<std::string> tokens{"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
    for (const auto& token : byte_tokens()) tokens.push_back(token);
    for (const auto& merge : merges)
        tokens.push_back(merge.substr(0, merge.find(' ')) + merge.substr(merge.find(' ') + 1));
    std::vector<std::int32_t> kinds(tokens.size(), 1);
    kinds[0] = kinds[1] = kinds[2] = 3;
    return file.text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", pre)
        .texts("tokenizer.ggml.tokens", tokens)
        .numbers("tokenizer.ggml.token_type", 5, kinds)
        .texts("tokenizer.ggml.merges", merges)
        .u32("tokenizer.ggml.eos_token_id", 2);
}

struct TinyModel {
    std::string architecture = "llama";
    std::size_t layers = 2, width = 24, heads = 6, kv_heads = 2, head_dim = 4, feed_forward = 40, vocabulary = 259;
    std::size_t window = 0;  // gemma3 alone
    double rope_base = 10000;
    float epsilon = 1e-5f;
    bool own_output = false;                            // an output matrix besides the embedding
    std::map<std::string, std::vector<float>> tensors;  // matrices [out][in]
};

inline std::vector<float> random_values(std::size_t n, float centre, float spread, std::uint32_t seed) {
    std::mt19937 random(seed);
    std::vector<float> values(n);
    for (float& value : values) value = centre + spread * (static_cast<float>(random() >> 8) * 0x1p-23f - 1);
    return values;
}

/// Gives the model its tensors, as files of its architecture have them.
inline TinyModel with_weights(TinyModel m) {
    std::uint32_t seed = 1;
    const auto add = [&](const std::string& name, std::size_t n, float centre, float spread) {
        m.tensors[name] = random_values(n, centre, spread, seed++);
    };
    const bool gpt2 = m.architecture == "gpt2", gemma3 = m.architecture == "gemma3";
    const auto norm = [&](const std::string& name, std::size_t n) {
        add(name + ".weight", n, 1, 0.5f);
        if (gpt2) add(name + ".bias", n, 0, 0.5f);
    };
    const auto matrix = [&](const std::string& name, std::size_t out, std::size_t in, float spread, bool bias) {
        add(name + ".weight", out * in, 0, spread);
        if (bias) add(name + ".bias", out, 0, 0.7f);
    };
    const std::size_t D = m.width, Q = m.heads * m.head_dim, R = m.kv_heads * m.head_dim, F = m.feed_forward;
    add("token_embd.weight", m.vocabulary * D, 0, 1);
    norm("output_norm", D);
    if (m.own_output) add("output.weight", m.vocabulary * D, 0, 1);
    if (gpt2) add("position_embd.weight", 512 * D, 0, 0.8f);
    for (std::size_t i = 0; i < m.layers; ++i) {
        const std::string blk = "blk." + std::to_string(i) + ".";
        const bool biases = gpt2 || m.architecture == "qwen2";
        norm(blk + "attn_norm", D);
        norm(blk + "ffn_norm", D);
        if (gpt2) {
            matrix(blk + "attn_qkv", Q + 2 * R, D, 0.6f, true);
        } else {
            matrix(blk + "attn_q", Q, D, 0.6f, biases);
            matrix(blk + "attn_k", R, D, 0.6f, biases);
            matrix(blk + "attn_v", R, D, 0.6f, biases);
        }
        matrix(blk + "attn_output", D, Q, 0.4f, gpt2);
        if (!gpt2) matrix(blk + "ffn_gate", F, D, 0.5f, false);
        matrix(blk + "ffn_up", F, D, 0.5f, gpt2);
        matrix(blk + "ffn_down", D, F, 0.4f, gpt2);
        if (gemma3 || m.architecture == "qwen3") {
            norm(blk + "attn_q_norm", m.head_dim);
            norm(blk + "attn_k_norm", m.head_dim);
        }
        if (gemma3) {
            norm(blk + "post_attention_norm", D);
            norm(blk + "post_ffw_norm", D);
        }
    }
    return m;
}

/// MQA with a head_dim of its own, five layers with a window to one without; GQA with biases; norms of heads; MHA.
inline TinyModel tiny_model(const std::string& architecture = "llama", bool own_output = false) {
    TinyModel m;
    m.architecture = architecture;
    m.own_output = own_output;
    if (architecture == "gemma3") m.layers = 7, m.heads = 4, m.kv_heads = 1, m.head_dim = 8, m.window = 20;
    if (architecture == "gemma3" || architecture == "qwen2") m.rope_base = 1000000;
    if (architecture == "qwen3") m.head_dim = 8;
    if (architecture == "gpt2") m.heads = m.kv_heads = 4, m.head_dim = 6;
    return with_weights(m);
}

inline GgufWriter to_gguf(const TinyModel& m) {
    GgufWriter file;
    const auto key = [&](const char* part) { return m.architecture + "." + part; };
    const auto number = [](std::size_t n) { return static_cast<std::uint32_t>(n); };
    const bool gpt2 = m.architecture == "gpt2";
    file.text("general.architecture", m.architecture)
        .u32(key("block_count"), number(m.layers))
        .u32(key("context_length"), 512)
        .u32(key("embedding_length"), number(m.width))
        .u32(key("feed_forward_length"), number(m.feed_forward))
        .u32(key("attention.head_count"), number(m.heads))
        .f32(key(gpt2 ? "attention.layer_norm_epsilon" : "attention.layer_norm_rms_epsilon"), m.epsilon);
    if (!gpt2) {
        file.u32(key("attention.head_count_kv"), number(m.kv_heads));
        file.f32(key("rope.freq_base"), static_cast<float>(m.rope_base));
    }
    if (m.heads != 0 && m.head_dim != m.width / m.heads) file.u32(key("attention.key_length"), number(m.head_dim));
    if (m.window != 0) file.u32(key("attention.sliding_window"), number(m.window));
    add_vocabulary(file, {});
    for (const auto& [name, values] : m.tensors) {
        const bool vector = contains(name, "norm") || name.ends_with(".bias");
        const std::size_t in = vector                          ? values.size()
                               : contains(name, "ffn_down")    ? m.feed_forward
                               : contains(name, "attn_output") ? values.size() / m.width
                                                               : m.width;
        if (vector)
            file.tensor(name, {in}, values);
        else
            file.tensor(name, {in, values.size() / in}, values);
    }
    return file;
}

}  // namespace llm::test
