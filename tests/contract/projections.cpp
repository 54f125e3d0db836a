// Every shipped projection gives K and V back, whatever the shape; one that does not is told what is wrong.
#include <xquant/projection/joint_svd.hpp>
#include <xquant/projection/key_value_latent.hpp>
#include <xquant/projection/x_latent.hpp>
#include <xquant/testing/contract.hpp>
#include <xquant/xquant.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/complaint.hpp"
#include "support/model.hpp"
#include "support/statistics.hpp"

using namespace xquant;
using test::contains;
using testing::check_difference;
using testing::check_projection;

namespace {

template <class P>
std::string complaint(const Layer& layer) {
    return test::complaint<testing::contract_violation>([&] { check_projection<P>(layer); });
}

struct WrongWidth : Plain {
    static LayerFootprint<1> footprint(const Layer& layer) noexcept {
        return {{layer.shape.width + 1}, Plain::footprint(layer).matrix_floats, Plain::footprint(layer).vector_floats};
    }
};
struct WrongFloats : Plain {
    static LayerFootprint<1> footprint(const Layer& layer) noexcept {
        return {{layer.shape.width}, Plain::footprint(layer).matrix_floats - 1, Plain::footprint(layer).vector_floats};
    }
};
struct SwapsKAndV : Plain {
    static LayerPlan prepare(const Layer& layer) {
        LayerPlan plan = Plain::prepare(layer);
        std::swap(plan.keys, plan.values);
        return plan;
    }
};
struct ForgetsAHead : Plain {
    static LayerFootprint<1> footprint(const Layer& layer) noexcept {
        const LayerShape& s = layer.shape;
        return {{s.width}, 2 * s.width * s.kv_width() - s.width * s.head_dim};
    }
    static LayerPlan prepare(const Layer& layer) {
        LayerPlan plan = Plain::prepare(layer);
        plan.values.pop_back();
        return plan;
    }
};
struct OneStreamTooFew {
    static constexpr std::size_t streams = 2;
    static LayerFootprint<2> footprint(const Layer& layer) noexcept {
        return {{layer.shape.width, 0}, Plain::footprint(layer).matrix_floats, Plain::footprint(layer).vector_floats};
    }
    static LayerPlan prepare(const Layer& layer) { return Plain::prepare(layer); }
};

/// K comes back as NaN.
struct MakesNan : KeyValue<BeforeRope> {
    static LayerPlan prepare(const Layer& layer) {
        LayerPlan plan = KeyValue<BeforeRope>::prepare(layer);
        plan.keys[0].constant.assign(layer.shape.head_dim, std::numeric_limits<float>::quiet_NaN());
        return plan;
    }
    static LayerFootprint<2> footprint(const Layer& layer) {
        LayerFootprint<2> out = KeyValue<BeforeRope>::footprint(layer);
        out.vector_floats += layer.shape.head_dim;
        return out;
    }
};

template <class P>
std::string difference_complaint(const Layer& layer) {
    return test::complaint<testing::contract_violation>([&] { check_difference<P>(layer); });
}

using Joint = JointSvd<Hadamard, FullRank>;
struct NotOrthonormal : Joint {
    static LayerPlan prepare_difference(const Layer& layer) {
        LayerPlan plan = Joint::prepare_difference(layer);
        plan.streams[0].latent[0] += 0.1F;
        return plan;
    }
};
struct OtherSubspace : Joint {
    static LayerPlan prepare_difference(const Layer& layer) {
        LayerPlan plan = Joint::prepare_difference(layer);
        std::vector<float>& u = plan.streams[0].latent;
        const std::size_t coded = plan.streams[0].coded_width();
        std::rotate(u.begin(), u.begin() + static_cast<std::ptrdiff_t>(coded), u.end());
        return plan;
    }
};
struct ForgetsTheLatent : Joint {
    static LayerFootprint<1> difference_footprint(const Layer& layer) { return Joint::base::footprint(layer); }
};

/// Everything that adds to K and V beside the weights.
struct Extras {
    explicit Extras(Layer& layer)
        : bias(test::Random(3).rows(layer.shape.kv_width(), 2)), norm(test::Random(4).rows(layer.shape.head_dim)) {
        layer.b_k = layer.b_v = bias.data();
        layer.k_norm = norm.data();
        layer.rope.factor = 1.25;
    }
    std::vector<float> bias, norm;
};

}  // namespace

