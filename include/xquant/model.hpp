// What the library has to know of a model: shapes, weights of W_k and W_v, positions. Read once, at construction.
#pragma once

#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

#include <xquant/error.hpp>
#include <xquant/types.hpp>

namespace xquant {

/// Shape of one attention layer. GQA: kv_heads < heads; MHA: equal; MQA: kv_heads = 1.
struct LayerShape {
    std::size_t width = 0;     ///< D, channels of X
    std::size_t heads = 0;     ///< H, query heads
    std::size_t kv_heads = 0;  ///< Hkv, key and value heads
    std::size_t head_dim = 0;  ///< Dh

    /// R = Hkv * Dh, channels of K and of V.
    [[nodiscard]] constexpr std::size_t kv_width() const noexcept { return kv_heads * head_dim; }
    friend bool operator==(const LayerShape&, const LayerShape&) = default;
};

/// Which channels of a head RoPE turns together: (2j, 2j + 1), as GGUF stores Llama's weights, or (j, j + half).
enum class RopePairing : unsigned char { interleaved, halves };

/// Rotary position embedding: pair j is turned by position * inverse_frequencies[j]. Twice as many channels as there are
/// frequencies are turned, the rest of the head is left alone. No frequencies: no RoPE. For longer contexts: builders in
/// position/scaling.hpp.
struct Rope {
    RopePairing pairing = RopePairing::interleaved;
    std::vector<double> inverse_frequencies;
    double factor = 1;  ///< cosines and sines are multiplied by it: the attention factor of YaRN and LongRoPE

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

/// Multi-head latent attention: the model itself makes K and V from a latent, and keys have a part that all heads share.
///
///     latent = norm(x W_down^T) [R]      k_shared = rope(x W_shared^T) [Dr]
///     K_h = [k_shared, latent W_k,h^T]   V_h = latent W_v,h^T            with Layer::w_k [H * (Dh - Dr), R], w_v [H * Dv, R]
///
/// The shared channels come first in a head, so the engine puts the rotary part of its queries first. Dv is at most Dh; the
/// output has Dh channels a head, of which those from Dv on are 0.
/// Source: DeepSeek-V2 (arXiv 2405.04434), section 2.1.
struct LatentAttention {
    MatrixView w_down;            ///< W^DKV [R, D]; empty: the layer's attention is of the usual kind
    MatrixView w_shared;          ///< W^KR [Dr, D]; Dr = 2 * the layer's RoPE pairs
    const float* norm = nullptr;  ///< [R] gain of the latent's RMS norm, or null
    double norm_epsilon = 1e-6;   ///< added to the mean square

    [[nodiscard]] bool present() const noexcept { return !w_down.empty(); }
};

/// One layer: what the engine hands over. Views and pointers must stay valid while the cache is constructed, not longer.
///
///     K = rope(k_norm(X W_k^T + b_k))      V = X W_v^T + b_v      s = scale q K^T      s = soft_cap tanh(s / soft_cap)
///     s += slope (key position - query position)                  P = softmax over the keys that the query sees
struct Layer {
    LayerShape shape;
    MatrixView w_k, w_v;  ///< [Hkv * Dh, D], one row per output channel, as checkpoints store them
    Rope rope;
    double softmax_scale = 0;       ///< factor of q k^T; 0: 1 / sqrt(Dh)
    const float* mean = nullptr;    ///< [D] mean of X over calibration rows, or null; Projection<Rotated> subtracts it
    MatrixView calibration;         ///< [n, D] rows of X of other text, for quantizers that learn; or empty
    const float* b_k = nullptr;     ///< [Hkv * Dh] or null
    const float* b_v = nullptr;     ///< [Hkv * Dh] or null
    const float* k_norm = nullptr;  ///< [Dh] gain of an RMS norm of each key head, before RoPE; or null
    double k_norm_epsilon = 1e-6;   ///< added to the mean square
    double soft_cap = 0;            ///< 0: none
    std::size_t window = 0;         ///< a query at p sees positions p - window + 1 .. p; 0: all up to p
    const float* alibi_slopes = nullptr;  ///< [H] or null
    const float* sink_logits = nullptr;   ///< [H] a logit of each head that takes part in the softmax, without a value
    LatentAttention latent;               ///< if present, w_k and w_v read it in place of X; for Projection<Latent>
};

struct Model {
    std::vector<Layer> layers;

