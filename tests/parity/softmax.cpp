/// The softmax of every backend where scores are as large as a float can be, or none: NaN where the answer is not
/// known, never something that looks like one.
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "parity/machines.hpp"
#include "support/catch.hpp"
#include "support/model.hpp"

using namespace xquant;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity(), not_known = std::numeric_limits<float>::quiet_NaN();
constexpr std::size_t tokens = 90, width = 20;

struct State {
    float maximum = -infinity, total = 0;
    std::vector<float> sum = std::vector<float>(width, 0.0F);
};

/// Calls f(name, update), where update(state, scores [128]) makes weights of them.
template <class F>
void for_each_backend(F&& f) {
    const auto with = [&]<class Tag>(Tag tag) {
        f(std::string(Tag::name), [tag](State& state, std::vector<float>& scores) {
            online_softmax(tag, scores.data(), backend::VisibleTokens{3, 80, tokens},
                           backend::SoftmaxRow{state.maximum, state.total, state.sum.data(), width});
        });
    };
    with(backend::scalar{});
    parity::for_each_registers([&]<class R>() { with(backend::simd<R>{}); });
}

std::vector<float> some_scores() {
    test::Random random(4);
    std::vector<float> scores = random.rows(backend::tile_tokens, 5);
    return scores;
}

}  // namespace

TEST_CASE("a score that is NaN or infinity makes NaN of the softmax, whatever stands beside it") {
    for_each_backend([&](const std::string& name, const auto& update) {
        for (const std::size_t at : {std::size_t{3}, std::size_t{40}, std::size_t{79}}) {
            for (const float bad : {not_known, -not_known, infinity}) {
                for (const bool first : {false, true}) {
                    INFO(name << ", score " << at << " is " << bad << (first ? ", first tile" : ", second tile"));
                    State state;
                    std::vector<float> scores = some_scores();
                    if (!first) update(state, scores);
                    scores = some_scores();
                    scores[at] = bad;
                    update(state, scores);
                    CHECK(std::isnan(state.total));
                    scores = some_scores();
                    update(state, scores);
                    CHECK(std::isnan(state.total));
                }
            }
        }
        INFO(name << ", all scores are -infinity");
        State state;
        std::vector<float> scores(backend::tile_tokens, -infinity);
        update(state, scores);
        CHECK(std::isnan(state.total));
    });
}

TEST_CASE("tokens that are not seen do not matter, whatever their scores are") {
    for_each_backend([&](const std::string& name, const auto& update) {
        State expected;
        std::vector<float> clean = some_scores();
        update(expected, clean);
        for (const float bad : {not_known, infinity, -infinity, 3e38F}) {
            INFO(name << ", scores of tokens that are not seen are " << bad);
            State state;
            std::vector<float> scores = some_scores();
            for (std::size_t t = 0; t < scores.size(); ++t) {
                if (t < 3 || t >= 80) scores[t] = bad;
            }
            update(state, scores);
            CHECK(state.total == expected.total);
            CHECK(state.maximum == expected.maximum);
            for (std::size_t t = 0; t < tokens; ++t) CHECK(scores[t] == clean[t]);
        }
    });
}
