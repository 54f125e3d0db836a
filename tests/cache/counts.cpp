/// Token counts around the edges of groups, pages and tiles, with and without sinks and a window: what is stored where,
/// what it takes, and what attention makes of it.
#include <algorithm>
#include <cmath>
#include <vector>

#include <xquant/xquant.hpp>

#include "support/catch.hpp"
#include "support/feed.hpp"
#include "support/model.hpp"
#include "support/oracle.hpp"
#include "support/tolerance.hpp"

using namespace xquant;
using test::Feed;

namespace {

test::Setup small_model() { return {{.width = 24, .heads = 2, .kv_heads = 1, .head_dim = 8}, RopePairing::halves, 4}; }

std::vector<Options> all_options() {
    std::vector<Options> all;
    for (const std::size_t sinks : {0, 4}) {
        for (const std::size_t recent : {0, 1, 32, 128}) {
            for (const bool strict : {false, true}) {
                all.push_back({.sinks = sinks,
                               .recent = recent,
                               .rows = DType::f32,
                               .weights = WeightType::f32,
                               .strict = strict});
            }
        }
    }
    return all;
}

std::string name_of(const Options& options) {
    return "sinks " + std::to_string(options.sinks) + ", recent " + std::to_string(options.recent) +
           (options.strict ? ", strict" : "");
}

/// Steps that stop at each of 1, 127, 128, 129, 255, 256, 257 tokens.
const std::vector<std::size_t> stops{1, 126, 1, 1, 126, 1, 1};
constexpr std::size_t most = 257;

/// Attention of each layer in float64, [most, H * Dh]. Causal: a token's row does not depend on later ones.
std::vector<std::vector<double>> exact_outputs(const Model& model) {
    std::vector<std::vector<double>> out;
    for (std::size_t i = 0; i < model.layers.size(); ++i) {
        const test::Rows rows = test::rows_of(model.layers[i], i, 1, 0, most);
        out.push_back(test::oracle_attention(model.layers[i], rows.x, rows.q));
    }
    return out;
}

double largest_error(const std::vector<std::vector<double>>& exact, const test::Outputs& found) {
    double worst = 0;
    for (std::size_t layer = 0; layer < found.size(); ++layer) {
        for (std::size_t i = 0; i < found[layer].size(); ++i) {
            worst = std::max(worst, test::distance_to(exact[layer][i], found[layer][i]));
        }
    }
    return worst;
}

/// Rows that are coded for good, from the rule in docs/format.md.
std::size_t coded_rows(std::size_t body, std::size_t recent, bool in_groups_of_128) {
    std::size_t coded = 0;
    const std::size_t together = in_groups_of_128 ? 128 : 1;
    while (coded + together + recent <= body) coded += together;
    return coded;
}

/// A sequence of n tokens holds sinks, coded pages and row pages, in this order, each position once.
void check_structure(const test::Scheme& scheme, const test::Cache& cache, Sequence sequence, const Options& options,
                     std::size_t n) {
    const std::size_t sinks = std::min(n, options.sinks), body = n - sinks;
    const std::size_t coded = coded_rows(body, options.recent, scheme.per_channel);
    std::size_t next = 0, kinds[3] = {}, pages[3] = {};
    bool in_order = true, slots = true;
    std::size_t kind_before = 0;
    cache.for_each_page(sequence, [&](const PageView& page) {
        const std::size_t kind = purpose_of(page.kind) == Purpose::sinks   ? 0
                                 : purpose_of(page.kind) == Purpose::codes ? 1
                                                                           : 2;
        const std::size_t size = page.end - page.begin;
        in_order = in_order && kind >= kind_before && page.first_position == static_cast<std::int64_t>(next);
        kind_before = kind;
        if (kind == 0) slots = slots && page.begin == 0 && page.end <= options.sinks;
        if (kind == 1) slots = slots && page.begin == 0 && page.end <= 128 && kinds[1] % 128 == 0;
        // Row i after the sinks lives in slot i mod 32.
        if (kind == 2) slots = slots && page.begin == (next - sinks) % 32 && page.end <= 32;
        kinds[kind] += size;
        ++pages[kind];
        next += size;
    });
    CHECK(next == n);
    CHECK(cache.size(sequence) == n);
    CHECK(in_order);
    CHECK(slots);
    CHECK(kinds[0] == sinks);
    CHECK(kinds[1] == coded);
    CHECK(kinds[2] == body - coded);
    CHECK(pages[0] == (sinks > 0 ? 1 : 0));
    CHECK(pages[1] == (coded + 127) / 128);
    CHECK(pages[2] <= (body - coded + 31) / 32 + 1);
}

}  // namespace

TEST_CASE("unquantized, every scheme is plain attention at every count, with every sinks and window") {
    const test::Setup setup = small_model();
    const auto exact = exact_outputs(setup.model);
    for (const test::Scheme& scheme : test::schemes()) {
        if (!scheme.exact) continue;
        for (const Options& options : all_options()) {
            INFO(scheme.name << ", " << name_of(options));
            const auto cache = scheme.make(setup.model, options);
            CHECK(largest_error(exact, test::outputs_of(*cache, setup.model, stops)) < 1e-5);
        }
    }
}

