/// The caches that random operations are done on: every scheme that is shipped, and models with every rule of
/// attention. And the rows of a token in float64, as the model defines them.
#pragma once

#include <xquant/projection/joint_svd.hpp>
#include <xquant/xquant.hpp>

#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "support/model.hpp"
#include "support/oracle.hpp"
#include "support/tolerance.hpp"

namespace random_operations {

inline constexpr std::size_t layers = 4;

/// Four small layers, all rules of a layer from `extras`.
struct SmallModel {
    enum Kind { usual, latent };

    explicit SmallModel(Kind kind, std::size_t window) : setup({8, 2, kind == latent ? 2U : 1U, 4}, pairing, layers) {
        test::Random random(21);
        norm = random.rows(8, 0.3F);
        for (float& gain : norm) gain += 1.2F;
        slopes = {0.02F, 0.3F};
        logits = {0.5F, -1.0F};
        weights.reserve(4 * layers);  // views point into it
        for (xquant::Layer& layer : setup.model.layers) {
            if (kind == usual) continue;
            layer.rope = xquant::Rope::standard(shared, 10000.0, pairing);
            const auto matrix = [&](std::size_t rows, std::size_t columns, float scale) {
                weights.push_back(random.rows(rows * columns, scale));
                return xquant::MatrixView(weights.back().data(), rows, columns);
            };
            layer.latent.w_down = matrix(rank, 8, 0.6F);
            layer.latent.w_shared = matrix(shared, 8, 0.6F);
            layer.latent.norm = norm.data();
            layer.latent.norm_epsilon = 1e-3;
            layer.w_k = matrix(2 * own, rank, 0.5F);
            layer.w_v = matrix(2 * 4, rank, 0.5F);
        }
        setup.model.layers.back().window = window;
    }
    SmallModel(const SmallModel&) = delete;
    SmallModel& operator=(const SmallModel&) = delete;

    /// K before RoPE, and V, of a row of x: [Hkv * Dh].
    [[nodiscard]] std::vector<double> key(std::size_t index, const std::vector<float>& x) const {
        return row(index, x, true);
    }
    [[nodiscard]] std::vector<double> value(std::size_t index, const std::vector<float>& x) const {
        return row(index, x, false);
    }
    [[nodiscard]] const xquant::Model& model() const { return setup.model; }

    static constexpr xquant::RopePairing pairing = xquant::RopePairing::interleaved;
    static constexpr std::size_t rank = 6, shared = 2, own = 2;
    test::Setup setup;
    std::vector<float> norm, slopes, logits;

private:
    [[nodiscard]] std::vector<double> row(std::size_t index, const std::vector<float>& x, bool of_key) const {
        xquant::Layer layer = setup.model.layers[index];
        const xquant::LatentAttention& own_latent = layer.latent;
        layer.rope = {};
        if (!own_latent.present()) return test::oracle_rows(layer, x, of_key);
        const auto product = [](const xquant::MatrixView& weight, std::size_t i, const auto& from) {
            const auto* values = static_cast<const float*>(weight.data) + i * weight.cols;
            double sum = 0;
            for (std::size_t c = 0; c < weight.cols; ++c) sum += double{values[c]} * static_cast<double>(from[c]);
            return sum;
        };
        std::vector<double> z(rank), out;
        double square = 0;
        for (std::size_t i = 0; i < rank; ++i) {
            z[i] = product(own_latent.w_down, i, x);
            square += z[i] * z[i];
        }
        for (std::size_t i = 0; i < rank; ++i) {
            z[i] *= double{own_latent.norm[i]} / std::sqrt(square / rank + own_latent.norm_epsilon);
        }
        for (std::size_t head = 0; head < 2; ++head) {
            for (std::size_t i = 0; i < shared && of_key; ++i) out.push_back(product(own_latent.w_shared, i, x));
            const std::size_t count = of_key ? own : 4;
            for (std::size_t i = 0; i < count; ++i)
                out.push_back(product(of_key ? layer.w_k : layer.w_v, head * count + i, z));
        }
        return out;
    }

