// WithFeedback<Quantizer>: channels are rounded one after the other, and each takes up, as far as it can, what the
// errors of those before it do. What errors do is the metric of a stream (projection/metric.hpp).
//
//     t_i = z_i - sum over j < i of F_ij e_j,   z'_i = the stored value nearest to t_i,   e_i = z'_i - z_i
//
// Reading is as without. The order of the sum, each step of it one fma, belongs to what is stored: rows have the same
// bytes on every machine.
//
// Source  LDLQ of QuIP (arXiv 2307.13304), which equals GPTQ (arXiv 2210.17323). There, rows of a weight are rounded
//         for the inputs that meet them; here, rows of a cache for the matrices that make K and V of them.
#pragma once

#include <type_traits>

#include <xquant/quantizer/uniform.hpp>

namespace xquant {

/// @tparam Quantizer  any quantizer policy without outliers, in a layout and a projection whose streams have a metric
template <class Quantizer>
struct WithFeedback : Quantizer {
    static_assert(
        !requires { Quantizer::outliers; },
        "xquant: WithFeedback takes no outliers: channels behind them would make up for errors that are none");
    static constexpr bool feeds_back = true;  ///< rows are rounded for their stream's metric
};

inline namespace XQUANT_ABI_NS {

/// Uniform codes that are rounded for what errors cost. Below 4 bits, clipping a group's range pays.
template <unsigned Bits, unsigned Group = 128>
using FedBack = WithFeedback<Uniform<Bits, Group, std::conditional_t<(Bits < 4), MinMse, MinMax>>>;

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
