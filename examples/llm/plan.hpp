/// `xquant-llm plan`: which caches of a model fit into memory, how long a token takes in them, and what they do to its
/// predictions.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include <xquant/cache_types.hpp>

namespace llm {

struct PlanOptions {
    std::string model, calibration;  // files; calibration: or empty
    std::vector<std::string> schemes{"f16",   "q8_0",      "q4_0_hadamard", "kv8",     "kv4",    "kivi4",
                                     "kivi3", "svd_head4", "svd_head3",     "x4_rot",  "x3_rot", "head4",
                                     "head3", "head2",     "joint4",        "joint3",  "joint2", "kvx4",
                                     "kvx3",  "cl4",       "cl3",           "kvquant4"};
    std::size_t context = 4096;  // tokens of each sequence
    std::size_t sequences = 1;
    std::string memory;  // bytes for caches and weights, with k, M or G; empty: no limit
    std::size_t sinks = 4, tail = 128;
    std::size_t threads = 0;  // 0: as many as the machine has
    std::string machine;      // file; measured and written where there is none; empty: measured every time
    std::string json;         // also write the table to this file
};

/// "1500", "64k", "1.5G": bytes; k, M and G are 2^10, 2^20 and 2^30. Throws llm::Error for other text.
std::size_t parse_bytes(const std::string& text);

/// A table on stdout. Throws llm::Error, xquant::error.
void plan(const PlanOptions& options);

}  // namespace llm
