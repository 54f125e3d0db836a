/// Makes caches by the names of the schemes: "f32" (exact), "f16", "q8_0", "svd_head4" ...
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "attention_cache.hpp"
#include "threads.hpp"

namespace llm {

class Model;

struct SchemeOptions {
    std::size_t sinks = 4;  // first tokens kept exact
    std::size_t tail = 0;   // newest tokens kept exact
    bool strict = false;    // quantize before the layer attends, unfinished groups included
    ThreadPool* pool = nullptr;
    const std::vector<std::vector<float>>* mean =
        nullptr;  // [L][D], mean of x in each layer, for the x*_rot_mean schemes
};

std::vector<std::string> scheme_names();          // in table order
bool scheme_needs_mean(const std::string& name);  // x*_rot_mean

/// An empty cache for one sequence; model must outlive it. Throws llm::Error for an unknown name, listing the known
/// ones.
std::unique_ptr<AttentionCache> make_cache(const std::string& name, const Model& model, const SchemeOptions& options);

}  // namespace llm
