#include "support/compiled/cuda.cuh"

#include <xquant/projection/svd_basis.hpp>

// One file: both backends launch the same kernels.
XQUANT_COMPILE_CACHE(xquant::backend::cuda);
XQUANT_COMPILE_CACHE(xquant::backend::cuda_exact);
XQUANT_COMPILE_CACHE(xquant::backend::scalar);
XQUANT_COMPILE_SVD();
