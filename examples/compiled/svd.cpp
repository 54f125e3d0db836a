// The SVD of the projections that need one. XQUANT_SVD_COMPILED is defined for all other files, which leave Eigen out.
#include <xquant/instantiate.hpp>
#include <xquant/projection/svd_basis.hpp>

XQUANT_COMPILE_SVD();
