// Quantized caches of transformer attention: the one header to include. Needs the standard library alone.
//
// <xquant/projection/svd.hpp> adds the projections that need Eigen (SplitSvd, HeadSvd).
#pragma once

#include <xquant/cache.hpp>
#include <xquant/prefix_index.hpp>
#include <xquant/preset.hpp>
#include <xquant/stages.hpp>
#include <xquant/version.hpp>
