/// A prefix that comes step by step gives the statistics of a context that comes at once, and a cache that it is
/// replayed into has what a cache has that was fed it.
#include <xquant/calibration/prefix.hpp>

#include <cstddef>
#include <limits>
#include <string>
#include <vector>

#include <xquant/registry_svd.hpp>

#include "support/catch.hpp"
#include "support/complaint.hpp"
#include "support/feed.hpp"
#include "support/model.hpp"

using namespace xquant;
using test::complaint;
using test::contains;

namespace {

constexpr std::size_t layers = 3;

test::Setup model_of(LayerInput input) {
    test::Setup setup({.width = 40, .heads = 4, .kv_heads = 2, .head_dim = 8}, RopePairing::halves, layers);
    for (Layer& layer : setup.model.layers) layer.input = input;
    return setup;
}

/// Rows of tokens first .. first + n of a layer: x, or K and V apart, and q.
struct Parts {
    std::vector<float> x, k, v, q;
};
Parts parts_of(const Layer& layer, std::size_t index, std::size_t first, std::size_t n) {
    test::Rows rows = test::rows_of(layer, index, 7, first, n);
    Parts out{rows.x, {}, {}, rows.q};
    const std::size_t r = layer.shape.kv_width();
    for (std::size_t i = 0; i < n && layer.input != LayerInput::x; ++i) {
        const float* const row = rows.x.data() + i * 2 * r;
        out.k.insert(out.k.end(), row, row + r);
        out.v.insert(out.v.end(), row + r, row + 2 * r);
    }
    return out;
}

template <class Learner>
void add(Learner& to, const Model& model, std::size_t layer, std::size_t first, std::size_t n) {
    const Parts parts = parts_of(model.layers[layer], layer, first, n);
    if (model.layers[layer].input == LayerInput::x) {
        to.add(layer, n, parts.x.data(), parts.q.data());
    } else {
        to.add_kv(layer, n, parts.k.data(), parts.v.data(), parts.q.data());
    }
}

/// The next n tokens go into a cache; what attention answers.
std::vector<float> feed(Cache<>& cache, const Model& model, Sequence sequence, std::size_t n) {
    const std::size_t first = cache.size(sequence);
    auto step = cache.begin({{sequence, n}});
    std::vector<float> answers;
    for (std::size_t l = 0; l < layers; ++l) {
        const Layer& layer = model.layers[l];
        const Parts parts = parts_of(layer, l, first, n);
        const std::size_t r = layer.shape.kv_width(), heads = layer.shape.heads * layer.shape.head_dim;
        if (layer.input == LayerInput::x) {
            step.append(l, MatrixView(parts.x.data(), n, layer.shape.width));
        } else {
            step.append_kv(l, MatrixView(parts.k.data(), n, r), MatrixView(parts.v.data(), n, r));
        }
        std::vector<float> out(n * heads);
        step.attend(l, MatrixView(parts.q.data(), n, heads), out.data());
        answers.insert(answers.end(), out.begin(), out.end());
    }
    step.commit();
    return answers;
}

bool equal(const Calibration& a, const Calibration& b) {
    bool same = a.layers.size() == b.layers.size() && a.tokens == b.tokens && a.contexts == b.contexts;
    for (std::size_t l = 0; same && l < a.layers.size(); ++l) {
        for (const auto part :
             {&LayerStatistics::key_spread, &LayerStatistics::key_cost, &LayerStatistics::value_spread,
              &LayerStatistics::value_cost, &LayerStatistics::joint_keys, &LayerStatistics::joint_values,
              &LayerStatistics::x_spread}) {
            same = same && a.layers[l].*part == b.layers[l].*part;
        }
    }
    return same;
}

}  // namespace