TEST_CASE("projections give K and V back") {
    const test::Setup with_mean = [] {
        test::Setup setup({.width = 96, .heads = 4, .kv_heads = 2, .head_dim = 48}, RopePairing::halves);
        setup.add_mean();
        return setup;
    }();
    const test::Setup setups[] = {
        test::Setup({.width = 128, .heads = 2, .kv_heads = 2, .head_dim = 64}, RopePairing::interleaved),
        test::Setup({.width = 160, .heads = 2, .kv_heads = 1, .head_dim = 80}, RopePairing::halves),
        test::Setup({.width = 192, .heads = 6, .kv_heads = 3, .head_dim = 32}, RopePairing::interleaved, 1, 12),
        test::Setup({.width = 90, .heads = 2, .kv_heads = 2, .head_dim = 7}, RopePairing::halves),
    };
    for (const test::Setup* setup : {&with_mean, setups, setups + 1, setups + 2, setups + 3}) {
        const Layer& layer = setup->model.layers[0];
        INFO("width " << layer.shape.width << ", head_dim " << layer.shape.head_dim);
        const auto check = [](const Layer& of) {
            CHECK_NOTHROW(check_projection<Plain>(of));
            CHECK_NOTHROW(check_projection<Rotated>(of));
            CHECK_NOTHROW(check_projection<KeyValue<BeforeRope>>(of));
            CHECK_NOTHROW(check_projection<KeyValue<AfterRope>>(of));
            CHECK_NOTHROW((check_projection<KeyValue<BeforeRope, Hadamard>>(of)));
            CHECK_NOTHROW((check_projection<KeyValue<AfterRope, Hadamard>>(of)));
            CHECK_NOTHROW(check_projection<SplitSvd>(of));
            CHECK_NOTHROW(check_projection<HeadSvd>(of));
            CHECK_NOTHROW(check_projection<SplitSvdOf<Rank<10000>>>(of));
            CHECK_NOTHROW(check_projection<HeadSvdOf<EnergyShare<1000>>>(of));
            CHECK_NOTHROW(check_difference<Plain>(of));
            CHECK_NOTHROW(check_difference<Rotated>(of));
            if (2 * of.shape.kv_width() > of.shape.width) return;
            CHECK_NOTHROW((check_projection<JointSvd<NoMix, FullRank>>(of)));
            CHECK_NOTHROW(check_projection<Joint>(of));
            CHECK_NOTHROW((check_difference<JointSvd<NoMix, FullRank>>(of)));
            CHECK_NOTHROW(check_difference<Joint>(of));
        };
        check(layer);
        Layer more = layer;
        const Extras extras(more);
        check(more);
    }
}

