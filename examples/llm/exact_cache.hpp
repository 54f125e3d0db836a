/// The cache that everything is compared with: K (after RoPE) and V of all tokens in f32, plain causal attention.
///
/// Formula  out = softmax(scale q K') V, over the tokens up to the query's own that are in the layer's window
/// It shares no code with the library, so an error there can't hide on both sides of a comparison.
#pragma once

#include <memory>

#include "attention_cache.hpp"
#include "threads.hpp"

namespace llm {

class Model;

std::unique_ptr<AttentionCache> make_exact_cache(const Model& model, ThreadPool& pool);

}  // namespace llm
