// CrossLayer<...>: what a layer stores of its rows.
//
//     CrossLayer<Off>   the rows themselves
//     CrossLayer<Delta> what they add to the layers below: layers 0 and 1 stand alone, layer 2 (Options::base_layer) is
//                       the base of the accumulator, layers 3.. store Q(X_i - accumulator) and add it
//
//     XCache<Uniform<2, 128, MinMse>, Layout<PerToken>, CrossLayer<Delta>, Projection<Rotated>>     2-bit differences
//     CrossLayer<Delta, Uniform<8>>                                         8 bits up to the base; the default is 4
//     CrossLayer<Delta, Uniform<4>, f16>, <..., Uniform<8>>               what the accumulator is kept in; default f32
//
// Error   of a layer: that of its quantizer for what it stores. Differences beyond f16's 65504 are cut off: that layer
//         is off by the rest as well, and the next one makes up for it.
// Source  XQuant (arXiv 2508.10395), sections 3.3 and 4.3: XQuant-CL. The accumulator's type, left open there, is a
//         policy here; the encoder always sees what the reader will see.
#pragma once

namespace xquant {

/// Every layer stands alone.
struct Off {
    static constexpr bool stores_difference = false;  ///< rows are stored themselves
};

/// Layers above the base store differences.
struct Delta {
    static constexpr bool stores_difference = true;  ///< what rows add to the layers below is stored
};

/// The quantizer of layers up to the base where none is named: Uniform<4, 128>.
struct FourBits {};

/// Names the slot and its parameters.
///
/// @tparam Rule         Off or Delta
/// @tparam First        quantizer of the layers up to the base, and of the last Options::last_layers
/// @tparam Accumulator  float, f16, bf16, or a quantizer policy, grouped per token
template <class Rule, class First = FourBits, class Accumulator = float>
struct CrossLayer {
    using rule = Rule;                ///< Off or Delta
    using first = First;              ///< quantizer up to the base
    using accumulator = Accumulator;  ///< what the accumulator is kept in
};

}  // namespace xquant
