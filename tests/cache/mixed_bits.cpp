/// Bits divided among layers: that the division is the best there is, its text, and the caches that are made by it.
#include <xquant/calibration/calibrator.hpp>
#include <xquant/persistence.hpp>
#include <xquant/registry_svd.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/complaint.hpp"
#include "support/feed.hpp"
#include "support/model.hpp"
#include "support/oracle.hpp"
#include "support/saved_file.hpp"
#include "support/statistics.hpp"
#include "support/tolerance.hpp"

using namespace xquant;
using test::complaint;
using test::contains;

namespace {

/// Layers with these sensitivities of K and of V, and K and V of these widths.
struct Sensitive {
    Sensitive(const std::vector<std::array<double, 2>>& costs, const std::vector<std::size_t>& widths) {
        statistics.resize(costs.size());
        for (std::size_t i = 0; i < costs.size(); ++i) {
            Layer& layer = model.layers.emplace_back();
            layer.shape = {8, 1, 1, widths[i]};
            layer.statistics = &statistics[i];
            statistics[i].key_sensitivity = static_cast<float>(costs[i][0]);
            statistics[i].value_sensitivity = static_cast<float>(costs[i][1]);
        }
    }
    Sensitive(const Sensitive&) = delete;
    Sensitive& operator=(const Sensitive&) = delete;

    std::vector<LayerStatistics> statistics;
    Model model;
};

/// Bits of all channels.
double bits_of(const Model& model, const std::vector<LayerBits>& bits) {
    double sum = 0;
    for (std::size_t i = 0; i < bits.size(); ++i) {
        sum += static_cast<double>(model.layers[i].shape.kv_width() * (bits[i].keys + bits[i].values));
    }
    return sum;
}
double channels_of(const Model& model) {
    double sum = 0;
    for (const Layer& layer : model.layers) sum += 2 * static_cast<double>(layer.shape.kv_width());
    return sum;
}

/// What errors cost: sensitivities are those of 3 bits, and errors halve with each step.
double cost_of(const Model& model, const std::vector<LayerBits>& bits) {
    const auto squared = [](unsigned b) { return std::pow(7 / (std::pow(2.0, b) - 1), 2); };
    double sum = 0;
    for (std::size_t i = 0; i < bits.size(); ++i) {
        const LayerStatistics& of = *model.layers[i].statistics;
        sum += static_cast<double>(of.key_sensitivity) * squared(bits[i].keys) +
               static_cast<double>(of.value_sensitivity) * squared(bits[i].values);
    }
    return sum;
}

/// The least cost of all divisions of two layers within a budget.
double least_cost(const Model& model, double budget) {
    double least = std::numeric_limits<double>::max();
    for (unsigned code = 0; code < 5 * 5 * 5 * 5; ++code) {
        const std::vector<LayerBits> bits{{2 + code % 5, 2 + code / 5 % 5}, {2 + code / 25 % 5, 2 + code / 125}};
        if (bits_of(model, bits) <= budget) least = std::min(least, cost_of(model, bits));
    }
    return least;
}

/// A model, and the statistics of its layers by a Calibrator, from other rows than tests feed.
struct Calibrated {
    Calibrated()
        : setup({.width = 48, .heads = 4, .kv_heads = 2, .head_dim = 16}, RopePairing::halves, 3),
          found(statistics_of(setup.model)) {
        found.attach(setup.model);
    }
    Calibrated(const Calibrated&) = delete;
    Calibrated& operator=(const Calibrated&) = delete;

