/// The model with its exact cache against a naive forward pass in float64, and the files it refuses.
#include <cmath>
#include <functional>
#include <random>
#include <set>
#include <sstream>
#include <string>

#include "calibrate.hpp"
#include "catch.hpp"
#include "error.hpp"
#include "exact_cache.hpp"
#include "gguf.hpp"
#include "model.hpp"
#include "naive_model.hpp"
#include "schemes.hpp"
#include "tiny_model.hpp"

using namespace llm;
using namespace llm::test;

namespace {

Model load(const GgufWriter& file) { return Model(Gguf::parse(file.bytes(), "tiny.gguf")); }

std::string refusal(const TinyModel& m, const std::function<void(GgufWriter&)>& change = {}) {
    GgufWriter file = to_gguf(m);
    if (change) change(file);
    return message<Error>([&] { load(file); });
}

}  // namespace

TEST_CASE("the forward pass equals a naive one in float64", "[engine]") {
    const bool own_output = GENERATE(false, true);
    const std::size_t threads = GENERATE(1u, 3u), step = GENERATE(1u, 7u, 150u);
    const TinyModel tiny = tiny_model("llama", own_output);
    ThreadPool pool(threads);
    const Model model = load(to_gguf(tiny));
    const auto cache = make_exact_cache(model, pool);
    const std::vector<Token> ids = some_ids(150);
    const Rows expected = NaiveModel(tiny).logits(ids);

    for (int round = 0; round < 2; ++round) {  // the second one after reset()
        cache->reset();
        double worst = 0;
        for (std::size_t at = 0; at < ids.size(); at += step) {
            const std::size_t n = std::min(step, ids.size() - at);
            const auto hidden = model.forward(std::span(ids).subspan(at, n), *cache, pool);
            REQUIRE(cache->size() == at + n);
            std::vector<float> logits(n * tiny.vocabulary);
            model.logits(hidden.data(), n, logits.data(), pool);
            for (std::size_t t = 0; t < n; ++t)
                for (std::size_t i = 0; i < tiny.vocabulary; ++i)
                    worst = std::max(
                        worst, std::abs(static_cast<double>(logits[t * tiny.vocabulary + i]) - expected[at + t][i]));
        }
        CHECK(worst < 1e-3);  // of logits of about +-10
        CHECK(worst > 0);     // or the test compares a thing with itself
    }
    CHECK(cache->bytes().stored() == ids.size() * 2 * 8 * 4 * 2);
    CHECK(cache->bits_per_token_layer() == 2 * 8 * 32);
}

TEST_CASE("the number of threads changes no bit", "[engine]") {
    const Model model = load(to_gguf(tiny_model()));
    const std::vector<Token> ids = some_ids(300);
    std::vector<std::vector<float>> results;
    for (const std::size_t threads : {1u, 2u, 5u}) {
        ThreadPool pool(threads);
        results.push_back(model.forward(ids, *make_exact_cache(model, pool), pool));
    }
    CHECK((results[0] == results[1]));
    CHECK((results[0] == results[2]));
}

TEST_CASE("no tokens, no step", "[engine]") {
    ThreadPool pool(1);
    const Model model = load(to_gguf(tiny_model()));
    const auto cache = make_exact_cache(model, pool);
    CHECK(model.forward({}, *cache, pool).empty());
    CHECK(cache->size() == 0);
    const std::vector<Token> outside{259};
    CHECK(contains(message<Error>([&] { model.forward(outside, *cache, pool); }), "token 259 is outside"));
}

