/// Every kind of attention that models have, unquantized, against float64: every projection gives plain attention.
#include <xquant/projection/joint_svd.hpp>
#include <xquant/xquant.hpp>

#include <cmath>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/model.hpp"
#include "support/oracle.hpp"

using namespace xquant;

namespace {

template <class P>
using Exact = XCache<Unquantized<float>, Layout<PerToken>, CrossLayer<Off>, Projection<P>>;
template <class P>
using Differences = XCache<Unquantized<float>, Layout<PerToken>, CrossLayer<Delta, Unquantized<float>>, Projection<P>>;

/// What a layer may have, with numbers to point to.
struct Extras {
    explicit Extras(const LayerShape& shape) {
        test::Random random(5);
        b_k = random.rows(shape.kv_width(), 2);
        b_v = random.rows(shape.kv_width(), 2);
        norm = random.rows(shape.head_dim, 0.5F);
        for (float& gain : norm) gain += 1.5F;
        slopes = random.rows(shape.heads, 0.1F);
        for (float& slope : slopes) slope = std::abs(slope) + 0.01F;
        logits = random.rows(shape.heads, 2);
    }
    std::vector<float> b_k, b_v, norm, slopes, logits;
};

struct Case {
    std::string name;
    LayerShape shape;
    std::size_t pairs;  ///< that RoPE turns
    void (*change)(Layer&, const Extras&);
};

void nothing(Layer&, const Extras&) {}

const std::vector<Case>& cases() {
    static const std::vector<Case> all{
        {"MHA, head_dim 64", {128, 2, 2, 64}, 32, nothing},
        {"GQA, head_dim 80", {240, 4, 1, 80}, 40, nothing},
        {"MQA, head_dim 96", {200, 3, 1, 96}, 48, nothing},
        {"GQA, head_dim 112", {226, 4, 1, 112}, 56, nothing},
        {"GQA, head_dim 128", {260, 2, 1, 128}, 64, nothing},
        {"MQA, head_dim 256", {520, 2, 1, 256}, 128, nothing},
        {"MQA, head_dim 512", {520, 2, 1, 512}, 256, nothing},
        {"odd head_dim 7", {40, 4, 2, 7}, 3, nothing},
        {"biases, as in Qwen2",
         {96, 4, 1, 32},
         16,
         [](Layer& layer, const Extras& extras) {
             layer.b_k = extras.b_k.data();
             layer.b_v = extras.b_v.data();
         }},
        {"a norm of K, as in Qwen3 and Gemma 3",
         {96, 4, 1, 32},
         16,
         [](Layer& layer, const Extras& extras) { layer.k_norm = extras.norm.data(); }},
        {"a norm of K after biases, other epsilon",
         {96, 4, 1, 32},
         16,
         [](Layer& layer, const Extras& extras) {
             layer.b_k = extras.b_k.data();
             layer.k_norm = extras.norm.data();
             layer.k_norm_epsilon = 0.1;
         }},
        {"partial RoPE, as in GPT-NeoX and Phi", {96, 4, 1, 32}, 4, nothing},
        {"an attention factor, as YaRN and LongRoPE have",
         {96, 4, 1, 32},
         16,
         [](Layer& layer, const Extras&) { layer.rope.factor = 1.3; }},
        {"an attention factor and partial RoPE, as in Phi-4-mini",
         {96, 4, 1, 32},
         12,
         [](Layer& layer, const Extras& extras) {
             layer.rope.factor = 1.19;
             layer.b_k = extras.b_k.data();
         }},
        {"partial RoPE and biases",
         {96, 4, 1, 32},
         4,
         [](Layer& layer, const Extras& extras) {
             layer.b_k = extras.b_k.data();
             layer.sink_logits = extras.logits.data();  // so that a constant score matters
         }},
        {"no RoPE, biases: learned positions, as in GPT-2 and OPT",
         {96, 3, 3, 16},
         0,
         [](Layer& layer, const Extras& extras) {
             layer.b_k = extras.b_k.data();
             layer.b_v = extras.b_v.data();
             layer.soft_cap = 3;
         }},
        {"ALiBi, as in BLOOM and MPT",
         {96, 6, 2, 16},
         0,
         [](Layer& layer, const Extras& extras) { layer.alibi_slopes = extras.slopes.data(); }},
        {"soft cap, as in Gemma 2", {96, 4, 1, 32}, 16, [](Layer& layer, const Extras&) { layer.soft_cap = 2; }},
        {"softmax scale of its own",
         {96, 4, 1, 32},
         16,
         [](Layer& layer, const Extras&) { layer.softmax_scale = 0.05; }},
        {"sliding window, as in Mistral", {96, 4, 1, 32}, 16, [](Layer& layer, const Extras&) { layer.window = 37; }},
        {"chunks, as in Llama 4", {96, 4, 1, 32}, 16, [](Layer& layer, const Extras&) { layer.chunk = 50; }},
        {"chunks of one token", {96, 4, 1, 32}, 16, [](Layer& layer, const Extras&) { layer.chunk = 1; }},
        {"chunks, sink logits, slopes and a soft cap",
         {96, 4, 1, 32},
         8,
         [](Layer& layer, const Extras& extras) {
             layer.chunk = 64;
             layer.soft_cap = 5;
             layer.alibi_slopes = extras.slopes.data();
             layer.sink_logits = extras.logits.data();
         }},
        {"a window of one token", {96, 4, 1, 32}, 16, [](Layer& layer, const Extras&) { layer.window = 1; }},
        {"sink logits and a window, as in gpt-oss",
         {96, 4, 1, 32},
         16,
         [](Layer& layer, const Extras& extras) {
             layer.sink_logits = extras.logits.data();
             layer.b_v = extras.b_v.data();
             layer.window = 100;
         }},
        {"everything at once",
         {96, 4, 1, 32},
         8,
         [](Layer& layer, const Extras& extras) {
             layer.b_k = extras.b_k.data();
             layer.b_v = extras.b_v.data();
             layer.k_norm = extras.norm.data();
             layer.soft_cap = 5;
             layer.window = 90;
             layer.alibi_slopes = extras.slopes.data();
             layer.sink_logits = extras.logits.data();
             layer.softmax_scale = 0.3;
         }},
    };
    return all;
}

/// Steps whose sizes cross tiles, pages and blocks of query rows.
constexpr std::size_t steps[] = {1, 7, 128, 1, 40, 30};

struct Input {
    std::vector<float> x, q;
};

/// The largest error of a cache of `layers` layers like this one, relative to the largest output.
template <class Cache>
double error_of(const Model& model, const std::vector<Input>& inputs, const Options& options) {
    Cache cache(model, options);
    const Sequence sequence = cache.create();
    std::vector<std::vector<float>> out(model.layers.size());
    std::size_t done = 0;
    for (const std::size_t n : steps) {
        auto step = cache.begin({{sequence, n}});
        for (std::size_t i = 0; i < model.layers.size(); ++i) {
            const LayerShape& shape = model.layers[i].shape;
            const std::size_t width = shape.heads * shape.head_dim;
            out[i].resize((done + n) * width);
            step.append(i, MatrixView(inputs[i].x.data() + done * shape.width, n, shape.width));
            step.attend(i, MatrixView(inputs[i].q.data() + done * width, n, width), out[i].data() + done * width);
        }
        step.commit();
        done += n;
    }
    double worst = 0;
    for (std::size_t i = 0; i < model.layers.size(); ++i) {
        const std::vector<double> exact = test::oracle_attention(model.layers[i], inputs[i].x, inputs[i].q);
        double largest = 0, off = 0;
        for (std::size_t j = 0; j < exact.size(); ++j) {
            largest = std::max(largest, std::abs(exact[j]));
            off = std::max(off, test::distance_to(exact[j], out[i][j]));
        }
        worst = std::max(worst, off / largest);
    }
    return worst;
}

std::vector<Input> inputs_for(const Model& model) {
    std::size_t tokens = 0;
    for (const std::size_t n : steps) tokens += n;
    test::Random random(3);
    std::vector<Input> out;
    for (const Layer& layer : model.layers) {
        const LayerShape& shape = layer.shape;
        out.push_back({random.rows(tokens * shape.width), random.rows(tokens * shape.heads * shape.head_dim, 2)});
    }
    return out;
}

Options exact_options(std::size_t recent, bool strict) {
    Options options;
    options.rows = DType::f32;
    options.weights = WeightType::f32;
    options.recent = recent;
    options.strict = strict;
    return options;
}

constexpr double bound = 1e-5;

}  // namespace

