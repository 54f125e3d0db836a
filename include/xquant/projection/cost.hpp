// What an error of a stream's coded rows costs, from the plan of its layer: for quantizers that feed errors back
// (quantizer/feedback.hpp), whatever the projection.
//
//     G = sum over the heads that read the stream of A_h M_h A_h^T, and 0.01 of the mean of its diagonal beside that
//
// M_h is what an error of K_h or of V_h costs: of Layer::statistics, where they are given. Without them nothing is
// known of queries: an error of K costs alike in all directions, one of V the sum over the head's queries of W_o^T W_o
// (Layer::w_o; without it, alike in all directions), and each head's K counts as much as its V.
//
// Cost    n^2 / 2 products for each channel of each head.
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include <xquant/projection/projection.hpp>
#include <xquant/statistics.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// Lower triangle of G [n, n] += weight a^T b, for rows a and b [rows, n] with a symmetric a^T b.
inline void add_product(const float* a, const float* b, std::size_t rows, std::size_t n, double weight, float* g) {
    constexpr std::size_t step = 8;  // rows that share a pass over G
    for (std::size_t r = 0; r < rows; r += step) {
        const std::size_t end = (std::min)(r + step, rows);
        for (std::size_t c = 0; c < n; ++c) {
            float* XQUANT_RESTRICT to = g + c * n;
            for (std::size_t i = r; i < end; ++i) {
                const auto factor = static_cast<float>(weight * static_cast<double>(a[i * n + c]));
                const float* XQUANT_RESTRICT from = b + i * n;
                for (std::size_t k = 0; k <= c; ++k) to[k] += factor * from[k];
            }
        }
    }
}

/// out [rows, n] = m [rows, rows] b [rows, n].
inline std::vector<float> left_product(const std::vector<double>& m, const std::vector<float>& b, std::size_t rows) {
    const std::size_t n = b.size() / rows;
    std::vector<float> out(b.size(), 0.0F);
    for (std::size_t i = 0; i < rows; ++i) {
        for (std::size_t j = 0; j < rows; ++j) {
            const auto factor = static_cast<float>(m[i * rows + j]);
            for (std::size_t c = 0; c < n; ++c) out[i * n + c] += factor * b[j * n + c];
        }
    }
    return out;
}

/// The sum over query heads first .. first + count of W_o^T W_o [Dh, Dh], for W_o [D, H * Dh].
inline std::vector<double> output_squares(const MatrixView& w_o, std::size_t first, std::size_t count, std::size_t dh) {
    std::vector<double> out(dh * dh, 0.0);
    std::vector<float> row(w_o.cols);
    for (std::size_t r = 0; r < w_o.rows; ++r) {
        load_row(w_o.row(r), w_o.type, w_o.cols, row.data());
        for (std::size_t h = first; h < first + count; ++h) {
            const float* const of = row.data() + h * dh;
            for (std::size_t i = 0; i < dh; ++i) {
                for (std::size_t j = 0; j < dh; ++j) {
                    out[i * dh + j] += static_cast<double>(of[i]) * static_cast<double>(of[j]);
                }
            }
        }
    }
    return out;
}

/// What a head makes of an error of coded rows: [Dh, n], channels of the head by coded channels that it reads.
inline std::vector<float> head_rows(const HeadPlan& head, const StreamPlan& stream, std::size_t dh) {
    std::vector<float> rows(dh * head.width, 0.0F);
    if (head.matrix.empty()) {
        for (std::size_t i = 0; i < dh; ++i) rows[i * dh + i] = 1;
    } else {
        rows = transpose(head.matrix, head.width, dh);
    }
    if (stream.latent.empty()) return rows;
    // An error of what is coded is one of U^T in the row.
    const std::size_t n = stream.coded_width();
    const bool own = !stream.spread.empty();
    std::vector<float> out(dh * n, 0.0F);
    for (std::size_t i = 0; i < dh; ++i) {
        for (std::size_t c = 0; c < head.width; ++c) {
            const float factor = rows[i * head.width + c];
            const float* const u =
                own ? stream.spread.data() + head.first + c : stream.latent.data() + (head.first + c) * n;
            for (std::size_t k = 0; k < n; ++k) out[i * n + k] += factor * u[own ? k * stream.width : k];
        }
    }
    return out;
}

