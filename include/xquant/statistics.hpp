// What is known of a layer's keys and values beside its weights: how they spread, and what an error of them costs. A
// Calibrator gathers it from a text (calibration/calibrator.hpp), and projections choose their bases by it.
//
// Keys are K as queries meet them, before RoPE: with bias, and after k_norm. Values are V less b_v.
//
//     C_k  E[(k - m)(k - m)^T], m the mean of the page of 128 tokens that k lies in
//     M_k  an error e of a key costs e^T M_k e: the sum over queries n of
//          P^2 scale^2 |W_o^T (v - o_n)|^2 (u^T e)^2, u the query turned back by the key's position
//     C_v  E[v v^T]
//     M_v  an error e of a value costs e^T M_v e: the sum over queries n of P^2 |W_o^T e|^2
//
// Costs are the square of the error that attention adds to the residual stream, per token; without W_o, the square of
// the error of attention's output.
#pragma once

#include <cstddef>
#include <vector>

#include <xquant/config.hpp>

namespace xquant {

/// Statistics of one layer. Matrices are symmetric; what was not gathered is empty.
struct LayerStatistics {
    std::vector<float> key_spread,  ///< C_k [Hkv][Dh, Dh]
        key_cost,                   ///< M_k [Hkv][Dh, Dh]
        value_spread,               ///< C_v [Hkv][Dh, Dh]
        value_cost;                 ///< M_v [Hkv][Dh, Dh]
    std::vector<float> joint_keys,  ///< C_k of all heads together [R, R], R = Hkv Dh
        joint_values;               ///< C_v of all heads together [R, R]
    std::vector<float> x_spread,    ///< E[x x^T] [D, D]
        difference_spread;          ///< E[d d^T] [D, D], d what x adds to the x of the layer below
    float key_sensitivity = 0,      ///< divergence that 3-bit keys of this layer alone cause, in nats; 0: not measured
        value_sensitivity = 0;      ///< divergence that 3-bit values of this layer alone cause, in nats
};

}  // namespace xquant