TEST_CASE("calibration gives the mean of x behind the first tokens", "[engine]") {
    const TinyModel tiny = tiny_model();
    ThreadPool pool(2);
    const Model model = load(to_gguf(tiny));
    const std::vector<Token> ids = some_ids(60);
    Rows first, second;
    NaiveModel(tiny).logits({ids.begin(), ids.begin() + 30}, &first, 4);
    NaiveModel(tiny).logits({ids.begin() + 30, ids.end()}, &second, 4);
    const Calibration learnt = calibrate(model, {{ids.begin(), ids.begin() + 30}, {ids.begin() + 30, ids.end()}}, pool);
    REQUIRE(learnt.mean.size() == 2);
    REQUIRE(learnt.rows.size() == 2);
    for (std::size_t layer = 0; layer < 2; ++layer) {
        REQUIRE(learnt.rows[layer].size() == 2 * 26 * tiny.width);  // without the first 4 of each context
        for (std::size_t i = 0; i < tiny.width; ++i) {
            REQUIRE(std::abs(static_cast<double>(learnt.mean[layer][i]) - (first[layer][i] + second[layer][i]) / 2) <
                    1e-5);
            double sum = 0;
            for (std::size_t t = 0; t < 52; ++t) sum += static_cast<double>(learnt.rows[layer][t * tiny.width + i]);
            REQUIRE(std::abs(sum / 52 - static_cast<double>(learnt.mean[layer][i])) < 1e-5);
        }
    }
}

TEST_CASE("models that it can't run are refused", "[engine]") {
    const TinyModel tiny = tiny_model();
    REQUIRE(refusal(tiny).empty());
    TinyModel wrong = tiny;
    wrong.tensors["blk.0.attn_q.bias"] = std::vector<float>(24);
    CHECK(contains(refusal(wrong), "tensor 'blk.0.attn_q.bias' is no part of a llama model"));
    wrong = tiny;
    wrong.tensors.erase("blk.1.ffn_up.weight");
    CHECK(contains(refusal(wrong), "tensor 'blk.1.ffn_up.weight' is missing"));
    wrong = tiny;
    wrong.tensors["blk.1.attn_k.weight"].resize(24 * 7);
    CHECK(contains(refusal(wrong), "tensor 'blk.1.attn_k.weight' has shape [24, 7], expected [24, 8]"));
    wrong = tiny;
    wrong.kv_heads = 4;
    CHECK(contains(refusal(wrong), "6 heads can't share 4"));
    wrong = tiny;
    wrong.layers = 3;
    CHECK(contains(refusal(wrong), "tensor 'blk.2.attn_norm.weight' is missing"));
    wrong = tiny;
    wrong.heads = 0;
    CHECK(contains(refusal(wrong), "'llama.attention.head_count' is 0"));
    CHECK(contains(refusal(tiny, [](GgufWriter& f) { f.text("llama.rope.scaling.type", "yarn"); }),
                   "llama.rope.scaling.type"));
    GgufWriter other;
    other.text("general.architecture", "mamba");
    CHECK(contains(message<Error>([&] { load(other); }), "'mamba'; this engine knows 'llama', 'qwen2', "));
    // What a key or a tensor of another architecture asks for is not done silently.
    CHECK(contains(refusal(tiny, [](GgufWriter& f) { f.f32("llama.attn_logit_softcapping", 50); }),
                   "metadata 'llama.attn_logit_softcapping' asks for something"));
    CHECK(refusal(tiny, [](GgufWriter& f) { f.u32("llama.expert_count", 0).u32("qwen2.block_count", 3); }).empty());
    wrong = tiny_model("qwen2");
    wrong.tensors.erase("blk.1.attn_k.bias");
    CHECK(contains(refusal(wrong), "tensor 'blk.1.attn_k.bias' is missing"));
    wrong = tiny_model("gemma3");
    wrong.window = 0;
    CHECK(contains(refusal(wrong), "'gemma3.attention.sliding_window' is missing"));
}

TEST_CASE("a damaged model is refused or runs, and never crashes", "[engine]") {
    const std::string architecture = GENERATE("llama", "gemma3", "gpt2");
    const Bytes original = to_gguf(tiny_model(architecture)).bytes();
    std::mt19937 random(3);
    ThreadPool pool(1);
    const std::vector<Token> ids = some_ids(3);
    for (int round = 0; round < 300; ++round) {
        Bytes file = original;
        file[random() % 8000] ^= static_cast<std::byte>(1 + random() % 255);  // metadata and tensor heads
        try {
            const Model model(Gguf::parse(file, "tiny.gguf"));
            model.forward(ids, *make_exact_cache(model, pool), pool);
        } catch (const Error&) {
        }
    }
}

TEST_CASE("unknown schemes are refused with the nearest ones", "[schemes]") {
    const std::string refused = message<Error>([&] { parse_scheme("svd_hed4"); });
    CHECK(contains(refused, "unknown scheme 'svd_hed4', did you mean svd_head4, svd_head3, svd_head2"));
}

