// Projection<...>: what is stored of X, and how K and V come back from it.
//
//     Plain       X itself                                     for MHA; the paper's form
//     Rotated     X times an orthogonal rotation, less a mean  for MHA; the default
//     KeyValue    K and V                                      the usual cache, as a baseline
//     SplitSvd    latents of W_k and of W_v                    for GQA; the paper's form     (projection/svd.hpp)
//     HeadSvd     a latent for each key head, V rotated        for GQA; the best             (projection/svd.hpp)
//     JointSvd    one latent of [W_k W_v]                      for GQA, cross-layer          (projection/joint_svd.hpp)
//     Latent      the model's own latent                       for multi-head latent attention
//
// A projection of your own is a struct with
//     static constexpr std::size_t streams                   stored rows per token and layer
//     static LayerFootprint<streams> footprint(const Layer&) their widths, and the floats of prepared weights
//     static LayerPlan prepare(const Layer&)                 the affine pair T, A; see projection/plan.hpp
//     static constexpr bool reads_latent = true              if it is for layers with Layer::latent, which it refuses
//                                                            otherwise
//     static constexpr bool takes(LayerInput)                which layers it serves beside those that hand over X:
//                                                            StreamPlan::source is K or V then
//     static constexpr bool reads_w_k = true                 if it reads Layer::w_k even where K and V are handed over
// to choose its bases by the bits of codes,
//     static LayerPlan prepare(const Layer&, const std::array<unsigned, streams>& bits)     in place of prepare(layer),
//                                                                         and of prepare_difference(layer)
// and, to serve CrossLayer<Delta>,
//     below, base                       projections of the layers below the base layer and of the base layer itself
//     difference_footprint, prepare_difference(const Layer&)   the plan of a layer that stores a difference: its rows
//                                       are those of `base`, and stream 0 may have a latent
#pragma once

#include <array>
#include <concepts>
#include <cstddef>

#include <xquant/model.hpp>
#include <xquant/projection/plan.hpp>

namespace xquant {

/// What a projection will take for one layer, known before anything is allocated.
template <std::size_t Streams>
struct LayerFootprint {
    std::array<std::size_t, Streams> widths{};  ///< channels of each stream's rows
    std::size_t matrix_floats = 0;              ///< entries of the matrices of its LayerPlan: T (of X), A, and U twice
    std::size_t vector_floats = 0;              ///< all other floats: means, biases, constants, gains, T of K or of V
    /// Channels of each stream that heads read together: Dh where every head has its own; 0: all of them.
    std::array<std::size_t, Streams> blocks{};
};

/// Names the slot; the policy is Policy itself.
template <class Policy>
struct Projection {
    using policy = Policy;  ///< the parameter
};

/// Each head has a basis of its own.
struct EachHead {};
/// All heads have one basis together.
struct AllHeads {};
/// All channels of X.
struct AllChannels {};
/// What K and V read of X.
struct KeysAndValues {};

inline namespace XQUANT_ABI_NS {

/// Rank of an SVD: all of it.
struct FullRank;

/// These need Eigen: include <xquant/projection/svd.hpp>, <xquant/projection/joint_svd.hpp>,
/// <xquant/projection/key_value_latent.hpp>, <xquant/projection/x_latent.hpp>.
template <class Keep>
struct SplitSvdOf;
template <class Keep>
struct HeadSvdOf;
template <class Over>
struct KeyValueLatent;
template <class Over>
struct XLatent;
template <class Mix, class Keep>
struct JointSvd;
using SplitSvd = SplitSvdOf<FullRank>;
using HeadSvd = HeadSvdOf<FullRank>;

namespace detail {

/// Whether a projection serves layers with this input.
template <class Policy>
constexpr bool takes(LayerInput input) noexcept {
    if constexpr (requires { Policy::takes(input); }) {
        if (input != LayerInput::x) return Policy::takes(input);
    }
    return input == LayerInput::x;
}

/// Whether a projection reads Layer::w_k where K and V are handed over.
template <class Policy>
constexpr bool reads_w_k() noexcept {
    if constexpr (requires { Policy::reads_w_k; }) return Policy::reads_w_k;
    return false;
}

/// Rows first .. first + count of a weight [out, in] as f32, [count, in].
inline std::vector<float> load_rows(const MatrixView& weight, std::size_t first, std::size_t count) {
    std::vector<float> rows(count * weight.cols);
    for (std::size_t i = 0; i < count; ++i) {
        load_row(weight.row(first + i), weight.type, weight.cols, rows.data() + i * weight.cols);
    }
    return rows;
}

/// [rows, cols] -> [cols, rows].
template <class T>
std::vector<T> transpose(const std::vector<T>& in, std::size_t rows, std::size_t cols) {
    std::vector<T> out(in.size());
    for (std::size_t i = 0; i < rows; ++i) {
        for (std::size_t j = 0; j < cols; ++j) out[j * rows + i] = in[i * cols + j];
    }
    return out;
}

/// c = mean W^T + bias for rows [out, in] of a weight: [out]; empty if there is neither.
inline std::vector<float> constant_of(const float* mean, const float* bias, const std::vector<float>& rows,
                                      std::size_t in) {
    std::vector<float> out;
    if (mean == nullptr && bias == nullptr) return out;
    out.resize(rows.size() / in);
    for (std::size_t i = 0; i < out.size(); ++i) {
        double sum = bias != nullptr ? static_cast<double>(bias[i]) : 0;
        for (std::size_t j = 0; j < in && mean != nullptr; ++j) {
            sum += static_cast<double>(mean[j]) * static_cast<double>(rows[i * in + j]);
        }
        out[i] = static_cast<float>(sum);
    }
    return out;
}

/// The floats of all heads' constants.
constexpr std::size_t constant_floats(const Layer& layer, bool with_mean) noexcept {
    const std::size_t each = layer.shape.kv_width();
    return (with_mean || layer.b_k != nullptr ? each : 0) + (with_mean || layer.b_v != nullptr ? each : 0);
}

/// The floats [count] as a vector, or none.
inline std::vector<float> optional_floats(const float* values, std::size_t count) {
    return values != nullptr ? std::vector<float>(values, values + count) : std::vector<float>();
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