    test::Setup setup;
    Calibration found;

private:
    static Calibration statistics_of(const Model& model) {
        Calibrator calibrator(model);
        for (std::size_t i = 0; i < model.layers.size(); ++i) {
            const test::Rows rows = test::rows_of(model.layers[i], i, 77, 0, 400);
            calibrator.add(i, 400, rows.x.data(), rows.q.data());
        }
        Calibration out = calibrator.finish();
        for (std::size_t i = 0; i < out.layers.size(); ++i) {
            out.layers[i].key_sensitivity = i == 1 ? 1.0F : 0.01F;
            out.layers[i].value_sensitivity = i == 2 ? 0.3F : 0.02F;
        }
        return out;
    }
};

constexpr std::size_t tokens = 300;

/// How far answers are from attention in float64: those of query heads first .. first + heads.
double error_of(Cache<>& cache, const Model& model, std::size_t first = 0, std::size_t heads = 4) {
    const test::Outputs found = test::outputs_of(cache, model, {130, 128, 42});
    test::RelativeDistance distance;
    for (std::size_t i = 0; i < model.layers.size(); ++i) {
        const test::Rows rows = test::rows_of(model.layers[i], i, 1, 0, tokens);
        const std::vector<double> exact = test::oracle_attention(model.layers[i], rows.x, rows.q);
        REQUIRE(found[i].size() == exact.size());
        for (std::size_t k = 0; k < exact.size(); ++k) {
            const std::size_t head = k / model.layers[i].shape.head_dim % model.layers[i].shape.heads;
            if (head >= first && head < first + heads) distance.add(static_cast<double>(found[i][k]), exact[k]);
        }
    }
    return distance.value();
}

/// The file of a sequence.
std::string saved_by(Cache<>& cache, const Model& model) {
    test::Feed feed{cache.create()};
    test::feed(cache, model, {{&feed, 130}});
    test::feed(cache, model, {{&feed, 170}});
    return test::saved(cache, {feed.sequence});
}

Bytes without_workspace(Bytes bytes) {
    bytes.workspace = 0;
    return bytes;
}

BitRecipe recipe_of(BitForm form, unsigned keys, unsigned values, std::size_t layers = 3) {
    return {form, std::vector<LayerBits>(layers, {keys, values})};
}

}  // namespace

TEST_CASE("bits are divided within the budget, and no division costs less where all layers are as wide") {
    test::Random random(5);
    std::size_t better = 0, trials = 0;
    for (std::size_t trial = 0; trial < 60; ++trial) {
        const auto cost = [&] { return std::pow(10.0, 3 * static_cast<double>(random())); };
        const Sensitive of({{cost(), cost()}, {cost(), cost()}}, {7, 7});
        for (const double average : {2.0, 2.25, 2.6, 3.0, 3.5, 4.0, 4.75, 5.5, 6.0}) {
            INFO("trial " << trial << ", average " << average);
            const BitRecipe found = allocate_bits(trial % 2 == 0 ? BitForm::heads : BitForm::joint, of.model, average);
            REQUIRE(found.layers.size() == 2);
            CHECK(found.form == (trial % 2 == 0 ? BitForm::heads : BitForm::joint));
            for (const LayerBits& bits : found.layers) {
                CHECK((bits.keys >= 2 && bits.keys <= 6 && bits.values >= 2 && bits.values <= 6));
            }
            const double budget = average * channels_of(of.model) * (1 + 1e-12);
            CHECK(bits_of(of.model, found.layers) <= budget);
            CHECK(bits_of(of.model, found.layers) > budget - 7);  // nothing is left that a stream could take
            const double cost_found = cost_of(of.model, found.layers);
            CHECK(cost_found <= least_cost(of.model, budget) * (1 + 1e-6));
            const auto whole = static_cast<unsigned>(average);
            const double uniform = cost_of(of.model, std::vector<LayerBits>(2, {whole, whole}));
            CHECK(cost_found <= uniform * (1 + 1e-6));
            better += cost_found < 0.8 * uniform ? 1U : 0U;
            ++trials;
        }
    }
    CHECK(better > trials / 2);
}