TEST_CASE("projections that choose bases by statistics give K and V back") {
    const RopePairing halves = RopePairing::halves;
    test::Setup setups[] = {
        test::Setup({.width = 128, .heads = 2, .kv_heads = 1, .head_dim = 32}, halves),
        test::Setup({.width = 96, .heads = 2, .kv_heads = 1, .head_dim = 48}, RopePairing::interleaved),
        test::Setup({.width = 130, .heads = 4, .kv_heads = 1, .head_dim = 64}, halves, 1, 12),
        test::Setup({.width = 192, .heads = 6, .kv_heads = 3, .head_dim = 32}, halves),
        test::Setup({.width = 200, .heads = 3, .kv_heads = 3, .head_dim = 48}, RopePairing::interleaved),
        test::Setup({.width = 192, .heads = 3, .kv_heads = 3, .head_dim = 64}, halves),
    };
    for (test::Setup& setup : setups) {
        Layer& layer = setup.model.layers[0];
        INFO("width " << layer.shape.width << ", kv_heads " << layer.shape.kv_heads << ", head_dim "
                      << layer.shape.head_dim);
        const Calibration known = test::random_calibration(setup.model);
        known.attach(setup.model);
        const auto check = [](const Layer& of) {
            constexpr double tolerance = 1e-4;  // T and A in f32 are further from rotations than an SVD's
            CHECK_NOTHROW(check_projection<KeyValueLatent<EachHead>>(of, tolerance));
            CHECK_NOTHROW(check_projection<KeyValueLatent<AllHeads>>(of, tolerance));
            CHECK_NOTHROW(check_projection<XLatent<AllChannels>>(of, tolerance));
            CHECK_NOTHROW(check_difference<XLatent<AllChannels>>(of, tolerance));
            if (2 * of.shape.kv_width() > of.shape.width) {
                CHECK_THROWS_AS(XLatent<KeysAndValues>::footprint(of), shape_error);
                CHECK_THROWS_AS(XLatent<KeysAndValues>::difference_footprint(of), shape_error);
                CHECK_THROWS_AS(XLatent<KeysAndValues>::prepare_difference(of), shape_error);
                CHECK(contains(test::complaint<shape_error>([&] { XLatent<KeysAndValues>::prepare(of); }),
                               "2 kv_heads * head_dim = " + std::to_string(2 * of.shape.kv_width()) +
                                   " is more than width = " + std::to_string(of.shape.width)));
                return;
            }
            CHECK_NOTHROW(check_projection<XLatent<KeysAndValues>>(of, tolerance));
            CHECK_NOTHROW(check_difference<XLatent<KeysAndValues>>(of, tolerance));
        };
        check(layer);
        // Biases alone, a norm alone, and both.
        const std::vector<float> bias = test::Random(3).rows(layer.shape.kv_width(), 2);
        for (const bool key : {true, false}) {
            if (layer.shape.head_dim > 32) continue;
            Layer biased = layer;
            (key ? biased.b_k : biased.b_v) = bias.data();
            check(biased);
        }
        Layer more = layer;
        const Extras extras(more);
        check(more);
        more.b_k = more.b_v = nullptr;
        check(more);
    }
}

TEST_CASE("bases depend on the bits of codes where that pays, and rows come back all the same") {
    test::Setup setup({.width = 96, .heads = 2, .kv_heads = 2, .head_dim = 16}, RopePairing::halves);
    const Calibration known = test::random_calibration(setup.model);
    known.attach(setup.model);
    const Layer& layer = setup.model.layers[0];
    const auto metric = [](const LayerPlan& plan, std::size_t stream) { return plan.streams[stream].metric.values; };
    using Latents = KeyValueLatent<EachHead>;
    const LayerPlan four = Latents::prepare(layer), two_four = Latents::prepare(layer, {2, 4}),
                    four_two = Latents::prepare(layer, {4, 2});
    CHECK(metric(four, 0) != metric(two_four, 0));
    CHECK(metric(four, 1) == metric(two_four, 1));
    CHECK(metric(four, 0) == metric(four_two, 0));
    CHECK(metric(four, 1) != metric(four_two, 1));
    using X = XLatent<AllChannels>;
    CHECK(metric(X::prepare(layer), 0) == metric(X::prepare(layer, {4}), 0));
    CHECK(metric(X::prepare(layer), 0) != metric(X::prepare(layer, {2}), 0));
    CHECK(metric(X::prepare_difference(layer), 0) == metric(X::prepare_difference(layer, {3}), 0));
    CHECK(metric(X::prepare_difference(layer), 0) != metric(X::prepare_difference(layer, {2}), 0));
}

