// The schemes of registry.hpp whose latents come from an SVD of the model's weights. Including this adds them. Needs
// Eigen.
#pragma once

#include <xquant/mixed_bits.hpp>
#include <xquant/projection/joint_svd.hpp>
#include <xquant/projection/x_latent.hpp>
#include <xquant/registry.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

#if defined(XQUANT_REGISTRY_COMPILED)
// Compiled in a file of the program (instantiate.hpp).
template <unsigned Group>
void add_grouped_svd_presets(Registry& to);
#else
/// Bits that are divided among layers, Bits on average.
template <BitForm Form, unsigned Bits, unsigned Group>
Recipe divided_recipe(const Model& model, const Options&) {
    return recipe_of<Group>(allocate_bits(Form, model, Bits), model);
}

template <BitForm Form, unsigned Bits, unsigned Group>
void add_divided(Registry& to, const std::string& name, const char* summary) {
    using Uniform = std::conditional_t<Form == BitForm::heads, preset::head_latent<Bits, Bits, Group>,
                                       preset::joint_latent<Bits, Bits, Group>>;
    to.add(info_of<Uniform>(name + std::to_string(Bits), summary, Needs::statistics, true),
           &divided_recipe<Form, Bits, Group>, &CacheAccess::recipe<Uniform>);
}

template <BitForm Form, unsigned Group>
void add_divided_bits(Registry& to, const std::string& name, const char* summary) {
    add_divided<Form, 4, Group>(to, name, summary);
    add_divided<Form, 3, Group>(to, name, summary);
    add_divided<Form, 2, Group>(to, name, summary);
}

template <unsigned Group>
void add_grouped_svd_presets(Registry& to) {
    add_bits<Group, preset::split_svd>(to, "svd_joint", "latents of W_k per channel and of W_v per token");
    add_bits<Group, preset::head_svd>(to, "svd_head", "a latent of each key head per channel, V rotated per token");
    add_divided_bits<BitForm::heads, Group>(to, "head",
                                            "each head's K per channel, V per token, in bases of least cost");
    add_divided_bits<BitForm::joint, Group>(to, "joint",
                                            "all heads' K per channel, V per token, in bases of least cost");
    constexpr Needs statistics = Needs::statistics;
    add_bits<Group, preset::x_latent>(to, "xc", "X in the basis of least cost, per token", "", statistics);
    add_bits<Group, preset::kv_latent>(to, "kvx", "a latent of X for K and V, in the basis of least cost, per token",
                                       "", statistics);
    add_bits<Group, preset::cross_layer_latent>(to, "cl", "what such latents add from layer to layer", "", statistics);
    add_bits<Group, preset::cross_layer_svd>(to, "cl_svd", "what latents of [W_k W_v] add from layer to layer");
    add_bits<Group, preset::cross_layer_rotated_svd>(to, "cl_svd_rot", "what rotated latents of [W_k W_v] add");
}
#endif

inline bool add_svd_presets() {
    Registry& to = registry();
    add_grouped_svd_presets<128>(to);
    add_grouped_svd_presets<64>(to);
    add_grouped_svd_presets<32>(to);
    return true;
}

// A level of the runtime adds them when it is asked for: code of a level must not run before that is known to be the
// processor's (bindings/c/archive.cmake puts several levels into one program).
#if !defined(XQUANT_RUNTIME_LEVEL)
inline const bool has_svd_presets = add_svd_presets();
#endif

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
