#include "support/schemes.hpp"

#include <stdexcept>

#include <xquant/projection/joint_svd.hpp>
#include <xquant/xquant.hpp>

#include "contract/archetypes.hpp"

namespace test {
namespace {

using namespace xquant;

template <class C>
std::shared_ptr<Cache> make_cache(const Model& model, const Options& options) {
    return std::make_shared<C>(model, options);
}

template <class C>
struct Entry : Scheme {
    Entry(const char* called, StoredLayers (*stored_as)(const Model&))
        : Scheme{called, make_cache<C>, C::predict, C::predict_accumulator, stored_as} {}
};

using MixedOfTwo = MixedCache<xquant::Scheme<Uniform<8>, Layout<PerChannel, PerToken>, Projection<HeadSvd>>,
                              xquant::Scheme<Uniform<4>, Layout<PerToken>, Projection<Rotated>>>;

/// Even layers in the first scheme, odd ones in the second.
std::vector<std::size_t> alternating(const Model& model) {
    std::vector<std::size_t> choice;
    for (std::size_t i = 0; i < model.layers.size(); ++i) choice.push_back(i % 2);
    return choice;
}
std::shared_ptr<Cache> make_mixed(const Model& model, const Options& options) {
    return std::make_shared<MixedOfTwo>(model, alternating(model), options);
}
Bytes predict_mixed(const Model& model, const Options& options, std::size_t tokens) {
    return MixedOfTwo::predict(model, alternating(model), options, tokens);
}
std::size_t no_accumulator(const Model&, const Options&, std::size_t) { return 0; }

// How rows are stored, written out from the formulas of the projections.

constexpr bool symmetric = false;  // no zero is stored

StoredStream per_token(std::size_t width, unsigned bits, std::size_t group = 128, bool stores_zero = true) {
    return {width, 1, group, bits, true, stores_zero};
}
StoredStream per_channel(std::size_t width, unsigned bits) { return {width, 128, 1, bits, true, true}; }
StoredStream as_is(std::size_t width, unsigned bits) { return {width, 1, width, bits, false, false}; }

template <class F>
StoredLayers each(const Model& model, F f) {
    StoredLayers out;
    for (const Layer& layer : model.layers) out.push_back(f(layer.shape.width, layer.shape.kv_width()));
    return out;
}
using Streams = std::vector<StoredStream>;

/// Layers 0 and 1, the base, and what follows, of a cross-layer cache.
template <class F, class G, class H>
StoredLayers stacked(const Model& model, F alone, G base, H difference) {
    StoredLayers out;
    for (std::size_t i = 0; i < model.layers.size(); ++i) {
        const std::size_t d = model.layers[i].shape.width, r = model.layers[i].shape.kv_width();
        out.push_back(i < 2 ? alone(d, r) : i == 2 ? base(d, r) : difference(d, r));
    }
    return out;
}

StoredLayers x_f32(const Model& model) {
    return each(model, [](std::size_t d, std::size_t) { return Streams{as_is(d, 32)}; });
}
/// K and V as they are, a head's channels together.
template <unsigned Bits>
StoredLayers kv_as_is(const Model& model) {
    StoredLayers out;
    for (const xquant::Layer& layer : model.layers) {
        const std::size_t dh = layer.shape.head_dim;
        out.emplace_back(2, StoredStream{layer.shape.kv_width(), 1, dh, Bits, false, false});
    }
    return out;
}
StoredLayers joint_f32(const Model& model) {
    return each(model, [](std::size_t, std::size_t r) { return Streams{as_is(2 * r, 32)}; });
}
StoredLayers joint_differences_f32(const Model& model) {
    return stacked(
        model,
        [](std::size_t, std::size_t r) {
            return Streams{as_is(r, 32), as_is(r, 32)};
        },
        [](std::size_t d, std::size_t) { return Streams{as_is(d, 32)}; },
        [](std::size_t, std::size_t r) { return Streams{as_is(2 * r, 32)}; });
}
template <unsigned Bits>
StoredLayers x_per_token(const Model& model) {
    return each(model, [](std::size_t d, std::size_t) { return Streams{per_token(d, Bits)}; });
}
template <unsigned Bits>
StoredLayers x_per_channel(const Model& model) {
    return each(model, [](std::size_t d, std::size_t) { return Streams{per_channel(d, Bits)}; });
}
template <unsigned KeyBits, unsigned ValueBits>
StoredLayers kv_by_both(const Model& model) {
    return each(model, [](std::size_t, std::size_t r) {
        return Streams{per_channel(r, KeyBits), per_token(r, ValueBits)};
    });
}
template <unsigned Bits, std::size_t Group>
StoredLayers kv_symmetric(const Model& model) {
    return each(model, [](std::size_t, std::size_t r) { return Streams(2, per_token(r, Bits, Group, symmetric)); });
}
template <unsigned Bits>
StoredLayers joint_per_token(const Model& model) {
    return each(model, [](std::size_t, std::size_t r) { return Streams{per_token(2 * r, Bits)}; });
}
template <unsigned Bits>
StoredLayers x_differences(const Model& model) {
    const auto four = [](std::size_t d, std::size_t) { return Streams{per_token(d, 4)}; };
    return stacked(model, four, four, [](std::size_t d, std::size_t) { return Streams{per_token(d, Bits)}; });
}
template <unsigned Bits>
StoredLayers joint_differences(const Model& model) {
    return stacked(
        model,
        [](std::size_t, std::size_t r) {
            return Streams{per_channel(r, 4), per_token(r, 4)};
        },
        [](std::size_t d, std::size_t) { return Streams{per_token(d, 4)}; },
        [](std::size_t, std::size_t r) { return Streams{per_token(2 * r, Bits)}; });
}

template <class Q, class Layout, class P>
using Alone = XCache<Q, Layout, CrossLayer<Off>, Projection<P>>;
template <class P>
using Exact = Alone<Unquantized<float>, Layout<PerToken>, P>;
template <class P>
using ExactDifferences =
    XCache<Unquantized<float>, Layout<PerToken>, CrossLayer<Delta, Unquantized<float>>, Projection<P>>;

std::vector<Scheme> make_schemes() {
    using Tokens = Layout<PerToken>;
    using Both = Layout<PerChannel, PerToken>;
    std::vector<Scheme> all{
        Entry<Exact<Plain>>("f32 x", x_f32),
        Entry<Exact<Rotated>>("f32 x, rotated", x_f32),
        Entry<Exact<KeyValue<BeforeRope>>>("f32 k and v", kv_as_is<32>),
        Entry<Exact<KeyValue<AfterRope, Hadamard>>>("f32 k and v after RoPE, Hadamard", kv_as_is<32>),
        Entry<Exact<SplitSvd>>("f32 split svd", kv_as_is<32>),
        Entry<Exact<HeadSvd>>("f32 head svd", kv_as_is<32>),
        Entry<Exact<JointSvd<Hadamard, FullRank>>>("f32 joint svd", joint_f32),
        Entry<ExactDifferences<Plain>>("f32 cross-layer x", x_f32),
        Entry<ExactDifferences<Rotated>>("f32 cross-layer x, rotated", x_f32),
        Entry<ExactDifferences<JointSvd<Hadamard, FullRank>>>("f32 cross-layer joint svd", joint_differences_f32),
        Entry<preset::plain_x<4>>("x 4", x_per_token<4>),
        Entry<preset::rotated_x<3>>("x rotated 3", x_per_token<3>),
        Entry<Alone<Requantizable<Uniform<4>, Uniform<2>>, Tokens, Rotated>>("x rotated 4, requantizable to 2",
                                                                             x_per_token<4>),
        Entry<Alone<Uniform<6>, Layout<PerChannel>, Rotated>>("x per channel 6", x_per_channel<6>),
        Entry<Alone<WithFeedback<Uniform<4>>, Tokens, Rotated>>("x rotated 4, feedback", x_per_token<4>),
        Entry<Alone<WithFeedback<Uniform<3, 128, MinMse>>, Layout<PerChannel>, Rotated>>("x per channel 3, feedback",
                                                                                         x_per_channel<3>),
        Entry<Alone<Requantizable<WithFeedback<Uniform<4>>, WithFeedback<Uniform<2>>>, Tokens, Rotated>>(
            "x rotated 4, requantizable to 2, feedback", x_per_token<4>),
        Entry<XCache<WithFeedback<Uniform<3>>, Tokens, CrossLayer<Delta>, Projection<Rotated>>>(
            "cross-layer x rotated 3, feedback", x_differences<3>),
        Entry<Alone<Uniform<2, 128, MinMse>, Tokens, Rotated>>("x clipped 2", x_per_token<2>),
        Entry<Alone<Uniform<5, 8, Symmetric>, Tokens, KeyValue<BeforeRope>>>("k and v symmetric 5", kv_symmetric<5, 8>),
        Entry<Alone<Nf4<>, Tokens, KeyValue<BeforeRope>>>("k and v in levels", kv_symmetric<4, 64>),
        Entry<Alone<Uniform<4, 64>, Layout<FourTokens>, Plain>>("x in blocks of 4 tokens",
                                                                [](const Model& model) {
                                                                    return each(model, [](std::size_t d, std::size_t) {
                                                                        return Streams{{d, 4, 16, 4, true, true}};
                                                                    });
                                                                }),
        Entry<preset::split_svd<4>>("split svd 4", kv_by_both<4, 4>),
        Entry<preset::head_svd<4>>("head svd 4", kv_by_both<4, 4>),
        Entry<Alone<PerStream<Uniform<5>, Uniform<3>>, Both, HeadSvd>>("head svd 5 and 3", kv_by_both<5, 3>),
        Entry<Alone<Uniform<4>, Tokens, JointSvd<NoMix, FullRank>>>("joint svd 4", joint_per_token<4>),
        Entry<preset::kivi<2>>("kivi 2", kv_by_both<2, 2>),
        Entry<preset::f16_kv>("f16 k and v", kv_as_is<16>),
        Entry<preset::q8_0>("q8_0", kv_symmetric<8, 32>),
        Entry<preset::q4_0>("q4_0", kv_symmetric<4, 32>),
        Entry<preset::q4_0_hadamard>("q4_0, Hadamard", kv_symmetric<4, 32>),
        Entry<preset::cross_layer_x<3>>("cross-layer x 3", x_differences<3>),
        Entry<preset::cross_layer_rotated_x<2>>("cross-layer x rotated 2", x_differences<2>),
        Entry<XCache<Uniform<8>, Tokens, CrossLayer<Delta, FourBits, f16>, Projection<Rotated>>>(
            "cross-layer x rotated 8, f16 sums", x_differences<8>),
        Entry<preset::cross_layer_svd<3>>("cross-layer svd 3", joint_differences<3>),
        Entry<preset::cross_layer_rotated_svd<4>>("cross-layer svd rotated 4", joint_differences<4>),
        Scheme{"mixed", make_mixed, predict_mixed, no_accumulator,
               [](const Model& model) {
                   StoredLayers out;
                   for (std::size_t i = 0; i < model.layers.size(); ++i) {
                       const LayerShape& shape = model.layers[i].shape;
                       const std::size_t r = shape.kv_width();
                       out.push_back(i % 2 == 0 ? Streams{per_channel(r, 8), per_token(r, 8)}
                                                : Streams{per_token(shape.width, 4)});
                   }
                   return out;
               }},
    };
    for (Scheme& one : all) {
        one.exact = one.name.starts_with("f32");
        one.cross_layer = one.name.find("cross-layer") != std::string::npos;
        const Model small = Model::uniform(4, {.width = 4, .heads = 1, .kv_heads = 1, .head_dim = 2}, Rope{});
        for (const Streams& layer : one.stored(small)) {
            for (const StoredStream& stream : layer) one.per_channel = one.per_channel || stream.group_tokens > 1;
        }
    }
    return all;
}

}  // namespace

const std::vector<Scheme>& schemes() {
    static const std::vector<Scheme> all = make_schemes();
    return all;
}

const Scheme& scheme(const std::string& name) {
    for (const Scheme& one : schemes()) {
        if (one.name == name) return one;
    }
    throw std::logic_error("no scheme " + name);
}

}  // namespace test
