/// A saved cache belongs to one model: a model that differs in one number is refused, and the error names the rule and
/// both values, whatever stands beside it (a window of 32768 tokens, a head with large weights). Rounding is no
/// difference.
#include <cmath>
#include <cstring>
#include <functional>
#include <span>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <xquant/persistence.hpp>
#include <xquant/xquant.hpp>

#include "support/catch.hpp"
#include "support/feed.hpp"
#include "support/model.hpp"
#include "support/saved_file.hpp"

using namespace xquant;
using test::Feed;

namespace {

const Options usual{.sinks = 2, .recent = 3};

/// A layer with everything that a layer may have, and the numbers behind its pointers. Head 0 is a thousand times as
/// large as head 1.
struct Numbers {
    explicit Numbers(std::uint32_t seed, std::size_t window) {
        test::Random random(seed);
        layer.shape = {.width = 40, .heads = 4, .kv_heads = 2, .head_dim = 8};
        layer.rope = Rope::standard(8);
        layer.softmax_scale = 0.125;
        layer.soft_cap = 50;
        layer.window = window;
        for (std::vector<float>* weights : {&w_k, &w_v}) {
            *weights = random.rows(16 * 40, 0.3F);
            for (std::size_t i = 0; i < 8 * 40; ++i) (*weights)[i] *= 1000;
        }
        b_k = random.rows(16);
        b_v = random.rows(16);
        mean = random.rows(40, 0.1F);
        k_norm = random.rows(8);
        for (float& gain : k_norm) gain += 2;
        slopes = {0.25F, 0.125F, 0.0625F, 0.03125F};
        logits = {1.5F, -2.0F, 0.5F, 1e-3F};
    }
    Layer layer;
    std::vector<float> w_k, w_v, b_k, b_v, mean, k_norm, slopes, logits;

