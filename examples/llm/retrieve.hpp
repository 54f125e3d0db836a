/// `xquant-llm retrieve`: whether a model finds a pass key in a long text, with the exact cache and with others.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "tokenizer.hpp"

namespace llm {

struct RetrieveOptions {
    std::string model, text;
    std::vector<std::string> schemes{"head4", "joint3", "kv4", "q4_0_hadamard"};
    std::size_t trials = 50;
    std::size_t shortest = 1000, longest = 7500;  // tokens of a trial, spread evenly from the one to the other
    std::size_t digits = 5;
    std::size_t sinks = 4;
    std::size_t threads = 0;  // 0: as many as the machine has
    std::uint32_t seed = 1;   // of keys, places and stretches of text
    std::string calibration;  // of schemes that need statistics
    std::string json;         // also write the figures to this file
};

/// One trial: text, with "The pass key is 12345." somewhere in it, and a question behind it; then the key.
struct RetrieveTrial {
    std::vector<Token> ids;
    std::size_t answer = 0;  // where the key begins in ids; it goes on to the end
    double place = 0;        // of the key in the text, 0 .. 1
};

/// Trials of a text of `tokens`. Each key's place is drawn evenly. Throws llm::Error where the text is too short.
std::vector<RetrieveTrial> make_trials(const RetrieveOptions& options, const Tokenizer& tokenizer,
                                       std::span<const Token> tokens);

/// The table to stdout: only trials count that the exact cache answers. Throws llm::Error.
void retrieve(const RetrieveOptions& options);

}  // namespace llm
