/// The model with its exact cache against a naive forward pass in float64, and the files it refuses.
#include <cmath>
#include <functional>
#include <numeric>
#include <random>

#include "calibrate.hpp"
#include "catch.hpp"
#include "error.hpp"
#include "exact_cache.hpp"
#include "gguf.hpp"
#include "model.hpp"
#include "schemes.hpp"
#include "tiny_model.hpp"

using namespace llm;
using namespace llm::test;

namespace {

using Rows = std::vector<std::vector<double>>;

std::vector<double> times(const std::vector<float>& W, const std::vector<double>& x) {  // W [out][in]
    std::vector<double> y(W.size() / x.size());
    for (std::size_t o = 0; o < y.size(); ++o)
        for (std::size_t i = 0; i < x.size(); ++i) y[o] += static_cast<double>(W[o * x.size() + i]) * x[i];
    return y;
}

std::vector<double> normed(const std::vector<double>& x, const std::vector<float>& gain, double epsilon) {
    double square = 0;
    for (const double value : x) square += value * value / static_cast<double>(x.size());
    std::vector<double> y(x.size());
    for (std::size_t i = 0; i < x.size(); ++i) y[i] = x[i] / std::sqrt(square + epsilon) * static_cast<double>(gain[i]);
    return y;
}

void turn(std::vector<double>& x, std::size_t dim, std::size_t position, double base) {
    for (std::size_t i = 0; i < x.size(); i += 2) {
        const double angle =
            static_cast<double>(position) * std::pow(base, -static_cast<double>(i % dim) / static_cast<double>(dim));
        const double even = x[i], odd = x[i + 1];
        x[i] = even * std::cos(angle) - odd * std::sin(angle);
        x[i + 1] = even * std::sin(angle) + odd * std::cos(angle);
    }
}

/// ids -> logits [T][vocabulary]; inputs, if given, gets each layer's mean of x over the tokens from `skip` on
Rows naive_logits(const TinyModel& m, const std::vector<Token>& ids, Rows* inputs = nullptr, std::size_t skip = 0) {
    const auto& tensor = m.tensors;
    const std::size_t T = ids.size(), Dh = m.head_dim;
    Rows x(T);
    const auto& embedding = tensor.at("token_embd.weight");
    for (std::size_t t = 0; t < T; ++t) {
        const auto row = embedding.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(ids[t]) * m.width);
        x[t].assign(row, row + static_cast<std::ptrdiff_t>(m.width));
    }
    for (std::size_t layer = 0; layer < m.layers; ++layer) {
        const auto weight = [&](const char* name) -> const std::vector<float>& {
            return tensor.at("blk." + std::to_string(layer) + "." + name + ".weight");
        };
        Rows q(T), k(T), v(T);
        std::vector<double> sum(m.width);
        for (std::size_t t = 0; t < T; ++t) {
            const auto a = normed(x[t], weight("attn_norm"), static_cast<double>(m.epsilon));
            if (t >= skip)
                for (std::size_t i = 0; i < a.size(); ++i) sum[i] += a[i] / static_cast<double>(T - skip);
            q[t] = times(weight("attn_q"), a), k[t] = times(weight("attn_k"), a), v[t] = times(weight("attn_v"), a);
            turn(q[t], Dh, t, m.rope_base), turn(k[t], Dh, t, m.rope_base);
        }
        if (inputs) inputs->push_back(sum);
        for (std::size_t t = 0; t < T; ++t) {
            std::vector<double> out(m.heads * Dh);
            for (std::size_t h = 0; h < m.heads; ++h) {
                const std::size_t g = h / (m.heads / m.kv_heads);
                std::vector<double> p(t + 1);
                for (std::size_t s = 0; s <= t; ++s) {
                    for (std::size_t i = 0; i < Dh; ++i) p[s] += q[t][h * Dh + i] * k[s][g * Dh + i];
                    p[s] = std::exp(p[s] / std::sqrt(static_cast<double>(Dh)));
                }
                const double total = std::accumulate(p.begin(), p.end(), 0.0);
                for (std::size_t s = 0; s <= t; ++s)
                    for (std::size_t i = 0; i < Dh; ++i) out[h * Dh + i] += p[s] / total * v[s][g * Dh + i];
            }
            const auto more = times(weight("attn_output"), out);
            for (std::size_t i = 0; i < m.width; ++i) x[t][i] += more[i];
        }
        for (std::size_t t = 0; t < T; ++t) {
            const auto b = normed(x[t], weight("ffn_norm"), static_cast<double>(m.epsilon));
            auto gate = times(weight("ffn_gate"), b);
            const auto up = times(weight("ffn_up"), b);
            for (std::size_t i = 0; i < gate.size(); ++i) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
            const auto more = times(weight("ffn_down"), gate);
            for (std::size_t i = 0; i < m.width; ++i) x[t][i] += more[i];
        }
    }
    Rows logits;
    for (const auto& row : x)
        logits.push_back(times(tensor.at(m.own_output ? "output.weight" : "token_embd.weight"),
                               normed(row, tensor.at("output_norm.weight"), static_cast<double>(m.epsilon))));
    return logits;
}

