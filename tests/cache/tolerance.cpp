/// The bounds that other tests use are worth something: answers that are zeros, those of a neighbouring token, and
/// those of another layer fail them, and what the scheme says itself passes.
#include "support/tolerance.hpp"

#include <algorithm>
#include <string>

#include "support/catch.hpp"
#include "support/model.hpp"

using namespace xquant;
using test::Feed;
using test::Outputs;
using test::Scheme;

TEST_CASE("zeros, a neighbouring token and another layer fail every scheme's tolerance") {
    const test::Setup setup = test::small_model();
    for (const Scheme& scheme : test::schemes()) {
        for (const bool fewer : {false, true}) {
            if (fewer && scheme.name.find("requantizable") == std::string::npos) continue;
            INFO(scheme.name << (fewer ? ", requantized" : ""));
            const double bound = test::tolerance(scheme, setup.model, fewer);
            INFO("bound " << bound);
            // Another sequence than the one that the bound was made of, strictly from codes, against plain attention.
            const Options options{.sinks = 4, .recent = 0, .strict = true};
            const auto cache = scheme.make(setup.model, options),
                       exact = test::scheme("f32 x").make(setup.model, options);
            Feed found{cache->create(), 7}, expected{exact->create(), 7};
            for (const std::size_t n : {150, 6}) {
                if (fewer && n == 6)
                    CHECK(cache->requantize(std::vector<Sequence>{found.sequence}, test::every_page).pages == 2);
                test::feed(*cache, setup.model, {{&found, n}});
                test::feed(*exact, setup.model, {{&expected, n}});
            }
            const Outputs right = test::answers(expected, 151, 4), said = test::answers(found, 151, 4);
            if (!scheme.exact) {
                CHECK(test::relative_distance(said, right) < bound);
                CHECK(test::relative_distance(said, right) > bound / 10);  // a bound is no wider than need be
            }
            for (const std::size_t neighbour : {150, 152}) {
                CHECK(test::relative_distance(test::answers(found, neighbour, 4), right) > bound);
            }
            Outputs layers = said;
            std::rotate(layers.begin(), layers.begin() + 1, layers.end());
            CHECK(test::relative_distance(layers, right) > bound);
            Outputs zeros = said;
            for (std::vector<float>& layer : zeros) std::fill(layer.begin(), layer.end(), 0.0F);
            CHECK(test::relative_distance(zeros, right) > bound);
            Outputs broken = said;
            broken[2][5] = std::numeric_limits<float>::quiet_NaN();
            CHECK(test::relative_distance(broken, right) > bound);
            broken.pop_back();
            CHECK(test::relative_distance(broken, right) > bound);
        }
    }
}

TEST_CASE("a bound that zeros would pass is refused") {
    CHECK(test::tolerance_of(0.2) == 0.4);
    CHECK_THROWS_AS(test::tolerance_of(0.45), std::logic_error);
    CHECK_THROWS_AS(test::tolerance_of(HUGE_VAL), std::logic_error);
}
