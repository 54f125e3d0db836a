// XCache: a quantized cache of attention, put together from policies.
//
//     using Cache = xquant::XCache<xquant::Quantizer<4, 128>, xquant::Layout<xquant::PerToken>>;
//     Cache cache(model);                          // reads W_k and W_v; the engine may free them
//     auto s = cache.create();
//     auto step = cache.begin({{s, n}});           // n new tokens
//     for each layer:  step.append(layer, x);      // x [n, D], the attention input after the norm
//                      step.attend(layer, q, out); // q [n, H * Dh] after RoPE -> out [n, H * Dh]
//     step.commit();                               // until here nothing has changed
//
// This header is glue: rows go through projection/, layout/ and quantizer/ into storage/, and come back through backend/.
// Source  XQuant (arXiv 2508.10395).
#pragma once

#include <initializer_list>
#include <type_traits>

#include <xquant/concepts.hpp>
#include <xquant/detail/cache_base.hpp>
#include <xquant/position/scaling.hpp>
#include <xquant/projection/key_value.hpp>
#include <xquant/projection/latent.hpp>
#include <xquant/projection/x.hpp>
#include <xquant/quantizer/codebook.hpp>
#include <xquant/quantizer/ggml.hpp>
#include <xquant/quantizer/non_uniform.hpp>
#include <xquant/quantizer/outliers.hpp>
#include <xquant/quantizer/requantizable.hpp>
#include <xquant/quantizer/uniform.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {

/// One way to store a layer by itself. A MixedCache has several.
template <class Quantizer = Quantizer<4, 128>, class Layout = Layout<PerToken>, class Projection = Projection<Rotated>>
struct Scheme {
    using Policy = typename Projection::policy;
    using LayerSizes = detail::LayerSizes;
    using LayerParts = detail::LayerParts;
    static_assert(
        projection_policy<Policy>,
        "xquant: the projection needs streams, footprint(layer) and prepare(layer); SplitSvd and HeadSvd need "
        "#include <xquant/projection/svd.hpp>");
    static_assert(Layout::count == 1 || Layout::count == Policy::streams,
                  "xquant: Layout<...> has one axis for all streams, or one for each stream of the projection");

    static constexpr std::size_t streams = Policy::streams;

    static LayerSizes sizes(const Layer& layer) {
        check_kind(layer);
        return sizes_of(Policy::footprint(layer), {});
    }
    static LayerParts prepare(const Layer& layer) {
        check_kind(layer);
        detail::expects(
            !learns || !layer.calibration.empty(),
            "Layer::calibration is missing: the quantizer learns its levels from rows of X (NonUniform does)");
        return with_codecs(Policy::prepare(layer));
    }

    /// The same for a layer that stores a difference to the layers below.
    static LayerSizes difference_sizes(const Layer& layer) {
        check_kind(layer);
        return sizes_of(Policy::difference_footprint(layer), {layer.shape.width});
    }
    static LayerParts prepare_difference(const Layer& layer) {
        check_kind(layer);
        return with_codecs(Policy::prepare_difference(layer));
    }

    static detail::LayerRecipe recipe() noexcept { return {sizes, prepare, streams, CrossRole::none, requantizes}; }
    static detail::LayerRecipe base_recipe() noexcept {
        return {sizes, prepare, streams, CrossRole::base, requantizes};
    }
    static detail::LayerRecipe difference_recipe() noexcept {
        static_assert(!learns,
                      "xquant: a quantizer that learns its levels from rows of X has none of the differences that "
                      "CrossLayer<Delta> stores");
        return {difference_sizes, prepare_difference, streams, CrossRole::difference, requantizes};
    }

private:
    template <std::size_t I>
    using quantizer = typename detail::quantizer_of<Quantizer, I>::type;
    template <std::size_t I>
    using old_quantizer = typename detail::old_quantizer_of<Quantizer, I>::type;
    static constexpr bool requantizes = detail::is_requantizable<Quantizer>;
    static constexpr bool learns = []<std::size_t... I>(std::index_sequence<I...>) {
        return ((learning_policy<quantizer<I>> || learning_policy<old_quantizer<I>>) || ...);
    }
    (std::make_index_sequence<streams>{});

    /// A projection reads W_k and W_v either from X or from the model's latent.
    static void check_kind(const Layer& layer) {
        if constexpr (requires { Policy::reads_latent; }) {
            detail::expects(layer.latent.present(), "Projection<Latent> serves layers whose Layer::latent is given");
        } else {
            detail::expects(
                !layer.latent.present(),
                "Layer::latent is given: K and V come from the model's own latent, which Projection<Latent> stores");
        }
    }

    template <std::size_t I, class Codecs>
    static void add_codecs(Codecs& out, std::size_t width) {
        using Axis = typename Layout::template axis<I>;
        out.codecs.push_back(detail::make_codec<quantizer<I>, Axis>(width));
        if constexpr (requantizes) out.old_codecs.push_back(detail::make_codec<old_quantizer<I>, Axis>(width));
    }
    static LayerSizes sizes_of(const LayerFootprint<streams>& footprint, std::vector<std::size_t> row_widths) {
        LayerSizes out;
        if (row_widths.empty()) row_widths.assign(footprint.widths.begin(), footprint.widths.end());
        out.row_widths = std::move(row_widths);
        out.weight_floats = footprint.weight_floats;
        [&]<std::size_t... I>(std::index_sequence<I...>) { (add_codecs<I>(out, footprint.widths[I]), ...); }
        (std::make_index_sequence<streams>{});
        return out;
    }
    static LayerParts with_codecs(LayerPlan plan) {
        detail::expects(plan.streams.size() == streams, "a projection's plan has as many streams as it says");
        LayerParts out{std::move(plan), {}, {}};
        [&]<std::size_t... I>(std::index_sequence<I...>) {
            (add_codecs<I>(out, out.plan.streams[I].coded_width()), ...);
        }
        (std::make_index_sequence<streams>{});
        return out;
    }
};

