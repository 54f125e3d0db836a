// XCache: a quantized cache of attention, put together from policies. cache.hpp has what it can do.
//
//     using Cache = xquant::XCache<xquant::Uniform<4, 128>, xquant::Layout<xquant::PerToken>>;
//     Cache cache(model);                              // reads W_k and W_v; the engine may free them
//     std::unique_ptr<xquant::Cache<>> any = std::make_unique<Cache>(model);     // any scheme behind one type
//
// projection/ makes rows of X, layout.hpp groups them, quantizer/ encodes the groups into the pages of storage/;
// backend/ reads them back. docs/architecture.md has the whole way.
// Source  XQuant (arXiv 2508.10395).
#pragma once

#include <initializer_list>
#include <type_traits>

#include <xquant/cache.hpp>
#include <xquant/core/predict.hpp>
#include <xquant/cross_layer.hpp>
#include <xquant/position/scaling.hpp>
#include <xquant/projection/key_value.hpp>
#include <xquant/projection/latent.hpp>
#include <xquant/projection/x.hpp>
#include <xquant/quantizer/codebook.hpp>
#include <xquant/quantizer/feedback.hpp>
#include <xquant/quantizer/ggml.hpp>
#include <xquant/quantizer/non_uniform.hpp>
#include <xquant/quantizer/outliers.hpp>
#include <xquant/quantizer/requantizable.hpp>
#include <xquant/quantizer/uniform.hpp>
#include <xquant/scheme.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {

/// A cache for all layers of one model and any number of sequences.
///
/// @tparam Quantizer   bits and group: Uniform<4, 128>, Nf4<>, NonUniform<3>, WithOutliers<...>, GgmlQ4_0,
///                     Unquantized<f16>, PerStream<A, B>, Requantizable<A, B>, or your own
/// @tparam Layout      axis of the groups: Layout<PerToken>, Layout<PerChannel, PerToken> (one for each stream)
/// @tparam CrossLayer  CrossLayer<Off>: every layer stands alone; CrossLayer<Delta>: layers store what they add
/// @tparam Projection  what is stored of X: Projection<Rotated>, Plain, KeyValue<...>, SplitSvd, HeadSvd, or your own
/// @tparam Backend     which code reads and writes the rows; default: the best of this build
///
/// It adds to Cache<Backend> its constructor, and predictions that need no cache.
template <class Quantizer = Uniform<4, 128>, class Layout = Layout<PerToken>, class CrossLayer = CrossLayer<Off>,
          class Projection = Projection<Rotated>, class Backend = backend::best>
class XCache : public Cache<Backend> {
    static_assert(detail::check_rule<typename CrossLayer::rule>());
    using Rule = detail::sound_rule<typename CrossLayer::rule>;

public:
    using scheme = Scheme<Quantizer, Layout, Projection>;    ///< how one layer is stored
    static constexpr std::size_t streams = scheme::streams;  ///< stored rows per token and layer

    /// These policies on another backend: preset::gqa4::on<backend::cuda>.
    template <class Other>
    using on = XCache<Quantizer, Layout, CrossLayer, Projection, Other>;

    /// Prepares every layer's projection. Throws shape_error for shapes that do not fit, value_error for numbers that
    /// are not finite or outside the range that Layer gives them, state_error where floats are not rounded to the
    /// nearest (core/arithmetic.hpp). Cost: an SVD for each layer or head where the projection needs one.
    explicit XCache(const Model& model, const Options& options = {})
        : Cache<Backend>(model, options, recipe(model, options)) {}

    /// The bytes() of a cache of this model with one sequence of `tokens` tokens, workspace left out, from a formula:
    /// nothing is allocated or prepared. An upper bound where every layer has a window.
    [[nodiscard]] static Bytes predict(const Model& model, const Options& options, std::size_t tokens) {
        return detail::predict_bytes(model, options, tokens, recipe(model, options));
    }

    /// Bytes of the accumulators of a step over one sequence with this many coded tokens; 0 without CrossLayer<Delta>.
    [[nodiscard]] static std::size_t predict_accumulator(const Model& model, const Options& options,
                                                         std::size_t tokens) {
        return detail::predict_accumulator(model, recipe(model, options), tokens);
    }

private:
    friend struct detail::CacheAccess;
    using Policy = typename scheme::Policy;

