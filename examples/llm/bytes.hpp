/// `xquant-llm bytes`: what caches of a model of some shape will take, before there is one.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace llm {

struct BytesOptions {
    std::string shape = "llama3_8b";   // a name of shape_names()
    std::vector<std::string> schemes;  // empty: all that serve the shape
    std::size_t tokens = 32768;        // of one sequence
    std::string json;                  // also write the figures to this file
};

std::vector<std::string> shape_names();

/// The table to stdout, and the JSON to a file where one is named. Reads no weights and allocates no cache. Throws
/// llm::Error.
void bytes(const BytesOptions& options);

}  // namespace llm