/// rows [Dh, head.width] as rows [Dh, n] of all n channels of a block, of which the head reads some.
inline std::vector<float> rows_in_block(const std::vector<float>& rows, const HeadPlan& head, std::size_t dh,
                                        std::size_t n) {
    std::vector<float> out(dh * n, 0.0F);
    for (std::size_t i = 0; i < dh; ++i) {
        std::copy_n(rows.data() + i * head.width, head.width, out.data() + i * n + head.first);
    }
    return out;
}

/// Whether heads read a stream's channels apart, head h those from h * width on.
inline bool read_apart(const std::vector<HeadPlan>& heads, const StreamPlan& stream) noexcept {
    bool apart = stream.latent.empty() && heads.size() * heads.front().width == stream.width;
    for (std::size_t h = 0; h < heads.size(); ++h) apart = apart && heads[h].first == h * heads.front().width;
    return apart;
}

/// Channels of a block of the metric of a stream.
inline std::size_t metric_block(const LayerPlan& plan, std::size_t stream) noexcept {
    std::size_t block = 0;
    for (const auto* heads : {&plan.keys, &plan.values}) {
        if (heads->front().stream != stream) continue;
        const bool apart = read_apart(*heads, plan.streams[stream]);
        block = (std::max)(block, apart ? heads->front().width : plan.streams[stream].coded_width());
    }
    return block > 0 ? block : plan.streams[stream].coded_width();
}

/// Whether it was measured what errors of a layer's K and V cost.
inline bool has_costs(const Layer& layer) noexcept {
    const std::size_t floats = layer.shape.kv_heads * layer.shape.head_dim * layer.shape.head_dim;
    const LayerStatistics* const known = layer.statistics;
    return known != nullptr && known->key_cost.size() == floats && known->value_cost.size() == floats;
}

/// What an error of a stream's coded rows costs.
inline StreamMetric metric_of_stream(const LayerPlan& plan, const Layer& layer, std::size_t stream) {
    const StreamPlan& of = plan.streams[stream];
    const std::size_t dh = layer.shape.head_dim, each = dh * dh, coded = of.coded_width();
    const std::size_t group = layer.shape.heads / layer.shape.kv_heads, n = metric_block(plan, stream);
    const LayerStatistics* const known = layer.statistics;
    const bool measured = has_costs(layer);
    std::vector<float> sum(coded * n, 0.0F);
    for (const auto* heads : {&plan.keys, &plan.values}) {
        const bool keys = heads == &plan.keys;
        for (std::size_t h = 0; h < heads->size() && heads->front().stream == stream; ++h) {
            const HeadPlan& head = (*heads)[h];
            std::vector<float> rows = head_rows(head, of, dh);
            if (of.latent.empty() && head.width < n) rows = rows_in_block(rows, head, dh, n);
            std::vector<float> costs;
            // Statistics are of K before RoPE.
            const bool is_measured = measured && !(keys && plan.keys_after_rope);
            if (is_measured) {
                const float* const m = (keys ? known->key_cost : known->value_cost).data() + h * each;
                costs = left_product(std::vector<double>(m, m + each), rows, dh);
            } else if (!keys && !layer.w_o.empty()) {
                costs = left_product(output_squares(layer.w_o, h * group, group, dh), rows, dh);
            } else {
                costs = rows;
            }
            double trace = 0;
            for (std::size_t i = 0; i < rows.size(); ++i) {
                trace += static_cast<double>(rows[i]) * static_cast<double>(costs[i]);
            }
            if (!(trace > 0)) continue;
            float* const to = sum.data() + (n < coded ? head.first * n : 0);
            add_product(rows.data(), costs.data(), dh, n, is_measured ? 1 : 1 / trace, to);
        }
    }
    StreamMetric out{n, std::vector<double>(sum.begin(), sum.end())};
    for (std::size_t first = 0; first < out.values.size(); first += n * n) {
        double trace = 0;
        for (std::size_t c = 0; c < n; ++c) trace += out.values[first + c * n + c];
        const double floor = trace > 0 ? 0.01 * trace / static_cast<double>(n) : 1.0;
        for (std::size_t c = 0; c < n; ++c) out.values[first + c * n + c] += floor;
    }
    return out;
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