    static detail::Recipe recipe(const Model& model, const Options& options) {
        detail::Recipe out;
        if constexpr (!Rule::stores_difference) {
            out.layers.assign(model.layers.size(), scheme::recipe());
        } else if constexpr (detail::check_serves_differences<Policy>()) {
            using First = std::conditional_t<std::is_same_v<typename CrossLayer::first, FourBits>,
                                             xquant::Uniform<4, 128>, typename CrossLayer::first>;
            using Below = typename Policy::below;
            using Base = Scheme<First, Layout, xquant::Projection<typename Policy::base>>;
            // A latent of keys is grouped per channel, one of values per token.
            using BelowLayout = std::conditional_t<Below::streams == 2, xquant::Layout<PerChannel, PerToken>, Layout>;
            using Alone = Scheme<First, BelowLayout, xquant::Projection<Below>>;
            using Last = Scheme<First, Layout, Projection>;
            const std::size_t layers = model.layers.size();
            detail::expects(options.base_layer < layers, "Options::base_layer is ", options.base_layer,
                            ", but the model has ", layers, " layers");
            detail::expects(options.last_layers < layers - options.base_layer, "Options::last_layers is ",
                            options.last_layers, "; behind base_layer = ", options.base_layer, " there are ",
                            layers - 1 - options.base_layer);
            for (std::size_t i = 0; i < layers; ++i) {
                out.layers.push_back(i < options.base_layer             ? Alone::recipe()
                                     : i == options.base_layer          ? Base::base_recipe()
                                     : i < layers - options.last_layers ? scheme::difference_recipe()
                                                                        : Last::difference_recipe());
            }
            out.accumulator = [](std::size_t width) {
                using Kept = typename CrossLayer::accumulator;
                static_assert(!learning_policy<Kept>, "xquant: the accumulator's quantizer cannot be one that learns");
                if constexpr (is_element<Kept>) {
                    return make_codec<Unquantized<Kept>, PerToken>(width);
                } else {
                    static_assert(detail::check_quantizer<Kept>());
                    return make_codec<detail::sound_quantizer<Kept>, PerToken>(width);
                }
            };
        }
        return out;
    }
};

/// A cache whose layers are stored in different ways: a set of schemes known to the compiler, a choice for each layer
/// made when it is constructed.
///
///     using Cache = MixedCache<Scheme<Uniform<8>>, Scheme<Uniform<4>, Layout<PerToken>, Projection<Rotated>>>;
///     Cache cache(model, {0, 1, 1, 1, 0});          // the first and the last layer in 8 bits
///
/// All layers are on one backend; a layer takes room for its own streams only.
template <class Backend, class... Schemes>
class BasicMixedCache : public Cache<Backend> {
    static_assert(sizeof...(Schemes) >= 1, "xquant: MixedCache<...> needs at least one Scheme");

public:
    /// These schemes on another backend.
    template <class Other>
    using on = BasicMixedCache<Other, Schemes...>;

    /// Throws shape_error unless `choice` names one of the schemes, from 0, for each layer.
    BasicMixedCache(const Model& model, std::span<const std::size_t> choice, const Options& options = {})
        : Cache<Backend>(model, options, recipe(model, choice)) {}
    /// The constructor for a choice in braces.
    BasicMixedCache(const Model& model, std::initializer_list<std::size_t> choice, const Options& options = {})
        : BasicMixedCache(model, std::span<const std::size_t>(choice.begin(), choice.size()), options) {}

    /// The bytes() of such a cache with one sequence of `tokens` tokens, as XCache::predict.
    [[nodiscard]] static Bytes predict(const Model& model, std::span<const std::size_t> choice, const Options& options,
                                       std::size_t tokens) {
        return detail::predict_bytes(model, options, tokens, recipe(model, choice));
    }

private:
    static detail::Recipe recipe(const Model& model, std::span<const std::size_t> choice) {
        detail::expects(choice.size() == model.layers.size(), "MixedCache: ", choice.size(), " choices for ",
                        model.layers.size(), " layers; expected one for each");
        detail::Recipe out;
        const detail::LayerRecipe all[] = {Schemes::recipe()...};
        for (std::size_t i = 0; i < choice.size(); ++i) {
            detail::expects(choice[i] < sizeof...(Schemes), "MixedCache: the choice of layer ", i, " is ", choice[i],
                            "; expected a number below ", sizeof...(Schemes), ", the number of schemes");
            out.layers.push_back(all[choice[i]]);
        }
        return out;
    }
};

/// On the best backend of this build.
template <class... Schemes>
using MixedCache = BasicMixedCache<backend::best, Schemes...>;

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
