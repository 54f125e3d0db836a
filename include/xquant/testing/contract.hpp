// Contract tests for policies of your own: call one in a test; it throws contract_violation, with a sentence that says
// what was broken, or returns.
//
//     check_quantizer<MyQuantizer>()        codes, scales, error, outliers; that nothing beyond the group is touched
//     check_layout<MyAxis>()                groups of the stated shape; each value is in the group of its place
//     check_projection<MyProjection>(layer) footprint, and exact rows give K and V back
//     check_difference<MyProjection>(layer) what CrossLayer<Delta> needs of it; that its latent is orthonormal
//
// Needs no test framework. Rows are seeded, so a failure repeats.
#pragma once

#include <xquant/testing/layout.hpp>
#include <xquant/testing/projection.hpp>
#include <xquant/testing/quantizer.hpp>
