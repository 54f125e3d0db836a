/// Poison: attention reads the codes, scales and zeros that are counted, and nothing else.
///
/// Flipping stored bits changes the answer, in the layer they belong to and (cross-layer) in those above, and in no other.
/// x, q and the weights are overwritten by NaN as soon as the library has seen them: it may not look again.
#include <limits>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/feed.hpp"
#include "support/model.hpp"

using namespace xquant;
using test::Feed;
using test::Scheme;

namespace {

constexpr std::size_t layer_count = 5;

test::Setup small_model() {
    return {{.width = 40, .heads = 4, .kv_heads = 2, .head_dim = 10}, RopePairing::halves, layer_count};
}

/// Bytes of a stored page, writable.
std::span<std::byte> writable(const PageView& page) {
    return {const_cast<std::byte*>(page.bytes.data()), page.bytes.size()};
}

std::vector<bool> changed_layers(const test::Outputs& a, const test::Outputs& b) {
    std::vector<bool> out;
    for (std::size_t layer = 0; layer < a.size(); ++layer) out.push_back(!test::difference(a[layer], b[layer]).empty());
    return out;
}

/// 128 coded tokens and some in the tail; what the next token's attention says, any number of times.
class Poisoned {
public:
    Poisoned(const Scheme& of, const Options& with)
        : scheme(of), setup(small_model()), options(with), cache(of.make(setup.model, with)) {
        feed.sequence = cache->create();
        for (Layer& layer : setup.model.layers) {
            // The engine frees its weights.
            for (MatrixView* weight : {&layer.w_k, &layer.w_v}) {
                auto* values = const_cast<float*>(static_cast<const float*>(weight->data));
                std::fill_n(values, weight->rows * weight->cols, std::numeric_limits<float>::quiet_NaN());
            }
        }
        test::feed(*cache, setup.model, {{&feed, options.sinks + 128 + options.recent}});
        clean = next();
    }

    test::Outputs next() { return test::feed_and_abandon(*cache, setup.model, {{&feed, 1}}); }

    /// Which layers change when the bytes of a range are flipped in the page of this kind.
    std::vector<bool> flip(Purpose purpose, const test::Range& range, std::uint8_t mask = 0xFF) {
        const auto toggle = [&] {
            bool found = false;
            cache->for_each_page(feed.sequence, [&](const PageView& page) {
                if (purpose_of(page.kind) != purpose || found) return;
                found = true;
                for (std::byte& byte : writable(page).subspan(range.begin, range.size())) byte ^= std::byte{mask};
            });
            REQUIRE(found);
        };
        toggle();
        const test::Outputs dirty = next();
        toggle();
        REQUIRE(test::difference(clean, next()) == "");
        return changed_layers(clean, dirty);
    }

    /// The layers that read what a layer has stored.
    [[nodiscard]] std::vector<bool> readers(std::size_t layer) const {
        std::vector<bool> out(layer_count, false);
        for (std::size_t i = layer; i < layer_count; ++i) out[i] = i == layer || (scheme.cross_layer && layer >= 2);
        return out;
    }

    const Scheme& scheme;
    test::Setup setup;
    Options options;
    std::shared_ptr<test::Cache> cache;
    Feed feed;
    test::Outputs clean;
};

}  // namespace

