// Named caches. Each is an XCache with its policies chosen; take one, or read it as an example of how they combine.
//
// Bits are per value with the scales of groups of 128 counted. KLD is the mean Kullback-Leibler divergence from the
// exact cache on SmolLM2-135M-Instruct (30 layers, D 576, 9 heads, 3 kv heads), 4 sinks, no recent window, the strict
// case; docs/accuracy.md has the table and the command.
#pragma once

#include <xquant/xcache.hpp>

namespace xquant::preset {
inline namespace XQUANT_ABI_NS {

/// X itself per token. The paper's form for MHA.
template <unsigned Bits, unsigned Group = 128>
using plain_x = XCache<Uniform<Bits, Group>, Layout<PerToken>, CrossLayer<Off>, Projection<Plain>>;

/// X rotated per token, rounded for what errors of it cost in K and V; less its mean where Layer::mean is given.
template <unsigned Bits, unsigned Group = 128>
using rotated_x = XCache<FedBack<Bits, Group>, Layout<PerToken>, CrossLayer<Off>, Projection<Rotated>>;

/// Latents of W_k per channel and of W_v per token. The paper's form for GQA. Needs <xquant/projection/svd.hpp>.
template <unsigned Bits, unsigned Group = 128>
using split_svd = XCache<Uniform<Bits, Group>, Layout<PerChannel, PerToken>, CrossLayer<Off>, Projection<SplitSvd>>;

/// A latent for each key head per channel, rotated V per token. Needs <xquant/projection/svd.hpp>.
template <unsigned Bits, unsigned Group = 128>
using head_svd = XCache<Uniform<Bits, Group>, Layout<PerChannel, PerToken>, CrossLayer<Off>, Projection<HeadSvd>>;

/// XQuant-CL on X: layers store what they add to the layers below. The paper's form for MHA.
template <unsigned Bits, unsigned Group = 128>
using cross_layer_x =
    XCache<Uniform<Bits, Group>, Layout<PerToken>, CrossLayer<Delta, Uniform<4, Group>>, Projection<Plain>>;

/// Like cross_layer_x, but X is rotated, differences of 3 and 2 bits have the scale of least squared error, and sums
/// over layers are kept in 8 bits.
template <unsigned Bits, unsigned Group = 128>
using cross_layer_rotated_x = XCache<FedBack<Bits, Group>, Layout<PerToken>,
                                     CrossLayer<Delta, FedBack<4, Group>, Uniform<8>>, Projection<Rotated>>;

/// XQuant-CL on latents of [W_k W_v]. The paper's form for GQA. Needs <xquant/projection/joint_svd.hpp>.
template <unsigned Bits, unsigned Group = 128>
using cross_layer_svd = XCache<Uniform<Bits, Group>, Layout<PerToken>, CrossLayer<Delta, Uniform<4, Group>>,
                               Projection<JointSvd<NoMix, FullRank>>>;

/// Like cross_layer_svd, but base and latents are rotated, differences of 3 and 2 bits have the scale of least squared
/// error, and sums over layers are kept in 8 bits.
template <unsigned Bits, unsigned Group = 128>
using cross_layer_rotated_svd =
    XCache<FedBack<Bits, Group>, Layout<PerToken>, CrossLayer<Delta, FedBack<4, Group>, Uniform<8>>,
           Projection<JointSvd<Hadamard, FullRank>>>;

/// Multi-head latent attention: the model's latent per token, and the shared rotary part of the keys in f16.
template <unsigned Bits>
using mla = XCache<PerStream<Uniform<Bits>, Unquantized<f16>>, Layout<PerToken>, CrossLayer<Off>, Projection<Latent>>;

/// K before RoPE per channel and V per token: KIVI* of the paper.
template <unsigned Bits, unsigned Group = 128>
using kivi =
    XCache<Uniform<Bits, Group>, Layout<PerChannel, PerToken>, CrossLayer<Off>, Projection<KeyValue<BeforeRope>>>;

/// K before RoPE per channel and V per token, with levels learnt from Layer::calibration and 1 of 128 values kept in
/// f16: like KVQuant (arXiv 2401.18079) with 1 % outliers, in groups of 128 and scaled online, as kivi. KLD 0.015,
/// 0.069 and 0.33 at 4, 3 and 2 bits where kivi has 0.021, 0.113 and 0.88; 5 % more bytes at 4 bits.
template <unsigned Bits>
using kvquant = XCache<WithOutliers<NonUniform<Bits>>, Layout<PerChannel, PerToken>, CrossLayer<Off>,
                       Projection<KeyValue<BeforeRope>>>;

/// K after RoPE and V, in the NF4 levels of QLoRA, groups of 64.
using nf4 = XCache<Nf4<>, Layout<PerToken>, CrossLayer<Off>, Projection<KeyValue<AfterRope>>>;

/// K after RoPE and V, unquantized: the ordinary cache.
using f16_kv = XCache<Unquantized<f16>, Layout<PerToken>, CrossLayer<Off>, Projection<KeyValue<AfterRope>>>;

/// K after RoPE and V, each head rotated, in groups of 64 along a token: a head's codes lie together and nothing is
/// rebuilt when they are read. Bits + 0.5 bits a value. KLD 0.0002 with 8 bits, 0.045 with 4 (and 2.5 times that
/// without the rotation).
template <unsigned Bits>
using kv = XCache<Uniform<Bits, 64>, Layout<PerToken>, CrossLayer<Off>, Projection<KeyValue<AfterRope, Hadamard>>>;

/// K before RoPE per channel and V per token, each head in a basis in which its errors cost least, and rounded so.
/// Needs Layer::statistics, and <xquant/projection/key_value_latent.hpp>. KeyBits of K, Bits of V.
template <unsigned KeyBits, unsigned Bits = KeyBits, unsigned Group = 128>
using head_latent = XCache<PerStream<FedBack<KeyBits, Group>, FedBack<Bits, Group>>, Layout<PerChannel, PerToken>,
                           CrossLayer<Off>, Projection<KeyValueLatent<EachHead>>>;

/// Likewise with one basis for the K of all heads and one for V: less error, and Hkv times the work when it is read.
template <unsigned KeyBits, unsigned Bits = KeyBits, unsigned Group = 128>
using joint_latent = XCache<PerStream<FedBack<KeyBits, Group>, FedBack<Bits, Group>>, Layout<PerChannel, PerToken>,
                            CrossLayer<Off>, Projection<KeyValueLatent<AllHeads>>>;

/// X in the basis in which its errors cost least, per token. The best for MHA. Needs Layer::statistics with x_spread,
/// and <xquant/projection/x_latent.hpp>.
template <unsigned Bits, unsigned Group = 128>
using x_latent = XCache<FedBack<Bits, Group>, Layout<PerToken>, CrossLayer<Off>, Projection<XLatent<AllChannels>>>;

/// One latent of X for K and V, in such a basis, per token. For GQA.
template <unsigned Bits, unsigned Group = 128>
using kv_latent = XCache<FedBack<Bits, Group>, Layout<PerToken>, CrossLayer<Off>, Projection<XLatent<KeysAndValues>>>;

/// What such latents add from layer to layer. Needs difference_spread.
template <unsigned Bits, unsigned Group = 128>
using cross_layer_latent = XCache<FedBack<Bits, Group>, Layout<PerToken>,
                                  CrossLayer<Delta, FedBack<4, Group>, Uniform<8>>, Projection<XLatent<KeysAndValues>>>;

/// ggml's 8-bit cache.
using q8_0 = XCache<GgmlQ8_0, Layout<PerToken>, CrossLayer<Off>, Projection<KeyValue<AfterRope>>>;
/// ggml's 4-bit cache.
using q4_0 = XCache<GgmlQ4_0, Layout<PerToken>, CrossLayer<Off>, Projection<KeyValue<AfterRope>>>;
/// ggml's 4-bit cache, with each head rotated by a Hadamard matrix.
using q4_0_hadamard = XCache<GgmlQ4_0, Layout<PerToken>, CrossLayer<Off>, Projection<KeyValue<AfterRope, Hadamard>>>;

/// The default for MHA: 4.25 bits a value, half as many values as K and V have.
using mha4 = rotated_x<4>;
/// The default for GQA and MQA: 4.3 bits a value of K and V.
using gqa4 = head_svd<4>;

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::preset
