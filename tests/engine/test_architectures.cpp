/// Every architecture against a naive forward pass in float64, with the exact cache and with those of the library.
#include <cmath>
#include <string>

#include "catch.hpp"
#include "error.hpp"
#include "exact_cache.hpp"
#include "gguf.hpp"
#include "model.hpp"
#include "naive_model.hpp"
#include "schemes.hpp"

using namespace llm;
using namespace llm::test;

namespace {

/// Largest difference of the logits from the expected ones, fed in steps.
double worst_logit(const Model& model, AttentionCache& cache, const std::vector<Token>& ids, std::size_t step,
                   const Rows& expected, ThreadPool& pool) {
    const std::size_t V = model.config().vocabulary;
    double worst = 0;
    for (std::size_t at = 0; at < ids.size(); at += step) {
        const std::size_t n = std::min(step, ids.size() - at);
        const auto hidden = model.forward(std::span(ids).subspan(at, n), cache, pool);
        std::vector<float> logits(n * V);
        model.logits(hidden.data(), n, logits.data(), pool);
        for (std::size_t t = 0; t < n; ++t)
            for (std::size_t i = 0; i < V; ++i) {
                const double off = std::abs(static_cast<double>(logits[t * V + i]) - expected[at + t][i]);
                worst = std::max(worst, std::isfinite(off) ? off : 1e9);
            }
    }
    return worst;
}

}  // namespace

TEST_CASE("every architecture equals a naive forward pass", "[architectures]") {
    const std::string architecture = GENERATE("llama", "qwen2", "qwen3", "gemma3", "gpt2");
    INFO(architecture);
    const TinyModel tiny = tiny_model(architecture);
    const std::vector<Token> ids = some_ids(90);
    const Rows expected = NaiveModel(tiny).logits(ids);
    const Model model(Gguf::parse(to_gguf(tiny).bytes(), "tiny.gguf"));
    ThreadPool pool(2);

    for (const std::size_t step : {1u, 7u, 90u}) {
        const double worst = worst_logit(model, *make_exact_cache(model, pool), ids, step, expected, pool);
        INFO("exact cache, steps of " << step);
        CHECK(worst < 1e-3);  // of logits of about +-10
        CHECK(worst > 0);
    }

    // Not strict and with a tail for all tokens, every scheme keeps f16 rows: what is left to go wrong is what the
    // library was told of biases, norms of heads, RoPE, windows and the softmax's scale.
    SchemeOptions options;
    options.tail = ids.size();
    options.pool = &pool;
    for (const std::string scheme : {"f16", "kivi4", "x4", "x4_rot", "svd_joint4", "svd_head4"}) {
        const double worst = worst_logit(model, *make_cache(scheme, model, options), ids, 7, expected, pool);
        INFO(scheme << ": " << worst);
        CHECK(worst < 0.05);
        CHECK(worst > 1e-5);
    }
}

TEST_CASE("learned positions end", "[architectures]") {
    const TinyModel tiny = tiny_model("gpt2");
    const Model model(Gguf::parse(to_gguf(tiny).bytes(), "tiny.gguf"));
    ThreadPool pool(1);
    const auto cache = make_exact_cache(model, pool);
    model.forward(some_ids(512), *cache, pool);
    CHECK(contains(message<Error>([&] { model.forward(some_ids(1), *cache, pool); }), "512 tokens, not for 513"));
    CHECK(cache->size() == 512);
}
