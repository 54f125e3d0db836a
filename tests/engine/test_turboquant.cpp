/// The simulated baseline: its levels, its error and its bits are those that are published, and what it does not round
/// stays exact.
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "attention_cache.hpp"
#include "catch.hpp"
#include "exact_cache.hpp"
#include "gguf.hpp"
#include "model.hpp"
#include "schemes.hpp"
#include "tiny_model.hpp"
#include "turboquant.hpp"

using namespace llm;
using namespace llm::test;

namespace {

/// Sums of irregular values, near enough to normal.
std::vector<float> normal_row(std::size_t n, std::mt19937& random) {
    std::vector<float> row(n);
    for (float& value : row) {
        value = -6;
        for (int i = 0; i < 12; ++i) value += static_cast<float>(random()) / 4294967296.0F;
    }
    return row;
}

double dot(const std::vector<float>& a, const std::vector<float>& b) {
    double sum = 0;
    for (std::size_t i = 0; i < a.size(); ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
    return sum;
}

SchemeOptions strict_options(ThreadPool& pool) {
    SchemeOptions options;
    options.sinks = 2;
    options.strict = true;
    options.pool = &pool;
    return options;
}

std::vector<float> run(const Model& model, AttentionCache& cache, std::size_t step, ThreadPool& pool) {
    std::vector<Token> ids;
    for (std::size_t i = 0; i < 40; ++i) ids.push_back(static_cast<Token>(3 + i * 37 % 250));
    std::vector<float> all;
    for (std::size_t at = 0; at < ids.size(); at += step) {
        const std::vector<float> hidden =
            model.forward(std::span(ids).subspan(at, std::min(step, ids.size() - at)), cache, pool);
        all.insert(all.end(), hidden.begin(), hidden.end());
    }
    return all;
}

std::string refusal(const std::string& scheme) {
    try {
        parse_scheme(scheme);
    } catch (const Error& error) {
        return error.what();
    }
    return "";
}

}  // namespace

TEST_CASE("levels of a normal distribution are those of the tables", "[engine]") {
    // J. Max, Quantizing for minimum distortion, 1960, table I.
    const std::vector<float> one = normal_levels(1), two = normal_levels(2), four = normal_levels(4);
    REQUIRE(one.size() == 2);
    CHECK(one[1] == Approx(0.7979).margin(1e-4));
    REQUIRE(two.size() == 4);
    CHECK(two[0] == Approx(-1.510).margin(1e-3));
    CHECK(two[2] == Approx(0.4528).margin(1e-4));
    REQUIRE(four.size() == 16);
    CHECK(four[8] == Approx(0.1284).margin(1e-4));
    CHECK(four[15] == Approx(2.733).margin(1e-3));
}

TEST_CASE("rounded rows have the error that is published", "[engine]") {
    std::mt19937 random(3);
    const double expected[] = {0.363, 0.117, 0.0345, 0.0095};
    for (const unsigned bits : {1U, 2U, 3U, 4U}) {
        const auto round = turboquant_rounding(128, {bits, false});
        double error = 0, energy = 0;
        for (int i = 0; i < 300; ++i) {
            const std::vector<float> x = normal_row(128, random);
            std::vector<float> back = x;
            round(back.data());
            for (std::size_t k = 0; k < x.size(); ++k) error += std::pow(static_cast<double>(back[k] - x[k]), 2);
            energy += dot(x, x);
        }
        CHECK(error / energy == Approx(expected[bits - 1]).epsilon(0.05));
    }
    std::vector<float> zeros(128);
    turboquant_rounding(128, {4, true})(zeros.data());
    CHECK(zeros == std::vector<float>(128));
}

TEST_CASE("with the signs of residuals, products are right on average", "[engine]") {
    std::mt19937 random(5);
    const auto share_of_product = [&](bool residual) {
        const auto round = turboquant_rounding(128, {3, residual});
        double found = 0, exact = 0;
        for (int i = 0; i < 3000; ++i) {
            const std::vector<float> x = normal_row(128, random);
            std::vector<float> back = x;
            round(back.data());
            found += dot(x, back);  // of the query that is x itself
            exact += dot(x, x);
        }
        return found / exact;
    };
    CHECK(share_of_product(false) == Approx(1 - 0.0345).margin(0.003));
    CHECK(share_of_product(true) == Approx(1).margin(0.006));
}

TEST_CASE("a simulated cache rounds what lies between sinks and tail, before a layer attends", "[engine]") {
    const Model model(Gguf::parse(to_gguf(tiny_model()).bytes(), "tiny.gguf"));
    ThreadPool pool(2);
    const std::vector<float> exact = run(model, *make_exact_cache(model, pool), 40, pool);
    const auto rounded = [&](const std::string& scheme, std::size_t step) {
        return run(model, *make_cache(scheme, model, strict_options(pool)), step, pool);
    };
    CHECK(rounded("turboquant4:sinks=40", 40) == exact);
    CHECK(rounded("turboquant4:tail=40", 40) == exact);
    const std::vector<float> strict = rounded("turboquant4", 40);
    CHECK(strict != exact);
    const std::size_t width = model.config().width;
    for (std::size_t i = 0; i < 2 * width; ++i) REQUIRE(strict[i] == exact[i]);  // sinks
    const std::vector<float> stepwise = rounded("turboquant4", 1);
    double worst = 0, size = 0;
    for (std::size_t i = 0; i < strict.size(); ++i) {
        worst = std::max(worst, static_cast<double>(std::abs(stepwise[i] - strict[i])));
        size = std::max(size, static_cast<double>(std::abs(strict[i])));
    }
    CHECK(worst < 1e-4 * size);
    CHECK(rounded("turboquant4:tail=8", 1) != strict);
    CHECK(rounded("turboquant4_residual", 40) != strict);
}

TEST_CASE("a simulated cache counts what its format would take", "[engine]") {
    const Model model(Gguf::parse(to_gguf(tiny_model()).bytes(), "tiny.gguf"));  // 2 layers, 2 kv heads of 4
    ThreadPool pool(1);
    const auto cache = make_cache("turboquant3:tail=8", model, strict_options(pool));
    run(model, *cache, 40, pool);
    const double bits = 2 * (2 * 3 * 4 + 2 * 16);
    CHECK(cache->bits_per_token_layer() == bits);
    CHECK(cache->bytes().codes == static_cast<std::size_t>(bits) / 8 * 2 * 30);
    CHECK(cache->bytes().sinks == 2U * 2 * 2 * 2 * 2 * 4);
    CHECK(cache->bytes().tail == 8U * 2 * 2 * 2 * 2 * 4);
    CHECK(make_cache("turboquant3_residual", model, strict_options(pool))->bits_per_token_layer() == bits + 2 * 16);
    CHECK_THROWS_AS(cache->truncate(3), Error);
    CHECK(refusal("turboquant4:group=64").find("takes tail=N and sinks=N alone") != std::string::npos);
    CHECK(refusal("turboquant5").find("unknown scheme 'turboquant5'") != std::string::npos);
    SchemeOptions options = strict_options(pool);
    options.strict = false;
    CHECK_THROWS_AS(make_cache("turboquant4", model, options), Error);
}