TEST_CASE("every model's attention, every projection") {
    for (const Case& one : cases()) {
        for (const RopePairing pairing : {RopePairing::halves, RopePairing::interleaved}) {
            test::Setup setup(one.shape, pairing, 1, one.pairs);
            const Extras extras(one.shape);
            Layer& layer = setup.model.layers[0];
            one.change(layer, extras);
            const std::vector<Input> inputs = inputs_for(setup.model);
            const Options options = exact_options(10, pairing == RopePairing::halves);
            const auto check = [&]<class P>(const char* name, P) {
                INFO(one.name << ", " << name
                              << (pairing == RopePairing::halves ? ", halves, strict" : ", interleaved"));
                CHECK(error_of<Exact<P>>(setup.model, inputs, options) < bound);
            };
            check("Plain", Plain{});
            check("Rotated", Rotated{});
            check("KeyValue before RoPE", KeyValue<BeforeRope>{});
            check("KeyValue after RoPE, Hadamard", KeyValue<AfterRope, Hadamard>{});
            check("HeadSvd", HeadSvd{});
            if (one.shape.kv_width() <= one.shape.width) check("SplitSvd", SplitSvd{});
            if (2 * one.shape.kv_width() <= one.shape.width) check("JointSvd", JointSvd<Hadamard, FullRank>{});
        }
    }
}

