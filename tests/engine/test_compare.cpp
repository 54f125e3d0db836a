/// Perplexity, KL divergence and top-1 against their definitions in float64.
#include "compare.hpp"

#include <algorithm>
#include <cmath>

#include "catch.hpp"
#include "gguf.hpp"
#include "tiny_model.hpp"

using namespace llm;
using namespace llm::test;

TEST_CASE("predictions are scored as defined", "[compare]") {
    ThreadPool pool(2);
    const TinyModel tiny = tiny_model("llama", true);
    const Model model(Gguf::parse(to_gguf(tiny).bytes(), "tiny.gguf"));
    const std::size_t T = 140, D = tiny.width, V = tiny.vocabulary;  // more than one block of 128
    std::vector<Token> ids(T);
    for (std::size_t t = 0; t < T; ++t) ids[t] = static_cast<Token>(t * 7 % V);
    const std::vector<float> exact = random_values(T * D, 0, 1, 5);
    std::vector<float> other = exact;
    const std::vector<float> noise = random_values(T * D, 0, 0.2f, 6);
    for (std::size_t i = 0; i < other.size(); ++i) other[i] += noise[i];

    const auto log_softmax = [&](const std::vector<float>& hidden, std::size_t t) {
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
    double nll = 0, kld = 0, same = 0;
    std::vector<double> each;
    for (std::size_t t = 0; t + 1 < T; ++t) {
        const auto p = log_softmax(exact, t), q = log_softmax(other, t);
        nll -= q[static_cast<std::size_t>(ids[t + 1])];
        each.push_back(0);
        for (std::size_t v = 0; v < V; ++v) each.back() += std::exp(p[v]) * (p[v] - q[v]);
        kld += each.back();
        same += std::max_element(p.begin(), p.end()) - p.begin() == std::max_element(q.begin(), q.end()) - q.begin();
    }
    const double n = T - 1;
    Predictions found;
    const Reference reference = make_reference(model, ids, exact.data(), 0, pool);
    compare(model, ids, other.data(), reference, pool, found);
    REQUIRE(found.nll.size() == T - 1);
    CHECK(std::abs(found.perplexity() / std::exp(nll / n) - 1) < 1e-5);
    CHECK(std::abs(found.kld_mean() - kld / n) < 1e-5);
    CHECK(kld / n > 0.01);
    CHECK(found.top1() == same / n);
    CHECK(same < n);
    std::sort(each.begin(), each.end());
    CHECK(std::abs(found.kld_quantile(0.5) - each[(T - 2) / 2]) < 1e-5);
    CHECK(std::abs(found.kld_quantile(1) - each.back()) < 1e-5);

    compare(reference, found);  // adds to what is there
    CHECK(found.nll.size() == 2 * (T - 1));
    CHECK(std::abs(found.kld_mean() - kld / n / 2) < 1e-5);
}

TEST_CASE("quantiles lie between the neighbouring ranks", "[compare]") {
    Predictions p;
    p.kld = {3, 1, 2};
    CHECK(p.kld_quantile(0) == 1);
    CHECK(p.kld_quantile(0.5) == 2);
    CHECK(p.kld_quantile(0.75) == 2.5);
    CHECK(p.kld_quantile(1) == 3);
}
