/// What requantized pages hold: the rows that were there, in fewer bits. Coded pages of 4 bits are read, rewritten in
/// 2, and read again; the bytes that must come out are made by the quantizer alone.
#include <xquant/xquant.hpp>

#include <cmath>
#include <cstring>
#include <vector>

#include "support/catch.hpp"
#include "support/feed.hpp"
#include "support/format.hpp"
#include "support/model.hpp"
#include "support/oracle.hpp"
#include "support/tolerance.hpp"

using namespace xquant;
using test::Feed;

namespace {

constexpr std::size_t tokens = 150;  // a full page, and 22 slots of another one
const Options from_codes{.sinks = 0, .recent = 0, .rows = DType::f32, .strict = true};

template <class Old, class Rule, class P>
using Both = XCache<Requantizable<Uniform<4>, Old>, Layout<PerToken>, Rule, Projection<P>>;

/// Bytes of the coded pages of a sequence.
template <class C>
std::vector<std::vector<std::byte>> coded_pages(const C& cache, Sequence sequence) {
    std::vector<std::vector<std::byte>> out;
    cache.for_each_page(sequence, [&](const PageView& page) {
        if (purpose_of(page.kind) == Purpose::codes) out.emplace_back(page.bytes.begin(), page.bytes.end());
    });
    return out;
}

/// The rows of a layer of a page [slots, width], by docs/format.md.
std::vector<float> rows_in(const std::vector<std::byte>& page, const std::vector<test::StoredStream>& layers,
                           std::size_t layer, std::size_t slots) {
    std::vector<std::vector<test::StoredStream>> all;
    for (const test::StoredStream& one : layers) all.push_back({one});
    const test::Section at = test::page_sections(all, 128)[layer][0];
    const test::StoredStream& stream = layers[layer];
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(page.data());
    std::vector<float> out;
    for (std::size_t t = 0; t < slots; ++t) {
        const std::size_t size = test::group_size(stream.width, stream.bits);
        const auto codes = test::unpack_bit_by_bit(bytes + at.codes.begin + t * size, stream.width, stream.bits);
        f16 scale, zero;
        std::memcpy(&scale, bytes + at.scales.begin + 2 * t, 2);
        std::memcpy(&zero, bytes + at.zeros.begin + 2 * t, 2);
        for (const std::uint8_t code : codes) {
            out.push_back(to_float(zero) + to_float(scale) * static_cast<float>(code));
        }
    }
    return out;
}

test::StoredStream one_group(std::size_t width, unsigned bits) { return {width, 1, 128, bits, true, true}; }

/// Rows [slots, width], coded by themselves.
template <class Quantizer>
std::vector<float> coded(const std::vector<float>& rows, std::size_t width) {
    std::vector<float> out(rows.size());
    dequantize(quantize<Quantizer>(MatrixView(rows.data(), rows.size() / width, width)), out.data());
    return out;
}

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
    double worst = a.size() == b.size() ? 0 : HUGE_VAL;
    for (std::size_t i = 0; i < a.size() && i < b.size(); ++i)
        worst = std::max(worst, test::distance_to(double{a[i]}, b[i]));
    return worst;
}

}  // namespace

TEST_CASE("requantized rows are those of the page, each in its slot, coded once more with fewer bits") {
    const test::Setup setup = test::small_model();
    const std::size_t width = setup.model.layers[0].shape.width, layers = setup.model.layers.size();
    Both<Uniform<2>, CrossLayer<Off>, Plain> cache(setup.model, from_codes);
    Feed a{cache.create(), 1};
    test::feed_on(Serial{}, cache, setup.model, {{&a, tokens}});
    const auto before = coded_pages(cache, a.sequence);
    const Requantized done = cache.requantize(std::vector<Sequence>{a.sequence}, test::every_page);
    CHECK(done.pages == 2);
    CHECK(done.tokens == tokens);
    const auto after = coded_pages(cache, a.sequence);
    REQUIRE(after.size() == 2);
    const std::vector<test::StoredStream> four(layers, one_group(width, 4)), two(layers, one_group(width, 2));
    for (std::size_t page = 0; page < 2; ++page) {
        const std::size_t slots = page == 0 ? 128 : tokens - 128;
        for (std::size_t layer = 0; layer < layers; ++layer) {
            INFO("page " << page << ", layer " << layer);
            const std::vector<float> rows = rows_in(before[page], four, layer, slots);
            CHECK(largest_difference(rows_in(after[page], two, layer, slots), coded<Uniform<2>>(rows, width)) == 0);
        }
    }
    // Slots that are still free hold nothing.
    const std::vector<float> free = rows_in(after[1], two, 0, 128);
    CHECK(std::all_of(free.begin() + static_cast<std::ptrdiff_t>((tokens - 128) * width), free.end(),
                      [](float value) { return value == 0; }));
}

