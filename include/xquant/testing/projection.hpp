// The contract of a projection policy: see contract.hpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include <xquant/backend/simd/backends.hpp>
#include <xquant/concepts.hpp>
#include <xquant/core/prepared.hpp>
#include <xquant/projection/cost.hpp>
#include <xquant/testing/violation.hpp>

namespace xquant::testing {
inline namespace XQUANT_ABI_NS {

namespace detail {

/// Rows at positions far apart, and how many.
inline constexpr std::size_t row_count = 9;
/// How far two values are apart. NaN is far from everything: (std::max)(worst, NaN) is `worst`.
inline double distance(double a, double b) noexcept {
    const double off = std::abs(a - b);
    return xquant::detail::is_finite(off) ? off : (std::numeric_limits<double>::max)();
}
inline std::int64_t position_of(std::size_t row) noexcept { return static_cast<std::int64_t>(37 * row); }

template <std::size_t Streams>
void check_footprint(const LayerPlan& plan, const LayerFootprint<Streams>& footprint, std::size_t head_dim) {
    holds(plan.streams.size() == Streams, "the plan has " + std::to_string(plan.streams.size()) +
                                              " streams, the policy says " + std::to_string(Streams));
    for (std::size_t i = 0; i < Streams; ++i) {
        const std::size_t width = plan.streams[i].coded_width();
        const std::size_t block = footprint.blocks[i] > 0 ? footprint.blocks[i] : width;
        holds(block == xquant::detail::metric_block(plan, i),
              "footprint: heads read " + std::to_string(block) + " channels of stream " + std::to_string(i) +
                  " together, by the plan " + std::to_string(xquant::detail::metric_block(plan, i)));
        holds(width == footprint.widths[i], "footprint: width of stream " + std::to_string(i) + " is " +
                                                std::to_string(footprint.widths[i]) + ", the plan's is " +
                                                std::to_string(width));
    }
    const auto check = [](const char* name, std::size_t said, std::size_t there) {
        holds(said == there, "footprint: " + std::string(name) + " is " + std::to_string(said) + ", the plan has " +
                                 std::to_string(there));
    };
    check("matrix_floats", footprint.matrix_floats, matrix_floats(plan));
    check("vector_floats", footprint.vector_floats, vector_floats(plan, head_dim));
}

inline xquant::detail::PreparedLayer prepare_plan(xquant::detail::Ledger& ledger, const Layer& layer, LayerPlan plan,
                                                  CrossRole role) {
    try {
        return {ledger, layer, std::move(plan), role, 0};
    } catch (const shape_error& e) {
        throw contract_violation("xquant contract: the plan does not fit the layer: " + std::string(e.what()));
    }
}

/// out [rows, out] = x [rows, in] W^T, in f64.
inline std::vector<double> times_weight(const std::vector<double>& x, const MatrixView& weight) {
    const std::size_t n = x.size() / weight.cols;
    std::vector<double> out(n * weight.rows, 0.0);
    std::vector<float> row(weight.cols);
    for (std::size_t i = 0; i < weight.rows; ++i) {
        load_row(weight.row(i), weight.type, weight.cols, row.data());
        for (std::size_t t = 0; t < n; ++t) {
            for (std::size_t c = 0; c < weight.cols; ++c) {
                out[t * weight.rows + i] += x[t * weight.cols + c] * static_cast<double>(row[c]);
            }
        }
    }
    return out;
}

/// Each block of `width` values gets an RMS norm with gain.
inline void normalize(std::vector<double>& x, std::size_t width, const float* gain, double epsilon) {
    for (std::size_t i = 0; i < x.size() && gain != nullptr; i += width) {
        double square = 0;
        for (std::size_t c = 0; c < width; ++c) square += x[i + c] * x[i + c];
        const double inverse = 1 / std::sqrt(square / static_cast<double>(width) + epsilon);
        for (std::size_t c = 0; c < width; ++c) x[i + c] *= inverse * static_cast<double>(gain[c]);
    }
}

/// K (before RoPE; after k_norm if `normed`) or V as the model defines them: [rows, Hkv * Dh].
inline std::vector<double> model_rows(const Layer& layer, const std::vector<float>& x, bool key, bool normed) {
    const std::size_t dh = layer.shape.head_dim, heads = layer.shape.kv_heads, r = layer.shape.kv_width();
    std::vector<double> input(x.begin(), x.end());
    if (!layer.latent.present()) {
        std::vector<double> out = times_weight(input, key ? layer.w_k : layer.w_v);
        const float* bias = key ? layer.b_k : layer.b_v;
        for (std::size_t i = 0; i < out.size() && bias != nullptr; ++i) out[i] += static_cast<double>(bias[i % r]);
        if (key && normed) normalize(out, dh, layer.k_norm, layer.k_norm_epsilon);
        return out;
    }
    std::vector<double> latent = times_weight(input, layer.latent.w_down);
    normalize(latent, layer.latent.w_down.rows, layer.latent.norm, layer.latent.norm_epsilon);
    const MatrixView& weight = key ? layer.w_k : layer.w_v;
    const std::vector<double> own = times_weight(latent, weight), shared = times_weight(input, layer.latent.w_shared);
    const std::size_t each = weight.rows / heads, first = key ? layer.latent.w_shared.rows : 0;
    std::vector<double> out(row_count * r, 0.0);
    for (std::size_t i = 0; i < row_count * heads; ++i) {
        std::copy_n(own.data() + i * each, each, out.data() + i * dh + first);
        std::copy_n(shared.data() + i / heads * first, first, out.data() + i * dh);
    }
    return out;
}

/// K, after k_norm and before RoPE, or V: [rows, Hkv * Dh], as an engine hands them over.
inline std::vector<float> given_rows(const Layer& layer, const std::vector<float>& x, bool key) {
    const std::vector<double> rows = model_rows(layer, x, key, true);
    return {rows.begin(), rows.end()};
}

/// The rows that a layer stores of x, or of the K and V that x makes: of each stream, [rows, width].
inline std::vector<std::vector<float>> stored_rows(const Layer& layer, const xquant::detail::PreparedLayer& prepared,
                                                   const RopeView& rope, const std::vector<float>& x) {
    std::vector<std::int64_t> positions;
    for (std::size_t i = 0; i < row_count; ++i) positions.push_back(position_of(i));
    std::vector<std::vector<float>> out;
    for (const StreamEncoder& encoder : prepared.encoders) {
        const bool given = encoder.source != RowSource::x;
        const std::vector<float> input = given ? given_rows(layer, x, encoder.source == RowSource::keys) : x;
        const std::size_t d = encoder.input;
        std::vector<float> rows(row_count * encoder.width);
        std::vector<float> scratch(backend::project_scratch(d, encoder.width, row_count));
        backend::project(backend::best{}, encoder, {input.data(), row_count, d, d},
                         {positions.data(), nullptr, rope, prepared.shape.head_dim}, rows.data(), scratch.data());
        out.push_back(std::move(rows));
    }
    return out;
}

/// K and V of every head come back from those rows.
inline void check_heads(const Layer& layer, const xquant::detail::PreparedLayer& prepared, bool keys_normed,
                        const RopeView& rope, const std::vector<float>& x,
                        const std::vector<std::vector<float>>& stored, double tolerance) {
    const std::size_t dh = layer.shape.head_dim, r = layer.shape.kv_width();
    std::vector<float> found(row_count * dh), scratch(backend::rematerialize_scratch(dh));
    std::vector<float> cosines(rope.pairs), sines(rope.pairs);
    for (const bool key : {true, false}) {
        const std::vector<double> exact = model_rows(layer, x, key, keys_normed);
        for (std::size_t head = 0; head < layer.shape.kv_heads; ++head) {
            const HeadDecoder& decoder = key ? prepared.keys[head] : prepared.values[head];
            const std::vector<float>& rows = stored[decoder.stream];
            const auto width = static_cast<std::uint32_t>(rows.size() / row_count);
            backend::rematerialize(backend::best{}, view_rows(rows.data(), width), decoder, 0,
                                   {found.data(), row_count, dh, dh, backend::TileOrder::token_major}, scratch.data());
            for (std::size_t t = 0; t < row_count && key && prepared.shared.width > 0; ++t) {
                const std::size_t shared = prepared.shared.width;
                std::copy_n(stored[prepared.shared.stream].data() + t * shared, shared, found.data() + t * dh);
            }
            for (std::size_t t = 0; t < row_count && key && prepared.keys_after_rope; ++t) {
                rope_angles(rope, position_of(t), cosines.data(), sines.data());
                for (float* of : {cosines.data(), sines.data()}) {
                    for (std::size_t j = 0; j < rope.pairs; ++j) of[j] /= rope.factor;
                }
                backend::apply_rope(backend::best{}, rope, cosines.data(), sines.data(), -1.0F, found.data() + t * dh);
            }
            double largest = 0, worst = 0;
            for (std::size_t t = 0; t < row_count; ++t) {
                for (std::size_t i = 0; i < dh; ++i) {
                    const double value = exact[t * r + head * dh + i];
                    largest = (std::max)(largest, std::abs(value));
                    worst = (std::max)(worst, distance(value, double{found[t * dh + i]}));
                }
            }
            holds(worst <= tolerance * largest, std::string(key ? "K" : "V") + " of head " + std::to_string(head) +
                                                    " does not come back from exact rows: off by " +
                                                    std::to_string(worst) + " where values reach " +
                                                    std::to_string(largest));
        }
    }
}

/// Checks a projection on one layer whose input is X or K and V. Returns the rows that it stores.
template <class P>
std::vector<std::vector<float>> check_rows(const Layer& layer, double tolerance) {
    namespace core = xquant::detail;
    core::check_layer(layer, 0);
    LayerPlan plan = P::prepare(layer);
    for (StreamPlan& stream : plan.streams) stream.metric = {};  // counted where rows are rounded for it
    check_footprint(plan, P::footprint(layer), layer.shape.head_dim);
    const bool normed = plan.keys_normed;
    core::Ledger ledger(nullptr);
    const core::PreparedLayer prepared = prepare_plan(ledger, layer, std::move(plan), CrossRole::none);
    const core::RopeTable table(ledger, layer.rope, row_count);
    const std::vector<float> x = Numbers(11).row(row_count * layer.shape.width, 1);
    std::vector<std::vector<float>> stored = stored_rows(layer, prepared, table.view(), x);
    check_heads(layer, prepared, normed, table.view(), x, stored, tolerance);
    return stored;
}

}  // namespace detail

/// Checks a projection policy on one layer, whose weights must be of ordinary size: the footprint states the widths and
/// the floats of the plan, and rows that are stored exactly give K = X W_k^T + b_k and V = X W_v^T + b_v back (keys
/// after their norm and RoPE where the plan says that they are stored so), to f32 rounding. Of a rank that cuts
/// something off, K does not. Of a policy that takes K and V, rows made from them are those that X gives.
template <class P>
void check_projection(const Layer& layer, double tolerance = 2e-5) {
    static_assert(projection_policy<P>, "xquant: a projection needs streams, footprint(layer) and prepare(layer)");
    const std::vector<std::vector<float>> from_x = detail::check_rows<P>(layer, tolerance);
    if constexpr (xquant::detail::takes<P>(LayerInput::keys_before_rope)) {
        Layer given = layer;
        given.input = LayerInput::keys_before_rope;
        given.calibration = {};
        const std::vector<std::vector<float>> from_kv = detail::check_rows<P>(given, tolerance);
        for (std::size_t stream = 0; stream < from_x.size(); ++stream) {
            double largest = 0, worst = 0;
            for (std::size_t i = 0; i < from_x[stream].size(); ++i) {
                largest = (std::max)(largest, std::abs(double{from_x[stream][i]}));
                worst = (std::max)(worst, detail::distance(double{from_x[stream][i]}, double{from_kv[stream][i]}));
            }
            // Latents of K are divided by singular values, whose spread adds to the rounding.
            detail::holds(worst <= 10 * tolerance * largest,
                          "rows of stream " + std::to_string(stream) + " made from K and V are off by " +
                              std::to_string(worst) + " from those of X, which reach " + std::to_string(largest));
        }
    }
}

/// Checks what CrossLayer<Delta> needs of a projection on one layer: the contract of its `below` and `base`; that the
/// plan of a difference has base's rows and one stream; that its latent, if it has one, has orthonormal columns; and
/// that K and V come back from the rows, whole and cut to the latent's subspace.
template <class P>
void check_difference(const Layer& layer, double tolerance = 2e-5) {
    static_assert(
        requires {
            typename P::below;
            typename P::base;
        },
        "xquant: to serve CrossLayer<Delta> a projection needs below, base, difference_footprint and "
        "prepare_difference; see projection/projection.hpp");
    namespace core = xquant::detail;
    check_projection<typename P::below>(layer, tolerance);
    check_projection<typename P::base>(layer, tolerance);
    LayerPlan plan = P::prepare_difference(layer);
    for (StreamPlan& stream : plan.streams) stream.metric = {};  // counted where rows are rounded for it
    detail::check_footprint<1>(plan, P::difference_footprint(layer), layer.shape.head_dim);
    const std::size_t width = plan.streams[0].width, coded = plan.streams[0].coded_width();
    detail::holds(P::base::streams == 1 && width == P::base::footprint(layer).widths[0],
                  "a difference's rows are not as wide as the base's");
    const std::vector<float> u = plan.streams[0].latent;
    for (std::size_t i = 0; i < coded && !u.empty() && plan.streams[0].spread.empty(); ++i) {
        for (std::size_t j = 0; j <= i; ++j) {
            double product = i == j ? -1 : 0;
            for (std::size_t c = 0; c < width; ++c) {
                product += static_cast<double>(u[c * coded + i]) * static_cast<double>(u[c * coded + j]);
            }
            detail::holds(std::abs(product) < 1e-5, "the latent of a difference is not orthonormal");
        }
    }
    const bool normed = plan.keys_normed;
    core::Ledger ledger(nullptr);
    const core::PreparedLayer prepared = detail::prepare_plan(ledger, layer, std::move(plan), CrossRole::difference);
    const core::RopeTable table(ledger, layer.rope, detail::row_count);
    const std::vector<float> x = detail::Numbers(11).row(detail::row_count * layer.shape.width, 1);
    std::vector<std::vector<float>> rows = detail::stored_rows(layer, prepared, table.view(), x);
    detail::check_heads(layer, prepared, normed, table.view(), x, rows, tolerance);
    if (u.empty()) return;
    std::vector<float> cut(detail::row_count * coded);
    const StreamEncoder& encoder = prepared.encoders.front();
    multiply_weights(backend::best{}, backend::Operand{rows[0].data(), width, 1}, encoder.latent, width,
                     backend::MutableMatrix{cut.data(), detail::row_count, coded, coded}, false);
    multiply_weights(backend::best{}, backend::Operand{cut.data(), coded, 1}, encoder.spread, coded,
                     backend::MutableMatrix{rows[0].data(), detail::row_count, width, width}, false);
    detail::check_heads(layer, prepared, normed, table.view(), x, rows, tolerance);
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::testing
