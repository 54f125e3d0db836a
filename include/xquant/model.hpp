// What the library has to know of a model: shapes, weights of W_k and W_v, positions. Read once, at construction.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <vector>

#include <xquant/error.hpp>
#include <xquant/types.hpp>

namespace xquant {

struct LayerStatistics;  // statistics.hpp

/// Shape of one attention layer. GQA: kv_heads < heads; MHA: equal; MQA: kv_heads = 1.
struct LayerShape {
    std::size_t width = 0;     ///< D, channels of X; may be 0 where the engine hands over K and V
    std::size_t heads = 0;     ///< H, query heads
    std::size_t kv_heads = 0;  ///< Hkv, key and value heads
    std::size_t head_dim = 0;  ///< Dh

    /// R = Hkv * Dh, channels of K and of V.
    [[nodiscard]] constexpr std::size_t kv_width() const noexcept { return kv_heads * head_dim; }
    friend bool operator==(const LayerShape&, const LayerShape&) = default;
};

/// Which channels of a head RoPE turns together: (2j, 2j + 1), as GGUF stores Llama's weights, or (j, j + pairs).
enum class RopePairing : unsigned char { interleaved, halves };

/// Rotary position embedding: pair j is turned by position * inverse_frequencies[j]. Twice as many channels as there
/// are frequencies are turned, the rest of the head is left alone. No frequencies: no RoPE. For longer contexts:
/// builders in position/scaling.hpp.
struct Rope {
    RopePairing pairing = RopePairing::interleaved;  ///< the channels of a pair
    std::vector<double> inverse_frequencies;  ///< [pairs] radians a position, -10 to 10; at most head_dim / 2 of them
    /// Cosines and sines are multiplied by it: the attention factor of YaRN and LongRoPE. 1e-4 to 1e4.
    double factor = 1;

    /// base^(-2j / head_dim) for all pairs of a head. Source: RoFormer (arXiv 2104.09864), section 3.2.2.
    static Rope standard(std::size_t head_dim, double base = 10000.0, RopePairing pairing = RopePairing::interleaved) {
        Rope rope{pairing, std::vector<double>(head_dim / 2), 1};
        for (std::size_t j = 0; j < head_dim / 2; ++j) {
            rope.inverse_frequencies[j] = std::pow(base, -2.0 * static_cast<double>(j) / static_cast<double>(head_dim));
        }
        return rope;
    }
    friend bool operator==(const Rope&, const Rope&) = default;
};

/// Multi-head latent attention: the model itself makes K and V from a latent, and keys have a part that all heads
/// share.
///
///     latent = norm(x W_down^T) [R]    k_shared = rope(x W_shared^T) [Dr]
///     K_h = [k_shared, latent W_k,h^T]    V_h = latent W_v,h^T
/// with Layer::w_k [H * (Dh - Dr), R] and w_v [H * Dv, R].
///
/// The shared channels come first in a head, so the engine puts the rotary part of its queries first. Dv is at most Dh;
/// the output has Dh channels a head, of which those from Dv on are 0. Source: DeepSeek-V2 (arXiv 2405.04434), section
/// 2.1.
struct LatentAttention {
    MatrixView w_down;            ///< W^DKV [R, D]; empty: the layer's attention is of the usual kind
    MatrixView w_shared;          ///< W^KR [Dr, D]; Dr = 2 * the layer's RoPE pairs
    const float* norm = nullptr;  ///< [R] gain of the latent's RMS norm, or null
    double norm_epsilon = 1e-6;   ///< added to the mean square; 1e-30 to 1