TEST_CASE("a prefix in steps gives the statistics of a context, and the cache that it would have filled") {
    for (const LayerInput input : {LayerInput::x, LayerInput::keys_before_rope}) {
        INFO(to_string(input));
        test::Setup setup = model_of(input);
        CalibratorOptions options;
        options.x = input == LayerInput::x;
        PrefixCalibrator prefix(setup.model, 600, options);
        CHECK(prefix.bytes() == 0);
        std::size_t at = 0;
        for (const std::size_t n : {300U, 1U, 249U, 80U}) {
            CHECK_FALSE(prefix.ready());
            for (std::size_t l = 0; l < layers; ++l) add(prefix, setup.model, l, at, n);
            at += n;
            CHECK(prefix.tokens() == at);
        }
        REQUIRE(at == 630);
        CHECK(prefix.ready());
        const std::size_t row = input == LayerInput::x ? 40 + 32 : 16 + 16 + 32;
        CHECK(prefix.bytes() >= layers * 630 * row * sizeof(float));

        const Calibration found = prefix.finish();
        Calibrator once(setup.model, options);
        for (std::size_t l = 0; l < layers; ++l) add(once, setup.model, l, 0, 630);
        CHECK(found.tokens == 626);
        CHECK(equal(found, once.finish()));

        found.attach(setup.model);
        for (const char* scheme : {"head3:uniform", "joint4:uniform"}) {
            INFO(scheme);
            const Options cache_options{.sinks = 4, .recent = 16};
            const auto direct = make_cache(scheme, setup.model, cache_options);
            const Sequence a = direct->create();
            feed(*direct, setup.model, a, 512);
            feed(*direct, setup.model, a, 118);
            const auto replayed = make_cache(scheme, setup.model, cache_options);
            const Sequence b = replayed->create();
            prefix.replay(*replayed, b);
            CHECK(replayed->size(b) == 630);
            CHECK(replayed->next_position(b) == 630);
            CHECK(replayed->bytes() == direct->bytes());
            const std::vector<float> answers = feed(*direct, setup.model, a, 3);
            CHECK(feed(*replayed, setup.model, b, 3) == answers);
        }
        prefix.clear();
        CHECK(prefix.bytes() == 0);
        CHECK_FALSE(prefix.ready());
    }
}

TEST_CASE("a prefix of layers that read the rows of another one is stored once") {
    test::Setup setup = model_of(LayerInput::x);
    setup.model.layers[2].rows_of = 0;
    PrefixCalibrator prefix(setup.model, 128);
    const auto cache = make_cache("x4_rot", setup.model);
    const Sequence direct = cache->create(), replayed = cache->create();
    auto step = cache->begin({{direct, 150}});
    for (std::size_t l = 0; l < layers; ++l) {
        const Parts parts = parts_of(setup.model.layers[l], l < 2 ? l : 0, 0, 150);
        prefix.add(l, 150, parts.x.data(), parts.q.data());
        if (l < 2) step.append(l, MatrixView(parts.x.data(), 150, 40));
    }
    step.commit();
    CHECK(prefix.finish().layers[2].key_cost.size() == 2 * 8 * 8);
    prefix.replay(*cache, replayed);
    const std::vector<float> q(32, 0.5F);
    std::vector<float> answers(32), again(32);
    for (std::size_t l = 0; l < layers; ++l) {
        cache->attend(l, {{direct, 1}}, MatrixView(q.data(), 1, 32), answers.data());
        cache->attend(l, {{replayed, 1}}, MatrixView(q.data(), 1, 32), again.data());
        CHECK(again == answers);
        CHECK(answers != std::vector<float>(32));
    }
}

TEST_CASE("what makes no prefix is refused, with numbers") {
    const test::Setup setup = model_of(LayerInput::x);
    const auto said = [&](std::size_t tokens, CalibratorOptions options) {
        return complaint<shape_error>([&] { PrefixCalibrator(setup.model, tokens, options); });
    };
    CHECK(contains(said(127, {}), "127 tokens; expected 128 or more"));
    CHECK(contains(said(200, {.sinks = 199}), "more than 200, the sinks and one"));
    test::Setup after = model_of(LayerInput::keys_after_rope);
    CHECK(contains(complaint<shape_error>([&] { PrefixCalibrator(after.model, 200); }), "layer 0 takes"));

    PrefixCalibrator prefix(setup.model, 128);
    CHECK(
        contains(complaint<shape_error>([&] { add(prefix, setup.model, 0, 0, 5), prefix.add(3, 1, nullptr, nullptr); }),
                 "layer 3; the model has 3"));
    const std::vector<float> x(40, 1.0F), q(32, 1.0F);
    CHECK(contains(complaint<shape_error>([&] { prefix.add_kv(1, 1, x.data(), x.data(), q.data()); }),
                   "layer 1 takes X"));
    std::vector<float> broken = q;
    broken[31] = std::numeric_limits<float>::quiet_NaN();
    CHECK(contains(complaint<value_error>([&] { prefix.add(1, 1, x.data(), broken.data()); }), "q"));
    CHECK(prefix.tokens() == 0);  // of layer 1: nothing was kept
    for (std::size_t l = 0; l < layers; ++l) add(prefix, setup.model, l, 0, l == 2 ? 130 : 128);
    CHECK(contains(complaint<state_error>([&] { static_cast<void>(prefix.finish()); }),
                   "layer 1 has 128 tokens, layer 0 133"));
    const auto cache = make_cache("f16", setup.model);
    const Sequence s = cache->create();
    CHECK(contains(complaint<state_error>([&] { prefix.replay(*cache, s); }), "replay: layer 1"));
    CHECK(cache->size(s) == 0);
}
