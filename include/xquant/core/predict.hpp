// The formula behind XCache::predict: what a cache will take, from shapes alone.
#pragma once

#include <xquant/core/core.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

inline Bytes predict_bytes(const Model& model, const Options& options, std::size_t tokens, const Recipe& recipe) {
    struct Sizes {
        PageSizes coded, rows, sinks;
        std::size_t granularity = 1;
    };
    check_options(options);
    expects(tokens <= largest_position, "predict: ", tokens, " tokens; positions stay below 2^48");
    for (std::size_t i = 0; i < model.layers.size(); ++i) {
        check_borrowing(model, i);
        check_form(model.layers[i], i);
    }
    Bytes bytes;
    const Rope* previous = nullptr;
    const std::size_t layers = model.layers.size(), streams = recipe.streams();
    const std::vector<std::size_t> page_group_of = page_groups_of(model, recipe.accumulator != nullptr);
    std::vector<Sizes> page_groups(layers == 0 ? 0 : *std::max_element(page_group_of.begin(), page_group_of.end()) + 1);
    for (Sizes& page_group : page_groups)
        page_group.coded.total = page_group.rows.total = page_group.sinks.total = page_header_bytes;
    for (std::size_t i = 0; i < layers; ++i) {
        const Layer layer = with_mean_of_rows(model, model.layers[i]);
        const LayerSizes sizes = recipe.layers[i].sizes(layer, recipe.layers[i].bits);
        const std::size_t levels = learnt_levels(sizes.codecs) + learnt_levels(sizes.requantized_codecs);
        const std::size_t floats = sizes.vector_floats + (layer.borrows() ? 0 : levels);
        bytes.weights += PreparedLayer::bytes(layer, options.weights, sizes.matrix_floats, floats, sizes.codecs.size());
        if (previous == nullptr || !(*previous == layer.rope)) {
            bytes.weights += RopeTable::bytes(layer.rope.inverse_frequencies.size(), Core::tile_tokens);
        }
        previous = &model.layers[i].rope;
        if (layer.borrows()) continue;
        Sizes& page_group = page_groups[page_group_of[i]];
        for (std::size_t stream = 0; stream < sizes.codecs.size(); ++stream) {
            const StreamFormat& format = sizes.codecs[stream].format;
            const StreamFormat exact = exact_rows(static_cast<std::uint32_t>(sizes.row_widths[stream]), options.rows);
            page_group.coded.place(format, coded_page_tokens);
            page_group.rows.place(exact, row_page_tokens);
            page_group.sinks.place(exact, options.sinks);
            if (format.group_tokens > 1) page_group.granularity = coded_page_tokens;
        }
    }
    if (recipe.accumulator != nullptr) bytes.index += sizeof(PageSection);
    if (recipe.requantizes()) bytes.index += layers * streams * (sizeof(StreamCodec) + sizeof(PageSection));
    bytes.weights += layers * (sizeof(PreparedLayer) + sizeof(RopeTable));
    bytes.index += layers * streams * (sizeof(StreamCodec) + 3 * sizeof(PageSection)) +
                   page_groups.size() * sizeof(PageGroup) + SlotTable::first_bytes(page_groups.size());

    const std::size_t body = tokens - (std::min)(tokens, options.sinks);
    const auto add = [&bytes](std::size_t pages, const PageSizes& sizes, std::size_t& purpose) {
        purpose += pages * sizes.codes;
        bytes.scales += pages * sizes.scales;
        bytes.index += pages * (sizes.total - sizes.codes - sizes.scales);
    };
    for (const Sizes& page_group : page_groups) {
        const Retention keep{options.sinks, options.recent, page_group.granularity, options.strict, 0};
        const std::size_t encoded = keep.coded(body);
        const std::size_t coded_pages = (encoded + coded_page_tokens - 1) / coded_page_tokens;
        // Body row i lives in slot i % 32 of a row page.
        const std::size_t row_pages = body > encoded ? (body - 1) / row_page_tokens - encoded / row_page_tokens + 1 : 0;
        const std::size_t sink_pages = tokens > 0 && options.sinks > 0 ? 1 : 0;
        add(coded_pages, page_group.coded, bytes.codes);
        add(row_pages, page_group.rows, bytes.tail);
        add(sink_pages, page_group.sinks, bytes.sinks);
        bytes.index += round_up(coded_pages + row_pages + sink_pages, segment_step) * sizeof(Segment);
    }
    return bytes;
}

/// Bytes of the accumulators of one sequence, while a step reads `tokens` coded tokens.
inline std::size_t predict_accumulator(const Model& model, const Recipe& recipe, std::size_t tokens) {
    if (recipe.accumulator == nullptr || model.layers.empty()) return 0;
    expects(tokens <= largest_position, "predict_accumulator: ", tokens, " tokens; positions stay below 2^48");
    check_form(model.layers.front(), 0);
    PageSizes sizes;
    sizes.total = page_header_bytes;
    sizes.place(recipe.accumulator(model.layers.front().shape.width).format, coded_page_tokens);
    return (tokens + coded_page_tokens - 1) / coded_page_tokens * sizes.total;
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