    /// Whether the layer has latent attention.
    [[nodiscard]] bool present() const noexcept { return !w_down.empty(); }
};

/// What an engine hands over for the new tokens of a layer. K is what its queries meet: with bias, and after k_norm.
enum class LayerInput : unsigned char {
    x,                 ///< X, the attention input: Step::append
    keys_before_rope,  ///< K before RoPE, and V: Step::append_kv
    keys_after_rope,   ///< K after RoPE, and V: Step::append_kv; for schemes that store keys after RoPE
    /// K with positions that `rope` cannot say (RoPE of several positions a token, a norm behind RoPE), and V:
    /// Step::append_kv; for schemes that store keys after RoPE. Layer::rope is empty, and tokens cannot move.
    keys_in_place
};

inline namespace XQUANT_ABI_NS {

/// The name of an input, as an enumerator is written.
constexpr const char* to_string(LayerInput input) noexcept {
    return input == LayerInput::x                  ? "x"
           : input == LayerInput::keys_before_rope ? "keys_before_rope"
           : input == LayerInput::keys_after_rope  ? "keys_after_rope"
                                                   : "keys_in_place";
}

namespace detail {

/// Whether keys come with their positions in them.
constexpr bool comes_after_rope(LayerInput input) noexcept {
    return input == LayerInput::keys_after_rope || input == LayerInput::keys_in_place;
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS

/// One layer: what the engine hands over. Views and pointers must stay valid while the cache is constructed, not
/// longer.
///
///     K = rope(k_norm(X W_k^T + b_k))      V = X W_v^T + b_v      s = scale q K^T      s = soft_cap tanh(s / soft_cap)
///     s += slope (key position - query position)                  P = softmax over the keys that the query sees
struct Layer {
    LayerShape shape;             ///< D, H, Hkv, Dh
    MatrixView w_k,               ///< [Hkv * Dh, D], one row per output channel, as checkpoints store them
        w_v;                      ///< [Hkv * Dh, D], one row per output channel
    MatrixView w_o;               ///< [D, H * Dh] of the product behind attention, for WithFeedback; or empty
    Rope rope;                    ///< no RoPE unless set
    double softmax_scale = 0;     ///< factor of q k^T, 1e-6 to 1e6; 0: 1 / sqrt(Dh)
    const float* mean = nullptr;  ///< [D] mean of X over calibration rows, or null; Projection<Rotated> subtracts it
    MatrixView calibration;       ///< [n, D] rows of X of other text, for quantizers that learn; or empty
    const LayerStatistics* statistics = nullptr;  ///< of other text, for KeyValueLatent and its kind; or null
    const float* b_k = nullptr;                   ///< [Hkv * Dh] or null
    const float* b_v = nullptr;                   ///< [Hkv * Dh] or null
    const float* k_norm = nullptr;                ///< [Dh] gain of an RMS norm of each key head, before RoPE; or null
    double k_norm_epsilon = 1e-6;                 ///< added to the mean square; 1e-30 to 1
    double soft_cap = 0;                          ///< 1e-3 to 1e9; 0: none
    std::size_t window = 0;  ///< a query at p sees positions p - window + 1 .. p; 0: all up to p; at most 2^48
    /// Llama 4's chunks: a query at p sees positions p - p % chunk .. p, where p % chunk lies in 0 .. chunk - 1 for a
    /// negative p, too. At most 2^48; 0: none. Excludes `window`.
    std::size_t chunk = 0;
    const float* alibi_slopes = nullptr;  ///< [H], each -1e6 to 1e6; or null
    /// [H] a logit of each head that takes part in the softmax, without a value; each -1e30 to 1e30; or null
    const float* sink_logits = nullptr;
    LatentAttention latent;  ///< if present, w_k and w_v read it in place of X; for Projection<Latent>
    /// What the engine hands over. With K and V, a layer needs no weights, no width and no `mean`, but for latents of a
    /// head (HeadSvd), which read w_k, b_k, b_v and k_norm; `calibration` is then [n, 2 Hkv Dh], K beside V.
    LayerInput input = LayerInput::x;
    /// No layer: rows_of of a layer that stores rows of its own.
    static constexpr std::size_t itself = static_cast<std::size_t>(-1);
    /// A layer before this one, with rows of its own, whose stored rows this one reads by its own weights and rules.
    /// They are stored once, as in the cross attention of a decoder whose layers all read the encoder's output. The
    /// engine hands over nothing for this layer. For X stored as it is or rotated (Plain, Rotated), of the same width;
    /// WithFeedback rounds them for what their errors cost in all layers that read them.
    /// `mean` and `calibration` are those of the other layer, whatever is given here. Not on a device.
    std::size_t rows_of = itself;

    /// Whether the layer reads rows that another one stores.
    [[nodiscard]] constexpr bool borrows() const noexcept { return rows_of != itself; }

    /// The most tokens that a query sees, itself included: `window` or `chunk`; 0: all up to its own.
    [[nodiscard]] constexpr std::size_t reach() const noexcept { return window > 0 ? window : chunk; }
};

/// What a cache has to know of a model: its attention layers, in order.
struct Model {
    std::vector<Layer> layers;  ///< one or more
    /// Called for each layer in turn while a cache is constructed: gives its views and pointers (w_k, w_v, latent,
    /// biases, ...) what is not in memory before. All of it is read before the next call, so no more than one layer has
    /// to be there in f32 at a time. Where rows that several layers read are rounded for their errors (WithFeedback),
    /// all of these layers are loaded in the turn of the one that stores the rows, and each once more in its own. What
    /// decides sizes stays as it stands in `layers`, and so do `mean` and `calibration` of a layer whose rows others
    /// read. It may throw. predict does not call it: where an SVD decides the rank (EnergyShare), weights have to stand
    /// in `layers`. Empty: nothing is called.
    std::function<void(std::size_t index, Layer& layer)> load_layer;

    /// A model whose layers all have this shape and RoPE; the caller fills in the weights.
    static Model uniform(std::size_t layer_count, const LayerShape& shape, const Rope& rope) {
        Model model;
        Layer layer;
        layer.shape = shape;
        layer.rope = rope;
        model.layers.assign(layer_count, layer);
        return model;
    }
};

inline namespace XQUANT_ABI_NS {
namespace detail {

/// Throws value_error unless the values [count] are finite. Null has none.
template <element T>
void check_finite(std::size_t layer, const T* values, std::size_t count, const char* name, std::size_t row = 0) {
    for (std::size_t i = 0; i < count && values != nullptr; ++i) {
        if (is_finite(values[i])) continue;
        raise_value(layer, row, "layer ", layer, ": ", name, ": value ", row * count + i, " is not finite");
    }
}

/// Likewise for all rows of a matrix.
inline void check_finite(std::size_t layer, const MatrixView& matrix, const char* name) {
    for (std::size_t i = 0; i < matrix.rows; ++i) {
        const void* row = matrix.row(i);
        if (matrix.type == DType::f32) check_finite(layer, static_cast<const float*>(row), matrix.cols, name, i);
        if (matrix.type == DType::f16) check_finite(layer, static_cast<const f16*>(row), matrix.cols, name, i);
        if (matrix.type == DType::bf16) check_finite(layer, static_cast<const bf16*>(row), matrix.cols, name, i);
    }
}

/// Throws shape_error unless a matrix has data and this shape.
inline void check_shape(std::size_t layer, const MatrixView& matrix, const char* name, const char* letters,
                        Shape shape) {
    expects(!matrix.empty() && matrix.rows == shape.rows && matrix.cols == shape.cols && matrix.stride >= matrix.cols,
            "layer ", layer, ": ", name, " is ", matrix, "; expected ", letters, " = ", shape);
    expects(matrix.type <= DType::bf16, "layer ", layer, ": ", name, " has elements of an unknown type, ",
            static_cast<int>(matrix.type));
}

/// Throws value_error unless a number is least .. most. NaN is not.
inline void check_range(std::size_t layer, double number, const char* name, double least, double most,
                        const char* exception = "") {
    if (is_finite(number) && number >= least && number <= most) return;
    raise_value(layer, value_error::none, "layer ", layer, ": ", name, " is ", number, "; expected ", least, " to ",
                most, exception);
}

inline constexpr std::size_t largest_width = std::size_t{1} << 24U;

/// Throws shape_error if a layer of latent attention cannot be served.
inline void check_latent(const Layer& layer, std::size_t index) {
    const LayerShape& s = layer.shape;
    const LatentAttention& latent = layer.latent;
    const std::size_t r = latent.w_down.rows, shared = latent.w_shared.rows,
                      turned = 2 * layer.rope.inverse_frequencies.size();
    check_shape(index, latent.w_down, "latent.w_down", "[R, width]", {std::max<std::size_t>(1, r), s.width});
    check_shape(index, latent.w_shared, "latent.w_shared", "[channels that RoPE turns, width]", {turned, s.width});
    expects(shared > 0 && shared < s.head_dim, "layer ", index, ": latent.w_shared has ", shared,
            " rows; expected 1 or more, and fewer than head_dim = ", s.head_dim);
    check_shape(index, layer.w_k, "w_k", "[kv_heads * (head_dim - channels that RoPE turns), R]",
                {s.kv_heads * (s.head_dim - shared), r});
    const std::size_t values = layer.w_v.rows;
    expects(values > 0 && values % s.kv_heads == 0 && values <= s.kv_width(), "layer ", index, ": w_v has ", values,
            " rows; expected kv_heads * Dv, a multiple of ", s.kv_heads, " up to ", s.kv_width());
    check_shape(index, layer.w_v, "w_v", "[kv_heads * Dv, R]", {values, r});
    expects(layer.b_k == nullptr && layer.b_v == nullptr && layer.k_norm == nullptr, "layer ", index,
            ": b_k, b_v or k_norm is given; latent attention has none of them");
    expects(r <= largest_width, "layer ", index, ": latent.w_down has ", r, " rows; at most 2^24 are served");
    check_range(index, latent.norm_epsilon, "latent.norm_epsilon", 1e-30, 1);
    check_finite(index, latent.norm, r, "latent.norm");
}

/// Throws shape_error if a layer of this shape, RoPE, window and chunk cannot be served.
inline void check_form(const Layer& layer, std::size_t index) {
    const LayerShape& s = layer.shape;
    expects(layer.input <= LayerInput::keys_in_place, "layer ", index, ": input is ", static_cast<int>(layer.input),
            "; expected LayerInput::x, keys_before_rope, keys_after_rope or keys_in_place");
    expects(layer.input != LayerInput::keys_in_place || layer.rope.inverse_frequencies.empty(), "layer ", index,
            ": rope has ", layer.rope.inverse_frequencies.size(),
            " pairs, and input is keys_in_place, whose keys are turned by no RoPE of the library");
    const bool given = layer.input != LayerInput::x;
    expects((s.width > 0 || given) && s.heads > 0 && s.kv_heads > 0 && s.head_dim > 0, "layer ", index, ": width ",
            s.width, ", heads ", s.heads, ", kv_heads ", s.kv_heads, ", head_dim ", s.head_dim,
            "; all of them must be positive", given ? " but the width" : "");
    expects(s.heads % s.kv_heads == 0, "layer ", index, ": heads is ", s.heads,
            "; expected a multiple of kv_heads = ", s.kv_heads);
    expects(s.head_dim <= 512, "layer ", index, ": head_dim is ", s.head_dim, "; at most 512 is served");
    expects(s.width <= largest_width, "layer ", index, ": width is ", s.width, "; at most 2^24 is served");
    expects(s.heads <= 65536, "layer ", index, ": heads is ", s.heads, "; at most 65536 are served");
    const std::size_t pairs = layer.rope.inverse_frequencies.size();
    expects(2 * pairs <= s.head_dim, "layer ", index, ": RoPE has ", pairs, " pairs; head_dim = ", s.head_dim,
            " has room for ", s.head_dim / 2);
    expects(layer.window <= largest_position, "layer ", index, ": window is ", layer.window,
            "; expected 2^48 or less, or 0, which means that every token is seen");
    expects(layer.chunk <= largest_position, "layer ", index, ": chunk is ", layer.chunk,
            "; expected 2^48 or less, or 0, which means that there are no chunks");
    expects(layer.window == 0 || layer.chunk == 0, "layer ", index, ": window is ", layer.window, " and chunk is ",
            layer.chunk, "; at most one of them may be set");
}

/// Throws shape_error if a layer names rows that it cannot read.
inline void check_borrowing(const Model& model, std::size_t index) {
    const Layer& layer = model.layers[index];
    if (!layer.borrows()) return;
    expects(layer.rows_of < index, "layer ", index, ": rows_of is ", layer.rows_of,
            "; expected a layer before it, or Layer::itself");
    const Layer& from = model.layers[layer.rows_of];
    expects(!from.borrows(), "layer ", index, ": rows_of is ", layer.rows_of, ", which reads the rows of layer ",
            from.rows_of, "; expected a layer with rows of its own");
    expects(layer.input == LayerInput::x && from.input == LayerInput::x, "layer ", index, ": rows_of is ",
            layer.rows_of, ", and the engine hands over K and V for one of the two; expected LayerInput::x for both");
    expects(layer.shape.width == from.shape.width, "layer ", index, ": width is ", layer.shape.width,
            ", and rows_of names layer ", layer.rows_of, ", whose rows have ", from.shape.width, " channels");
}

/// A layer with what Model::load_layer gives it. Throws shape_error if that changes a size or a rule.
inline Layer loaded_layer(const Model& model, std::size_t index) {
    Layer out = model.layers[index];
    if (!model.load_layer) return out;
    model.load_layer(index, out);
    const Layer& before = model.layers[index];
    expects(out.shape == before.shape && out.rope == before.rope && out.window == before.window &&
                out.chunk == before.chunk && out.input == before.input && out.rows_of == before.rows_of &&
                out.latent.w_down.rows == before.latent.w_down.rows &&
                out.latent.w_shared.rows == before.latent.w_shared.rows,
            "layer ", index,
            ": Model::load_layer changed its shape, rope, window, chunk, input, rows_of or the rows of latent; these "
            "have to stand in Model::layers");
    return out;
}

/// Of rows that another layer stores, the mean and the calibration are that layer's.
inline Layer with_mean_of_rows(const Model& model, Layer out) {
    if (!out.borrows()) return out;
    const Layer& from = model.layers[out.rows_of];
    out.mean = from.mean;
    out.calibration = from.calibration;
    return out;
}

/// Throws shape_error if layer `index` of a model cannot be served, value_error if one of its numbers is not finite or
/// out of its range.
inline void check_layer(const Layer& layer, std::size_t index) {
    check_form(layer, index);
    const LayerShape& s = layer.shape;
    expects(layer.rope.pairing <= RopePairing::halves, "layer ", index, ": rope.pairing is ",
            static_cast<int>(layer.rope.pairing), "; expected RopePairing::interleaved or RopePairing::halves");
    check_range(index, layer.rope.factor, "rope.factor", 1e-4, 1e4);
    for (const double frequency : layer.rope.inverse_frequencies) {
        check_range(index, frequency, "a frequency of rope", -10, 10);
    }
    if (layer.softmax_scale != 0) check_range(index, layer.softmax_scale, "softmax_scale", 1e-6, 1e6, " or 0");
    if (layer.soft_cap != 0) check_range(index, layer.soft_cap, "soft_cap", 1e-3, 1e9, " or 0");
    if (layer.k_norm != nullptr) check_range(index, layer.k_norm_epsilon, "k_norm_epsilon", 1e-30, 1);
    if (!layer.calibration.empty()) {
        const bool given = layer.input != LayerInput::x;
        check_shape(index, layer.calibration, "calibration",
                    given ? "[one or more rows, 2 * kv_heads * head_dim]" : "[one or more rows, width]",
                    {std::max<std::size_t>(1, layer.calibration.rows), given ? 2 * s.kv_width() : s.width});
    }
    if (layer.latent.present()) {
        check_latent(layer, index);
        check_finite(index, layer.latent.w_down, "latent.w_down");
        check_finite(index, layer.latent.w_shared, "latent.w_shared");
    } else {
        const auto check = [&](const MatrixView& weight, const char* name) {
            if (layer.input != LayerInput::x && weight.empty()) return;
            check_shape(index, weight, name, "[kv_heads * head_dim, width]", {s.kv_width(), s.width});
        };
        check(layer.w_k, "w_k");
        check(layer.w_v, "w_v");
    }
    if (!layer.w_o.empty()) {
        check_shape(index, layer.w_o, "w_o", "[one or more rows, heads * head_dim]",
                    {std::max<std::size_t>(1, layer.w_o.rows), s.heads * s.head_dim});
    }
    check_finite(index, layer.w_k, "w_k");
    check_finite(index, layer.w_v, "w_v");
    check_finite(index, layer.w_o, "w_o");
    check_finite(index, layer.mean, layer.input == LayerInput::x ? s.width : 0, "mean");
    check_finite(index, layer.b_k, s.kv_width(), "b_k");
    check_finite(index, layer.b_v, s.kv_width(), "b_v");
    check_finite(index, layer.k_norm, s.head_dim, "k_norm");
    for (std::size_t h = 0; h < s.heads && layer.alibi_slopes != nullptr; ++h) {
        check_range(index, double{layer.alibi_slopes[h]}, "a slope of alibi_slopes", -1e6, 1e6);
    }
    for (std::size_t h = 0; h < s.heads && layer.sink_logits != nullptr; ++h) {
        check_range(index, double{layer.sink_logits[h]}, "a logit of sink_logits", -1e30, 1e30);
    }
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
