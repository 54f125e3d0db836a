/// Plans: bytes are those of caches, and what fits and what is dominated follows from the figures.
#include <xquant/planner.hpp>
#include <xquant/registry_svd.hpp>

#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/complaint.hpp"
#include "support/model.hpp"
#include "support/statistics.hpp"
#include "support/threads.hpp"

using namespace xquant;
using test::complaint;
using test::contains;

namespace {

Machine machine() {
    Machine out;
    out.memory = 1e10;
    out.f32 = 1e11;
    out.int8 = 4e11;
    out.page = 1.28e-7;
    out.layer = 1e-6;
    for (ReadTime& time : out.kernels) time = {1e-10, 2e-11, 1e-9};
    return out;
}

const PlannedScheme& named(const std::vector<PlannedScheme>& found, const std::string& name) {
    for (const PlannedScheme& scheme : found) {
        if (scheme.name == name) return scheme;
    }
    FAIL("no scheme " << name);
    return found.front();
}

PlannedScheme made(const std::string& name, std::size_t bytes, double seconds, double divergence) {
    PlannedScheme out;
    out.name = name;
    out.cache = bytes / 2;
    out.weights = bytes - bytes / 2;
    out.seconds = seconds;
    out.divergence = divergence;
    return out;
}

/// Bytes of a cache with this many sequences of so many tokens.
Bytes bytes_of(const std::string& name, const Model& model, const Options& options, std::size_t sequences,
               std::size_t tokens) {
    const std::unique_ptr<Cache<>> cache = make_cache(name, model, options);
    const std::vector<float> x = test::Random(3).rows(tokens * model.layers[0].shape.width);
    for (std::size_t s = 0; s < sequences; ++s) {
        auto step = cache->begin({{cache->create(), tokens}});
        for (std::size_t l = 0; l < model.layers.size(); ++l)
            step.append(l, MatrixView(x.data(), tokens, model.layers[l].shape.width));
        step.commit();
    }
    return cache->bytes();
}

}  // namespace

TEST_CASE("bytes of a plan are those of a cache") {
    test::Setup setup = test::small_model();
    const Calibration calibration = test::random_calibration(setup.model);
    calibration.attach(setup.model);
    for (const char* name : {"f16", "kv4", "kivi4", "svd_head4", "x4_rot", "head4", "joint3", "xc3", "cl4"}) {
        for (const std::size_t tokens : {1U, 4U, 130U, 300U}) {
            const Options options{.sinks = 4, .recent = 16};
            const std::vector<std::string> names{name};
            const PlannedScheme one = plan(setup.model, machine(), {tokens, 1, 0, options}, names).front();
            const Bytes bytes = bytes_of(name, setup.model, options, 1, tokens);
            INFO(name << ", " << tokens << " tokens" << one.unavailable);
            // Accumulators are there while a step is.
            const auto recipe = detail::registry().find(name).recipe(setup.model, options);
            const std::size_t accumulator = detail::predict_accumulator(setup.model, recipe, tokens);
            CHECK((accumulator > 0) == contains(name, "cl"));
            CHECK(one.cache == bytes.stored() + accumulator);
            CHECK(one.weights == bytes.weights);
            // Of several sequences, the first one's table has room for a few.
            const PlannedScheme three = plan(setup.model, machine(), {tokens, 3, 0, options}, names).front();
            const Bytes of_three = bytes_of(name, setup.model, options, 3, tokens);
            CHECK(three.weights == of_three.weights);
            CHECK(three.cache - 3 * accumulator >= of_three.stored() - 1024);
            CHECK(three.cache - 3 * accumulator <= of_three.stored() + 1024);
        }
    }
}

TEST_CASE("what fits and what is dominated") {
    std::vector<PlannedScheme> found{made("a", 100, 3, 0.1), made("b", 90, 3, 0.1),  made("c", 80, 2, 0.2),
                                     made("d", 120, 4, 0.3), made("e", 80, 2, 0.2),  made("f", 70, 9, 0.9),
                                     made("g", 10, 1, 0.01), made("h", 500, 9, 0.5), made("i", 200, 1, 0.4)};
    found[6].unavailable = "no";
    found[7].divergence.reset();
    mark_plan(found, 100);
    // b has fewer bytes than a. Of b, c and e, which dominate d, b has the least divergence. c and e are equal.
    const std::vector<std::string> by{"b", "", "", "b", "", "", "", "", ""};
    const std::vector<bool> fits{true, true, true, false, true, true, false, false, false};
    for (std::size_t i = 0; i < found.size(); ++i) {
        INFO(found[i].name);
        CHECK(found[i].dominated_by == by[i]);
        CHECK(found[i].fits == fits[i]);
    }
    mark_plan(found, 0);
    for (const PlannedScheme& scheme : found) CHECK(scheme.fits == scheme.available());
    mark_plan(found, 89);
    CHECK(!found[1].fits);
    CHECK(found[2].fits);
}

