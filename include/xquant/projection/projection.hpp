// Projection<...>: what is stored of X, and how K and V come back from it.
//
//     Plain       X itself                                     for MHA; the paper's form
//     Rotated     X times an orthogonal rotation, less a mean  for MHA; the default
//     KeyValue    K and V                                      the usual cache, as a baseline
//     SplitSvd    latents of W_k and of W_v                    for GQA; the paper's form     (projection/svd.hpp)
//     HeadSvd     a latent for each key head, V rotated        for GQA; the best             (projection/svd.hpp)
//
// A projection of your own is a struct with
//     static constexpr std::size_t streams                      stored rows per token and layer
//     static LayerFootprint<streams> footprint(const Layer&)    their widths, and the floats of prepared weights
//     static LayerPlan prepare(const Layer&)                    the affine pair T, A; see storage/plan.hpp
#pragma once

#include <array>
#include <cstddef>

#include <xquant/model.hpp>
#include <xquant/storage/plan.hpp>

namespace xquant {

/// What a projection will take for one layer, known before anything is allocated.
template <std::size_t Streams>
struct LayerFootprint {
    std::array<std::size_t, Streams> widths{};  ///< channels of each stream's rows
    std::size_t weight_floats = 0;              ///< floats in the vectors and matrices of its LayerPlan
};

/// Names the slot; the policy is Policy itself.
template <class Policy>
struct Projection {
    using policy = Policy;
};

inline namespace XQUANT_ABI_NS {

/// These two need Eigen: include <xquant/projection/svd.hpp>.
struct SplitSvd;
struct HeadSvd;

namespace detail {

/// Rows first .. first + count of a weight [out, in] as f32, [count, in].
inline std::vector<float> load_rows(const MatrixView& weight, std::size_t first, std::size_t count) {
    std::vector<float> rows(count * weight.cols);
    for (std::size_t i = 0; i < count; ++i) {
        load_row(weight.row(first + i), weight.type, weight.cols, rows.data() + i * weight.cols);
    }
    return rows;
}

/// [rows, cols] -> [cols, rows].
inline std::vector<float> transpose(const std::vector<float>& in, std::size_t rows, std::size_t cols) {
    std::vector<float> out(in.size());
    for (std::size_t i = 0; i < rows; ++i) {
        for (std::size_t j = 0; j < cols; ++j) out[j * rows + i] = in[i * cols + j];
    }
    return out;
}

/// c = mean W^T for rows [out, in] of a weight: [out].
inline std::vector<float> mean_times(const float* mean, const std::vector<float>& rows, std::size_t in) {
    std::vector<float> out(rows.size() / in);
    for (std::size_t i = 0; i < out.size(); ++i) {
        double sum = 0;
        for (std::size_t j = 0; j < in; ++j) {
            sum += static_cast<double>(mean[j]) * static_cast<double>(rows[i * in + j]);
        }
        out[i] = static_cast<float>(sum);
    }
    return out;
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
