/// Caches of the best backend are compiled once for all tests, in instances.cpp.
#pragma once

#include <xquant/instantiate.hpp>

XQUANT_EXTERN_CACHE(xquant::backend::best);
