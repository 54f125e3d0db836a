// KeyValue<When, Mix>: K and V themselves, the usual cache. With KIVI's layout or ggml's formats, the baselines to
// beat.
//
//     KeyValue<BeforeRope>             K before RoPE: with Layout<PerChannel, PerToken> this is KIVI* of the paper
//     KeyValue<AfterRope>              K after RoPE, as most engines keep it
//     KeyValue<AfterRope, Hadamard>    each head of K and V rotated before it is stored and turned back when read, as
//                                      llama.cpp does for q4_0
//
// Biases and k_norm are part of what is stored, as in every cache of K and V. An engine may hand over K and V in place
// of X (Layer::input): no weights are needed then. Keys that are stored before RoPE are taken before RoPE.
// Cost    keys stored after RoPE need nothing when read; queries that meet keys which moved to other positions are
//         turned back.
#pragma once

#include <type_traits>

#include <xquant/projection/projection.hpp>
#include <xquant/projection/rotation.hpp>

namespace xquant {

/// Keys are stored before RoPE, which is applied when they are read.
struct BeforeRope {};
/// Keys are stored after RoPE.
struct AfterRope {};
/// Rows are rotated before they are coded (projection/rotation.hpp).
struct Hadamard {};
/// Rows are coded as they are.
struct NoMix {};

inline namespace XQUANT_ABI_NS {

/// @tparam When  BeforeRope or AfterRope
/// @tparam Mix   NoMix or Hadamard
template <class When = BeforeRope, class Mix = NoMix>
struct KeyValue {
    static_assert(std::is_same_v<When, BeforeRope> || std::is_same_v<When, AfterRope>,
                  "xquant: KeyValue<When> takes BeforeRope or AfterRope");
    static_assert(std::is_same_v<Mix, NoMix> || std::is_same_v<Mix, Hadamard>,
                  "xquant: KeyValue<When, Mix> takes NoMix or Hadamard");

    static constexpr std::size_t streams = 2;                            ///< stored rows per token and layer
    static constexpr bool after_rope = std::is_same_v<When, AfterRope>;  ///< whether stored keys have RoPE
    static constexpr bool mixed = std::is_same_v<Mix, Hadamard>;         ///< whether heads are rotated
    /// Keys that are stored before RoPE have to come before it.
    static constexpr bool takes(LayerInput input) noexcept { return after_rope || !detail::comes_after_rope(input); }

    /// Widths and floats of prepare(layer).
    static LayerFootprint<2> footprint(const Layer& layer) noexcept {
        const LayerShape& shape = layer.shape;
        const std::size_t r = shape.kv_width(), m = dct_size(shape.head_dim);
        const std::size_t back = mixed ? 2 * r * shape.head_dim : 0, dct = mixed ? 2 * m * m : 0;
        const std::size_t dh = shape.head_dim;
        if (layer.input != LayerInput::x) return {{r, r}, back, dct, {dh, dh}};
        const std::size_t biases = (layer.b_k != nullptr ? r : 0) + (layer.b_v != nullptr ? r : 0);
        return {{r, r}, 2 * shape.width * r + back, dct + biases, {dh, dh}};
    }

    /// The plan of a layer: stream 0 is K, stream 1 is V.
    static LayerPlan prepare(const Layer& layer) {
        const std::size_t r = layer.shape.kv_width(), dh = layer.shape.head_dim;
        LayerPlan plan;
        plan.keys_normed = true;
        plan.keys_after_rope = after_rope;
        const auto stream = [&](const MatrixView& weight, const float* bias, bool key) {
            StreamPlan out;
            out.width = r;
            if (layer.input == LayerInput::x) {
                out.matrix = detail::transpose(detail::load_rows(weight, 0, r), r, layer.shape.width);
                out.bias = detail::optional_floats(bias, r);
                out.norm = key && layer.k_norm != nullptr;
            } else {
                out.source = key ? RowSource::keys : RowSource::values;
            }
            out.rope = key && after_rope && !detail::comes_after_rope(layer.input);
            out.rotate = mixed ? dh : 0;
            return out;
        };
        plan.streams = {stream(layer.w_k, layer.b_k, true), stream(layer.w_v, layer.b_v, false)};
        // Stored y = k R, so k = y R^T.
        std::vector<float> back;
        if (mixed) back = detail::transpose(rotation_matrix(dh), dh, dh);
        for (std::size_t head = 0; head < layer.shape.kv_heads; ++head) {
            plan.keys.push_back({0, head * dh, dh, back, {}});
            plan.values.push_back({1, head * dh, dh, back, {}});
        }
        return plan;
    }
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
