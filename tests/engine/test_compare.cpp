/// Perplexity, KL divergence and top-1 against their definitions in float64.
#include "compare.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "catch.hpp"
#include "gguf.hpp"
#include "tiny_model.hpp"

using namespace llm;
using namespace llm::test;

TEST_CASE("predictions are scored as defined", "[compare]") {
    // One context of a short vocabulary in two blocks of positions, from its start; one of a long vocabulary, which is
    // worked through in several pieces, from its middle.
    const auto [T, first, V] =
        GENERATE(std::array<std::size_t, 3>{300, 0, 259}, std::array<std::size_t, 3>{24, 12, 70001});
    ThreadPool pool(2);
    TinyModel tiny;
    tiny.own_output = true;
    tiny.vocabulary = V;
    tiny = with_weights(tiny);
    const Model model(Gguf::parse(to_gguf(tiny).bytes(), "tiny.gguf"));
    const std::size_t D = tiny.width;
    std::vector<Token> ids(T);
    for (std::size_t t = 0; t < T; ++t) ids[t] = static_cast<Token>(t * 7919 % V);
    const std::vector<float> exact = random_values(T * D, 0, 1, 5);
    std::vector<float> other = exact;
    const std::vector<float> noise = random_values(T * D, 0, 0.2f, 6);
    for (std::size_t i = 0; i < other.size(); ++i) other[i] += noise[i];

    const auto log_softmax = [&, V = V](const std::vector<float>& hidden, std::size_t t) {
        const auto& W = tiny.tensors.at("output.weight");
        std::vector<double> logits(V);
        double sum = 0;
        for (std::size_t v = 0; v < V; ++v) {
            for (std::size_t i = 0; i < D; ++i)
                logits[v] += static_cast<double>(W[v * D + i]) * static_cast<double>(hidden[t * D + i]);
            sum += std::exp(logits[v]);
        }
        for (double& logit : logits) logit -= std::log(sum);
        return logits;
    };
    std::vector<double> nll, kld, difference;
    double same = 0;
    for (std::size_t t = first; t + 1 < T; ++t) {
        const auto p = log_softmax(exact, t), q = log_softmax(other, t);
        const auto next = static_cast<std::size_t>(ids[t + 1]);
        nll.push_back(-q[next]);
        difference.push_back(p[next] - q[next]);
        kld.push_back(0);
        for (std::size_t v = 0; v < V; ++v) kld.back() += std::exp(p[v]) * (p[v] - q[v]);
        same += std::max_element(p.begin(), p.end()) - p.begin() == std::max_element(q.begin(), q.end()) - q.begin();
    }
    const auto mean = [](const std::vector<double>& values) {
        return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
    };
    const auto error = [&](const std::vector<double>& values) {  // sample variance / n
        double square = 0;
        for (const double value : values) square += std::pow(value - mean(values), 2);
        const auto n = static_cast<double>(values.size());
        return std::sqrt(square / (n - 1) / n);
    };
    const auto n = static_cast<double>(nll.size());
    Predictions found;
    const Reference reference = make_reference(model, ids, exact.data(), first, pool);
    compare(model, ids, other.data(), reference, pool, found);
    REQUIRE(found.nll.size() == T - 1 - first);
    for (std::size_t t = 0; t < nll.size(); ++t) {
        REQUIRE(std::abs(found.nll[t] - nll[t]) < 2e-5);
        REQUIRE(std::abs(found.kld[t] - kld[t]) < 2e-5);
    }
    CHECK(std::abs(found.perplexity() / std::exp(mean(nll)) - 1) < 1e-5);
    CHECK(std::abs(found.delta_percent() - 100 * (std::exp(mean(difference)) - 1)) < 1e-3);
    CHECK(std::abs(found.delta_percent_error() - 100 * std::exp(mean(difference)) * error(difference)) < 1e-3);
    CHECK(std::abs(found.kld_mean() - mean(kld)) < 1e-5);
    CHECK(std::abs(found.kld_error() - error(kld)) < 1e-5);
    CHECK(mean(kld) > 0.01);
    CHECK(found.top1() == same / n);
    CHECK(same < n);
    std::sort(kld.begin(), kld.end());
    CHECK(std::abs(found.kld_quantile(1) - kld.back()) < 2e-5);

    compare(reference, found);  // adds to what is there
    CHECK(found.nll.size() == 2 * nll.size());
    CHECK(std::abs(found.kld_mean() - mean(kld) / 2) < 1e-5);
}

TEST_CASE("the number of threads changes no prediction", "[compare]") {
    TinyModel tiny;
    tiny.vocabulary = 40000;
    tiny = with_weights(tiny);
    const Model model(Gguf::parse(to_gguf(tiny).bytes(), "tiny.gguf"));
    const std::vector<float> hidden = random_values(70 * tiny.width, 0, 1, 5);
    const std::vector<Token> ids(70, 39999);
    std::vector<Reference> found;
    for (const std::size_t threads : {1u, 3u}) {
        ThreadPool pool(threads);
        found.push_back(make_reference(model, ids, hidden.data(), 0, pool));
    }
    CHECK((found[0].nll == found[1].nll));
    CHECK((found[0].mean_row == found[1].mean_row));
}

TEST_CASE("quantiles lie between the neighbouring ranks", "[compare]") {
    Predictions p;
    p.kld = {3, 1, 2};
    CHECK(p.kld_quantile(0) == 1);
    CHECK(p.kld_quantile(0.5) == 2);
    CHECK(p.kld_quantile(0.75) == 2.5);
    CHECK(p.kld_quantile(1) == 3);
}
