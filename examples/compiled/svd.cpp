// The SVD of the projections that need one, and the schemes that have these. XQUANT_SVD_COMPILED and
// XQUANT_REGISTRY_COMPILED are defined for all other files, which leave Eigen and the schemes out.
#include <xquant/instantiate.hpp>
#include <xquant/projection/svd_basis.hpp>
#include <xquant/registry_svd.hpp>

XQUANT_COMPILE_SVD();
XQUANT_COMPILE_REGISTRY_SVD();
