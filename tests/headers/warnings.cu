// Compiled by nvcc with warnings as errors. No cache: compiling the kernels takes minutes, and other tests do that.
//
// In this order PageKind was ambiguous once.
#include <xquant/persistence.hpp>

#include <xquant/cuda.cuh>
