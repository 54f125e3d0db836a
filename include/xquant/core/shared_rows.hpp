// Rows that several layers read (Layer::rows_of) are rounded for what their errors cost in all of them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include <xquant/core/recipe.hpp>
#include <xquant/projection/cost.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// to += from over the sum of the diagonals of from's blocks.
inline void add_alike(const StreamMetric& from, std::vector<double>& to) {
    const std::size_t n = from.block;
    double trace = 0;
    for (std::size_t first = 0; first < from.values.size(); first += n * n) {
        for (std::size_t c = 0; c < n; ++c) trace += from.values[first + c * n + c];
    }
    to.resize(from.values.size());
    for (std::size_t i = 0; i < to.size(); ++i) to[i] += from.values[i] / trace;
}

/// Adds to the metrics of a layer's plan those of the layers that read its rows. Where costs of one of them were not
/// measured, all layers count alike. Returns whether weights of other layers were loaded. Throws what a layer throws
/// that cannot be served.
inline bool add_metrics_of_readers(const Model& model, const Recipe& recipe, std::size_t index, const Layer& layer,
                                   LayerPlan& plan) {
    const auto has_metric = [](const StreamPlan& stream) { return stream.metric.block > 0; };
    const auto reads = [index](const Layer& other) { return other.rows_of == index; };
    if (std::none_of(plan.streams.begin(), plan.streams.end(), has_metric)) return false;
    if (std::none_of(model.layers.begin(), model.layers.end(), reads)) return false;
    bool measured = has_costs(layer);
    std::vector<std::vector<double>> alike(plan.streams.size());
    for (std::size_t i = 0; i < alike.size(); ++i) {
        if (has_metric(plan.streams[i])) add_alike(plan.streams[i].metric, alike[i]);
    }
    for (std::size_t reader = index + 1; reader < model.layers.size(); ++reader) {
        if (!reads(model.layers[reader])) continue;
        check_borrowing(model, reader);
        const Layer of = with_mean_of_rows(model, loaded_layer(model, reader));
        check_layer(of, reader);
        const LayerPlan other = recipe.layers[reader].prepare(of, recipe.layers[reader].bits).plan;
        measured = measured && has_costs(of);
        for (std::size_t i = 0; i < alike.size() && alike.size() == other.streams.size(); ++i) {
            StreamMetric& metric = plan.streams[i].metric;
            if (metric.block == 0) continue;
            const StreamMetric more = metric_of_stream(other, of, i);
            // Where they differ the layer is refused when it is added.
            if (more.block != metric.block || more.values.size() != metric.values.size()) continue;
            for (std::size_t k = 0; k < more.values.size(); ++k) metric.values[k] += more.values[k];
            add_alike(more, alike[i]);
        }
    }
    for (std::size_t i = 0; i < alike.size() && !measured; ++i) plan.streams[i].metric.values = std::move(alike[i]);
    return true;
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