    std::vector<std::vector<float>> weights;
};

/// What is to be done at random, and how closely it must follow attention in float64.
struct Case {
    std::string name;
    std::function<std::shared_ptr<test::Cache>(const xquant::Model&, const xquant::Options&)> make;
    /// A cache of the same model whose rows are f32; null where `make` itself is one.
    std::function<std::shared_ptr<test::Cache>(const xquant::Model&, const xquant::Options&)> make_exact;
    xquant::Options options;
    SmallModel::Kind kind = SmallModel::usual;
    std::size_t window = 0;  ///< of the last layer
    void (*change)(SmallModel&) = [](SmallModel&) {};
    bool requantizes = false;
    /// A fresh cache that is fed the same tokens has the same codes: every row is coded by itself and at once, with
    /// no RoPE in it.
    bool same_codes = false;
};

/// How far the answers of a case may be from attention in float64, in lengths of these: those of a row, and of 64
/// rows together.
struct Bounds {
    double row, many;
};

inline Bounds bounds_of(const Case& which) {
    if (which.make_exact == nullptr) return {3e-4, 3e-4};
    SmallModel small(which.kind, which.window);
    which.change(small);
    const xquant::Options options{.sinks = 0, .recent = 0, .rows = xquant::DType::f32, .strict = true};
    const auto cache = which.make(small.model(), options), exact = which.make_exact(small.model(), options);
    double worst = 0;
    test::RelativeDistance all;
    const auto look = [&](const test::Feed& found, const test::Feed& expected, std::size_t first) {
        for (std::size_t i = first; i < found.answered; ++i) {
            const test::Outputs a = test::answers(found, i, 1), b = test::answers(expected, i, 1);
            worst = std::max(worst, test::relative_distance(a, b));
            for (std::size_t layer = 0; layer < a.size(); ++layer) {
                for (std::size_t c = 0; c < a[layer].size(); ++c) all.add(double{a[layer][c]}, double{b[layer][c]});
            }
        }
    };
    // A long sequence; where pages are requantized, many of all lengths, and the answer that follows.
    for (std::uint32_t seed = 3; seed < (which.requantizes ? 63U : 4U); ++seed) {
        test::Feed found{cache->create(), seed}, expected{exact->create(), seed};
        const std::size_t before = which.requantizes ? 1 + seed * seed / 16 : 300;
        for (const std::size_t n : {before, std::size_t{2}}) {
            test::feed(*cache, small.model(), {{&found, n}});
            test::feed(*exact, small.model(), {{&expected, n}});
            if (which.requantizes) cache->requantize(std::vector<xquant::Sequence>{found.sequence}, test::every_page);
        }
        look(found, expected, which.requantizes ? before : 0);
    }
    // The worst of some rows is not the worst of all: answers may nearly cancel out. Of 2 bits the first bound says
    // little, and the second one has to.
    return {3 * worst, test::tolerance_of(all.value())};
}

template <class Quantizer, class Layout, class Rule, class P>
Case of_policies(std::string name, xquant::Options options) {
    using namespace xquant;
    using Exact = XCache<Unquantized<float>, xquant::Layout<PerToken>, CrossLayer<Off>,
                         Projection<std::conditional_t<std::is_same_v<P, Latent>, Latent, Plain>>>;
    Case out;
    out.name = std::move(name);
    out.options = options;
    if (std::is_same_v<Quantizer, Unquantized<float>>) out.options.weights = WeightType::f32;
    out.make = [](const Model& model, const Options& with) {
        return std::static_pointer_cast<test::Cache>(
            std::make_shared<XCache<Quantizer, Layout, Rule, Projection<P>>>(model, with));
    };
    if (!std::is_same_v<Quantizer, Unquantized<float>>) {
        out.make_exact = [](const Model& model, const Options& with) {
            return std::static_pointer_cast<test::Cache>(std::make_shared<Exact>(model, with));
        };
    }
    if (std::is_same_v<P, Latent>) out.kind = SmallModel::latent;
    return out;
}

inline std::vector<Case> make_cases() {
    using namespace xquant;
    using Tokens = Layout<PerToken>;
    using Requantized = Requantizable<Uniform<4>, Uniform<2>>;
    std::vector<Case> all;
    const Options options[] = {
        {.sinks = 0, .recent = 0}, {.sinks = 3, .recent = 9}, {.sinks = 2, .recent = 20, .strict = true}};
    for (const test::Scheme& scheme : test::schemes()) {
        Case one;
        one.name = scheme.name;
        one.make = scheme.make;
        if (!scheme.exact) one.make_exact = test::scheme("f32 x").make;
        one.options = options[all.size() % 3];
        if (scheme.exact) {
            one.options.rows = DType::f32;
            one.options.weights = WeightType::f32;
        }
        one.window = all.size() % 5 == 4 ? 40 : 0;
        one.requantizes = scheme.name.find("requantizable") != std::string::npos;
        const bool turned =
            scheme.name.find("q8_0") == 0 || scheme.name.find("q4_0") == 0 || scheme.name == "f16 k and v";
        one.same_codes = all.size() % 3 == 0 && !scheme.per_channel && !turned && !one.requantizes;
        all.push_back(one);
    }
    const auto with = [&](Case one, void (*change)(SmallModel&)) {
        one.change = change;
        all.push_back(std::move(one));
    };
    const auto nothing = [](SmallModel&) {};
    const auto alibi = [](SmallModel& small) {
        for (Layer& layer : small.setup.model.layers) {
            layer.rope = {};
            layer.alibi_slopes = small.slopes.data();
        }
    };
    const auto normed = [](SmallModel& small) {
        for (Layer& layer : small.setup.model.layers) layer.k_norm = small.norm.data();
    };
    const auto capped = [](SmallModel& small) {
        for (Layer& layer : small.setup.model.layers) {
            layer.soft_cap = 2;
            layer.sink_logits = small.logits.data();
            layer.softmax_scale = 0.3;
        }
    };
    using Exact = Unquantized<float>;
    const Options rows_f32{.sinks = 2, .recent = 6, .rows = DType::f32};
    with(of_policies<Exact, Tokens, CrossLayer<Off>, Rotated>("f32 x, ALiBi", rows_f32), alibi);
    with(of_policies<Uniform<4>, Tokens, CrossLayer<Off>, Rotated>("x rotated 4, ALiBi", {.sinks = 0, .recent = 0}),
         alibi);
    with(of_policies<Exact, Tokens, CrossLayer<Off>, HeadSvd>("f32 head svd, a norm of K", rows_f32), normed);
    with(of_policies<Exact, Tokens, CrossLayer<Off>, KeyValue<AfterRope, Hadamard>>(
             "f32 k and v after RoPE, a norm of K", rows_f32),
         normed);
    with(of_policies<Uniform<4>, Layout<PerChannel, PerToken>, CrossLayer<Off>, HeadSvd>("head svd 4, a norm of K",
                                                                                         {.sinks = 4, .recent = 16}),
         normed);
    with(
        of_policies<Exact, Tokens, CrossLayer<Delta, Exact>, Rotated>("f32 cross-layer x, caps, sink logits", rows_f32),
        capped);
    with(of_policies<Exact, Tokens, CrossLayer<Off>, KeyValue<AfterRope>>("f32 k and v after RoPE, caps, sink logits",
                                                                          rows_f32),
         capped);
    with(of_policies<Exact, Tokens, CrossLayer<Off>, Latent>("f32 latent attention", rows_f32), nothing);
    with(of_policies<PerStream<Uniform<4>, Unquantized<f16>>, Tokens, CrossLayer<Off>, Latent>(
             "latent attention 4", {.sinks = 1, .recent = 5}),
         nothing);
    const auto before_rope = [](SmallModel& small) {
        for (Layer& layer : small.setup.model.layers) layer.input = LayerInput::keys_before_rope;
    };
    const auto normed_before_rope = [](SmallModel& small) {
        for (Layer& layer : small.setup.model.layers) {
            layer.input = LayerInput::keys_before_rope;
            layer.k_norm = small.norm.data();
        }
    };
    const auto after_rope = [](SmallModel& small) {
        for (Layer& layer : small.setup.model.layers) layer.input = LayerInput::keys_after_rope;
    };
    const auto given = [&](Case one, void (*change)(SmallModel&)) {
        if (one.make_exact != nullptr) {
            one.make_exact = of_policies<Exact, Tokens, CrossLayer<Off>, KeyValue<BeforeRope>>("", {}).make;
        }
        with(std::move(one), change);
    };
    given(of_policies<Exact, Tokens, CrossLayer<Off>, KeyValue<AfterRope>>("f32 k and v, handed over after RoPE",
                                                                           rows_f32),
          after_rope);
    given(of_policies<Exact, Tokens, CrossLayer<Off>, KeyValue<AfterRope, Hadamard>>(
              "f32 k and v after RoPE, handed over before it", rows_f32),
          before_rope);
    given(of_policies<Exact, Tokens, CrossLayer<Off>, HeadSvd>("f32 head svd of keys that are handed over", rows_f32),
          normed_before_rope);
    given(of_policies<Uniform<4>, Layout<PerChannel, PerToken>, CrossLayer<Off>, HeadSvd>(
              "head svd 4 of keys that are handed over", {.sinks = 4, .recent = 16}),
          before_rope);
    Case differences = of_policies<Requantized, Tokens, CrossLayer<Delta, Uniform<8>>, Rotated>(
        "cross-layer x rotated 4, requantizable to 2", {.sinks = 4, .recent = 8});
    differences.requantizes = true;
    all.push_back(differences);
    return all;
}

}  // namespace random_operations
