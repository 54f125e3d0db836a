/// `xquant-llm perplexity`: what each scheme costs in bytes and in quality, on a text.
///
/// Every chunk of the text is a context of its own from position 0. With a BOS, the text begins with one and so does
/// every chunk, in place of its first token. All caches are strict: a query meets its own step's rows quantized too,
/// except the sinks and the tail. Each scheme is compared with the exact f32 cache on the same tokens.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

namespace llm {

struct PerplexityOptions {
    std::string model, text, json, calibration;          // files; json and calibration may be empty
    std::size_t offset = 0, context = 1024, chunks = 1;  // tokens, tokens, contexts
    // Names, which may have suffixes of their own: "svd_head4:tail=128".
    std::vector<std::string> schemes{"f16", "q8_0", "q4_0_hadamard", "kivi4", "x4", "x4_rot", "svd_head4"};
    std::size_t sinks = 4, tail = 0;              // tokens kept exact
    std::size_t step = 0;                         // tokens fed at once; 0: the context, or 32 with a tail
    bool second_half = false;                     // score only the positions from context / 2 on
    std::optional<bool> bos;                      // as the model's file asks if not set
    std::optional<std::size_t> calibrate_offset;  // for x*_rot_mean and kvquant
    std::size_t threads = 0;                      // 0: as many as the machine has
    std::string backend = "processor";            // where caches lie: processor, cuda, emulated_cuda
};

/// Prints the table to stdout, and writes the JSON file if one is named. Throws llm::Error.
void perplexity(const PerplexityOptions& options);

}  // namespace llm
