/// Steps of 1, 7, 128 and 300 tokens, in this order and backwards: MHA, GQA and MQA with every usual head_dim and both
/// pairings of RoPE, against float64.
#include <algorithm>
#include <cmath>
#include <vector>

#include "support/catch.hpp"
#include "support/feed.hpp"
#include "support/model.hpp"
#include "support/oracle.hpp"

using namespace xquant;

namespace {

const std::vector<std::size_t> growing{1, 7, 128, 300}, falling{300, 128, 7, 1};
constexpr std::size_t tokens = 436;

/// The largest error, relative to the largest output.
double error_of(const std::vector<double>& exact, const std::vector<float>& found) {
    double largest = 0, off = exact.size() == found.size() ? 0 : 1e9;
    for (std::size_t i = 0; i < std::min(exact.size(), found.size()); ++i) {
        largest = std::max(largest, std::abs(exact[i]));
        off = std::max(off, test::distance_to(exact[i], found[i]));
    }
    return off / largest;
}

}  // namespace

TEST_CASE("steps of 1, 7, 128 and 300 tokens, for MHA, GQA and MQA with head_dim 64, 80, 96 and 128") {
    const char* const projections[] = {"f32 x, rotated", "f32 head svd",  "f32 k and v after RoPE, Hadamard",
                                       "f32 x",          "f32 split svd", "f32 k and v"};
    std::size_t cases = 0;
    for (const std::size_t dh : {64, 80, 96, 128}) {
        for (const auto& [heads, kv_heads] : {std::pair<std::size_t, std::size_t>{2, 2}, {4, 2}, {2, 1}}) {
            for (const RopePairing pairing : {RopePairing::halves, RopePairing::interleaved}) {
                const test::Setup setup({heads > 2 ? 2 * dh : kv_heads * dh + 8, heads, kv_heads, dh}, pairing);
                const Layer& layer = setup.model.layers[0];
                const test::Rows rows = test::rows_of(layer, 0, 1, 0, tokens);
                const std::vector<double> exact = test::oracle_attention(layer, rows.x, rows.q);
                // Two projections each, others with every head_dim: all of them meet every kind of heads and both
                // pairings.
                std::size_t which = 2 * cases + cases / 6;
                for (const auto& steps : {growing, falling}) {
                    const char* name = projections[which++ % std::size(projections)];
                    INFO(name << ", " << heads << " heads, " << kv_heads << " kv heads, head_dim " << dh
                              << (pairing == RopePairing::halves ? ", halves" : ", interleaved"));
                    const auto cache = test::scheme(name).make(setup.model, {.sinks = 4,
                                                                             .recent = 32,
                                                                             .rows = DType::f32,
                                                                             .weights = WeightType::f32,
                                                                             .strict = which % 2 == 0});
                    CHECK(error_of(exact, test::outputs_of(*cache, setup.model, steps)[0]) < 1e-5);
                }
                ++cases;
            }
        }
    }
}
