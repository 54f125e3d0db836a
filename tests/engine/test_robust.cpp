/// Why a cache of X is robust: what a model does to its keys after the projection, a bias or the gain of a norm, is
/// applied after rematerialization and never quantized. Caches of keys lose much, unless each channel has a scale of
/// its own. On rows, queries and weights of the real model (real_model.hpp says by what model and text are found).
#include <cmath>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include <xquant/projection/svd.hpp>
#include <xquant/xquant.hpp>

#include "attention_cache.hpp"
#include "catch.hpp"
#include "exact_cache.hpp"
#include "gguf.hpp"
#include "model.hpp"
#include "real_model.hpp"
#include "tokenizer.hpp"

namespace {

namespace xq = xquant;

constexpr std::size_t tokens = 512;

/// The exact cache, which remembers what it was given.
class Recorder final : public llm::AttentionCache {
public:
    Recorder(const llm::Model& model, llm::ThreadPool& pool)
        : x(model.config().layers),
          q(model.config().layers),
          width_(model.config().width),
          q_width_(model.config().q_width()),
          cache_(make_exact_cache(model, pool)) {}

    void reset() override { cache_->reset(); }
    void begin(std::size_t n) override { cache_->begin(step_ = n); }
    void append(std::size_t layer, const float* rows) override {
        x[layer].assign(rows, rows + step_ * width_);
        cache_->append(layer, rows);
    }
    void attend(std::size_t layer, const float* queries, float* out) override {
        q[layer].assign(queries, queries + step_ * q_width_);
        cache_->attend(layer, queries, out);
    }
    void commit() override { cache_->commit(); }
    void seal() override { cache_->seal(); }
    std::size_t size() const override { return cache_->size(); }
    double bits_per_token_layer() const override { return cache_->bits_per_token_layer(); }
    llm::CacheBytes bytes() const override { return cache_->bytes(); }

    std::vector<std::vector<float>> x, q;  ///< of each layer: [n, D], [n, H * Dh]

private:
    std::size_t width_, q_width_, step_ = 0;
    std::unique_ptr<AttentionCache> cache_;
};

/// One layer of the model, its rows and queries.
struct Case {
    xq::Model model;
    const std::vector<float>*x, *q;
};

template <class Cache>
std::vector<float> attend(const Case& data) {
    Cache cache(data.model, {.sinks = 4, .recent = 0, .strict = true});
    const xq::LayerShape& shape = data.model.layers[0].shape;
    const std::size_t q_width = shape.heads * shape.head_dim;
    auto step = cache.begin({{cache.create(), tokens}});
    std::vector<float> out(tokens * q_width);
    step.append(0, xq::MatrixView(data.x->data(), tokens, shape.width));
    step.attend(0, xq::MatrixView(data.q->data(), tokens, q_width), out.data());
    return out;
}

/// Error of attention's output, relative to the output, over all layers looked at.
template <class Cache>
double loss(const std::vector<Case>& cases) {
    using Exact = xq::XCache<xq::Unquantized<float>, xq::Layout<xq::PerToken>, xq::CrossLayer<xq::Off>,
                             xq::Projection<xq::Plain>>;
    double error = 0, size = 0;
    for (const Case& one : cases) {
        const std::vector<float> exact = attend<Exact>(one), found = attend<Cache>(one);
        for (std::size_t i = 0; i < exact.size(); ++i) {
            error += std::pow(static_cast<double>(found[i] - exact[i]), 2);
            size += std::pow(static_cast<double>(exact[i]), 2);
        }
    }
    return std::sqrt(error / size);
}

/// The loss with a bias or a gain, as a multiple of that without.
struct Growth {
    double by_bias, by_gain;
};

}  // namespace