TEST_CASE("layers of different widths stay within the budget, and what is left serves no one") {
    test::Random random(6);
    for (std::size_t trial = 0; trial < 60; ++trial) {
        const auto cost = [&] { return std::pow(10.0, 2 * static_cast<double>(random())); };
        const Sensitive of({{cost(), cost()}, {cost(), cost()}}, {1 + random.below(40), 1 + random.below(40)});
        for (const double average : {2.0, 2.3, 3.0, 3.7, 4.4, 5.0, 5.9, 6.0}) {
            INFO("trial " << trial << ", average " << average);
            const std::vector<LayerBits> found = allocate_bits(BitForm::heads, of.model, average).layers;
            const double budget = average * channels_of(of.model) * (1 + 1e-12);
            const double spent = bits_of(of.model, found);
            CHECK(spent <= budget);
            CHECK(cost_of(of.model, found) >= least_cost(of.model, budget) * (1 - 1e-6));
            // Of the bits that stand, each took away no less per channel than one that would have fitted in its place.
            for (std::size_t i = 0; i < 2; ++i) {
                for (const bool key : {true, false}) {
                    std::vector<LayerBits> more = found;
                    unsigned& bits = key ? more[i].keys : more[i].values;
                    if (++bits <= 6) CHECK(bits_of(of.model, more) > budget * (1 - 1e-9));
                }
            }
        }
    }
}

TEST_CASE("layers that cost alike get as many bits, and K's and V's need not be alike") {
    for (const unsigned average : {2U, 3U, 4U, 5U, 6U}) {
        const Sensitive of(std::vector<std::array<double, 2>>(5, {0.25, 0.25}), std::vector<std::size_t>(5, 16));
        CHECK(allocate_bits(BitForm::joint, of.model, average).layers == std::vector<LayerBits>(5, {average, average}));
    }
    const Sensitive keys(std::vector<std::array<double, 2>>(4, {1.0, 0.001}), std::vector<std::size_t>(4, 16));
    CHECK(allocate_bits(BitForm::heads, keys.model, 4).layers == std::vector<LayerBits>(4, {6, 2}));
    const Sensitive values(std::vector<std::array<double, 2>>(4, {0.1, 0.5}), std::vector<std::size_t>(4, 16));
    CHECK(allocate_bits(BitForm::heads, values.model, 4).layers == std::vector<LayerBits>(4, {3, 5}));
    // Sensitivities of another unit are no others.
    const Sensitive smaller(std::vector<std::array<double, 2>>(4, {0.1e-9, 0.5e-9}), std::vector<std::size_t>(4, 16));
    CHECK(allocate_bits(BitForm::heads, smaller.model, 4).layers == std::vector<LayerBits>(4, {3, 5}));
}

TEST_CASE("averages that cannot be had and sensitivities that are not there are refused") {
    Sensitive of({{1, 1}, {1, 1}}, {4, 4});
    const auto said = [&](double average) {
        return complaint<shape_error>([&] { static_cast<void>(allocate_bits(BitForm::heads, of.model, average)); });
    };
    CHECK(contains(said(1.99), "1.99 bits on average; expected 2 to 6"));
    CHECK(contains(said(6.01), "6.01 bits on average"));
    CHECK(contains(said(std::numeric_limits<double>::quiet_NaN()), "bits on average; expected 2 to 6"));
    const auto missing = [&] {
        return complaint<value_error>([&] { static_cast<void>(allocate_bits(BitForm::heads, of.model, 3)); });
    };
    CHECK(missing() == "");
    of.statistics[1].value_sensitivity = 0;
    CHECK(contains(missing(), "layer 1: no sensitivity of K and V stands in Layer::statistics"));
    of.statistics[0].key_sensitivity = std::numeric_limits<float>::quiet_NaN();
    CHECK(contains(missing(), "layer 0: no sensitivity"));
    of.statistics[0].key_sensitivity = -1;
    CHECK(contains(missing(), "layer 0: no sensitivity"));
    of.model.layers[0].statistics = nullptr;
    CHECK(contains(missing(), "layer 0: no sensitivity"));
    CHECK(contains(missing(), "head4:uniform"));
}

