/// Sequences that go from one cache into another of another scheme: what both answer to the next token.
#include <xquant/transcode.hpp>

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include <xquant/projection/joint_svd.hpp>
#include <xquant/registry_svd.hpp>
#include <xquant/xquant.hpp>

#include "support/catch.hpp"
#include "support/complaint.hpp"
#include "support/feed.hpp"
#include "support/model.hpp"
#include "support/oracle.hpp"
#include "support/threads.hpp"

using namespace xquant;
using test::complaint;
using test::contains;

namespace {

constexpr std::size_t layers = 5;
const Options exact_rows{.sinks = 4, .recent = 20, .rows = DType::f32, .weights = WeightType::f32};

/// A model whose engine has X, and models of engines that have K and V of it.
struct Engine {
    Engine()
        : setup({.width = 48, .heads = 4, .kv_heads = 2, .head_dim = 8}, RopePairing::halves, layers, 3),
          b_k(test::Random(5).rows(16)),
          b_v(test::Random(6).rows(16)),
          norm(test::Random(7).rows(8)) {
        for (float& gain : norm) gain += 1.5F;
        for (Layer& layer : setup.model.layers) {
            layer.b_k = b_k.data();
            layer.b_v = b_v.data();
            layer.k_norm = norm.data();
        }
    }
    [[nodiscard]] const Model& model() const { return setup.model; }
    [[nodiscard]] Model given(LayerInput input) const {
        Model out = setup.model;
        for (Layer& layer : out.layers) layer.input = input;
        return out;
    }

    test::Setup setup;
    std::vector<float> b_k, b_v, norm;
};

using Rows = Unquantized<float>;
template <class P, class Rule = CrossLayer<Off>, class Axes = Layout<PerToken>>
using Exact = XCache<Rows, Axes, Rule, Projection<P>>;

/// A cache with a sequence of 300 tokens, some of which are gone: behind them, positions have moved up or not.
Sequence fill(Cache<>& cache, const Engine& engine, Gap gap) {
    test::Feed feed{cache.create()};
    test::feed(cache, engine.model(), {{&feed, 170}});
    test::feed(cache, engine.model(), {{&feed, 130}});
    cache.erase(feed.sequence, 40, 90, gap);
    return feed.sequence;
}

/// What all layers answer to one more token of a sequence: [layers][H * Dh].
test::Outputs next_answers(Cache<>& cache, const Model& model, const Engine& engine, Sequence sequence) {
    test::Outputs out;
    const std::int64_t position = cache.next_position(sequence);
    auto step = cache.begin({{sequence, 1}});
    for (std::size_t i = 0; i < layers; ++i) {
        const test::Rows rows = test::rows_of(engine.model().layers[i], i, 1, 300, 1);
        Layer layer = engine.model().layers[i];
        const std::size_t d = layer.shape.width, r = layer.shape.kv_width();
        if (model.layers[i].input == LayerInput::x) {
            step.append(i, MatrixView(rows.x.data(), 1, d));
        } else {
            // Of the oracle's rows, row p stands at position p.
            const bool turned = model.layers[i].input == LayerInput::keys_after_rope;
            if (!turned) layer.rope = {};
            std::vector<float> x((turned ? static_cast<std::size_t>(position) : 0) * d, 0.0F);
            x.insert(x.end(), rows.x.begin(), rows.x.end());
            const std::vector<double> keys = test::oracle_rows(layer, x, true);
            const std::vector<double> values = test::oracle_rows(layer, x, false);
            const std::vector<float> k(keys.end() - static_cast<std::ptrdiff_t>(r), keys.end());
            const std::vector<float> v(values.end() - static_cast<std::ptrdiff_t>(r), values.end());
            step.append_kv(i, MatrixView(k.data(), 1, r), MatrixView(v.data(), 1, r));
        }
        out.emplace_back(rows.q.size());
        step.attend(i, MatrixView(rows.q.data(), 1, rows.q.size()), out.back().data());
    }
    return out;
}

/// |a - b| / |a|.
double relative(const test::Outputs& a, const test::Outputs& b) {
    double difference = 0, size = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
        for (std::size_t c = 0; c < a[i].size(); ++c) {
            difference += std::pow(static_cast<double>(a[i][c]) - static_cast<double>(b[i][c]), 2);
            size += std::pow(static_cast<double>(a[i][c]), 2);
        }
    }
    return std::sqrt(difference / size);
}

}  // namespace

