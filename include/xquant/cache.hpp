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
#include <xquant/detail/predict.hpp>
#include <xquant/detail/step.hpp>
#include <xquant/projection/key_value.hpp>
#include <xquant/projection/x.hpp>
#include <xquant/quantizer/ggml.hpp>
#include <xquant/quantizer/uniform.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {

/// A cache for all layers of one model and any number of sequences.
///
/// @tparam Quantizer   bits and group: Quantizer<4, 128>, Unquantized<f16>, GgmlQ4_0, PerStream<A, B>, or your own
/// @tparam Layout      axis of the groups: Layout<PerToken>, Layout<PerChannel, PerToken> (one for each stream)
/// @tparam CrossLayer  CrossLayer<Off>: every layer stands alone
/// @tparam Projection  what is stored of X: Projection<Rotated>, Plain, KeyValue<...>, SplitSvd, HeadSvd, or your own
/// @tparam Backend     the machine; default: the best of this build
///
/// Not safe for use by several threads at once; append and attend use the executor they are given.
template <class Quantizer = Quantizer<4, 128>, class Layout = Layout<PerToken>, class CrossLayer = CrossLayer<Off>,
          class Projection = Projection<Rotated>, class Backend = backend::best>
class XCache {
    using Policy = typename Projection::policy;
    static_assert(
        projection_policy<Policy>,
        "xquant: the projection needs streams, footprint(layer) and prepare(layer); SplitSvd and HeadSvd need "
        "#include <xquant/projection/svd.hpp>");
    static_assert(cross_layer_policy<typename CrossLayer::rule>,
                  "xquant: the cross-layer rule needs stores_difference");
    static_assert(!CrossLayer::rule::stores_difference,
                  "xquant: this version stores every layer by itself: CrossLayer<Off>");
    static_assert(Layout::count == 1 || Layout::count == Policy::streams,
                  "xquant: Layout<...> has one axis for all streams, or one for each stream of the projection");

public:
    static constexpr std::size_t streams = Policy::streams;
    using Step = detail::Step<Backend>;
    using backend = Backend;

    /// Prepares every layer's projection. Throws shape_error for shapes that do not fit, value_error for weights that are
    /// not finite. Cost: an SVD for each layer or head where the projection needs one.
    explicit XCache(const Model& model, const Options& options = {})
        : core_(std::make_unique<detail::Core>(options, model.layers.size(), streams)) {
        const Rope* previous = nullptr;
        for (const Layer& layer : model.layers) {
            detail::check_layer(layer);
            core_->add_layer(layer, {Policy::prepare(layer), codecs(layer)}, previous);
            previous = &layer.rope;
        }
    }

    /// An empty sequence.
    [[nodiscard]] Sequence create() { return core_->create(); }

    /// Forgets a sequence and frees what no other one shares. Throws sequence_error if it is part of a step.
    void drop(Sequence sequence) { core_->drop(sequence); }

    /// Tokens of a sequence.
    [[nodiscard]] std::size_t size(Sequence sequence) const { return core_->find(sequence).state.tokens; }

    /// Starts a step that adds tokens to one or several sequences. Everything the step will store is allocated here.
    /// Throws sequence_error, shape_error, std::bad_alloc; nothing has changed then.
    [[nodiscard]] Step begin(std::span<const StepPart> parts) { return Step(*core_, parts); }
    [[nodiscard]] Step begin(std::initializer_list<StepPart> parts) {
        return begin(std::span<const StepPart>(parts.begin(), parts.size()));
    }

    /// Encodes every row outside the window now, unfinished groups included, and frees their f16 copies: for a sequence
    /// that rests. A group that was cut short stays short; later tokens start a new page.
    /// Cost: encoding at most 127 rows of each layer.
    void seal(Sequence sequence) {
        detail::Slot& slot = core_->find(sequence);
        detail::expects<sequence_error>(!slot.busy, "the sequence is part of a step; commit or destroy the step first");
        detail::StepPlan plan(core_->ledger(), slot.state, 0, core_->retention(), core_->formats(), true);
        for (std::size_t layer = 0; layer < core_->layers().size(); ++layer) {
            for (const detail::Write& write : plan.writes) {
                for (std::size_t stream = 0; stream < streams; ++stream) {
                    detail::run_write(Backend{}, *core_, plan, write, layer, stream, nullptr);
                }
            }
        }
        detail::commit_plan(slot.state, plan);
    }

    /// What is allocated, by purpose; adds up to what the memory resource was asked for.
    [[nodiscard]] Bytes bytes() const noexcept { return core_->ledger().bytes(); }

    /// The bytes() of a cache of this model with one sequence of `tokens` tokens, workspace left out, from a formula:
    /// nothing is allocated or prepared.
    [[nodiscard]] static Bytes predict(const Model& model, const Options& options, std::size_t tokens) {
        return detail::predict_bytes(
            model, options, tokens, streams, [](const Layer& layer) { return Policy::footprint(layer).weight_floats; },
            [](const Layer& layer) { return codecs(layer); });
    }

    /// Bits of codes, scales and zeros for `tokens` encoded tokens, per token and layer: the figure of the literature.
    /// f16 rows, page rounding and weights are not in it; bytes() has everything.
    [[nodiscard]] double bits_per_token_layer(std::size_t tokens) const {
        double bits = 0;
        for (std::size_t layer = 0; layer < core_->layers().size(); ++layer) {
            for (std::size_t stream = 0; stream < streams; ++stream) {
                bits += static_cast<double>(core_->codec(layer, stream).format.ideal_bits(tokens));
            }
        }
        return tokens == 0 ? 0 : bits / static_cast<double>(tokens * core_->layers().size());
    }

    [[nodiscard]] const Options& options() const noexcept { return core_->options(); }

    /// Stored bytes of a sequence, page by page, as views: for tools that inspect or save it.
    template <class F>
    void for_each_page(Sequence sequence, F&& f) const {
        for (const detail::Segment& segment : core_->find(sequence).state.segments) {
            f(PageView{segment.page->format().purpose, segment.begin, segment.end, segment.first_position,
                       segment.page->data()});
        }
    }

private:
    static std::vector<StreamCodec> codecs(const Layer& layer) {
        const auto footprint = Policy::footprint(layer);
        std::vector<StreamCodec> all;
        [&]<std::size_t... I>(std::index_sequence<I...>) {
            (all.push_back(detail::make_codec<typename detail::quantizer_of<Quantizer, I>::type,
                                              typename Layout::template axis<I>>(footprint.widths[I])),
             ...);
        }
        (std::make_index_sequence<streams>{});
        return all;
    }

    std::unique_ptr<detail::Core> core_;
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