    /// The same shape and RoPE for every layer; weights are filled in by the caller.
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
void check_finite(const T* values, std::size_t count, const char* name) {
    for (std::size_t i = 0; i < count && values != nullptr; ++i) {
        if (std::isfinite(to_float(values[i]))) continue;
        raise<value_error>(std::string(name) + ": value " + std::to_string(i) + " is not finite");
    }
}

/// The same for all rows of a matrix.
inline void check_finite(const MatrixView& matrix, const char* name) {
    for (std::size_t i = 0; i < matrix.rows; ++i) {
        const void* row = matrix.row(i);
        if (matrix.type == DType::f32) check_finite(static_cast<const float*>(row), matrix.cols, name);
        if (matrix.type == DType::f16) check_finite(static_cast<const f16*>(row), matrix.cols, name);
        if (matrix.type == DType::bf16) check_finite(static_cast<const bf16*>(row), matrix.cols, name);
    }
}

/// Throws shape_error if a layer of latent attention cannot be served.
inline void check_latent(const Layer& layer) {
    const LayerShape& s = layer.shape;
    const LatentAttention& latent = layer.latent;
    const std::size_t r = latent.w_down.rows, shared = latent.w_shared.rows;
    expects(r > 0 && latent.w_down.cols == s.width && latent.w_down.stride >= s.width, "latent: W_down is [R, width]");
    expects(!latent.w_shared.empty() && shared > 0 && shared < s.head_dim && latent.w_shared.cols == s.width &&
                latent.w_shared.stride >= s.width,
            "latent: W_shared is [Dr, width], Dr below head_dim");
    expects(shared == 2 * layer.rope.inverse_frequencies.size(),
            "latent: RoPE turns the channels that all heads share, all of them and no others");
    expects(layer.w_k.cols == r && layer.w_k.rows == s.kv_heads * (s.head_dim - shared),
            "latent: W_k is [kv_heads * (head_dim - Dr), R]");
    expects(
        layer.w_v.cols == r && layer.w_v.rows > 0 && layer.w_v.rows % s.kv_heads == 0 && layer.w_v.rows <= s.kv_width(),
        "latent: W_v is [kv_heads * Dv, R], Dv at most head_dim");
    expects(layer.b_k == nullptr && layer.b_v == nullptr && layer.k_norm == nullptr,
            "latent: there are no biases and no norm of K");
    expects(latent.norm_epsilon >= 0, "latent: norm_epsilon is not negative");
}

/// Throws shape_error if the layer cannot be served, value_error if one of its numbers is not finite.
inline void check_layer(const Layer& layer) {
    const LayerShape& s = layer.shape;
    expects(s.width > 0 && s.heads > 0 && s.kv_heads > 0 && s.head_dim > 0, "a layer's shape has a zero in it");
    expects(s.heads % s.kv_heads == 0, "heads must be a multiple of kv_heads");
    expects(s.head_dim <= 256, "head_dim is at most 256");
    expects(s.width <= (std::size_t{1} << 24) && s.heads <= 65536, "a layer's shape is beyond any model's");
    expects(2 * layer.rope.inverse_frequencies.size() <= s.head_dim, "RoPE has more pairs than head_dim / 2");
    expects(layer.rope.factor > 0 && std::isfinite(layer.rope.factor), "the factor of a RoPE is above 0");
    for (const double number : {layer.softmax_scale, layer.soft_cap, layer.k_norm_epsilon}) {
        expects<value_error>(std::isfinite(number), "softmax_scale, soft_cap or k_norm_epsilon is not finite");
    }
    expects(layer.softmax_scale >= 0 && layer.soft_cap >= 0, "softmax_scale and soft_cap are not negative");
    expects(layer.k_norm == nullptr || layer.k_norm_epsilon >= 0, "k_norm_epsilon is not negative");
    expects(layer.calibration.empty() || (layer.calibration.rows > 0 && layer.calibration.cols == s.width &&
                                          layer.calibration.stride >= s.width),
            "calibration is [rows, width]");
    for (const MatrixView& w : {layer.w_k, layer.w_v}) {
        expects(!w.empty(), "a layer has no W_k or no W_v");
        expects(w.stride >= w.cols, "a weight's stride is shorter than its rows");
    }
    if (layer.latent.present()) {
        check_latent(layer);
        check_finite(layer.latent.w_down, "latent: W_down");
        check_finite(layer.latent.w_shared, "latent: W_shared");
    } else {
        for (const MatrixView& w : {layer.w_k, layer.w_v}) {
            expects(w.rows == s.kv_width() && w.cols == s.width, "W_k and W_v are [kv_heads * head_dim, width]");
        }
    }
    check_finite(layer.w_k, "W_k");
    check_finite(layer.w_v, "W_v");
    check_finite(layer.mean, s.width, "mean");
    check_finite(layer.b_k, s.kv_width(), "b_k");
    check_finite(layer.b_v, s.kv_width(), "b_v");
    check_finite(layer.k_norm, s.head_dim, "k_norm");
    check_finite(layer.alibi_slopes, s.heads, "alibi_slopes");
    check_finite(layer.sink_logits, s.heads, "sink_logits");
    for (const double frequency : layer.rope.inverse_frequencies) {
        expects<value_error>(std::isfinite(frequency), "a frequency of RoPE is not finite");
    }
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