TEST_CASE("a sequence answers alike in another cache where neither rounds, whatever both store") {
    const Engine engine;
    const Gap gap = GENERATE(Gap::close, Gap::keep);
    std::vector<std::unique_ptr<Cache<>>> sources, takers;
    std::vector<Model> models;
    sources.push_back(std::make_unique<Exact<Rotated>>(engine.model(), exact_rows));
    sources.push_back(std::make_unique<Exact<Plain, CrossLayer<Delta, Rows>>>(engine.model(), exact_rows));
    sources.push_back(
        std::make_unique<Exact<JointSvd<Hadamard, FullRank>, CrossLayer<Delta, Rows>>>(engine.model(), exact_rows));
    sources.push_back(std::make_unique<Exact<HeadSvd>>(engine.model(), exact_rows));
    sources.push_back(std::make_unique<Exact<KeyValue<AfterRope>>>(engine.model(), exact_rows));
    for (const LayerInput input : {LayerInput::keys_before_rope, LayerInput::keys_after_rope}) {
        models.push_back(engine.given(input));
        takers.push_back(std::make_unique<Exact<KeyValue<AfterRope>>>(models.back(), exact_rows));
    }
    models.push_back(engine.given(LayerInput::keys_before_rope));
    takers.push_back(std::make_unique<Exact<HeadSvd>>(models.back(), exact_rows));
    for (std::size_t i = 0; i < sources.size(); ++i) {
        Cache<>& from = *sources[i];
        const Sequence sequence = fill(from, engine, gap);
        const test::Outputs expected = next_answers(from, engine.model(), engine, sequence);
        const std::size_t bytes = from.bytes().total();
        for (std::size_t j = 0; j < takers.size(); ++j) {
            INFO("source " << i << ", taker " << j << (gap == Gap::close ? ", closed" : ", kept"));
            Cache<>& to = *takers[j];
            if (i == 4 && j != 1) {  // K is stored after RoPE, and taken before
                const std::string refused =
                    complaint<state_error>([&] { static_cast<void>(transcode(from, sequence, to)); });
                CHECK(contains(refused, "layer 0 of the first cache stores K after RoPE"));
                continue;
            }
            const Sequence made = transcode(from, sequence, to);
            CHECK(to.size(made) == 250);
            CHECK(to.next_position(made) == from.next_position(sequence));
            CHECK(to.position_of(made, 100) == from.position_of(sequence, 100));
            CHECK(relative(expected, next_answers(to, models[j], engine, made)) < 2e-5);
        }
        CHECK(from.bytes().total() == bytes);
        CHECK(relative(expected, next_answers(from, engine.model(), engine, sequence)) == 0);
    }
}

TEST_CASE("what rests in few bits is off by both schemes when it is used, and stored alike by any number of threads") {
    const Engine engine;
    const Model model = engine.given(LayerInput::keys_before_rope);
    const Options options{.sinks = 4, .recent = 20};
    for (const char* const name : {"cl_svd_rot4", "cl_x_rot3", "x4_rot"}) {
        INFO(name);
        const auto cold = make_cache(name, engine.model(), options);
        const Sequence sequence = fill(*cold, engine, Gap::close);
        const test::Outputs expected = next_answers(*cold, engine.model(), engine, sequence);
        const auto fine = make_cache("kv8", model, options), coarse = make_cache("kv4", model, options);
        const double off_fine =
            relative(expected, next_answers(*fine, model, engine, transcode(*cold, sequence, *fine)));
        const Sequence one = transcode(*cold, sequence, *coarse);
        const double off_coarse = relative(expected, next_answers(*coarse, model, engine, one));
        CHECK(off_fine < 0.03);
        CHECK(off_coarse < 0.3);
        CHECK(off_coarse > 2 * off_fine);
        const Sequence other = transcode(*cold, sequence, *coarse, test::Threads{3});
        CHECK(next_answers(*coarse, model, engine, one) == next_answers(*coarse, model, engine, other));
    }
}

TEST_CASE("what cannot be transcoded is refused, and leaves nothing behind") {
    const Engine engine;
    const auto from = make_cache("x4_rot", engine.model(), {});
    const Sequence sequence = fill(*from, engine, Gap::close);
    const auto refused = [&](const Model& model, const char* name, const Options& options = {}) {
        const auto to = make_cache(name, model, options);
        const std::size_t before = to->bytes().total();
        std::string why = complaint<error>([&] { static_cast<void>(transcode(*from, sequence, *to)); });
        // The list of sequences keeps its room.
        const auto again = to->create();
        to->drop(again);
        CHECK(to->bytes().stored() <= before + 4096);
        return why;
    };
    CHECK(contains(refused(engine.model(), "x4_rot"), "layer 0 of the second cache takes X"));
    Model other = engine.given(LayerInput::keys_before_rope);
    other.layers.pop_back();
    CHECK(contains(refused(other, "kv8"), "the first cache has 5 layers, the second 4"));
    other = engine.given(LayerInput::keys_before_rope);
    for (Layer& layer : other.layers)
        layer.shape.kv_heads = 4, layer.w_k = layer.w_v = {}, layer.b_k = layer.b_v = nullptr;
    CHECK(contains(refused(other, "kv8"), "2 kv heads of 8 channels, of the second 4 of 8"));
    CHECK(contains(refused(engine.given(LayerInput::keys_before_rope), "kv8", {.budget = 20000}), "budget"));

    Model windows = engine.model();
    windows.layers[2].window = 64;
    const auto freed = make_cache("x4_rot", windows, {});
    test::Feed feed{freed->create()};
    for (int i = 0; i < 3; ++i) test::feed(*freed, windows, {{&feed, 300}});
    const Model model = engine.given(LayerInput::keys_before_rope);
    const auto to = make_cache("kv8", model, {});
    const std::string why = complaint<error>([&] { static_cast<void>(transcode(*freed, feed.sequence, *to)); });
    INFO(why);
    CHECK(contains(why, "layer 2 has a window, or chunks, and has freed"));
    CHECK(contains(complaint<sequence_error>([&] { static_cast<void>(transcode(*from, feed.sequence, *to)); }),
                   "another cache has made it"));
}
