/// Caches on a GPU, and those on the processor beside them, are compiled once for tests, benchmarks and the example
/// engine: nvcc takes four minutes for the kernels.
#pragma once

#include <xquant/cuda.cuh>
#include <xquant/instantiate.hpp>

XQUANT_EXTERN_CACHE(xquant::backend::cuda);
XQUANT_EXTERN_CACHE(xquant::backend::cuda_exact);
XQUANT_EXTERN_CACHE(xquant::backend::scalar);