TEST_CASE("flipped codes, scales and zeros change the answer of their layer, and of no layer that does not read them") {
    for (const Scheme& scheme : test::schemes()) {
        INFO(scheme.name);
        Poisoned poisoned(scheme, {.sinks = 1, .recent = 2});
        const auto layers = scheme.stored(poisoned.setup.model);
        const auto sections = test::page_sections(layers, 128);
        for (std::size_t layer = 0; layer < layer_count; ++layer) {
            for (std::size_t i = 0; i < sections[layer].size(); ++i) {
                INFO("layer " << layer << ", stream " << i);
                const test::Section& at = sections[layer][i];
                const std::vector<bool> readers = poisoned.readers(layer);
                // Low bits of each byte: an f16 or f32 that is stored as it is stays finite.
                CHECK(poisoned.flip(Purpose::codes, at.codes, 0x11) == readers);
                if (!layers[layer][i].quantized) continue;
                CHECK(poisoned.flip(Purpose::codes, at.codes) == readers);
                // The low byte of each f16.
                CHECK(poisoned.flip(Purpose::codes, {at.scales.begin, at.scales.begin + 1}, 0x80) == readers);
                CHECK(poisoned.flip(Purpose::codes, at.scales, 0x01) == readers);
                if (at.zeros.size() > 0) CHECK(poisoned.flip(Purpose::codes, at.zeros, 0x01) == readers);
                // And the bytes between sections hold nothing.
                const test::Range gap{at.codes.end, at.scales.begin}, end{at.zeros.end, at.end};
                const std::vector<bool> none(layer_count, false);
                if (gap.size() > 0) CHECK(poisoned.flip(Purpose::codes, gap) == none);
                if (end.size() > 0) CHECK(poisoned.flip(Purpose::codes, end) == none);
            }
        }
    }
}

TEST_CASE("every token's codes are read: a flip in the first and in the last") {
    for (const char* name : {"x 4", "x rotated 3", "q8_0", "f16 k and v", "joint svd 4", "cross-layer x 3"}) {
        INFO(name);
        Poisoned poisoned(test::scheme(name), {.sinks = 0, .recent = 0});
        const auto layers = poisoned.scheme.stored(poisoned.setup.model);
        const auto sections = test::page_sections(layers, 128);
        for (const std::size_t token : {0, 1, 64, 127}) {
            INFO("token " << token);
            const test::Range one = test::parts_of(layers[3][0], sections[3][0], 128, token, token + 1).front();
            CHECK(poisoned.flip(Purpose::codes, one, 0x11) == poisoned.readers(3));
        }
    }
}

TEST_CASE("sinks and tail are read from their own pages") {
    for (const Scheme& scheme : test::schemes()) {
        INFO(scheme.name);
        Poisoned poisoned(scheme, {.sinks = 3, .recent = 5, .rows = DType::f16});
        for (const Purpose purpose : {Purpose::sinks, Purpose::tail}) {
            // The first layer's first row: the low byte of an f16 of its first channel.
            std::size_t begin = 0;
            poisoned.cache->for_each_page(poisoned.feed.sequence, [&](const PageView& page) {
                if (purpose_of(page.kind) == purpose) begin = page.begin;
            });
            const auto coded = scheme.stored(poisoned.setup.model)[0];
            const std::size_t row = 2 * coded[0].width * begin;
            const std::vector<bool> changed = poisoned.flip(purpose, {row, row + 2}, 0x13);
            CHECK(changed == std::vector<bool>{true, false, false, false, false});
        }
    }
}

TEST_CASE("x, q and weights are not looked at again: NaN after the call changes nothing") {
    // test::feed overwrites x and q, Poisoned the weights; compare with a run that keeps all of it.
    for (const Scheme& scheme : test::schemes()) {
        for (const Options& options :
             {Options{.sinks = 2, .recent = 0}, Options{.sinks = 2, .recent = 50, .strict = true}}) {
            INFO(scheme.name << ", strict " << options.strict);
            Poisoned poisoned(scheme, options);
            const test::Setup setup = small_model();
            const auto kept = scheme.make(setup.model, options);
            const Sequence sequence = kept->create();
            std::size_t done = 0;
            std::vector<test::Rows> all;  // stays as it is
            test::Outputs out;
            for (const std::size_t n : {options.sinks + 128 + options.recent, std::size_t{1}}) {
                auto step = kept->begin({{sequence, n}});
                out.clear();
                for (std::size_t layer = 0; layer < layer_count; ++layer) {
                    const LayerShape& shape = setup.model.layers[layer].shape;
                    all.push_back(test::rows_of(setup.model.layers[layer], layer, 1, done, n));
                    out.emplace_back(n * shape.heads * shape.head_dim);
                    step.append(layer, MatrixView(all.back().x.data(), n, shape.width));
                    step.attend(layer, MatrixView(all.back().q.data(), n, shape.heads * shape.head_dim),
                                out.back().data());
                }
                step.commit();
                done += n;
            }
            CHECK(test::difference(out, poisoned.clean) == "");
        }
    }
}
