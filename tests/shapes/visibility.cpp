/// What rows of a step see of each other, against float64: Visibility::causal and Visibility::whole.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/feed.hpp"
#include "support/model.hpp"
#include "support/oracle.hpp"

using namespace xquant;

namespace {

struct Case {
    const char* name;
    void (*change)(Layer&);
};

const Case cases[] = {
    {"all tokens", [](Layer&) {}},
    {"a window", [](Layer& layer) { layer.window = 37; }},
    {"a window of one token", [](Layer& layer) { layer.window = 1; }},
    {"chunks", [](Layer& layer) { layer.chunk = 50; }},
    {"chunks of one token", [](Layer& layer) { layer.chunk = 1; }},
};

/// Steps, and whether their rows see each other.
struct Part {
    std::size_t tokens;
    Visibility visibility;
};
const Part steps[] = {{30, Visibility::whole}, {7, Visibility::causal},   {140, Visibility::whole},
                      {1, Visibility::whole},  {600, Visibility::causal}, {20, Visibility::whole}};

}  // namespace

TEST_CASE("rows of a step that see each other are attention without a mask over everything up to the step's end") {
    for (const Case& one : cases) {
        for (const bool slopes : {false, true}) {
            test::Setup setup({48, 4, 2, 8}, RopePairing::halves, 2);
            Layer& layer = setup.model.layers[0];
            one.change(layer);
            const std::vector<float> by_head{0.01F, 0.02F, 0.04F, 0.3F};
            if (slopes) layer.alibi_slopes = by_head.data();
            for (const char* name : {"f32 x, rotated", "f32 head svd", "f32 k and v after RoPE, Hadamard"}) {
                // Each with the layer's rows as they were given, and as they are stored, behind another layer.
                for (const auto& [strict, late] :
                     {std::pair{false, false}, {true, false}, {false, true}, {true, true}}) {
                    INFO(one.name << ", " << name << (slopes ? ", slopes" : "") << (strict ? ", strict" : "")
                                  << (late ? ", late" : ""));
                    const auto cache = test::scheme(name).make(
                        setup.model,
                        {.sinks = 4, .recent = 20, .rows = DType::f32, .weights = WeightType::f32, .strict = strict});
                    const Sequence sequence = cache->create();
                    std::size_t done = 0;
                    double worst = 0;
                    for (const Part& part : steps) {
                        const std::size_t end = done + part.tokens;
                        const test::Rows rows = test::rows_of(layer, 0, 1, 0, end);
                        const bool whole = part.visibility == Visibility::whole;
                        const std::vector<double> exact = test::oracle_attention(layer, rows.x, rows.q, done, whole);
                        std::vector<float> out(part.tokens * 32);
                        auto step = cache->begin({{sequence, part.tokens}});
                        step.append(0, MatrixView(rows.x.data() + done * 48, part.tokens, 48));
                        if (late) step.append(1, MatrixView(rows.x.data() + done * 48, part.tokens, 48));
                        step.attend(0, MatrixView(rows.q.data() + done * 32, part.tokens, 32), out.data(),
                                    part.visibility);
                        if (!late) step.append(1, MatrixView(rows.x.data() + done * 48, part.tokens, 48));
                        step.commit();
                        for (std::size_t i = 0; i < out.size(); ++i) {
                            worst = std::max(worst, test::distance_to(exact[done * 32 + i], out[i]));
                        }
                        done = end;
                    }
                    CHECK(worst < 1e-5);

                    // The last rows once more, without a step.
                    const test::Rows rows = test::rows_of(layer, 0, 1, 0, done);
                    const auto distance = [&](std::size_t n, Visibility visibility) {
                        const bool whole = visibility == Visibility::whole;
                        const std::vector<double> exact =
                            test::oracle_attention(layer, rows.x, rows.q, done - n, whole);
                        std::vector<float> out(n * 32);
                        cache->attend(0, {{sequence, n}}, MatrixView(rows.q.data() + (done - n) * 32, n, 32),
                                      out.data(), visibility);
                        double off = 0;
                        for (std::size_t i = 0; i < out.size(); ++i) {
                            off = std::max(off, test::distance_to(exact[(done - n) * 32 + i], out[i]));
                        }
                        return off;
                    };
                    for (const std::size_t n : {std::size_t{1}, std::size_t{20}}) {
                        CHECK(distance(n, Visibility::causal) < 1e-5);
                    }
                    const bool all = layer.reach() == 0;
                    if (all) CHECK(distance(done, Visibility::causal) < 1e-5);
                    if (all) CHECK(distance(done - 1, Visibility::whole) < 1e-5);
                    if (all) CHECK(distance(1, Visibility::whole) < 1e-5);
                    if (!all) CHECK_THROWS_AS(distance(done, Visibility::causal), shape_error);
                    if (!all) CHECK_THROWS_AS(distance(1, Visibility::whole), state_error);
                }
            }
        }
    }
}
