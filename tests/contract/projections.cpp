// Every shipped projection gives K and V back, whatever the shape; one that does not is told what is wrong.
#include <xquant/projection/joint_svd.hpp>
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