/// A cache for all layers of one model and any number of sequences.
///
/// @tparam Quantizer   bits and group: Quantizer<4, 128>, Nf4<>, NonUniform<3>, WithOutliers<...>, GgmlQ4_0, Unquantized<f16>,
///                     PerStream<A, B>, Requantizable<A, B>, or your own
/// @tparam Layout      axis of the groups: Layout<PerToken>, Layout<PerChannel, PerToken> (one for each stream)
/// @tparam CrossLayer  CrossLayer<Off>: every layer stands alone; CrossLayer<Delta>: layers store what they add
/// @tparam Projection  what is stored of X: Projection<Rotated>, Plain, KeyValue<...>, SplitSvd, HeadSvd, or your own
/// @tparam Backend     the machine; default: the best of this build
///
/// Not safe for use by several threads at once; append and attend use the executor they are given.
template <class Quantizer = Quantizer<4, 128>, class Layout = Layout<PerToken>, class CrossLayer = CrossLayer<Off>,
          class Projection = Projection<Rotated>, class Backend = backend::best>
class XCache : public detail::CacheBase<Backend> {
    using Policy = typename Projection::policy;
    using Rule = typename CrossLayer::rule;
    static_assert(cross_layer_policy<Rule>, "xquant: the cross-layer rule needs stores_difference");

public:
    using scheme = Scheme<Quantizer, Layout, Projection>;
    static constexpr std::size_t streams = scheme::streams;

    /// Prepares every layer's projection. Throws shape_error for shapes that do not fit, value_error for weights that are
    /// not finite. Cost: an SVD for each layer or head where the projection needs one.
    explicit XCache(const Model& model, const Options& options = {})
        : detail::CacheBase<Backend>(model, options, recipe(model, options)) {}

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
    static detail::Recipe recipe(const Model& model, const Options& options) {
        detail::Recipe out;
        if constexpr (!Rule::stores_difference) {
            out.layers.assign(model.layers.size(), scheme::recipe());
        } else {
            static_assert(
                requires { typename Policy::base; },
                "xquant: CrossLayer<Delta> adds up rows that mean the same in every layer: Projection<Plain>, "
                "Projection<Rotated>, Projection<JointSvd<...>>, or one of your own with below, base and "
                "prepare_difference");
            using First = std::conditional_t<std::is_same_v<typename CrossLayer::first, FourBits>,
                                             xquant::Quantizer<4, 128>, typename CrossLayer::first>;
            using Below = typename Policy::below;
            using Base = Scheme<First, Layout, xquant::Projection<typename Policy::base>>;
            // A latent of keys beside one of values: the axes that suit them.
            using BelowLayout = std::conditional_t<Below::streams == 2, xquant::Layout<PerChannel, PerToken>, Layout>;
            using Alone = Scheme<First, BelowLayout, xquant::Projection<Below>>;
            using Last = Scheme<First, Layout, Projection>;
            const std::size_t layers = model.layers.size();
            detail::expects(options.base_layer < layers, "base_layer: the model has no such layer");
            detail::expects(options.base_layer + options.last_layers < layers, "last_layers: reaches the base layer");
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
                    return detail::make_codec<Unquantized<Kept>, PerToken>(width);
                } else {
                    return detail::make_codec<Kept, PerToken>(width);
                }
            };
        }
        return out;
    }
};

/// A cache whose layers are stored in different ways: a set of schemes known to the compiler, a choice for each layer made
/// when it is constructed.
///
///     using Cache = MixedCache<Scheme<Quantizer<8>>, Scheme<Quantizer<4>, Layout<PerToken>, Projection<Rotated>>>;
///     Cache cache(model, {0, 1, 1, 1, 0});          // the first and the last layer in 8 bits
///
/// All schemes must have one backend; a layer takes room for its own streams only.
template <class Backend, class... Schemes>
class BasicMixedCache : public detail::CacheBase<Backend> {
    static_assert(sizeof...(Schemes) >= 1, "xquant: MixedCache<...> needs at least one Scheme");

public:
    /// Throws shape_error unless `choice` names one of the schemes, from 0, for each layer.
    BasicMixedCache(const Model& model, std::span<const std::size_t> choice, const Options& options = {})
        : detail::CacheBase<Backend>(model, options, recipe(model, choice)) {}
    BasicMixedCache(const Model& model, std::initializer_list<std::size_t> choice, const Options& options = {})
        : BasicMixedCache(model, std::span<const std::size_t>(choice.begin(), choice.size()), options) {}

    /// As XCache::predict.
    [[nodiscard]] static Bytes predict(const Model& model, std::span<const std::size_t> choice, const Options& options,
                                       std::size_t tokens) {
        return detail::predict_bytes(model, options, tokens, recipe(model, choice));
    }

private:
    static detail::Recipe recipe(const Model& model, std::span<const std::size_t> choice) {
        detail::expects(choice.size() == model.layers.size(), "MixedCache: one choice for each layer");
        detail::Recipe out;
        const detail::LayerRecipe all[] = {Schemes::recipe()...};
        for (const std::size_t which : choice) {
            detail::expects(which < sizeof...(Schemes), "MixedCache: a layer's choice is not one of the schemes");
            out.layers.push_back(all[which]);
        }
        return out;
    }
};

template <class... Schemes>
using MixedCache = BasicMixedCache<backend::best, Schemes...>;

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