TEST_CASE("a recipe's text is that recipe, and other text is refused") {
    const BitRecipe recipe{BitForm::heads, {{4, 4}, {5, 3}, {16, 2}, {6, 16}}};
    CHECK(to_string(recipe) == "heads 4/4 5/3 16/2 6/16");
    CHECK(to_string(recipe_of(BitForm::joint, 2, 3, 2)) == "joint 2/3 2/3");
    for (const BitForm form : {BitForm::heads, BitForm::joint}) {
        BitRecipe all{form, {}};
        for (const unsigned keys : {2U, 3U, 4U, 5U, 6U, 16U}) {
            for (const unsigned values : {2U, 3U, 4U, 5U, 6U, 16U}) all.layers.push_back({keys, values});
        }
        CHECK(parse_recipe(to_string(all)) == all);
    }
    CHECK(parse_recipe("\n heads\t4/4   5/3\r\n16/2 6/16 \n") == recipe);
    const auto said = [](std::string_view text) {
        return complaint<shape_error>([&] { static_cast<void>(parse_recipe(text)); });
    };
    for (const char* text : {"", "  \n", "heads", "joint "}) CHECK(contains(said(text), "a recipe has no layers"));
    CHECK(contains(said("head 4/4"), "begins with heads or joint, not with 'head'"));
    CHECK(contains(said("4/4 4/4"), "not with '4/4'"));
    CHECK(contains(said("heads 4/4 heads"), "'heads' for layer 1"));
    for (const char* part : {"4",
                             "4/",
                             "/4",
                             "/",
                             "4/4/4",
                             "4//4",
                             "1/4",
                             "4/1",
                             "7/4",
                             "4/7",
                             "16/15",
                             "17/4",
                             "-4/4",
                             "+4/4",
                             "4/4x",
                             "x4/4",
                             "4.0/4",
                             "4/4,",
                             "4/99999999999999999999",
                             "0/4"}) {
        INFO(part);
        CHECK(contains(said("heads 4/4 16/2 " + std::string(part)),
                       "a recipe has '" + std::string(part) + "' for layer 2; expected bits of K and of V"));
    }
}

TEST_CASE("a cache by a recipe takes what is predicted, and errs less with every bit") {
    const Calibrated calibrated;
    const Model& model = calibrated.setup.model;
    const Options options{.sinks = 4, .recent = 0, .rows = DType::f32, .strict = true};
    for (const BitForm form : {BitForm::heads, BitForm::joint}) {
        double before = 1;  // that of zeros
        for (const unsigned bits : {2U, 3U, 4U, 5U, 6U, 16U}) {
            INFO((form == BitForm::heads ? "heads " : "joint ") << bits);
            const BitRecipe recipe = recipe_of(form, bits, bits);
            const std::unique_ptr<Cache<>> cache = make_cache(recipe, model, options);
            const double error = error_of(*cache, model);
            INFO(error);
            CHECK(without_workspace(cache->bytes()) == without_workspace(predict(recipe, model, options, tokens)));
            CHECK(error < (bits == 2 ? 0.5 : bits == 16 ? 0.1 : 0.7) * before);
            CHECK((bits == 16 ? error < 2e-3 : error > 1e-3));
            before = error;
        }
    }
}

