/// The cache that everything is compared with: K (after RoPE) and V of all tokens in f32, plain causal attention.
///
/// Formula  out = softmax(scale q K') V, over the tokens up to the query's own that are in the layer's window
/// It shares no code with the library, so an error there can't hide on both sides of a comparison.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

#include "attention_cache.hpp"
#include "threads.hpp"

namespace llm {

class Model;

std::unique_ptr<AttentionCache> make_exact_cache(const Model& model, ThreadPool& pool);

/// A format of K (after RoPE) and V that is simulated: rows become what would come back from the format, and stay in
/// f32.
struct RoundedRows {
    std::function<void(float*)> round_key, round_value;  // a head's row [Dh], in place; from several threads
    double bits_per_head = 0;                            // of K and V of a token
    std::size_t sinks = 0, tail = 0;                     // the first and the newest tokens stay as they are
};

/// The exact cache over such rows: what other people's formats cost, attention itself without another error. Rows are
/// rounded before a layer attends. bytes() are those of the format, and of sinks and tail in f16.
std::unique_ptr<AttentionCache> make_simulated_cache(const Model& model, ThreadPool& pool, RoundedRows rounded);

}  // namespace llm
