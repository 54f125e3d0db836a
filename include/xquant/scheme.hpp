// Scheme: how one layer is stored by itself, as a type. XCache has one for all layers, MixedCache one for each.
//
// Here policies become data (core/recipe.hpp): what follows, pages and kernels, is compiled once whatever the number of
// schemes.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

#include <xquant/concepts.hpp>
#include <xquant/core/check_policies.hpp>
#include <xquant/core/make_codec.hpp>
#include <xquant/core/recipe.hpp>
#include <xquant/projection/x.hpp>
#include <xquant/quantizer/requantizable.hpp>
#include <xquant/quantizer/uniform.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {

/// One way to store a layer by itself. A MixedCache has several.
template <class Quantizer = Uniform<4, 128>, class Layout = Layout<PerToken>, class Projection = Projection<Rotated>>
struct Scheme {
    static_assert(detail::check_scheme<Quantizer, Layout, typename Projection::policy>());
    using Policy = detail::sound_projection<typename Projection::policy>;  ///< the projection
    using LayerSizes = detail::LayerSizes;                                 ///< what a layer takes
    using LayerParts = detail::LayerParts;                                 ///< what a layer is made of
    static_assert(Layout::count == 1 || Layout::count == Policy::streams ||
                      !projection_policy<typename Projection::policy>,
                  "xquant: Layout<...> has one axis for all streams, or one for each stream of the projection");

    static constexpr std::size_t streams = Policy::streams;  ///< stored rows per token

    /// What a layer takes, before anything is prepared. Throws shape_error.
    static LayerSizes sizes(const Layer& layer) {
        check_kind(layer);
        return sizes_of(Policy::footprint(layer), {}, layer);
    }
    /// The layer's plan and codecs. Throws shape_error, value_error. Cost: that of the projection.
    static LayerParts prepare(const Layer& layer) {
        check_kind(layer);
        detail::expects(
            !learns || !layer.calibration.empty(),
            "Layer::calibration is empty, and the quantizer learns its levels from rows of X (NonUniform does)");
        return with_codecs(Policy::prepare(layer), layer);
    }

    /// Like sizes, but for a layer that stores a difference to the layers below.
    static LayerSizes difference_sizes(const Layer& layer) {
        check_kind(layer);
        return sizes_of(Policy::difference_footprint(layer), {layer.shape.width}, layer);
    }
    /// Like prepare, but for a layer that stores a difference to the layers below.
    static LayerParts prepare_difference(const Layer& layer) {
        check_kind(layer);
        return with_codecs(Policy::prepare_difference(layer), layer);
    }

    /// Bits of a stored value, its share of scales, zeros and outliers included; the mean over the streams.
    static double bits_per_value() {
        constexpr std::size_t n = 4096;  // tokens, and channels: whole groups
        double bits = 0;
        [&]<std::size_t... I>(std::index_sequence<I...>) {
            ((bits += static_cast<double>(make_codec<quantizer<I>, axis<I>>(n).format.ideal_bits(n))), ...);
        }
        (std::make_index_sequence<streams>{});
        return bits / static_cast<double>(streams * n * n);
    }
    /// What an engine may hand over for a layer.
    static std::vector<LayerInput> inputs() {
        std::vector<LayerInput> out;
        for (const LayerInput input :
             {LayerInput::x, LayerInput::keys_before_rope, LayerInput::keys_after_rope, LayerInput::keys_in_place}) {
            if (detail::takes<Policy>(input)) out.push_back(input);
        }
        return out;
    }
    /// Whether Layer::w_k is read even where K and V are handed over.
    static constexpr bool reads_w_k() noexcept { return detail::reads_w_k<Policy>(); }
    /// Values that share a scale in the first stream; 0 where rows are stored as they are.
    static constexpr std::size_t group() noexcept {
        if constexpr (unquantized_policy<quantizer<0>>) {
            return 0;
        } else {
            return quantizer<0>::group;
        }
    }

