// A layer as xquant wants it described, from the graph and the model's numbers.
#pragma once

#include <xquant/model.hpp>

#include <utility>
#include <vector>

#include "adapter.hpp"
#include "settings.hpp"
#include "trace.hpp"

namespace adapter {

/// A layer, and the arrays that it points into.
struct Description {
    xquant::Layer layer;  ///< without w_k and w_v
    Origin k, v;
    std::int64_t value_channels = 0;  ///< Dv of the graph: a head of values may be smaller than one of keys
    bool shiftable = true;  ///< positions of cached tokens can be changed: xquant knows how stored keys were turned
    std::vector<float> b_k, b_v, gain, slopes, sinks;

    /// W_k [R, D] and, where the layer is given X, W_v [R, D].
    [[nodiscard]] std::pair<std::vector<float>, std::vector<float>> weights() const;
};

/// Throws std::runtime_error, which names the layer and what cannot be served. Without `data`, weights have no values
/// (llama.cpp measures a model before it loads it), and what would be read from them is left out.
Description describe(const llm_graph_context& graph, const AttentionArguments& arguments, const Settings& settings,
                     bool data);

/// Throws "xquant: layer IL: WHAT".
[[noreturn]] void refuse(int il, const std::string& what);

}  // namespace adapter
