/// Caches whose pages lie on a device behind the engine's interface. The engine itself runs on the processor: x and q go to the
/// device, attention's result comes back. For figures of quality, not of speed.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <xquant/model.hpp>

#include "attention_cache.hpp"
#include "schemes.hpp"

namespace llm {

/// Bytes of an engine's layers, as a cache needs them.
struct DeviceShape {
    std::size_t width, q_width;
};

/// Schemes that devices serve here.
inline constexpr std::string_view device_schemes[] = {"f16",    "kv8",        "kv4",       "kivi4",
                                                      "x4_rot", "svd_joint4", "svd_head4", "svd_head3"};

/// A sequence of the scheme; null for a scheme that is not in device_schemes.
using MakeDeviceCache = std::unique_ptr<AttentionCache> (*)(std::string_view scheme, const xquant::Model& model,
                                                            const SchemeOptions& options, const DeviceShape& shape);

/// On a GPU in plain C++: what the kernels compute, slowly.
std::unique_ptr<AttentionCache> make_emulated_cache(std::string_view scheme, const xquant::Model& model,
                                                    const SchemeOptions& options, const DeviceShape& shape);

/// On a CUDA device; only where the build found nvcc (XQUANT_LLM_CUDA).
std::unique_ptr<AttentionCache> make_cuda_cache(std::string_view scheme, const xquant::Model& model,
                                                const SchemeOptions& options, const DeviceShape& shape);

}  // namespace llm