TEST_CASE("statistics that are missing or of another size are told apart") {
    test::Setup setup({.width = 96, .heads = 2, .kv_heads = 2, .head_dim = 8}, RopePairing::halves);
    Calibration known = test::random_calibration(setup.model);
    Layer& layer = setup.model.layers[0];
    using Prepare = LayerPlan (*)(const Layer&);
    const auto said = [&](Prepare prepare) {
        return test::complaint<value_error>([&] { static_cast<void>(prepare(layer)); });
    };
    struct Need {
        Prepare prepare;
        std::vector<float> LayerStatistics::*part;
        const char* name;
        std::size_t floats;
    };
    const Prepare each = KeyValueLatent<EachHead>::prepare, all = KeyValueLatent<AllHeads>::prepare,
                  x = XLatent<AllChannels>::prepare, kv = XLatent<KeysAndValues>::prepare,
                  x_difference = XLatent<AllChannels>::prepare_difference,
                  kv_difference = XLatent<KeysAndValues>::prepare_difference;
    for (const Prepare prepare : {each, all, x, kv, x_difference, kv_difference}) {
        layer.statistics = nullptr;
        CHECK(contains(said(prepare), "Layer::statistics is null"));
        layer.statistics = known.layers.data();
        CHECK(said(prepare) == "");
    }
    using S = LayerStatistics;
    std::vector<Need> needs{{each, &S::key_spread, "key_spread", 128},
                            {each, &S::value_spread, "value_spread", 128},
                            {all, &S::joint_keys, "joint_keys", 256},
                            {all, &S::joint_values, "joint_values", 256},
                            {x, &S::x_spread, "x_spread", 9216},
                            {kv, &S::x_spread, "x_spread", 9216},
                            {x_difference, &S::difference_spread, "difference_spread", 9216},
                            {kv_difference, &S::difference_spread, "difference_spread", 9216}};
    for (const Prepare prepare : {each, all, x, kv, x_difference, kv_difference}) {
        needs.push_back({prepare, &S::key_cost, "key_cost", 128});
        needs.push_back({prepare, &S::value_cost, "value_cost", 128});
    }
    for (const Need& need : needs) {
        INFO(need.name);
        std::vector<float>& values = known.layers[0].*need.part;
        const std::vector<float> before = values;
        REQUIRE(before.size() == need.floats);
        for (const std::size_t size : {std::size_t{0}, need.floats - 1, need.floats + 1}) {
            values.resize(size, 1.0F);
            CHECK(contains(said(need.prepare), "has " + std::to_string(size) + " floats of " + need.name +
                                                   "; the layer's shape asks for " + std::to_string(need.floats)));
        }
        values = before;
        const std::size_t n = need.floats == 128 ? 8 : need.floats == 256 ? 16 : 96;
        for (const std::size_t at : {std::size_t{0}, std::size_t{1}}) {
            values[at] = values[at * n] = std::numeric_limits<float>::quiet_NaN();
            CHECK(said(need.prepare) != "");
            values = before;
        }
    }
    // What a projection does not read may be missing.
    Calibration some;
    some.layers.resize(1);
    some.layers[0].key_cost = known.layers[0].key_cost;
    some.layers[0].value_cost = known.layers[0].value_cost;
    some.layers[0].x_spread = known.layers[0].x_spread;
    layer.statistics = some.layers.data();
    CHECK(said(x) == "");
    CHECK(said(kv) == "");
    CHECK(said(each) != "");
    CHECK(said(x_difference) != "");
}

TEST_CASE("bases by statistics err less than bases of the same size that know nothing") {
    // What errors cost is uneven: a basis that knows it and rows that spread as C have a sum of D that is smaller.
    test::Setup setup({.width = 96, .heads = 2, .kv_heads = 2, .head_dim = 16}, RopePairing::halves);
    const Calibration known = test::random_calibration(setup.model);
    known.attach(setup.model);
    const Layer& layer = setup.model.layers[0];
    const LayerPlan plan = KeyValueLatent<EachHead>::prepare(layer);
    for (std::size_t head = 0; head < 2; ++head) {
        const std::vector<double> reduced =
            detail::reduced_metric(plan.streams[0].metric.values.data() + head * 256, 16);
        double fed_back = 0, without = 0;
        for (std::size_t i = 0; i < 16; ++i) {
            fed_back += reduced[i * 16 + i];
            // A channel of K has its own variance, and errors of it cost what M's diagonal says.
            without += static_cast<double>(known.layers[0].key_spread[head * 256 + i * 16 + i]) *
                       static_cast<double>(known.layers[0].key_cost[head * 256 + i * 16 + i]);
        }
        INFO(fed_back / without);
        CHECK(fed_back < 0.6 * without);
        CHECK(fed_back > 0.001 * without);
    }
}

