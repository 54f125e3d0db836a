/// Samples of `xquant-llm bench`: which there are, in which order, and what is refused. How long they took is not
/// tested.
#include "bench.hpp"

#include "catch.hpp"
#include "error.hpp"
#include "gguf.hpp"
#include "model.hpp"
#include "tiny_model.hpp"

using namespace llm;
using namespace llm::test;

TEST_CASE("samples come by depth, schemes taking turns", "[bench]") {
    const Model model(Gguf::parse(to_gguf(tiny_model()).bytes(), "test.gguf"));
    ThreadPool pool(1);
    BenchOptions options;
    options.schemes = {"f16", "kv4"};
    options.depths = {0, 30};
    options.tokens = 3;
    options.repetitions = 2;
    options.tail = 8;
    const std::vector<BenchSample> samples = bench_samples(model, options, pool);
    const std::size_t depths[] = {0, 0, 3, 3, 30, 30, 33, 33};
    REQUIRE(samples.size() == std::size(depths));
    for (std::size_t i = 0; i < samples.size(); ++i) {
        CHECK(samples[i].depth == depths[i]);
        CHECK(samples[i].scheme == options.schemes[i % 2]);
        CHECK(samples[i].cache > 0);
        CHECK(samples[i].token > samples[i].cache);
    }
}

TEST_CASE("caches keep the rebuilt keys that --rebuilt asks for, where the scheme makes keys anew", "[bench]") {
    TinyModel tiny = tiny_model();
    const Model model(Gguf::parse(to_gguf(tiny).bytes(), "test.gguf"));
    ThreadPool pool(1);
    BenchOptions options;
    options.schemes = {"svd_head4", "x4_rot"};
    options.depths = {200};
    options.tokens = 5;
    options.repetitions = 1;
    options.tail = 8;
    options.rebuilt = "1M";
    for (const BenchSample& sample : bench_samples(model, options, pool)) {
        CHECK(sample.rebuilt > 0);
        CHECK(sample.rebuilt <= std::size_t{1} << 20U);
    }
    options.rebuilt.clear();
    for (const BenchSample& sample : bench_samples(model, options, pool)) CHECK(sample.rebuilt == 0);
    options.rebuilt = "1M";
    options.schemes = {"f16"};
    CHECK_THROWS_AS(bench_samples(model, options, pool), xquant::shape_error);
    options.schemes = {"f32"};
    CHECK_THROWS_AS(bench_samples(model, options, pool), Error);
    options.rebuilt = "many";
    CHECK_THROWS_AS(bench_samples(model, options, pool), Error);
}

TEST_CASE("depths that can't be measured are refused", "[bench]") {
    const Model model(Gguf::parse(to_gguf(tiny_model()).bytes(), "test.gguf"));
    ThreadPool pool(1);
    BenchOptions options;
    options.schemes = {"f16"};
    const auto refused = [&] {
        try {
            bench_samples(model, options, pool);
        } catch (const Error& error) {
            return std::string(error.what());
        }
        return std::string();
    };
    options.depths = {5, 5};
    CHECK(refused() == "--depths must rise");
    options.depths = {0, 10};  // 3 x 16 tokens of samples at 0 lead beyond 10
    CHECK(refused() == "depth 0 and 3 x 16 tokens go beyond 10");
    options.depths = {};
    CHECK(refused() == "--schemes and --depths must name at least one each");
    options.depths = {model.config().context - 47};
    CHECK(refused().find("go beyond") != std::string::npos);
    options.schemes = {"x4_rot_mean"};
    CHECK(refused().find("calibration") != std::string::npos);
    options.schemes = {"f17"};
    CHECK(refused().find("unknown scheme 'f17'") != std::string::npos);
}
