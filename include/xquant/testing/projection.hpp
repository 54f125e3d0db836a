// The contract of a projection policy: see contract.hpp.
#pragma once

#include <algorithm>
#include <cmath>

#include <xquant/backend/scalar/remat.hpp>
#include <xquant/concepts.hpp>
#include <xquant/detail/prepared.hpp>
#include <xquant/testing/violation.hpp>

namespace xquant::testing {
inline namespace XQUANT_ABI_NS {

/// Checks a projection policy on one layer, whose weights must be of ordinary size: the footprint states the widths and the
/// floats of the plan, and rows that are stored exactly give K = X W_k^T and V = X W_v^T back (keys turned by RoPE where the
/// plan says that they are stored so), to f32 rounding.
template <class P>
void check_projection(const Layer& layer, double tolerance = 2e-5) {
    static_assert(projection_policy<P>, "xquant: a projection needs streams, footprint(layer) and prepare(layer)");
    namespace core = xquant::detail;
    core::check_layer(layer);
    const auto footprint = P::footprint(layer);
    LayerPlan plan = P::prepare(layer);
    detail::holds(plan.streams.size() == P::streams, "the plan has " + std::to_string(plan.streams.size()) +
                                                         " streams, the policy says " + std::to_string(P::streams));
    std::size_t floats = 0;
    for (std::size_t i = 0; i < P::streams; ++i) {
        const StreamPlan& stream = plan.streams[i];
        detail::holds(stream.width == footprint.widths[i], "footprint: width of stream " + std::to_string(i) + " is " +
                                                               std::to_string(footprint.widths[i]) +
                                                               ", the plan's is " + std::to_string(stream.width));
        floats += stream.mean.size() + stream.matrix.size() + stream.bias.size();
        if (stream.rotate != 0) floats += dct_size(stream.rotate) * dct_size(stream.rotate);
    }
    for (const auto* heads : {&plan.keys, &plan.values}) {
        for (const HeadPlan& head : *heads) floats += head.matrix.size() + head.constant.size();
    }
    detail::holds(floats == footprint.weight_floats, "footprint: weight_floats is " +
                                                         std::to_string(footprint.weight_floats) + ", the plan has " +
                                                         std::to_string(floats));
    core::Ledger ledger(nullptr);
    const bool turned = plan.keys_turned;
    const auto prepared = [&] {
        try {
            return core::PreparedLayer(ledger, layer, std::move(plan), CrossRole::none, 0);
        } catch (const shape_error& e) {
            throw contract_violation("xquant contract: the plan does not fit the layer: " + std::string(e.what()));
        }
    }();

    // Rows at positions far apart.
    constexpr std::size_t n = 9;
    const std::size_t d = layer.shape.width, dh = layer.shape.head_dim;
    detail::Numbers numbers(11);
    const std::vector<float> x = numbers.row(n * d, 1);
    std::vector<std::int64_t> positions(n);
    for (std::size_t i = 0; i < n; ++i) positions[i] = static_cast<std::int64_t>(37 * i);
    const core::RopeTable table(ledger, layer.rope, n);
    const RopeView rope = table.view();

    std::vector<std::vector<float>> stored;
    for (const StreamEncoder& encoder : prepared.encoders) {
        std::vector<float> rows(n * encoder.width), scratch(backend::project_scratch(d, encoder.width, n));
        backend::project(backend::best{}, encoder, x.data(), n, d, positions.data(), rope, dh, rows.data(),
                         scratch.data());
        stored.push_back(std::move(rows));
    }
    std::vector<float> found(n * dh), scratch(backend::rematerialize_scratch(dh)), weights(d), cosines(rope.pairs),
        sines(rope.pairs);
    for (const bool key : {true, false}) {
        const MatrixView& weight = key ? layer.w_k : layer.w_v;
        for (std::size_t head = 0; head < layer.shape.kv_heads; ++head) {
            const HeadDecoder& decoder = key ? prepared.keys[head] : prepared.values[head];
            const std::vector<float>& rows = stored[decoder.stream];
            backend::rematerialize(backend::best{}, view_rows(rows.data(), static_cast<std::uint32_t>(rows.size() / n)),
                                   decoder, 0, n, dh, dh, found.data(), dh, backend::TileOrder::token_major,
                                   scratch.data());
            if (key && turned) {
                for (std::size_t t = 0; t < n; ++t) {
                    rope_angles(rope, positions[t], cosines.data(), sines.data());
                    for (float* of : {cosines.data(), sines.data()}) {
                        for (std::size_t j = 0; j < rope.pairs; ++j) of[j] /= rope.factor;
                    }
                    backend::turn_head(backend::best{}, rope, cosines.data(), sines.data(), -1.0F,
                                       found.data() + t * dh);
                }
            }
            double largest = 0, worst = 0;
            for (std::size_t i = 0; i < dh; ++i) {
                load_row(weight.row(head * dh + i), weight.type, d, weights.data());
                for (std::size_t t = 0; t < n; ++t) {
                    double exact = 0;
                    for (std::size_t c = 0; c < d; ++c) {
                        exact += static_cast<double>(x[t * d + c]) * static_cast<double>(weights[c]);
                    }
                    largest = std::max(largest, std::abs(exact));
                    worst = std::max(worst, std::abs(exact - static_cast<double>(found[t * dh + i])));
                }
            }
            detail::holds(worst <= tolerance * largest,
                          std::string(key ? "K" : "V") + " of head " + std::to_string(head) +
                              " does not come back from exact rows: off by " + std::to_string(worst) +
                              " where values reach " + std::to_string(largest));
        }
    }
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::testing
