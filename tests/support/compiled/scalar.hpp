/// Caches of the scalar backend, compiled once. Link xquant_compiled_scalar.
#pragma once

#include <xquant/instantiate.hpp>

XQUANT_EXTERN_CACHE(xquant::backend::scalar);