TEST_CASE("requantized rows beyond the largest f16 stay finite") {
    // The largest code of a group from -60000 to 65504: a scale that was rounded up takes it beyond.
    const test::Setup setup = test::small_model();
    Both<Uniform<2>, CrossLayer<Off>, Plain> cache(setup.model, from_codes);
    const Sequence sequence = cache.create();
    std::size_t beyond = 0;
    auto step = cache.begin({{sequence, tokens}});
    for (std::size_t layer = 0; layer < setup.model.layers.size(); ++layer) {
        std::vector<float> x(tokens * 24);
        for (std::size_t t = 0; t < tokens; ++t) {
            for (std::size_t c = 0; c < 24; ++c)
                x[t * 24 + c] = c % 2 == 0 ? 65504.0F : -65504.0F + 400.0F * static_cast<float>(t);
        }
        const std::vector<float> four = coded<Uniform<4>>(x, 24);
        beyond +=
            static_cast<std::size_t>(std::count_if(four.begin(), four.end(), [](float v) { return v > 65504.0F; }));
        step.append(layer, MatrixView(x.data(), tokens, 24));
    }
    step.commit();
    REQUIRE(beyond > 0);
    const auto before = coded_pages(cache, sequence);
    CHECK(cache.requantize(std::vector<Sequence>{sequence}, test::every_page).pages == 2);
    const auto after = coded_pages(cache, sequence);
    const std::vector<test::StoredStream> four(4, one_group(24, 4)), two(4, one_group(24, 2));
    for (std::size_t page = 0; page < 2; ++page) {
        const std::size_t slots = page == 0 ? 128 : tokens - 128;
        std::vector<float> rows = rows_in(before[page], four, 0, slots);
        for (float& value : rows) value = std::clamp(value, -65504.0F, 65504.0F);
        CHECK(largest_difference(rows_in(after[page], two, 0, slots), coded<Uniform<2>>(rows, 24)) == 0);
    }
}

TEST_CASE("requantized differences are taken against what was rewritten below them: errors do not pile up") {
    // With X in the codes alone and W_v the identity, the answer of a single token is what the layer remembers of it.
    constexpr std::size_t width = 32, layers = 20;
    std::vector<float> eye(width * width, 0.0F);
    for (std::size_t i = 0; i < width; ++i) eye[i * width + i] = 1;
    Model model = Model::uniform(layers, {.width = width, .heads = 1, .kv_heads = 1, .head_dim = width}, Rope{});
    for (Layer& layer : model.layers) layer.w_k = layer.w_v = MatrixView(eye.data(), width, width);
    Both<Uniform<2>, CrossLayer<Delta, Uniform<8>>, Plain> cache(model, from_codes);
    test::Random random(3);
    std::vector<std::vector<float>> x;
    for (std::size_t i = 0; i < layers; ++i) {
        x.push_back(random.rows(width));
        for (std::size_t c = 0; c < width && i > 0; ++c) x[i][c] += x[i - 1][c];
    }
    const Sequence sequence = cache.create();
    auto step = cache.begin({{sequence, 1}});
    for (std::size_t i = 0; i < layers; ++i) step.append(i, MatrixView(x[i].data(), 1, width));
    step.commit();
    /// What each layer remembers: a query that sees the token, and itself with next to no weight.
    const auto remembered = [&] {
        std::vector<std::vector<float>> out;
        auto next = cache.begin({{sequence, 1}});
        for (std::size_t i = 0; i < layers; ++i) {
            // The new row is the old one's opposite, and the query points at the old one.
            std::vector<float> opposite = x[i], q = x[i];
            for (float& value : opposite) value = -value;
            for (float& value : q) value *= 40;
            out.emplace_back(width);
            next.append(i, MatrixView(opposite.data(), 1, width));
            next.attend(i, MatrixView(q.data(), 1, width), out.back().data());
        }
        return out;
    };
    const auto error_at = [&](const std::vector<std::vector<float>>& kept, std::size_t layer) {
        test::RelativeDistance distance;
        for (std::size_t c = 0; c < width; ++c) distance.add(double{kept[layer][c]}, double{x[layer][c]});
        return distance.value() * std::sqrt(static_cast<double>(layer + 1));  // x grows like the root of the layer
    };
    const auto early_and_late = [&](const std::vector<std::vector<float>>& kept) {
        double early = 0, late = 0;
        for (std::size_t i = 4; i < 8; ++i) early += error_at(kept, i);
        for (std::size_t i = layers - 4; i < layers; ++i) late += error_at(kept, i);
        return std::pair(early, late);
    };
    const auto four = early_and_late(remembered());
    CHECK(cache.requantize(std::vector<Sequence>{sequence}, test::every_page).pages == 1);
    const auto two = early_and_late(remembered());
    CHECK(four.first > 0.01);
    CHECK(two.first > 2 * four.first);    // fewer bits
    CHECK(two.second < 1.4 * two.first);  // and no more of an error above
    CHECK(two.first < 2);                 // zeros are off by 10
}

TEST_CASE("requantized caches that store differences answer near those of as few bits from the beginning") {
    const test::Setup setup = test::small_model();
    using Fewer = XCache<Uniform<2>, Layout<PerToken>, CrossLayer<Delta, Uniform<8>>, Projection<Rotated>>;
    using Exact = XCache<Unquantized<float>, Layout<PerToken>, CrossLayer<Off>, Projection<Plain>>;
    Both<Uniform<2>, CrossLayer<Delta, Uniform<8>>, Rotated> cache(setup.model, from_codes);
    Fewer fewer(setup.model, from_codes);
    Exact exact(setup.model, from_codes);
    Feed a{cache.create(), 1}, b{fewer.create(), 1}, c{exact.create(), 1};
    for (const std::size_t n : {tokens, std::size_t{8}}) {
        if (n == 8) CHECK(cache.requantize(std::vector<Sequence>{a.sequence}, test::every_page).pages == 2);
        test::feed_on(Serial{}, cache, setup.model, {{&a, n}});
        test::feed_on(Serial{}, fewer, setup.model, {{&b, n}});
        test::feed_on(Serial{}, exact, setup.model, {{&c, n}});
    }
    const double coarse = test::relative_distance(b, c, 8), found = test::relative_distance(a, c, 8);
    INFO("2 bits from the beginning " << coarse << ", requantized " << found);
    CHECK(found < 1.5 * coarse);
    CHECK(found > 0.5 * coarse);
}
