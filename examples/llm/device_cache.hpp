/// Caches whose pages lie on a device behind the engine's interface. The engine itself runs on the processor: x and q
/// go to the device, attention's result comes back. For figures of quality, not of speed.
#pragma once

#include <cstddef>
#include <memory>
#include <string_view>

#include <xquant/cache_types.hpp>
#include <xquant/model.hpp>

#include "attention_cache.hpp"

namespace llm {

/// Bytes of an engine's layers, as a cache needs them.
struct DeviceShape {
    std::size_t width, q_width;
};

/// A sequence on an emulated GPU, in plain C++: what the kernels compute, slowly. Where the tests are built
/// (XQUANT_LLM_EMULATED_CUDA).
std::unique_ptr<AttentionCache> make_emulated_cache(std::string_view scheme, const xquant::Model& model,
                                                    const xquant::Options& options, const DeviceShape& shape);

/// A sequence on a CUDA device. Where the build found nvcc (XQUANT_LLM_CUDA).
std::unique_ptr<AttentionCache> make_cuda_cache(std::string_view scheme, const xquant::Model& model,
                                                const xquant::Options& options, const DeviceShape& shape);

}  // namespace llm
