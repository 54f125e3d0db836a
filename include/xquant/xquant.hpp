// Quantized caches of transformer attention: the one header to include. Needs the standard library alone.
//
// <xquant/projection/svd.hpp> adds the projections that need Eigen (SplitSvd, HeadSvd).
#pragma once

#include <xquant/preset.hpp>
#include <xquant/serving/prefix_index.hpp>
#include <xquant/stages.hpp>
#include <xquant/version.hpp>
#include <xquant/xcache.hpp>
