/// `xquant-llm generate`: continues a prompt with any cache, and says how fast it was and what the cache holds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "tokenizer.hpp"

namespace llm {

struct GenerateOptions {
    std::string model, prompt, scheme = "svd_head4";
    std::size_t tokens = 128;  // to generate at most
    double temperature = 0;
    std::uint64_t seed = 1;
    bool chat = false;
    std::string system =
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face";  // of SmolLM2's own template
    std::size_t sinks = 4, tail = 128;                                           // tokens kept in f16
    std::size_t threads = 0;                                                     // 0: as many as the machine has
    std::string rebuilt;  // bytes of keys that are kept rebuilt, with k, M or G; empty: none
    std::string save_cache, load_cache, calibration;  // files, or empty
};

/// Text to stdout as it comes, figures to stderr. Throws llm::Error, and what xquant::load and save throw.
void generate(const GenerateOptions& options);

/// One question in ChatML, SmolLM2's template, up to where the answer starts. Names of special tokens inside `system`
/// and `user` stay plain text.
std::vector<Token> chat_prompt(const Tokenizer& tokenizer, const std::string& system, const std::string& user);

}  // namespace llm