    /// How a layer that stands alone is stored.
    static detail::LayerRecipe recipe() noexcept { return {sizes, prepare, streams, CrossRole::none, requantizes}; }
    /// How the base layer of CrossLayer<Delta> is stored.
    static detail::LayerRecipe base_recipe() noexcept {
        return {sizes, prepare, streams, CrossRole::base, requantizes};
    }
    /// How a layer of CrossLayer<Delta> that stores a difference is stored.
    static detail::LayerRecipe difference_recipe() noexcept {
        static_assert(!learns,
                      "xquant: a quantizer that learns its levels from rows of X has none of the differences that "
                      "CrossLayer<Delta> stores");
        return {difference_sizes, prepare_difference, streams, CrossRole::difference, requantizes};
    }

private:
    template <std::size_t I>
    using quantizer = detail::sound_quantizer<typename detail::quantizer_of<Quantizer, I>::type>;
    template <std::size_t I>
    using requantizer = detail::sound_quantizer<typename detail::requantizer_of<Quantizer, I>::type>;
    template <std::size_t I>
    using axis = detail::sound_axis<typename Layout::template axis<I>>;
    static constexpr bool requantizes = detail::is_requantizable<Quantizer>;
    static constexpr bool learns = []<std::size_t... I>(std::index_sequence<I...>) {
        return ((learning_policy<quantizer<I>> || learning_policy<requantizer<I>>) || ...);
    }
    (std::make_index_sequence<streams>{});

    /// A projection reads X or takes K and V, and takes W_k and W_v to read X or the model's latent.
    static void check_kind(const Layer& layer) {
        constexpr bool any = detail::takes<Policy>(LayerInput::keys_before_rope);
        detail::expects(
            detail::takes<Policy>(layer.input), "Layer::input is ", to_string(layer.input), ", and this scheme ",
            any ? "stores keys before RoPE, or what is made from them: hand over K before RoPE "
                  "(keys_before_rope), or choose a scheme that stores keys after RoPE (f16, kv4)"
                : "stores X or what is made from it: hand over X (LayerInput::x), or choose a scheme of K and "
                  "V or of latents of a head (kv4, kivi4, svd_head4)");
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
        out.codecs.push_back(make_codec<quantizer<I>, axis<I>>(width));
        if constexpr (requantizes) out.requantized_codecs.push_back(make_codec<requantizer<I>, axis<I>>(width));
    }
    /// Whether stream I is rounded for its metric, by one of its quantizers.
    template <std::size_t I>
    static constexpr bool feeds_back = feedback_policy<quantizer<I>> || feedback_policy<requantizer<I>>;
    // Functions of their own: in a generic lambda, nvcc looks for metric in policies that have none.
    template <std::size_t I>
    static void add_metric(LayerSizes& out, std::size_t coded_width, const Layer& layer) {
        if constexpr (feeds_back<I> && detail::has_metric<Policy>) {
            out.matrix_floats += feedback_floats(coded_width, Policy::metric_block(layer, I));
        }
        static_cast<void>(out), static_cast<void>(coded_width), static_cast<void>(layer);
    }
    template <std::size_t I>
    static void add_metric(LayerPlan& out, const Layer& layer) {
        if constexpr (feeds_back<I> && detail::has_metric<Policy>) out.streams[I].metric = Policy::metric(layer, I);
        static_cast<void>(out), static_cast<void>(layer);
    }

    static LayerSizes sizes_of(const LayerFootprint<streams>& footprint, std::vector<std::size_t> row_widths,
                               const Layer& layer) {
        LayerSizes out;
        if (row_widths.empty()) row_widths.assign(footprint.widths.begin(), footprint.widths.end());
        out.row_widths = std::move(row_widths);
        out.matrix_floats = footprint.matrix_floats;
        out.vector_floats = footprint.vector_floats;
        const auto add = [&]<std::size_t I>(std::integral_constant<std::size_t, I>) {
            add_codecs<I>(out, footprint.widths[I]);
            add_metric<I>(out, footprint.widths[I], layer);
        };
        [&]<std::size_t... I>(std::index_sequence<I...>) { (add(std::integral_constant<std::size_t, I>{}), ...); }
        (std::make_index_sequence<streams>{});
        return out;
    }
    static LayerParts with_codecs(LayerPlan plan, const Layer& layer) {
        detail::expects(plan.streams.size() == streams, "the projection's plan has ", plan.streams.size(),
                        " streams; its member `streams` says ", streams);
        LayerParts out{std::move(plan), {}, {}};
        const auto add = [&]<std::size_t I>(std::integral_constant<std::size_t, I>) {
            add_codecs<I>(out, out.plan.streams[I].coded_width());
            add_metric<I>(out.plan, layer);
        };
        [&]<std::size_t... I>(std::index_sequence<I...>) { (add(std::integral_constant<std::size_t, I>{}), ...); }
        (std::make_index_sequence<streams>{});
        return out;
    }
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