    [[nodiscard]] Layer made() const {
        Layer out = layer;
        const LayerShape& shape = layer.shape;
        out.w_k = MatrixView(w_k.data(), shape.kv_width(), shape.width);
        out.w_v = MatrixView(w_v.data(), shape.kv_width(), shape.width);
        const auto pointer = [](const std::vector<float>& of) { return of.empty() ? nullptr : of.data(); };
        out.b_k = pointer(b_k);
        out.b_v = pointer(b_v);
        out.mean = pointer(mean);
        out.k_norm = pointer(k_norm);
        out.alibi_slopes = pointer(slopes);
        out.sink_logits = pointer(logits);
        return out;
    }
};

constexpr std::size_t layers = 4, changed_layer = 3;

std::vector<Numbers> numbers(std::size_t window) {
    std::vector<Numbers> out;
    for (std::uint32_t i = 0; i < layers; ++i) out.emplace_back(i + 1, window);
    return out;
}
Model model_of(const std::vector<Numbers>& of) {
    Model out;
    for (const Numbers& one : of) out.layers.push_back(one.made());
    return out;
}

std::string saved(test::Cache& cache, const Model& model) {
    Feed feed{cache.create()};
    test::feed(cache, model, {{&feed, 10}});
    std::ostringstream out;
    save(cache, std::vector<Sequence>{feed.sequence}, out);
    cache.drop(feed.sequence);
    return out.str();
}

/// The text of mismatch_error; "" where the file is taken. Everything else passes.
std::string refusal(test::Cache& cache, const std::string& file, const LoadOptions& options = {}) {
    std::istringstream in(file);
    const Bytes before = cache.bytes();
    try {
        for (const Sequence sequence : load(cache, in, options).sequences) cache.drop(sequence);
    } catch (const mismatch_error& e) {
        CHECK(cache.bytes().stored() == before.stored());
        return e.what();
    }
    return "";
}

struct Change {
    const char* name;
    std::function<void(Numbers&)> make;
    /// What the error says where keys and values are read from rotated X, which has all rules.
    std::string says;
};

std::vector<Change> changes(std::size_t window) {
    const std::string at = std::to_string(window), next = std::to_string(window + 1);
    return {
        {"window", [](Numbers& n) { ++n.layer.window; }, "window: " + at + " there, " + next + " here"},
        {"chunks in place of a window", [](Numbers& n) { n.layer.chunk = std::exchange(n.layer.window, 0) + 1; },
         window > 0 ? "window: " + at + " there, 0 here" : "chunk: 0 there, 1 here"},
        {"RoPE base", [](Numbers& n) { n.layer.rope = Rope::standard(8, 1e6); },
         "RoPE frequency 1: 0.1 there, 0.0316227766 here"},
        {"one frequency, by a thousandth", [](Numbers& n) { n.layer.rope.inverse_frequencies[3] *= 1.001; },
         "RoPE frequency 3: 0.001 there, 0.001001 here"},
        {"scaling of positions",
         [](Numbers& n) {
             for (double& f : n.layer.rope.inverse_frequencies) f /= 2;
         },
         "RoPE frequency 0: 1 there, 0.5 here"},
        {"partial RoPE", [](Numbers& n) { n.layer.rope.inverse_frequencies.pop_back(); },
         "RoPE frequency: 4 of them there, 3 here"},
        {"no RoPE", [](Numbers& n) { n.layer.rope = {}; }, "RoPE factor: 1 of them there, 0 here"},
        {"scaling factor", [](Numbers& n) { n.layer.rope.factor = 1.01; }, "RoPE factor: 1 there, 1.00999999 here"},
        {"pairing", [](Numbers& n) { n.layer.rope.pairing = RopePairing::halves; }, "RoPE pairing: 0 there, 1 here"},
        {"softmax scale", [](Numbers& n) { n.layer.softmax_scale = 0.0625; },
         "softmax scale: 0.125 there, 0.0625 here"},
        {"softmax scale, by a thousandth", [](Numbers& n) { n.layer.softmax_scale *= 1.001; },
         "softmax scale: 0.125 there, 0.125125006 here"},
        {"soft cap", [](Numbers& n) { n.layer.soft_cap = 30; }, "soft cap: 50 there, 30 here"},
        {"no soft cap", [](Numbers& n) { n.layer.soft_cap = 0; }, "soft cap: 50 there, 0 here"},
        {"a slope", [](Numbers& n) { n.slopes[3] = 0.03F; }, "ALiBi slope 3: 0.03125 there, 0.0299999993 here"},
        {"no slopes", [](Numbers& n) { n.slopes.clear(); }, "ALiBi slope: 4 of them there, 0 here"},
        {"a sink logit", [](Numbers& n) { n.logits[3] = 2e-3F; },
         "sink logit 3: 0.00100000005 there, 0.00200000009 here"},
        {"no sink logits", [](Numbers& n) { n.logits.clear(); }, "sink logit: 4 of them there, 0 here"},
        {"a gain of k_norm", [](Numbers& n) { n.k_norm[7] *= 1.01F; }, "k_norm gain 7: "},
        {"no k_norm", [](Numbers& n) { n.k_norm.clear(); }, "k_norm epsilon: 1 of them there, 0 here"},
        {"epsilon of k_norm", [](Numbers& n) { n.layer.k_norm_epsilon = 1e-5; },
         "k_norm epsilon: 9.99999997e-07 there, 9.99999975e-06 here"},
        {"heads", [](Numbers& n) { n.layer.shape.heads = 2; }, "layer 3 has width 40, heads 4"},
        {"head_dim",
         [](Numbers& n) {
             n.layer.shape.head_dim = 4;
             n.layer.rope = Rope::standard(4);
         },
         "head_dim 8, this one 40, 4, 2 and 4"},
        {"the small head's keys, by a hundredth",
         [](Numbers& n) {
             for (std::size_t i = 8 * 40; i < 16 * 40; ++i) n.w_k[i] *= 1.01F;
         },
         "weights of key head 1 0: "},
        {"the small head's values, by a hundredth",
         [](Numbers& n) {
             for (std::size_t i = 8 * 40; i < 16 * 40; ++i) n.w_v[i] *= 1.01F;
         },
         "weights of value head 1 0: "},
        {"a channel of the small head's values",
         [](Numbers& n) {
             for (std::size_t i = 0; i < 40; ++i) n.w_v[15 * 40 + i] *= -1;
         },
         "weights of value head 1 7: "},
        {"a bias of K", [](Numbers& n) { n.b_k[15] += 0.1F; }, "constant of key head 1 7: "},
        {"no bias of V", [](Numbers& n) { n.b_v.clear(); }, "constant of value head 0 0: "},
    };
}

}  // namespace

