// The SVD behind the schemes of latents, compiled once: all other files leave Eigen out.
#undef XQUANT_SVD_COMPILED
#include <xquant/instantiate.hpp>
#include <xquant/projection/svd_basis.hpp>

XQUANT_COMPILE_SVD();