TEST_CASE("each stream of each layer has the bits that a recipe says") {
    const Calibrated calibrated;
    const Model& model = calibrated.setup.model;
    const Options options{.sinks = 4, .recent = 0, .rows = DType::f32, .strict = true};
    const std::unique_ptr<Cache<>> two = make_cache(recipe_of(BitForm::heads, 2, 2), model, options);
    const std::vector<std::size_t> steps{130, 128, 42};
    const test::Outputs of_two = test::outputs_of(*two, model, steps);
    const BitRecipe mixed{BitForm::heads, {{2, 2}, {5, 3}, {16, 6}}};
    const std::unique_ptr<Cache<>> cache = make_cache(mixed, model, options);
    const Sequence empty = cache->create();
    CHECK(cache->bytes() == predict(mixed, model, options, 0));
    cache->drop(empty);
    const test::Outputs found = test::outputs_of(*cache, model, steps);
    CHECK(without_workspace(cache->bytes()) == without_workspace(predict(mixed, model, options, tokens)));
    CHECK(found[0] == of_two[0]);  // layers know nothing of each other
    for (const std::size_t layer : {1U, 2U}) {
        const test::Rows rows = test::rows_of(model.layers[layer], layer, 1, 0, tokens);
        const std::vector<double> exact = test::oracle_attention(model.layers[layer], rows.x, rows.q);
        test::RelativeDistance of_mixed, of_all_two;
        for (std::size_t k = 0; k < exact.size(); ++k) {
            of_mixed.add(static_cast<double>(found[layer][k]), exact[k]);
            of_all_two.add(static_cast<double>(of_two[layer][k]), exact[k]);
        }
        CHECK(of_mixed.value() < 0.6 * of_all_two.value());
        CHECK(of_mixed.value() > 1e-3);
    }
    // Half a byte of a channel of a page of 128 tokens for each four bits more, and nothing else is different.
    const auto stored = [&](const BitRecipe& recipe) { return predict(recipe, model, options, 4 + 128).codes; };
    const std::size_t r = model.layers[0].shape.kv_width();
    CHECK(stored(recipe_of(BitForm::heads, 6, 2)) - stored(recipe_of(BitForm::heads, 2, 2)) == 3 * r * 128 / 2);
    CHECK(stored(recipe_of(BitForm::heads, 2, 5)) - stored(recipe_of(BitForm::heads, 2, 2)) == 3 * r * 128 * 3 / 8);
    CHECK(stored(recipe_of(BitForm::heads, 2, 5)) == stored(recipe_of(BitForm::joint, 2, 5)));
}

TEST_CASE("a recipe that does not fit is refused") {
    const Calibrated calibrated;
    const Model& model = calibrated.setup.model;
    const auto said = [&](const BitRecipe& recipe) {
        const std::string text = complaint<shape_error>([&] { static_cast<void>(make_cache(recipe, model)); });
        CHECK(complaint<shape_error>([&] { static_cast<void>(predict(recipe, model, {}, 100)); }) == text);
        return text;
    };
    CHECK(contains(said(recipe_of(BitForm::heads, 4, 4, 2)), "a recipe for 2 layers; the model has 3"));
    CHECK(contains(said(recipe_of(BitForm::heads, 4, 4, 4)), "a recipe for 4 layers; the model has 3"));
    CHECK(contains(said({}), "a recipe for 0 layers"));
    for (const unsigned bits : {0U, 1U, 7U, 8U, 15U, 17U, 258U, 260U}) {
        INFO(bits);
        CHECK(contains(said(recipe_of(BitForm::heads, bits, 4)), std::to_string(bits) + " bits; expected 2 to 6"));
        CHECK(contains(said(recipe_of(BitForm::joint, 4, bits)), std::to_string(bits) + " bits; expected 2 to 6"));
    }
}

