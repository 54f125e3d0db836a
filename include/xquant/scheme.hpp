// Scheme: how one layer is stored by itself, as a type. XCache has one for all layers, MixedCache one for each.
//
// Here policies become data (core/recipe.hpp): what follows, pages and kernels, is compiled once whatever the number of
// schemes.
#pragma once

#include <array>
#include <cstddef>
#include <utility>
#include <vector>

#include <xquant/concepts.hpp>
#include <xquant/core/check_policies.hpp>
#include <xquant/core/make_codec.hpp>
#include <xquant/core/recipe.hpp>
#include <xquant/projection/cost.hpp>
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
        return sizes_of(Policy::footprint(layer), {});
    }
    /// The layer's plan and codecs. Throws shape_error, value_error. Cost: that of the projection.
    static LayerParts prepare(const Layer& layer) {
        check_kind(layer);
        detail::expects(
            !learns || !layer.calibration.empty(),
            "Layer::calibration is empty, and the quantizer learns its levels from rows of X (NonUniform does)");
        return with_codecs(plan_of(layer), layer);
    }

    /// Like sizes, but for a layer that stores a difference to the layers below.
    static LayerSizes difference_sizes(const Layer& layer) {
        check_kind(layer);
        return sizes_of(Policy::difference_footprint(layer), {layer.shape.width});
    }
    /// Like prepare, but for a layer that stores a difference to the layers below.
    static LayerParts prepare_difference(const Layer& layer) {
        check_kind(layer);
        return with_codecs(plan_of_difference(layer), layer);
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
    static detail::LayerRecipe recipe() noexcept { return recipe_of(CrossRole::none); }
    /// How the base layer of CrossLayer<Delta> is stored.
    static detail::LayerRecipe base_recipe() noexcept { return recipe_of(CrossRole::base); }
    /// How a layer of CrossLayer<Delta> that stores a difference is stored.
    static detail::LayerRecipe difference_recipe() noexcept {
        static_assert(!learns,
                      "xquant: a quantizer that learns its levels from rows of X has none of the differences that "
                      "CrossLayer<Delta> stores");
        return {[](const Layer& layer, detail::StreamBits) { return difference_sizes(layer); },
                [](const Layer& layer, detail::StreamBits) { return prepare_difference(layer); },
                streams,
                CrossRole::difference,
                requantizes,
                {}};
    }

private:
    template <std::size_t I>
    using quantizer = detail::sound_quantizer<typename detail::quantizer_of<Quantizer, I>::type>;
    template <std::size_t I>
    using requantizer = detail::sound_quantizer<typename detail::requantizer_of<Quantizer, I>::type>;
    template <std::size_t I>
    using axis = detail::sound_axis<typename Layout::template axis<I>>;
    static constexpr bool requantizes = detail::is_requantizable<Quantizer>;
    static detail::LayerRecipe recipe_of(CrossRole role) noexcept {
        return {[](const Layer& layer, detail::StreamBits) { return sizes(layer); },
                [](const Layer& layer, detail::StreamBits) { return prepare(layer); },
                streams,
                role,
                requantizes,
                {}};
    }
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

    /// Of a code of stream I, or of a value that is not quantized.
    template <std::size_t I>
    static constexpr unsigned bits_of() noexcept {
        if constexpr (quantizer_policy<quantizer<I>>) {
            return quantizer<I>::bits;
        } else {
            return 8 * sizeof(typename quantizer<I>::element);
        }
    }

    /// The projection's plan; some choose their bases by the bits of a code.
    static LayerPlan plan_of(const Layer& layer) { return plan_by(layer, std::make_index_sequence<streams>{}); }
    // A function of its own: in a generic lambda, nvcc hands bits to policies that take none.
    template <std::size_t... I>
    static LayerPlan plan_by(const Layer& layer, std::index_sequence<I...>) {
        if constexpr (requires(const std::array<unsigned, streams>& bits) { Policy::prepare(layer, bits); }) {
            return Policy::prepare(layer, {bits_of<I>()...});
        } else {
            return Policy::prepare(layer);
        }
    }

    static LayerPlan plan_of_difference(const Layer& layer) {
        if constexpr (requires(const std::array<unsigned, 1>& bits) { Policy::prepare_difference(layer, bits); }) {
            return Policy::prepare_difference(layer, {bits_of<0>()});
        } else {
            return Policy::prepare_difference(layer);
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
    static LayerSizes sizes_of(const LayerFootprint<streams>& footprint, std::vector<std::size_t> row_widths) {
        LayerSizes out;
        if (row_widths.empty()) row_widths.assign(footprint.widths.begin(), footprint.widths.end());
        out.row_widths = std::move(row_widths);
        out.matrix_floats = footprint.matrix_floats;
        out.vector_floats = footprint.vector_floats;
        const auto add = [&]<std::size_t I>(std::integral_constant<std::size_t, I>) {
            add_codecs<I>(out, footprint.widths[I]);
            if constexpr (feeds_back<I>) {
                const std::size_t width = footprint.widths[I], block = footprint.blocks[I];
                out.matrix_floats += feedback_floats(width, block > 0 ? block : width);
            }
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
            StreamMetric& metric = out.plan.streams[I].metric;
            if constexpr (!feeds_back<I>) {
                metric = {};
            } else if (metric.block == 0) {
                metric = detail::metric_of_stream(out.plan, layer, I);
            }
        };
        [&]<std::size_t... I>(std::index_sequence<I...>) { (add(std::integral_constant<std::size_t, I>{}), ...); }
        (std::make_index_sequence<streams>{});
        return out;
    }
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
