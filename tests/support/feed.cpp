#include "support/feed.hpp"

namespace test {

void feed(Cache& cache, const xquant::Model& model, const std::vector<NewTokens>& parts) {
    feed_on(xquant::Serial{}, cache, model, parts);
}

Outputs feed_and_abandon(Cache& cache, const xquant::Model& model, const std::vector<NewTokens>& parts) {
    auto step = cache.begin(step_parts(parts));
    return run_layers(step, model, parts, xquant::Serial{});
}

Outputs outputs_of(Cache& cache, const xquant::Model& model, const std::vector<std::size_t>& steps,
                   std::uint32_t seed) {
    Feed one{cache.create(), seed};
    for (const std::size_t n : steps) feed(cache, model, {{&one, n}});
    return one.out;
}

std::string difference(const Outputs& expected, const Outputs& found) {
    if (expected.size() != found.size()) return "other layers";
    for (std::size_t layer = 0; layer < expected.size(); ++layer) {
        const std::string differs = difference(expected[layer], found[layer]);
        if (!differs.empty()) return "layer " + std::to_string(layer) + ": " + differs;
    }
    return "";
}

std::vector<StoredPage> stored_pages(const Cache& cache, xquant::Sequence sequence, const Scheme& scheme,
                                     const xquant::Model& model, const xquant::Options& options) {
    // Rows of sinks and tail are those that the streams have before a cross-layer difference is taken.
    StoredLayers coded = scheme.stored(model), rows;
    for (std::size_t i = 0; i < coded.size(); ++i) {
        rows.emplace_back();
        for (const StoredStream& stream : coded[i]) {
            const bool whole = scheme.cross_layer && coded[i].size() == 1;
            const std::size_t width = whole ? model.layers[i].shape.width : stream.width;
            const auto bits = static_cast<unsigned>(8 * xquant::size_of(options.rows));
            rows.back().push_back({width, 1, width, bits, false, false});
        }
    }
    std::vector<StoredPage> out;
    cache.for_each_page(sequence, [&](const xquant::PageView& page) {
        const bool is_coded = xquant::purpose_of(page.kind) == xquant::Purpose::codes;
        const std::size_t tokens = is_coded                                                 ? 128
                                   : xquant::purpose_of(page.kind) == xquant::Purpose::tail ? 32
                                                                                            : options.sinks;
        StoredPage stored{xquant::purpose_of(page.kind), page.begin, page.end, page.first_position, {}};
        const StoredLayers& layers = is_coded ? coded : rows;
        const auto sections = page_sections(layers, tokens);
        for (std::size_t layer = 0; layer < sections.size(); ++layer) {
            for (std::size_t i = 0; i < sections[layer].size(); ++i) {
                const StoredStream& stream = layers[layer][i];
                const std::size_t group = stream.group_tokens;
                const std::size_t first = page.begin / group, last = next_multiple(page.end, group) / group;
                for (const Range& range : parts_of(stream, sections[layer][i], tokens, first, last)) {
                    const auto bytes = page.bytes.subspan(range.begin, range.size());
                    stored.bytes.insert(stored.bytes.end(), bytes.begin(), bytes.end());
                }
            }
        }
        out.push_back(std::move(stored));
    });
    return out;
}

}  // namespace test
