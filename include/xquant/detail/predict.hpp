// The formula behind XCache::predict: what a cache will take, from shapes alone.
#pragma once

#include <xquant/detail/core.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

inline Bytes predict_bytes(const Model& model, const Options& options, std::size_t tokens, const Recipe& recipe) {
    Bytes bytes;
    PageSizes coded, rows, sinks;
    coded.total = rows.total = sinks.total = page_header_bytes;
    std::size_t granularity = 1;
    const Rope* previous = nullptr;
    const std::size_t layers = model.layers.size(), streams = recipe.streams();
    for (std::size_t i = 0; i < layers; ++i) {
        const Layer& layer = model.layers[i];
        const LayerSizes sizes = recipe.layers[i].sizes(layer);
        bytes.weights += PreparedLayer::bytes(layer, sizes.weight_floats, sizes.codecs.size());
        if (previous == nullptr || !(*previous == layer.rope)) {
            bytes.weights += RopeTable::bytes(layer.rope.inverse_frequencies.size(), Core::tile_tokens);
        }
        previous = &layer.rope;
        for (std::size_t stream = 0; stream < sizes.codecs.size(); ++stream) {
            const StreamFormat& format = sizes.codecs[stream].format;
            const StreamFormat exact = exact_rows(static_cast<std::uint32_t>(sizes.row_widths[stream]), options.rows);
            coded.place(format, coded_page_tokens);
            rows.place(exact, row_page_tokens);
            sinks.place(exact, options.sinks);
            if (format.group_tokens > 1) granularity = coded_page_tokens;
        }
    }
    if (recipe.accumulator != nullptr) bytes.index += sizeof(PageSection);
    bytes.weights += layers * (sizeof(PreparedLayer) + sizeof(RopeTable));
    bytes.index += layers * streams * (sizeof(StreamCodec) + 3 * sizeof(PageSection)) + slot_step * sizeof(Slot);

    const std::size_t body = tokens - std::min(tokens, options.sinks);
    const std::size_t encoded = Retention{options.sinks, options.recent, granularity, options.strict, 0}.coded(body);
    const std::size_t coded_pages = (encoded + coded_page_tokens - 1) / coded_page_tokens;
    // Body row i lives in slot i % 32 of a row page.
    const std::size_t row_pages = body > encoded ? (body - 1) / row_page_tokens - encoded / row_page_tokens + 1 : 0;
    const std::size_t sink_pages = tokens > 0 && options.sinks > 0 ? 1 : 0;

    const auto add = [&bytes](std::size_t pages, const PageSizes& sizes, std::size_t& purpose) {
        purpose += pages * sizes.codes;
        bytes.scales += pages * sizes.scales;
        bytes.index += pages * (sizes.total - sizes.codes - sizes.scales);
    };
    add(coded_pages, coded, bytes.codes);
    add(row_pages, rows, bytes.tail);
    add(sink_pages, sinks, bytes.sinks);
    bytes.index += round_up(coded_pages + row_pages + sink_pages, segment_step) * sizeof(Segment);
    return bytes;
}

/// Bytes of the accumulators of one sequence, while a step reads `tokens` coded tokens.
inline std::size_t predict_accumulator(const Model& model, const Recipe& recipe, std::size_t tokens) {
    if (recipe.accumulator == nullptr) return 0;
    PageSizes sizes;
    sizes.total = page_header_bytes;
    sizes.place(recipe.accumulator(model.layers.front().shape.width).format, coded_page_tokens);
    return (tokens + coded_page_tokens - 1) / coded_page_tokens * sizes.total;
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