TEST_CASE("all tokens in one step, unquantized") {
    const test::Setup setup = small_model();
    const auto exact = exact_outputs(setup.model);
    for (const char* name : {"f32 x, rotated", "f32 cross-layer joint svd"}) {
        for (const bool strict : {false, true}) {
            for (const std::size_t n : {1, 127, 128, 129, 255, 256, 257}) {
                INFO(name << ", " << n << " tokens, strict " << strict);
                const auto cache = test::scheme(name).make(
                    setup.model,
                    {.sinks = 4, .recent = 32, .rows = DType::f32, .weights = WeightType::f32, .strict = strict});
                CHECK(largest_error(exact, test::outputs_of(*cache, setup.model, {n})) < 1e-5);
            }
        }
    }
}

TEST_CASE("every scheme stores each position once, in the place and the bytes that are promised") {
    const test::Setup setup = small_model();
    for (const test::Scheme& scheme : test::schemes()) {
        for (Options options : all_options()) {
            options.rows = DType::f16;
            INFO(scheme.name << ", " << name_of(options));
            const auto cache = scheme.make(setup.model, options);
            Feed feed{cache->create()};
            check_structure(scheme, *cache, feed.sequence, options, 0);
            for (const std::size_t n : stops) {
                // Rows alone: attention is tested elsewhere.
                auto step = cache->begin({{feed.sequence, n}});
                for (std::size_t layer = 0; layer < setup.model.layers.size(); ++layer) {
                    const test::Rows rows = test::rows_of(setup.model.layers[layer], layer, 1, feed.tokens, n);
                    step.append(layer, MatrixView(rows.x.data(), n, setup.model.layers[layer].shape.width));
                }
                step.commit();
                feed.tokens += n;
                INFO(feed.tokens << " tokens");
                check_structure(scheme, *cache, feed.sequence, options, feed.tokens);
            }
        }
    }
}

TEST_CASE("quantized, attention is off, by an error that falls with the bits") {
    const test::Setup setup = small_model();
    const auto exact = exact_outputs(setup.model);
    const auto error_of = [&](const char* name, bool strict) {
        const auto cache = test::scheme(name).make(setup.model, {.sinks = 4, .recent = 32, .strict = strict});
        const test::Outputs found = test::outputs_of(*cache, setup.model, stops);
        test::RelativeDistance off;
        for (std::size_t layer = 0; layer < found.size(); ++layer) {
            for (std::size_t i = 0; i < found[layer].size(); ++i) off.add(double{found[layer][i]}, exact[layer][i]);
        }
        CHECK(off.value() < test::tolerance(test::scheme(name), setup.model));
        return largest_error(exact, found);
    };
    for (const bool strict : {false, true}) {
        const double two = error_of("kivi 2", strict), four = error_of("x 4", strict), eight = error_of("q8_0", strict);
        CHECK(two > 2 * four);
        CHECK(four > 4 * eight);
        CHECK(eight > 1e-4);
    }
}

TEST_CASE("the scheme of the docs is what is stored: codes of the first token decode by hand") {
    const test::Setup setup = small_model();
    const Layer& layer = setup.model.layers[0];
    const test::Scheme& scheme = test::scheme("x 4");
    const auto cache = scheme.make(setup.model, {.sinks = 0, .recent = 0});
    Feed feed{cache->create()};
    test::feed(*cache, setup.model, {{&feed, 3}});
    const auto sections = test::page_sections(scheme.stored(setup.model), 128);
    cache->for_each_page(feed.sequence, [&](const PageView& page) {
        for (std::size_t token = 0; token < 3; ++token) {
            const std::vector<float> x = test::rows_of(layer, 0, 1, token, 1).x;
            const test::Section& at = sections[0][0];
            const auto* bytes = reinterpret_cast<const std::uint8_t*>(page.bytes.data());
            const auto codes = test::unpack_bit_by_bit(bytes + at.codes.begin + token * 12, 24, 4);
            f16 scale, zero;
            std::memcpy(&scale, bytes + at.scales.begin + 2 * token, 2);
            std::memcpy(&zero, bytes + at.zeros.begin + 2 * token, 2);
            for (std::size_t c = 0; c < 24; ++c) {
                const float decoded = to_float(zero) + to_float(scale) * static_cast<float>(codes[c]);
                CHECK(std::abs(decoded - x[c]) <= to_float(scale) * 0.51F);
            }
        }
    });
}

TEST_CASE("outliers count as codes: three bytes each, an f16 and a place") {
    const test::Setup setup = small_model();
    using Plain4 = XCache<Uniform<4, 24>, Layout<PerToken>, CrossLayer<Off>, Projection<Plain>>;
    using Outliers4 = XCache<WithOutliers<Uniform<4, 24>, 2>, Layout<PerToken>, CrossLayer<Off>, Projection<Plain>>;
    const Options options{.sinks = 0, .recent = 0};
    Plain4 plain(setup.model, options);
    Outliers4 outliers(setup.model, options);
    Feed a{plain.create(), 1}, b{outliers.create(), 1};
    test::feed(plain, setup.model, {{&a, 200}});
    test::feed(outliers, setup.model, {{&b, 200}});
    // Two pages of 128 tokens, four layers, one group a token.
    CHECK(plain.bytes().codes == std::size_t{2 * 128 * 4 * 12});
    CHECK(outliers.bytes().codes == std::size_t{2 * 128 * 4 * (12 + 2 * 3)});
    CHECK(outliers.bytes().scales == plain.bytes().scales);
    CHECK(outliers.bits_per_token_layer(200) == plain.bits_per_token_layer(200) + 2 * 24);
    CHECK(Outliers4::predict(setup.model, options, 200).codes == outliers.bytes().codes);
}