TEST_CASE("the latent of a model of its own gives K and V back") {
    test::Random random(2);
    constexpr std::size_t d = 96, r = 48, heads = 2, shared = 16, dh = 40;
    const std::vector<float> down = random.rows(r * d, 0.2F), down_shared = random.rows(shared * d, 0.2F);
    const std::vector<float> w_k = random.rows(heads * (dh - shared) * r, 0.2F),
                             w_v = random.rows(heads * 32 * r, 0.2F);
    const std::vector<float> gain = random.rows(r, 1);
    Layer layer;
    layer.shape = {d, heads, heads, dh};
    layer.rope = Rope::standard(shared);
    layer.w_k = MatrixView(w_k.data(), heads * (dh - shared), r);
    layer.w_v = MatrixView(w_v.data(), heads * 32, r);
    layer.latent.w_down = MatrixView(down.data(), r, d);
    layer.latent.w_shared = MatrixView(down_shared.data(), shared, d);
    CHECK_NOTHROW(check_projection<Latent>(layer));
    layer.latent.norm = gain.data();
    CHECK_NOTHROW(check_projection<Latent>(layer));
}

TEST_CASE("the directions of an SVD are orthonormal, fall, and have the sign that makes their largest entry positive") {
    test::Random random(17);
    constexpr std::size_t d = 60, n = 24;
    const std::vector<float> weight = random.rows(n * d);
    const Basis basis = svd_basis(MatrixView(weight.data(), n, d), 0, n);
    const std::vector<double> values = singular_values(MatrixView(weight.data(), n, d), 0, n);
    CHECK(std::is_sorted(values.rbegin(), values.rend()));
    CHECK(values.back() > 0.1);
    for (std::size_t j = 0; j < n; ++j) {
        float extreme = 0;
        for (std::size_t i = 0; i < d; ++i) {
            if (std::abs(basis.u[i * n + j]) > std::abs(extreme)) extreme = basis.u[i * n + j];
        }
        CHECK(extreme > 0);
        for (std::size_t other = 0; other <= j; ++other) {
            double product = 0;
            for (std::size_t i = 0; i < d; ++i) product += double{basis.u[i * n + j]} * double{basis.u[i * n + other]};
            CHECK(std::abs(product - (other == j ? 1 : 0)) < 1e-5);
        }
    }
}

TEST_CASE("a rank cuts K off, and is not taken for exact") {
    const test::Setup setup({.width = 96, .heads = 2, .kv_heads = 1, .head_dim = 32}, RopePairing::halves);
    const Layer& layer = setup.model.layers[0];
    CHECK(contains(complaint<SplitSvdOf<Rank<31>>>(layer), "K of head 0 does not come back"));
    CHECK(contains(complaint<HeadSvdOf<EnergyShare<990>>>(layer), "K of head 0 does not come back"));
    CHECK(contains(complaint<JointSvd<NoMix, Rank<40>>>(layer), "does not come back"));
    CHECK(contains(difference_complaint<JointSvd<NoMix, Rank<40>>>(layer), "does not come back"));
}

TEST_CASE("a projection that breaks a rule is told which") {
    const test::Setup setup({.width = 32, .heads = 2, .kv_heads = 2, .head_dim = 8}, RopePairing::halves);
    const Layer& layer = setup.model.layers[0];
    CHECK(contains(complaint<WrongWidth>(layer), "width of stream 0"));
    CHECK(contains(complaint<WrongFloats>(layer), "matrix_floats"));
    CHECK(contains(complaint<SwapsKAndV>(layer), "K of head 0 does not come back"));
    CHECK(contains(complaint<MakesNan>(layer), "K of head 0 does not come back"));
    CHECK(contains(complaint<ForgetsAHead>(layer), "plan does not fit the layer"));
    CHECK(contains(complaint<OneStreamTooFew>(layer), "the plan has 1 streams"));
}

TEST_CASE("a difference that breaks a rule is told which") {
    const test::Setup setup({.width = 96, .heads = 2, .kv_heads = 1, .head_dim = 32}, RopePairing::halves);
    const Layer& layer = setup.model.layers[0];
    CHECK(difference_complaint<Joint>(layer).empty());
    CHECK(contains(difference_complaint<NotOrthonormal>(layer), "not orthonormal"));
    CHECK(contains(difference_complaint<OtherSubspace>(layer), "does not come back"));
    CHECK(contains(difference_complaint<ForgetsTheLatent>(layer), "width of stream 0"));
}
