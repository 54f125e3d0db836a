#undef XQUANT_SVD_COMPILED
#include <xquant/projection/svd_basis.hpp>

#include "support/instances.hpp"

XQUANT_COMPILE_SVD();
