// The schemes of registry.hpp whose latents come from an SVD of the model's weights. Including this adds them. Needs
// Eigen.
#pragma once

#include <xquant/projection/joint_svd.hpp>
#include <xquant/projection/key_value_latent.hpp>
#include <xquant/registry.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

template <unsigned Bits, unsigned Group>
using HeadLatent = preset::head_latent<Bits, Bits, Group>;
template <unsigned Bits, unsigned Group>
using JointLatent = preset::joint_latent<Bits, Bits, Group>;

template <unsigned Group>
void add_svd_presets(Registry& to) {
    add_bits<Group, preset::split_svd>(to, "svd_joint", "latents of W_k per channel and of W_v per token");
    add_bits<Group, preset::head_svd>(to, "svd_head", "a latent of each key head per channel, V rotated per token");
    constexpr Needs statistics = Needs::statistics;
    add_bits<Group, HeadLatent>(to, "head", "each head's K per channel and V per token, in bases of least cost", "",
                                statistics);
    add_bits<Group, JointLatent>(to, "joint", "all heads' K per channel and V per token, in bases of least cost", "",
                                 statistics);
    add_bits<Group, preset::cross_layer_svd>(to, "cl_svd", "what latents of [W_k W_v] add from layer to layer");
    add_bits<Group, preset::cross_layer_rotated_svd>(to, "cl_svd_rot", "what rotated latents of [W_k W_v] add");
}

inline const bool has_svd_presets = [] {
    Registry& to = registry();
    add_svd_presets<128>(to);
    add_svd_presets<64>(to);
    add_svd_presets<32>(to);
    return true;
}();

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