TEST_CASE("a file of a model that differs in one rule is refused, whatever the scheme and the window") {
    for (const std::size_t window : {0U, 512U, 1024U, 32768U}) {
        for (const test::Scheme& scheme : test::schemes()) {
            const std::vector<Numbers> own = numbers(window);
            const Model model = model_of(own);
            const auto cache = scheme.make(model, usual);
            const std::string file = saved(*cache, model);
            CHECK(refusal(*scheme.make(model, usual), file) == "");
            for (const Change& change : changes(window)) {
                INFO(scheme.name << ", window " << window << ", " << change.name);
                std::vector<Numbers> others = own;
                change.make(others[changed_layer]);
                const std::string problem = refusal(*scheme.make(model_of(others), usual), file, {.transcode = true});
                CHECK(problem.find("layer 3") != std::string::npos);
                if (scheme.name == "x rotated 3") {
                    INFO(problem);
                    CHECK(problem.find(change.says) != std::string::npos);
                }
            }
        }
    }
}

TEST_CASE("a file of another mean of X is refused where the rows are less the mean") {
    const std::vector<Numbers> own = numbers(1024);
    const Model model = model_of(own);
    const test::Scheme& scheme = test::scheme("x rotated 3");
    const std::string file = saved(*scheme.make(model, usual), model);
    std::vector<Numbers> others = own;
    others[changed_layer].mean[39] += 0.01F;
    CHECK(refusal(*scheme.make(model_of(others), usual), file).find("layer 3: mean of stream 0 39: ") !=
          std::string::npos);
    others[changed_layer].mean.clear();
    CHECK(refusal(*scheme.make(model_of(others), usual), file)
              .find("layer 3: mean of stream 0: 40 of them there, 0 here") != std::string::npos);
}

TEST_CASE("a file of the same model in another basis is refused, even where rows are as wide") {
    const Model model = [] {
        static const std::vector<Numbers> own = numbers(0);
        return model_of(own);
    }();
    struct Pair {
        const char *from, *to, *says;
    };
    for (const auto& [from, to, says] :
         {Pair{"f32 k and v", "f32 split svd", "another projection: layer 0: channels normed together of stream 0: 8"},
          Pair{"f32 k and v", "f32 head svd", "another projection: layer 0: channels rotated together of stream 1: 0"},
          Pair{"f32 split svd", "f32 head svd", "another projection: layer 0: channels normed together of stream 0: 0"},
          Pair{"f32 x", "f32 x, rotated", "channels rotated together of stream 0: 0 there, 40 here"},
          Pair{"f32 k and v", "f32 k and v after RoPE, Hadamard", "keys stored after RoPE: 0 there, 1 here"},
          Pair{"f32 x", "f32 k and v", "layer 0 has 1 streams there and 2 here"},
          Pair{"f32 x", "f32 cross-layer x", "layer 2 stands alone there and is the base of differences here"},
          Pair{"f32 cross-layer x, rotated", "cross-layer x rotated 8, f16 sums",
               "its accumulator is kept in f32 in parts of 40 channels there, in f16 in parts of 40 channels here"}}) {
        INFO(from << " into " << to);
        const std::string file = saved(*test::scheme(from).make(model, usual), model);
        const std::string problem = refusal(*test::scheme(to).make(model, usual), file, {.transcode = true});
        INFO(problem);
        CHECK(problem.find(says) != std::string::npos);
    }
}

