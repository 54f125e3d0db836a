// Every shipped projection gives K and V back, whatever the shape; one that does not is told what is wrong.
#include <xquant/projection/svd.hpp>
#include <xquant/testing/contract.hpp>
#include <xquant/xquant.hpp>

#include <string>

#include "support/catch.hpp"
#include "support/model.hpp"

using namespace xquant;
using testing::check_projection;

namespace {

template <class P>
std::string complaint(const Layer& layer) {
    try {
        check_projection<P>(layer);
    } catch (const testing::contract_violation& e) {
        return e.what();
    }
    return "";
}

bool contains(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

struct WrongWidth : Plain {
    static LayerFootprint<1> footprint(const Layer& layer) noexcept {
        return {{layer.shape.width + 1}, Plain::footprint(layer).weight_floats};
    }
};
struct WrongFloats : Plain {
    static LayerFootprint<1> footprint(const Layer& layer) noexcept {
        return {{layer.shape.width}, Plain::footprint(layer).weight_floats - 1};
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
        return {{layer.shape.width, 0}, Plain::footprint(layer).weight_floats};
    }
    static LayerPlan prepare(const Layer& layer) { return Plain::prepare(layer); }
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
        CHECK_NOTHROW(check_projection<Plain>(layer));
        CHECK_NOTHROW(check_projection<Rotated>(layer));
        CHECK_NOTHROW(check_projection<KeyValue<BeforeRope>>(layer));
        CHECK_NOTHROW(check_projection<KeyValue<AfterRope>>(layer));
        CHECK_NOTHROW((check_projection<KeyValue<BeforeRope, Hadamard>>(layer)));
        CHECK_NOTHROW((check_projection<KeyValue<AfterRope, Hadamard>>(layer)));
        CHECK_NOTHROW(check_projection<SplitSvd>(layer));
        CHECK_NOTHROW(check_projection<HeadSvd>(layer));
    }
}

TEST_CASE("a projection that breaks a rule is told which") {
    const test::Setup setup({.width = 32, .heads = 2, .kv_heads = 2, .head_dim = 8}, RopePairing::halves);
    const Layer& layer = setup.model.layers[0];
    CHECK(contains(complaint<WrongWidth>(layer), "width of stream 0"));
    CHECK(contains(complaint<WrongFloats>(layer), "weight_floats"));
    CHECK(contains(complaint<SwapsKAndV>(layer), "K of head 0 does not come back"));
    CHECK(contains(complaint<ForgetsAHead>(layer), "plan does not fit the layer"));
    CHECK(contains(complaint<OneStreamTooFew>(layer), "the plan has 1 streams"));
}
