// How a program compiles caches once (xquant/instantiate.hpp): every file that uses caches of the best backend includes
// this header, and best.cpp compiles them; registry.cpp has the schemes that have a name, svd.cpp those of an SVD, and
// the SVD, so that no other file needs Eigen. The engine in llm/, tests and benchmarks do so.
#pragma once

#include <xquant/instantiate.hpp>

XQUANT_EXTERN_CACHE(xquant::backend::best);