TEST_CASE("a scheme's saved sequence is that of its preset, and of its recipe") {
    const Calibrated calibrated;
    const Model& model = calibrated.setup.model;
    const Options options{.sinks = 2, .recent = 9};
    const auto named = [&](const std::string& name) { return saved_by(*make_cache(name, model, options), model); };
    const auto check = [&]<class Preset>(const std::string& name, std::type_identity<Preset>) {
        INFO(name);
        Preset preset(model, options);
        CHECK((named(name) == saved_by(preset, model)));
        CHECK(make_cache(name, model, options)->bytes() == Preset(model, options).bytes());
        CHECK(predict(name, model, options, 500) == Preset::predict(model, options, 500));
    };
    check("head4:uniform", std::type_identity<preset::head_latent<4>>{});
    check("head3:uniform", std::type_identity<preset::head_latent<3>>{});
    check("head2:uniform:group=32", std::type_identity<preset::head_latent<2, 2, 32>>{});
    check("head4:uniform:group=64", std::type_identity<preset::head_latent<4, 4, 64>>{});
    check("joint3:uniform", std::type_identity<preset::joint_latent<3>>{});
    const auto by = [&](const BitRecipe& recipe) { return saved_by(*make_cache(recipe, model, options), model); };
    CHECK((by(recipe_of(BitForm::heads, 4, 4)) == named("head4:uniform")));
    CHECK((by(recipe_of(BitForm::joint, 2, 2)) == named("joint2:uniform")));
    CHECK((by(allocate_bits(BitForm::heads, model, 4)) == named("head4")));
    CHECK((by(allocate_bits(BitForm::joint, model, 3)) == named("joint3")));
    CHECK((named("head4") != named("head4:uniform")));
    CHECK((named("joint3:group=32") != named("joint3")));
    // What is divided takes no more.
    CHECK(predict("head4", model, options, 1000).codes <= predict("head4:uniform", model, options, 1000).codes);
    CHECK(predict("head4", model, options, 1000).codes > predict("head3:uniform", model, options, 1000).codes);
}

TEST_CASE("costs in another unit make the same cache, and a head that costs nothing does not run wild") {
    Calibrated calibrated;
    const Model& model = calibrated.setup.model;
    const Options options{.sinks = 4, .recent = 0, .rows = DType::f32, .strict = true};
    for (const char* name : {"head4:uniform", "joint4:uniform"}) {
        INFO(name);
        const Calibration before = calibrated.found;
        const double error = error_of(*make_cache(name, model, options), model);
        const std::string file = saved_by(*make_cache(name, model, options), model);
        for (const float unit : {0x1p-80F, 0x1p40F}) {
            INFO(unit);
            for (LayerStatistics& layer : calibrated.found.layers) {
                for (float& value : layer.key_cost) value *= unit;
                for (float& value : layer.value_cost) value *= unit;
            }
            CHECK((saved_by(*make_cache(name, model, options), model) == file));
            calibrated.found = before;
        }
        for (LayerStatistics& layer : calibrated.found.layers) {
            const std::size_t head = 16 * 16;
            std::fill_n(layer.key_cost.begin(), head, 0.0F);
            std::fill_n(layer.value_cost.begin(), head, 0.0F);
        }
        // It is coarser, but no noise, and the other head has no part in it.
        const double of_head = error_of(*make_cache(name, model, options), model, 0, 2),
                     of_other = error_of(*make_cache(name, model, options), model, 2, 2);
        INFO(error << ", then " << of_head << " and " << of_other);
        CHECK(of_head < 0.9);
        CHECK(of_other < 1.5 * error);
        calibrated.found = before;
    }
}

TEST_CASE("sequences of a recipe are saved and loaded, and a cache of another recipe refuses them") {
    const Calibrated calibrated;
    const Model& model = calibrated.setup.model;
    const Options options{.sinks = 2, .recent = 9};
    const BitRecipe recipe{BitForm::heads, {{3, 5}, {16, 4}, {6, 2}}};
    const std::unique_ptr<Cache<>> cache = make_cache(recipe, model, options),
                                   again = make_cache(recipe, model, options);
    test::Feed feed{cache->create()};
    test::feed(*cache, model, {{&feed, 200}});
    const std::string file = test::saved(*cache, {feed.sequence});
    test::Feed loaded = feed;
    loaded.sequence = test::load_bytes(*again, file).sequences.at(0);
    test::feed(*cache, model, {{&feed, 90}});
    test::feed(*again, model, {{&loaded, 90}});
    CHECK(test::difference(feed.out, loaded.out) == "");
    BitRecipe other = recipe;
    other.layers[2].keys = 5;
    const std::unique_ptr<Cache<>> another = make_cache(other, model, options);
    CHECK(contains(complaint<mismatch_error>([&] { static_cast<void>(test::load_bytes(*another, file)); }), "layer 2"));
    CHECK(another->bytes().codes == 0);
}
