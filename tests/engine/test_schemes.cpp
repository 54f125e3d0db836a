/// The library's caches on SmolLM2-135M-Instruct: divergence from the exact cache, in the order that was measured, with
/// bounds on both sides (real_model.hpp says by what model and text are found).
#include <iostream>
#include <map>
#include <string>

#include "attention_cache.hpp"
#include "catch.hpp"
#include "compare.hpp"
#include "exact_cache.hpp"
#include "gguf.hpp"
#include "model.hpp"
#include "real_model.hpp"
#include "schemes.hpp"
#include "tokenizer.hpp"

using namespace llm;
using namespace llm::test;

namespace {

struct Result {
    double kld, bits, bytes;
};

constexpr std::size_t context = 512, sinks = 4;

[[maybe_unused]] Result run(const std::string& scheme, const Model& model, std::span<const Token> ids,
                            const Reference& exact, ThreadPool& pool) {
    SchemeOptions options;
    options.sinks = sinks;
    options.strict = true;
    options.pool = &pool;
    const auto cache = make_cache(scheme, model, options);
    const std::vector<float> hidden = model.forward(ids, *cache, pool);
    cache->seal();
    Predictions predictions;
    compare(model, ids, hidden.data(), exact, pool, predictions);
    return {predictions.kld_mean(), cache->bits_per_token_layer(),
            static_cast<double>(cache->bytes().stored()) / static_cast<double>(ids.size())};
}

}  // namespace

TEST_CASE("on the real model the schemes cost and lose what they should", "[losses]") {
    const auto path = model_file("XQUANT_MODEL");
    if (!path) return;
#ifdef NDEBUG
    const Gguf gguf = Gguf::open(*path);
    const Tokenizer tokenizer(gguf);
    const Model model(gguf);
    const std::vector<Token> all = tokenizer.encode(read_text(text_file()));
    REQUIRE(all.size() >= context);
    const std::span<const Token> ids(all.data(), context);

    ThreadPool pool;
    const auto exact_cache = make_exact_cache(model, pool);
    const Reference exact = make_reference(model, ids, model.forward(ids, *exact_cache, pool).data(), 0, pool);

    std::map<std::string, Result> results;
    for (const std::string scheme : {"f16", "q8_0", "q4_0_hadamard", "kivi4", "x4", "x4_rot", "x3_rot", "svd_joint4",
                                     "svd_head4", "svd_head3", "cl_x_rot3", "cl_svd_rot3"}) {
        results[scheme] = run(scheme, model, ids, exact, pool);
        std::cerr << scheme << ": KLD " << results[scheme].kld << ", bits " << results[scheme].bits << ", bytes "
                  << results[scheme].bytes << "\n";
    }
    const auto kld = [&](const char* name) { return results.at(name).kld; };
    CHECK(kld("f16") < 1e-5);
    CHECK(kld("q8_0") > 1e-5);
    CHECK(kld("q8_0") < 2e-3);
    CHECK(kld("svd_head4") > 2e-3);  // an error that is too small means that something exact was read
    CHECK(kld("svd_head4") < 0.03);
    CHECK(kld("svd_head4") < 0.5 * kld("q4_0_hadamard"));
    CHECK(kld("svd_joint4") < 0.6 * kld("q4_0_hadamard"));
    CHECK(kld("x4_rot") < 0.1 * kld("x4"));  // 0.04; rounded to the nearest code, 0.12
    CHECK(kld("x4_rot") > 1e-3);
    CHECK(kld("svd_head3") > 2 * kld("svd_head4"));
    CHECK(kld("cl_x_rot3") < 0.33 * kld("x3_rot"));
    CHECK(kld("cl_svd_rot3") < 0.6 * kld("svd_head3"));
    CHECK(kld("cl_svd_rot3") > 2e-3);

    // Bits by hand: codes + 32 for each group. 508 tokens make 4 groups per channel, the last of 124.
    CHECK(results.at("q8_0").bits == 2 * 192 * 8.5);
    CHECK(results.at("q4_0_hadamard").bits == 2 * 192 * 4.5);
    CHECK(results.at("x4").bits == 576 * 4 + 5 * 32);
    const double per_channel = 192 * 4 + 192.0 * 4 * 32 / 508, per_token = 192 * 4 + 2 * 32;
    CHECK(std::abs(results.at("svd_head4").bits - per_channel - per_token) < 1e-9);
    // Three layers keep 4 bits (two of them as latents of K and V), 27 differences have 3; 5 groups a row of x, 3 of
    // both latents.
    CHECK(std::abs(results.at("cl_x_rot3").bits - (3 * (576 * 4 + 160.0) + 27 * (576 * 3 + 160.0)) / 30) < 1e-9);
    const double joint = per_channel + per_token, difference = 384 * 3 + 3 * 32, base = 576 * 4 + 160;
    CHECK(std::abs(results.at("cl_svd_rot3").bits - (2 * joint + base + 27 * difference) / 30) < 1e-9);
    CHECK(results.at("svd_head4").bytes < results.at("q4_0_hadamard").bytes);
#else
    skipped("the schemes on the real model, which take too long in a debug build");
#endif
}
