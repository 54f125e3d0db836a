/// What a model may not be: refused before anything is prepared, with the right kind of error and a word that names it.
#include <xquant/model.hpp>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/complaint.hpp"
#include "support/model.hpp"

using namespace xquant;
using test::contains;

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

/// What check_layer says after `change`, or "" if it says nothing.
template <class Error, class F>
std::string complaint(F change) {
    test::Setup setup({.width = 24, .heads = 4, .kv_heads = 2, .head_dim = 6}, RopePairing::halves);
    Layer& layer = setup.model.layers[0];
    CHECK_NOTHROW(detail::check_layer(layer, 7));
    change(layer);
    return test::complaint<Error>([&] { detail::check_layer(layer, 7); });
}

}  // namespace

TEST_CASE("shapes that do not fit are a shape_error") {
    const auto refused = [](const char* word, void (*change)(Layer&)) {
        INFO(word);
        CHECK(contains(complaint<shape_error>(change), word));
    };
    refused("layer 7: width 0, heads 4, kv_heads 2, head_dim 6; all", [](Layer& layer) { layer.shape.width = 0; });
    refused("kv_heads 0", [](Layer& layer) { layer.shape.kv_heads = 0; });
    refused("heads is 5; expected a multiple of kv_heads = 2", [](Layer& layer) { layer.shape.heads = 5; });
    refused("head_dim is 513; at most 512", [](Layer& layer) { layer.shape.head_dim = 513; });
    refused("heads is 1048576; at most 65536", [](Layer& layer) { layer.shape.heads = std::size_t{1} << 20; });
    refused("RoPE has 4 pairs; head_dim = 6 has room for 3",
            [](Layer& layer) { layer.rope.inverse_frequencies.resize(4); });
    refused("w_v is [0, 0] without data", [](Layer& layer) { layer.w_v = {}; });
    refused("w_k is [11, 24]; expected [kv_heads * head_dim, width] = [12, 24]",
            [](Layer& layer) { layer.w_k.rows = 11; });
    refused("w_v is [12, 23]", [](Layer& layer) { layer.w_v.cols = 23; });
    refused("w_k is [12, 24] with stride 23", [](Layer& layer) { layer.w_k.stride = 23; });
}

TEST_CASE("numbers that are not finite are a value_error that names them") {
    for (const float bad : {not_a_number, static_cast<float>(infinity), -static_cast<float>(infinity)}) {
        std::vector<float> values(24 * 12, 1.0F);
        values[7 * 24 + 3] = bad;
        std::vector<float> few(12, 1.0F);
        few[3] = bad;
        const auto refused = [&](const char* name, auto change) {
            INFO(name);
            CHECK(contains(complaint<value_error>(change), name));
        };
        refused("w_k: value 171 is", [&](Layer& layer) { layer.w_k = MatrixView(values.data(), 12, 24); });
        refused("w_v: value 171 is", [&](Layer& layer) { layer.w_v = MatrixView(values.data(), 12, 24); });
        refused("mean", [&](Layer& layer) { layer.mean = values.data() + 7 * 24; });
        refused("b_k", [&](Layer& layer) { layer.b_k = few.data(); });
        refused("b_v", [&](Layer& layer) { layer.b_v = few.data(); });
        refused("k_norm", [&](Layer& layer) { layer.k_norm = few.data(); });
        refused("alibi_slopes", [&](Layer& layer) { layer.alibi_slopes = few.data(); });
        refused("sink_logits", [&](Layer& layer) { layer.sink_logits = few.data(); });
        refused("a frequency of rope",
                [&](Layer& layer) { layer.rope.inverse_frequencies[1] = static_cast<double>(bad); });
        refused("softmax_scale", [&](Layer& layer) { layer.softmax_scale = static_cast<double>(bad); });
        refused("soft_cap", [&](Layer& layer) { layer.soft_cap = static_cast<double>(bad); });
        std::vector<f16> halves(24 * 12, to_f16(1.0F));
        halves[100] = to_f16(bad);
        refused("w_k: value 100 is", [&](Layer& layer) { layer.w_k = MatrixView(halves.data(), 12, 24); });
        std::vector<bf16> brains(24 * 12, to_bf16(1.0F));
        brains[100] = to_bf16(bad);
        refused("w_v: value 100 is", [&](Layer& layer) { layer.w_v = MatrixView(brains.data(), 12, 24); });
        // What lies between rows is not read.
        CHECK(complaint<value_error>([&](Layer& layer) {
                  values.assign(25 * 12, 1.0F);
                  for (std::size_t i = 24; i < values.size(); i += 25) values[i] = bad;
                  layer.w_k = MatrixView(values.data(), 12, 24, 25);
              }) == "");
    }
}
