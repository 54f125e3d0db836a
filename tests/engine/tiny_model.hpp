/// A tiny Llama model with random weights, as a GGUF file and as plain matrices, and a tiny byte-level vocabulary.
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
    std::size_t layers = 2, width = 24, heads = 6, kv_heads = 2, head_dim = 4, feed_forward = 40, vocabulary = 259;
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

inline TinyModel tiny_model(bool own_output) {
    TinyModel m;
    m.own_output = own_output;
    std::uint32_t seed = 1;
    const auto add = [&](const std::string& name, std::size_t n, float centre, float spread) {
        m.tensors[name] = random_values(n, centre, spread, seed++);
    };
    add("token_embd.weight", m.vocabulary * m.width, 0, 1);
    add("output_norm.weight", m.width, 1, 0.5f);
    if (own_output) add("output.weight", m.vocabulary * m.width, 0, 1);
    for (std::size_t i = 0; i < m.layers; ++i) {
        const std::string blk = "blk." + std::to_string(i) + ".";
        add(blk + "attn_norm.weight", m.width, 1, 0.5f);
        add(blk + "ffn_norm.weight", m.width, 1, 0.5f);
        add(blk + "attn_q.weight", m.heads * m.head_dim * m.width, 0, 0.6f);
        add(blk + "attn_k.weight", m.kv_heads * m.head_dim * m.width, 0, 0.6f);
        add(blk + "attn_v.weight", m.kv_heads * m.head_dim * m.width, 0, 0.6f);
        add(blk + "attn_output.weight", m.width * m.heads * m.head_dim, 0, 0.4f);
        add(blk + "ffn_gate.weight", m.feed_forward * m.width, 0, 0.5f);
        add(blk + "ffn_up.weight", m.feed_forward * m.width, 0, 0.5f);
        add(blk + "ffn_down.weight", m.width * m.feed_forward, 0, 0.4f);
    }
    return m;
}

inline GgufWriter to_gguf(const TinyModel& m) {
    GgufWriter file;
    const auto number = [](std::size_t n) { return static_cast<std::uint32_t>(n); };
    file.text("general.architecture", "llama")
        .u32("llama.block_count", number(m.layers))
        .u32("llama.context_length", 512)
        .u32("llama.embedding_length", number(m.width))
        .u32("llama.feed_forward_length", number(m.feed_forward))
        .u32("llama.attention.head_count", number(m.heads))
        .u32("llama.attention.head_count_kv", number(m.kv_heads))
        .f32("llama.rope.freq_base", static_cast<float>(m.rope_base))
        .f32("llama.attention.layer_norm_rms_epsilon", m.epsilon);
    add_vocabulary(file, {});
    for (const auto& [name, values] : m.tensors) {
        const bool vector = contains(name, "norm");
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
