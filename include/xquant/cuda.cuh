// The CUDA backend, for nvcc (C++20, --expt-relaxed-constexpr): the library of xquant.hpp, and caches on a GPU.
//
//     #include <xquant/cuda.cuh>
//     using Cache = xquant::XCache<xquant::Uniform<4>, xquant::Layout<xquant::PerToken>,
//                                  xquant::CrossLayer<xquant::Off>, xquant::Projection<xquant::Rotated>,
//                                  xquant::backend::cuda>;
//     Cache cache(model, {.stream = stream});     // weights are read by the processor, and copied to the device
//     auto step = cache.begin({{s, n}});
//     step.append(layer, x);  step.attend(layer, q, out);     // pointers to device memory; nothing waits
//
// docs/backends.md says what is there, and how an engine hands over its stream and memory.
#pragma once

#include <xquant/backend/cuda/machine/launch.cuh>
#include <xquant/core/device/backend.cuh>
#include <xquant/xquant.hpp>

namespace xquant::backend {

/// Caches in the memory of an NVIDIA GPU, compute capability 8.0 or higher. Codes that lie along a token meet weights
/// of 8 bits.
using cuda = int8<on_device<CudaDevice>>;
/// Like cuda, but all products are of halves.
using cuda_exact = on_device<CudaDevice>;

}  // namespace xquant::backend