std::vector<Token> some_ids(std::size_t n) {
    std::vector<Token> ids(n);
    for (std::size_t t = 0; t < n; ++t) ids[t] = static_cast<Token>((t * 37 + t * t * 11 + 5) % 259);
    return ids;
}

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
    const TinyModel tiny = tiny_model(own_output);
    ThreadPool pool(threads);
    const Model model = load(to_gguf(tiny));
    const auto cache = make_exact_cache(model, pool);
    const std::vector<Token> ids = some_ids(150);
    const Rows expected = naive_logits(tiny, ids);

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
    const Model model = load(to_gguf(tiny_model(false)));
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
    const Model model = load(to_gguf(tiny_model(false)));
    const auto cache = make_exact_cache(model, pool);
    CHECK(model.forward({}, *cache, pool).empty());
    CHECK(cache->size() == 0);
    const std::vector<Token> outside{259};
    CHECK(contains(message<Error>([&] { model.forward(outside, *cache, pool); }), "token 259 is outside"));
}

TEST_CASE("calibration gives the mean of x behind the first tokens", "[engine]") {
    const TinyModel tiny = tiny_model(false);
    ThreadPool pool(2);
    const Model model = load(to_gguf(tiny));
    const std::vector<Token> ids = some_ids(60);
    Rows first, second;
    naive_logits(tiny, {ids.begin(), ids.begin() + 30}, &first, 4);
    naive_logits(tiny, {ids.begin() + 30, ids.end()}, &second, 4);
    const auto mean = calibrate(model, ids, 30, pool);
    REQUIRE(mean.size() == 2);
    for (std::size_t layer = 0; layer < 2; ++layer)
        for (std::size_t i = 0; i < tiny.width; ++i)
            REQUIRE(std::abs(static_cast<double>(mean[layer][i]) - (first[layer][i] + second[layer][i]) / 2) < 1e-5);
}

TEST_CASE("models that it can't run are refused", "[engine]") {
    const TinyModel tiny = tiny_model(false);
    REQUIRE(refusal(tiny).empty());
    TinyModel wrong = tiny;
    wrong.tensors["blk.0.attn_q.bias"] = std::vector<float>(24);
    CHECK(contains(refusal(wrong), "tensor 'blk.0.attn_q.bias' is no part"));
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
    other.text("general.architecture", "gpt2");
    CHECK(contains(message<Error>([&] { load(other); }), "'gpt2'; this engine knows 'llama'"));
}

TEST_CASE("a damaged model is refused or runs, and never crashes", "[engine]") {
    const Bytes original = to_gguf(tiny_model(false)).bytes();
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

TEST_CASE("unknown schemes are refused with the known ones", "[engine]") {
    ThreadPool pool(1);
    const Model model = load(to_gguf(tiny_model(false)));
    SchemeOptions options;
    options.pool = &pool;
    const std::string refused = message<Error>([&] { make_cache("nope", model, options); });
    CHECK(contains(refused, "'nope'"));
    for (const std::string& name : scheme_names()) CHECK(contains(refused, name));
    CHECK(scheme_needs_mean("x4_rot_mean"));
    CHECK_FALSE(scheme_needs_mean("x4_rot"));
}
