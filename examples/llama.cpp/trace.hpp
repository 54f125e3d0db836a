// How K and V of a layer come to be, read off the graph that the model builds. Nothing here knows architectures.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "ggml.h"

namespace adapter {

/// RoPE as an operation of the graph has it.
struct RopeOperation {
    std::vector<std::int32_t> parameters;  ///< its op_params; empty: none was met
    const ggml_tensor* factors = nullptr;  ///< a divisor of each frequency, or null
    ggml_tensor* source = nullptr;         ///< [Dh, Hkv, n] K before RoPE, in this graph

    [[nodiscard]] bool present() const noexcept { return !parameters.empty(); }
};

/// What a walk from K or V back to X has met. Weights outlive the graph; x and rope.source belong to it.
///
///     K = rope(factor * gain * rms_norm(scale * W x + biases))
struct Origin {
    RopeOperation rope;
    bool after_rope = false;  ///< something other than a change of shape stands behind RoPE
    bool normed = false;      ///< an RMS norm of each head, with `gain` or without
    double epsilon = 0;
    const ggml_tensor* gain = nullptr;  ///< [Dh]
    double factor = 1;
    std::vector<std::pair<const ggml_tensor*, std::size_t>> biases;  ///< and the element that they begin at
    const ggml_tensor* scale = nullptr;                              ///< one element
    const ggml_tensor* weight = nullptr;                             ///< [D, rows]; null: the walk did not get there
    std::size_t first_row = 0;  ///< of the weight: W_q, W_k and W_v may be one matrix
    ggml_tensor* x = nullptr;   ///< [D, n]
    std::string stopped;        ///< what the walk met that it does not know; empty: it got to X

    [[nodiscard]] bool complete() const noexcept { return stopped.empty(); }
};

/// Walks back from K or V [Dh, Hkv, n].
Origin trace(ggml_tensor* from);

/// Whether two graphs make K (or V) in the same way from X, and by the same RoPE.
bool same_origin(const Origin& a, const Origin& b);

}  // namespace adapter