TEST_CASE("cross-layer caches of models with biases, norms, partial RoPE and a mean") {
    test::Setup setup({96, 4, 1, 32}, RopePairing::halves, 5, 8);
    const Extras extras(setup.model.layers[0].shape);
    for (Layer& layer : setup.model.layers) {
        layer.b_k = extras.b_k.data();
        layer.b_v = extras.b_v.data();
    }
    setup.model.layers[3].k_norm = extras.norm.data();
    setup.add_mean();
    const std::vector<Input> inputs = inputs_for(setup.model);
    for (const bool strict : {false, true}) {
        const Options options = exact_options(10, strict);
        CHECK(error_of<Differences<Plain>>(setup.model, inputs, options) < bound);
        CHECK(error_of<Differences<Rotated>>(setup.model, inputs, options) < bound);
        CHECK((error_of<Differences<JointSvd<Hadamard, FullRank>>>(setup.model, inputs, options)) < bound);
    }
}

TEST_CASE("layers of other shapes, frequencies and rules in one model") {
    const LayerShape shapes[] = {{96, 4, 2, 16}, {64, 4, 1, 32}, {96, 2, 2, 40}};
    test::Setup a(shapes[0], RopePairing::halves, 1), b(shapes[1], RopePairing::interleaved, 1),
        c(shapes[2], RopePairing::halves, 1, 5);
    Model model;
    for (const test::Setup* setup : {&a, &b, &c}) model.layers.push_back(setup->model.layers[0]);
    model.layers[1].rope = Rope::standard(32, 1e6);
    model.layers[1].window = 20;
    model.layers[2].soft_cap = 4;
    model.layers[2].chunk = 20;
    const std::vector<Input> inputs = inputs_for(model);
    for (const bool strict : {false, true}) {
        const Options options = exact_options(33, strict);
        CHECK(error_of<Exact<Rotated>>(model, inputs, options) < bound);
        CHECK(error_of<Exact<HeadSvd>>(model, inputs, options) < bound);
        CHECK(error_of<Exact<KeyValue<AfterRope>>>(model, inputs, options) < bound);
    }
}

TEST_CASE("keys are absorbed where RoPE does not turn them, and only there") {
    AttendTask task;
    const std::vector<float> matrix(64 * 32);
    task.head_dim = 32;
    task.rows = 1;
    task.queries_per_kv = 4;
    task.key = {0, 0, 64, matrix.data(), nullptr};
    CHECK(absorbs_keys(task));
    task.rope.pairs = 4;
    CHECK(absorbs_keys(task));
    task.rope.pairs = 16;
    CHECK_FALSE(absorbs_keys(task));
    task.rope.pairs = 4;
    task.rows = 100;  // many queries share a rebuilt tile
    CHECK_FALSE(absorbs_keys(task));
    task.rows = 1;
    task.rules.key_norm = matrix.data();
    CHECK_FALSE(absorbs_keys(task));
}

TEST_CASE("rules that make no sense are refused") {
    test::Setup setup({96, 4, 1, 32}, RopePairing::halves);
    Layer& layer = setup.model.layers[0];
    const auto refused = [&] { CHECK_THROWS_AS(Exact<Plain>(setup.model), error); };
    layer.soft_cap = -1;
    refused();
    layer.soft_cap = 0;
    layer.softmax_scale = -1;
    refused();
    layer.softmax_scale = 0;
    layer.rope.inverse_frequencies.resize(17);
    refused();
}