TEST_CASE("biases and norms of keys hurt caches of keys, not caches of X or latents", "[robust]") {
    const auto path = llm::test::model_file("XQUANT_MODEL");
    if (!path) return;
#ifdef NDEBUG
    const llm::Gguf gguf = llm::Gguf::open(*path);
    const llm::Model model(gguf);
    const std::vector<llm::Token> all = llm::Tokenizer(gguf).encode(llm::read_text(llm::test::text_file()));
    REQUIRE(all.size() >= tokens);
    llm::ThreadPool pool;
    Recorder recorder(model, pool);
    model.forward({all.data(), tokens}, recorder, pool);

    const llm::Config& c = model.config();
    const xq::LayerShape shape{c.width, c.heads, c.kv_heads, c.head_dim};
    const xq::Rope rope = xq::Rope::standard(c.head_dim, 100000.0);  // SmolLM2's
    const std::size_t r = shape.kv_width(), dh = c.head_dim;

    // As in Qwen2.5, whose largest biases of K sit in the pairs that turn slowest and have a norm in the hundreds: they
    // add nearly the same to all scores of a query, so the model works as before.
    std::vector<float> bias(r, 0.0F);
    for (std::size_t head = dh; head <= r; head += dh) {
        bias[head - 2] = 300.0F;
        bias[head - 1] = -220.0F;
    }
    // A gain of K's norm that is large in some pairs, as in Qwen3, and queries that are small there: the same scores.
    const std::vector<float> ones(dh, 1.0F);
    std::vector<float> gain = ones;
    for (std::size_t i = 0; i < dh; i += 16) gain[i] = gain[i + 1] = 30.0F;

    std::vector<Case> plain, with_bias, with_norm, with_gain;
    std::vector<std::vector<float>> divided;
    const std::size_t looked_at[] = {4, 13, 22};
    divided.reserve(std::size(looked_at));
    for (const std::size_t i : looked_at) {
        Case one{xq::Model::uniform(1, shape, rope), &recorder.x[i], &recorder.q[i]};
        xq::Layer& layer = one.model.layers[0];
        layer.w_k = xq::MatrixView(model.layer(i).W_k.values.data(), r, c.width);
        layer.w_v = xq::MatrixView(model.layer(i).W_v.values.data(), r, c.width);
        plain.push_back(one);
        layer.b_k = bias.data();
        with_bias.push_back(one);
        layer.b_k = nullptr;
        layer.k_norm = ones.data();
        with_norm.push_back(one);
        layer.k_norm = gain.data();
        divided.push_back(recorder.q[i]);
        for (std::size_t j = 0; j < divided.back().size(); ++j) divided.back()[j] /= gain[j % dh];
        one.q = &divided.back();
        with_gain.push_back(one);
    }
    const auto grows = [&]<class Cache>(const char* name, std::type_identity<Cache>) {
        const double before = loss<Cache>(plain), norm = loss<Cache>(with_norm);
        const Growth out{loss<Cache>(with_bias) / before, loss<Cache>(with_gain) / norm};
        std::cerr << name << ": loss " << before << ", times " << out.by_bias << " with a bias; " << norm
                  << " with a norm, times " << out.by_gain << " with its gain\n";
        CHECK(before > 1e-4);
        CHECK(before < 0.5);
        return out;
    };
    const Growth f16 = grows("f16", std::type_identity<xq::preset::f16_kv>{});
    const Growth q8_0 = grows("q8_0", std::type_identity<xq::preset::q8_0>{});
    const Growth q4_0 = grows("q4_0", std::type_identity<xq::preset::q4_0>{});
    const Growth hadamard = grows("q4_0_hadamard", std::type_identity<xq::preset::q4_0_hadamard>{});
    const Growth kivi = grows("kivi4", std::type_identity<xq::preset::kivi<4>>{});
    const Growth x = grows("x4_rot", std::type_identity<xq::preset::rotated_x<4>>{});
    const Growth split = grows("svd_joint4", std::type_identity<xq::preset::split_svd<4>>{});
    const Growth head = grows("svd_head4", std::type_identity<xq::preset::head_svd<4>>{});
    const auto unharmed = [](const Growth& growth) {
        return growth.by_bias > 0.97 && growth.by_bias < 1.03 && growth.by_gain > 0.97 && growth.by_gain < 1.03;
    };
    // X and latents: bias and gain come after them.
    CHECK(unharmed(x));
    CHECK(unharmed(split));
    CHECK(unharmed(head));
    // Keys in groups along a token: a few large channels take the range from all others. Even f16 has fewer bits left.
    CHECK(f16.by_bias > 5);
    CHECK(q8_0.by_bias > 8);
    CHECK(q8_0.by_gain > 5);
    CHECK(q4_0.by_bias > 2);
    CHECK(q4_0.by_gain > 3);
    CHECK(hadamard.by_bias > 4);
    CHECK(hadamard.by_gain > 5);
    // Keys before RoPE in groups along a channel: each channel's own zero and scale take both.
    CHECK(unharmed(kivi));
#else
    llm::test::skipped("robustness on the real model, which takes too long in a debug build");
#endif
}