TEST_CASE("a file of another latent of a model with latent attention is refused") {
    using Latents =
        XCache<PerStream<Uniform<4>, Unquantized<f16>>, Layout<PerToken>, CrossLayer<Off>, Projection<Latent>>;
    struct Weights {
        std::size_t latent = 12, rotary = 4, values = 8;
        double epsilon = 1e-6;
        std::vector<float> down, shared, k, v, norm;
        Weights() {
            test::Random random(3);
            down = random.rows(16 * 40);
            shared = random.rows(8 * 40);
            k = random.rows(2 * 8 * 16);
            v = random.rows(2 * 8 * 16);
            norm = random.rows(16);
        }
        [[nodiscard]] Model model() const {
            Layer layer;
            layer.shape = {.width = 40, .heads = 2, .kv_heads = 2, .head_dim = 12};
            layer.rope = Rope::standard(rotary);
            layer.window = 32768;
            layer.w_k = MatrixView(k.data(), 2 * (12 - rotary), latent);
            layer.w_v = MatrixView(v.data(), 2 * values, latent);
            layer.latent.w_down = MatrixView(down.data(), latent, 40);
            layer.latent.w_shared = MatrixView(shared.data(), rotary, 40);
            layer.latent.norm = norm.data();
            layer.latent.norm_epsilon = epsilon;
            Model model;
            model.layers.push_back(layer);
            return model;
        }
    };
    const Weights own;
    const Model model = own.model();
    Latents cache(model, usual);
    const std::string file = saved(cache, model);
    CHECK(refusal(cache, file) == "");
    struct LatentChange {
        const char* says;
        std::function<void(Weights&)> make;
    };
    for (const auto& [says, make] : std::vector<LatentChange>{
             {"weights of stream 0 11: ", [](Weights& w) { w.down[12 * 40 - 1] += 0.2F; }},
             {"weights of stream 1 3: ", [](Weights& w) { w.shared[4 * 40 - 1] += 0.2F; }},
             {"norm gain of stream 0 11: ", [](Weights& w) { w.norm[11] += 0.01F; }},
             {"norm epsilon of stream 0: 9.99999997e-07 there, 9.99999975e-06 here",
              [](Weights& w) { w.epsilon = 1e-5; }},
             {"weights of key head 1 11: ", [](Weights& w) { w.k[16 * 12 - 1] += 0.1F; }},
             {"weights of value head 1 7: ", [](Weights& w) { w.v[16 * 12 - 1] += 0.1F; }},
             {"weights of value head 0 4: ", [](Weights& w) { w.values = 4; }},
             {"rows have 12 channels there and 16 here", [](Weights& w) { w.latent = 16; }},
             {"stream 1: rows have 4 channels there and 8 here", [](Weights& w) { w.rotary = 8; }}}) {
        Weights others;
        make(others);
        Latents other(others.model(), usual);
        const std::string problem = refusal(other, file);
        INFO(says << " | " << problem);
        CHECK(problem.find(says) != std::string::npos);
    }
}

TEST_CASE("weights and rules that differ by rounding are those of the same model") {
    for (const std::size_t window : {0U, 32768U}) {
        // W = A B, added up from the front and from the back; frequencies and scales computed in f32.
        std::vector<Numbers> front = numbers(window), back = numbers(window);
        test::Random random(9);
        for (std::size_t i = 0; i < layers; ++i) {
            for (std::vector<float> Numbers::*weights : {&Numbers::w_k, &Numbers::w_v}) {
                constexpr std::size_t inner = 64;
                const std::vector<float> a = random.rows(16 * inner, 0.3F), b = random.rows(inner * 40, 0.3F);
                for (std::size_t at = 0; at < 16 * 40; ++at) {
                    float up = 0, down = 0;
                    for (std::size_t k = 0; k < inner; ++k) {
                        const std::size_t last = inner - 1 - k;
                        up += a[at / 40 * inner + k] * b[k * 40 + at % 40];
                        down += a[at / 40 * inner + last] * b[last * 40 + at % 40];
                    }
                    (front[i].*weights)[at] = up;
                    (back[i].*weights)[at] = down;
                }
            }
            for (double& f : back[i].layer.rope.inverse_frequencies) f = double{static_cast<float>(f)};
            back[i].layer.softmax_scale *= 1 + 1e-7;
            back[i].layer.rope.factor *= 1 + 1e-7;
        }
        CHECK(front[0].w_k != back[0].w_k);
        const Model model = model_of(front), same = model_of(back);
        for (const test::Scheme& scheme : test::schemes()) {
            INFO(scheme.name << ", window " << window);
            CHECK(refusal(*scheme.make(same, usual), saved(*scheme.make(model, usual), model)) == "");
        }
    }
}

