#include "support/tolerance.hpp"

#include <stdexcept>
#include <string>

namespace test {

double relative_distance(const Outputs& found, const Outputs& expected) {
    if (found.size() != expected.size()) return HUGE_VAL;
    RelativeDistance distance;
    for (std::size_t layer = 0; layer < found.size(); ++layer) {
        if (found[layer].size() != expected[layer].size()) return HUGE_VAL;
        for (std::size_t i = 0; i < found[layer].size(); ++i) {
            distance.add(double{found[layer][i]}, double{expected[layer][i]});
        }
    }
    return distance.value();
}

Outputs answers(const Feed& feed, std::size_t first, std::size_t rows) {
    Outputs out;
    for (const std::vector<float>& layer : feed.out) {
        const std::size_t width = layer.size() / feed.answered;
        const auto begin = layer.begin() + static_cast<std::ptrdiff_t>(first * width);
        out.emplace_back(begin, begin + static_cast<std::ptrdiff_t>(rows * width));
    }
    return out;
}

double relative_distance(const Feed& found, const Feed& expected, std::size_t rows) {
    if (found.answered < rows || expected.answered < rows) return HUGE_VAL;
    return relative_distance(answers(found, found.answered - rows, rows),
                             answers(expected, expected.answered - rows, rows));
}

double own_error(const Scheme& scheme, const xquant::Model& model, bool fewer) {
    const xquant::Options options{.sinks = 0, .recent = 0, .rows = xquant::DType::f32, .strict = true};
    const auto cache = scheme.make(model, options), exact = test::scheme("f32 x").make(model, options);
    Feed found{cache->create(), 4}, expected{exact->create(), 4};
    for (const std::size_t n : {130, 30, 10}) {
        if (fewer && n == 10) cache->requantize(std::vector<xquant::Sequence>{found.sequence}, test::every_page);
        feed(*cache, model, {{&found, n}});
        feed(*exact, model, {{&expected, n}});
    }
    return relative_distance(found, expected, fewer ? 10 : found.answered);
}

double tolerance_of(double own_error) {
    const double bound = 2 * own_error;
    if (bound < 0.9) return bound;
    throw std::logic_error("a scheme that is off by " + std::to_string(own_error) +
                           " of its answers has no bound that zeros fail");
}

double tolerance(const Scheme& scheme, const xquant::Model& model, bool fewer) {
    return tolerance_of(own_error(scheme, model, fewer));
}

}  // namespace test