TEST_CASE("a scheme's suffixes are read, and wrong ones refused", "[schemes]") {
    const Scheme scheme = parse_scheme("svd_head4:group=32:tail=128:sinks=0");
    CHECK(scheme.text == "svd_head4:group=32:tail=128:sinks=0");
    CHECK(scheme.name == "svd_head4");
    CHECK(scheme.group.value() == 32);
    CHECK(scheme.tail.value() == 128);
    CHECK(scheme.sinks.value() == 0);
    CHECK(parse_scheme("x4_rot_mean:tail=3").needs == Needs::mean);
    CHECK(parse_scheme("x4_rot").needs == Needs::nothing);
    CHECK_FALSE(parse_scheme("x4_rot").tail.has_value());
    // Suffixes may come in any order.
    const Scheme uniform = parse_scheme("head4:group=64:uniform:tail=5");
    CHECK(uniform.uniform);
    CHECK(uniform.needs == Needs::statistics);
    CHECK(uniform.library_name() == "head4:uniform:group=64");
    CHECK(parse_scheme("joint3").library_name() == "joint3");
    const auto refusal = [](const char* text) { return message<Error>([&] { parse_scheme(text); }); };
    CHECK(contains(refusal("x4:group=16"), "N one of 128, 64, 32"));
    CHECK(contains(refusal("q8_0:group=64"), "N one of 32"));
    CHECK(contains(refusal("f16:group=64"), "f16 has no groups"));
    CHECK(contains(refusal("x4:tail=-1"), "'-1' is not a valid number"));
    CHECK(contains(refusal("x4:tail"), "'tail' is not tail=N"));
    CHECK(contains(refusal("x4:"), "'' is not tail=N"));
    CHECK(contains(refusal("x4:bits=2"), "'bits=2' is not tail=N"));
    CHECK(contains(refusal("x4:tail=1:tail=2"), "tail stands there twice"));
    CHECK(contains(refusal("head4:uniform:uniform"), "uniform stands there twice"));
    CHECK(contains(refusal("x4:uniform"), "after x4 there may be :group=N"));
    CHECK(contains(refusal("f32:tail=1"), "exact and takes no suffixes"));
    CHECK(parse_scheme("kv8:rest=cl_svd_rot3:tail=5").rest == "cl_svd_rot3");
    CHECK(parse_scheme("kv8:rest=cl3").needs == Needs::statistics);
    CHECK(contains(refusal("kv8:rest=cl3:rest=cl3"), "rest stands there twice"));
    for (const char* const none : {"kv8:rest=f32", "kv8:rest=x4_rot_mean", "head4:prefix=256:rest=x4_rot"}) {
        CHECK(contains(refusal(none), "rest=NAME is for schemes of the library"));
    }
}

TEST_CASE("the help names every scheme", "[schemes]") {
    std::istringstream help(schemes_help());
    std::vector<std::string> said;
    for (std::string line, name; std::getline(help, line);) {
        if (line.find(" bits ") == std::string::npos || !line.starts_with("  ")) continue;
        std::istringstream(line) >> name;
        if (!name.starts_with(":")) said.push_back(name);  // a suffix
    }
    CHECK(said == scheme_names());
}

TEST_CASE("suffixes reach the cache", "[schemes]") {
    ThreadPool pool(1);
    const Model model = load(to_gguf(tiny_model()));
    SchemeOptions options;
    options.sinks = 2;
    options.strict = true;
    options.pool = &pool;
    const auto bytes = [&](const char* scheme) {
        const auto cache = make_cache(scheme, model, options);
        model.forward(some_ids(200), *cache, pool);
        cache->seal();
        return cache->bytes();
    };
    const CacheBytes plain = bytes("x4");
    CHECK(plain.tail == 0);
    CHECK(bytes("x4:tail=64").tail > 0);
    CHECK(bytes("x4:sinks=9").sinks > plain.sinks);
    CHECK(bytes("kivi4:group=32").scales > bytes("kivi4:group=64").scales);
    CHECK(bytes("kivi4:group=64").scales > bytes("kivi4").scales);
}