TEST_CASE("caches with matrices in f32 and in f16 read each other's files; others say what they are kept in") {
    const std::vector<Numbers> own = numbers(1024);
    const Model model = model_of(own);
    const auto options = [](WeightType type) {
        Options out = usual;
        out.weights = type;
        return out;
    };
    constexpr WeightType types[] = {WeightType::f32, WeightType::f16, WeightType::bf16, WeightType::q8};
    for (const char* name : {"f32 x, rotated", "head svd 4", "cross-layer svd rotated 4"}) {
        const test::Scheme& scheme = test::scheme(name);
        for (const WeightType from : types) {
            const std::string file = saved(*scheme.make(model, options(from)), model);
            for (const WeightType to : types) {
                const std::string problem = refusal(*scheme.make(model, options(to)), file);
                INFO(name << ", from " << static_cast<int>(from) << " to " << static_cast<int>(to) << ": " << problem);
                const bool alike = from == to || (from <= WeightType::f16 && to <= WeightType::f16);
                CHECK((problem == "") == alike);
                if (alike) continue;
                const auto text = [](WeightType type) {
                    return type <= WeightType::f16 ? "f32 or f16" : to_string(type);
                };
                const std::string says =
                    std::string("layer 0: weights are kept in ") + text(from) + " there, in " + text(to) + " here";
                CHECK(problem.find(says) != std::string::npos);
            }
        }
    }
}

TEST_CASE("every number of every rule of a file is compared, and so is how many there are") {
    const std::vector<Numbers> own = numbers(1024);
    const Model model = model_of(own);
    std::size_t tried = 0;
    for (const char* name : {"f32 k and v after RoPE, Hadamard", "head svd 4", "cross-layer svd rotated 4"}) {
        const auto cache = test::scheme(name).make(model, usual);
        const test::SavedFile good(saved(*cache, model));
        const auto refused = [&](const test::SavedFile& file, const std::string& rule) {
            const std::string bytes = file.rewritten([&](std::size_t i, std::span<std::byte> page) {
                std::memcpy(page.data(), file.bytes.data() + file.places[i] + 64, page.size());
            });
            const std::string problem = refusal(*cache, bytes);
            if (problem.find("layer 3: " + rule) == std::string::npos) FAIL(name << ", " << rule << ": " << problem);
            ++tried;
        };
        for (auto list : {&detail::SavedLayer::storage, &detail::SavedLayer::rules, &detail::SavedLayer::weights}) {
            const std::size_t rules = (good.about.layers[3].*list).size();
            for (std::size_t i = 0; i < rules; ++i) {
                const std::string rule = (good.about.layers[3].*list)[i].name;
                for (std::size_t j = 0; j < (good.about.layers[3].*list)[i].values.size(); ++j) {
                    test::SavedFile file = good;
                    double& value = (file.about.layers[3].*list)[i].values[j];
                    value = list == &detail::SavedLayer::storage ? value + 1 : value + 0.1 * std::abs(value) + 0.01;
                    refused(file, rule);
                    value = NAN;
                    refused(file, rule);
                }
                test::SavedFile file = good;
                (file.about.layers[3].*list)[i].values.push_back(0);
                refused(file, rule);
                (file.about.layers[3].*list)[i] = (good.about.layers[3].*list)[i];
                (file.about.layers[3].*list)[i].name += "?";
                refused(file, rule);
            }
            test::SavedFile file = good;
            (file.about.layers[3].*list).pop_back();
            refused(file, "number of rules");
        }
    }
    CHECK(tried > 500);
}