TEST_CASE("more bits diverge less, and schemes stand in the order of their names") {
    test::Setup setup({.width = 48, .heads = 4, .kv_heads = 2, .head_dim = 16}, RopePairing::halves, 3);
    const Calibration calibration = test::random_calibration(setup.model);
    calibration.attach(setup.model);
    const std::vector<std::string> names{"head2", "head3", "head4",  "head3:uniform", "kv8", "kv4",      "kivi2",
                                         "kivi4", "f16",   "x3_rot", "x4_rot",        "cl4", "kvquant4", "x4_rot_mean"};
    test::Threads threads(2);
    const std::vector<PlannedScheme> found = plan(setup.model, machine(), {1024, 2, 0, {}}, names, threads);
    REQUIRE(found.size() == names.size());
    const auto kld = [&](const std::string& name) {
        INFO(name << named(found, name).unavailable << named(found, name).unknown);
        REQUIRE(named(found, name).divergence.has_value());
        return *named(found, name).divergence;
    };
    for (std::size_t i = 0; i < names.size(); ++i) CHECK(found[i].name == names[i]);
    CHECK(kld("head2") > kld("head3"));
    CHECK(kld("head3") > kld("head4"));
    CHECK(kld("head4") > 0);
    CHECK(kld("kv4") > 50 * kld("kv8"));
    CHECK(kld("kivi2") > kld("kivi4"));
    CHECK(kld("x3_rot") > kld("x4_rot"));
    CHECK(kld("f16") == 0);
    // Sensitivities were measured with these very codes.
    double measured = 0;
    for (const LayerStatistics& layer : calibration.layers) {
        measured += static_cast<double>(layer.key_sensitivity) + static_cast<double>(layer.value_sensitivity);
    }
    CHECK(std::abs(kld("head3:uniform") / measured - 1) < 1e-9);

    CHECK(contains(named(found, "cl4").unknown, "differences"));
    CHECK(!named(found, "cl4").divergence.has_value());
    CHECK(contains(named(found, "kvquant4").unavailable, "Layer::calibration"));
    CHECK(contains(named(found, "x4_rot_mean").unavailable, "Layer::mean"));
    // Threads do not matter.
    const std::vector<PlannedScheme> alone = plan(setup.model, machine(), {1024, 2, 0, {}}, names);
    for (std::size_t i = 0; i < names.size(); ++i) {
        CHECK(alone[i].divergence == found[i].divergence);
        CHECK(alone[i].seconds == found[i].seconds);
    }
}

TEST_CASE("time is the greater of what memory and what kernels take") {
    test::Setup setup({.width = 48, .heads = 4, .kv_heads = 2, .head_dim = 16}, RopePairing::halves, 3);
    const std::vector<std::string> names{"f16"};
    const Options none{.sinks = 0, .recent = 0};
    Machine fast = machine();
    fast.memory = 1e30;
    const auto of = [&](std::size_t context, std::size_t sequences) {
        return plan(setup.model, fast, {context, sequences, 0, none}, names).front();
    };
    // Three layers, two kv heads, K and V of 16 channels, two query heads each: 1e-10 + 2 x 2e-11 a channel, 2e-9 for
    // the scores of K, and 1e-9 for the pages.
    const double each = 3 * 2 * (2 * 16 * 1.4e-10 + 2e-9 + 1e-9);
    CHECK(std::abs((of(8192, 1).seconds - of(4096, 1).seconds) / (4096 * each) - 1) < 1e-9);
    CHECK(std::abs(of(4096, 5).seconds / of(4096, 1).seconds - 5) < 1e-9);
    const double alone = of(4096, 1).seconds;
    fast.threads = 4;
    CHECK(std::abs(of(4096, 1).seconds * 4 / alone - 1) < 1e-9);
    fast.threads = 1;
    fast.memory = 1e6;
    const PlannedScheme found = of(4096, 1);
    CHECK(found.seconds == found.read / 1e6);
    CHECK(found.read > 4096 * 3 * 64 * 2);
    // A window is all that a layer reads.
    fast.memory = 1e30;
    setup.model.layers[0].window = 512;
    const double expected = alone - (4096 - 512) * each / 3;
    CHECK(std::abs(of(4096, 1).seconds / expected - 1) < 1e-9);
}

TEST_CASE("without statistics, and for what cannot be asked") {
    test::Setup setup = test::small_model();
    const std::vector<std::string> names{"kv4", "head4", "head4:uniform", "xc4"};
    const auto refusal = [&](const PlanRequest& request, const std::vector<std::string>& of) {
        return complaint<shape_error>([&] { static_cast<void>(plan(setup.model, machine(), request, of)); });
    };
    std::vector<PlannedScheme> found = plan(setup.model, machine(), {}, names);
    CHECK(found[0].available());
    CHECK(contains(found[0].unknown, "no statistics"));
    for (std::size_t i = 1; i < 4; ++i) CHECK(contains(found[i].unavailable, "needs statistics of layer 0"));

    Calibration calibration = test::random_calibration(setup.model);
    calibration.layers[1].value_sensitivity = 0;
    calibration.attach(setup.model);
    found = plan(setup.model, machine(), {}, names);
    CHECK(contains(found[1].unavailable, "sensitivities of layer 1; head4:uniform does not"));
    CHECK(found[2].available());
    CHECK(contains(found[2].unknown, "no sensitivities"));

    CHECK(contains(refusal({.context = 0}, names), "a context of 0 tokens"));
    CHECK(contains(refusal({.sequences = 0}, names), "0 sequences"));
    CHECK(contains(refusal({}, {"kv5"}), "unknown scheme 'kv5'"));
    const PlannedScheme many =
        plan(setup.model, machine(), {4096, std::numeric_limits<std::size_t>::max() / 8, 0, {}}, names).front();
    CHECK(contains(many.unavailable, "more bytes than can be counted"));
    CHECK(contains(complaint<value_error>([&] { static_cast<void>(plan(setup.model, Machine{}, {}, names)); }),
                   "memory is 0"));
    CHECK(
        contains(complaint<shape_error>([&] { static_cast<void>(plan(Model{}, machine(), {}, names)); }), "no layers"));
    setup.model.layers[1].shape.heads = 0;
    CHECK(contains(refusal({}, names), "layer 1: width"));
}
