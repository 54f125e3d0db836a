/// A cache on a device beside one on the processor: the same steps, the same operations, attention and bytes compared.
#pragma once

#include <xquant/projection/joint_svd.hpp>
#include <xquant/projection/key_value_latent.hpp>
#include <xquant/projection/x_latent.hpp>
#include <xquant/xquant.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "cuda/statistics.hpp"
#include "support/model.hpp"

namespace on_device {

struct Outcome {
    double attention = 0;                  ///< the largest relative distance of a step's attention
    std::size_t bytes = 0, different = 0;  ///< of stored pages
    bool same_pages = true, bad_rows = false;
};

/// What a case has where it says nothing else.
inline constexpr xquant::Options usual{.sinks = 4, .recent = 16, .weights = xquant::WeightType::f32};

struct Case {
    const char* name;
    xquant::LayerShape shape;
    xquant::Options options = usual;
    bool normed = false, halves = false;
    std::size_t pairs = static_cast<std::size_t>(-1);
    std::size_t layers = 2;
    bool known = false, biased = false;  ///< layers have statistics; biases
};

inline double distance(const std::vector<float>& found, const std::vector<float>& expected) {
    double difference = 0, size = 0;
    for (std::size_t i = 0; i < found.size(); ++i) {
        if (!std::isfinite(found[i])) return HUGE_VAL;
        difference += std::pow(static_cast<double>(found[i]) - static_cast<double>(expected[i]), 2);
        size += std::pow(static_cast<double>(expected[i]), 2);
    }
    return std::sqrt(difference / size);
}

/// Three sequences of different lengths, in steps of one and of many tokens; one gets gaps, one is cut, one gets a
/// hole, one is forked.
/// @tparam Memory  Memory(values) puts floats where the backend reads them: data(), read(), and Memory::copy(to, from,
///                 bytes)
template <class Backend, class Memory, class Quantizer, class Layout, class Projection, class CrossLayer>
Outcome compare(const Case& c) {
    using namespace xquant;
    test::Setup setup(c.shape, c.halves ? RopePairing::halves : RopePairing::interleaved, c.layers, c.pairs);
    test::Random random(7);
    std::vector<float> gain = random.rows(c.shape.head_dim, 0.5F);
    for (float& value : gain) value += 1;
    for (Layer& layer : setup.model.layers) {
        if (c.normed) layer.k_norm = gain.data();
    }
    std::optional<Knowledge> knowledge;
    if (c.known) knowledge.emplace(setup.model, c.biased);
    XCache<Quantizer, Layout, CrossLayer, Projection, backend::scalar> expected(setup.model, c.options);
    XCache<Quantizer, Layout, CrossLayer, Projection, Backend> found(setup.model, c.options);
    std::vector<Sequence> a, b;
    for (int i = 0; i < 3; ++i) {
        a.push_back(expected.create());
        b.push_back(found.create());
    }
    Outcome outcome;
    const std::size_t width = c.shape.heads * c.shape.head_dim;
    for (std::size_t step = 0; step < 6; ++step) {
        std::vector<StepPart> parts_a, parts_b;
        std::size_t n = 0;
        for (std::size_t i = 0; i < a.size(); ++i) {
            const std::size_t tokens = step == 0 ? 1 + 60 * i : step == 2 ? 130 : 1 + (step + i) % 3;
            parts_a.push_back({a[i], tokens});
            parts_b.push_back({b[i], tokens});
            n += tokens;
        }
        auto step_a = expected.begin(parts_a);
        auto step_b = found.begin(parts_b);
        for (std::size_t layer = 0; layer < setup.model.layers.size(); ++layer) {
            const std::vector<float> x = random.rows(n * c.shape.width), q = random.rows(n * width, 2);
            std::vector<float> out(n * width);
            const Memory device_x(x), device_q(q), device_out(out);
            step_a.append(layer, MatrixView(x.data(), n, c.shape.width));
            step_a.attend(layer, MatrixView(q.data(), n, width), out.data());
            step_b.append(layer, MatrixView(device_x.data(), n, c.shape.width));
            step_b.attend(layer, MatrixView(device_q.data(), n, width), device_out.data());
            outcome.attention = std::max(outcome.attention, distance(device_out.read(), out));
        }
        step_a.commit();
        step_b.commit();
        if (step == 3) {
            const auto move = [](auto& cache, Sequence s) {
                cache.shift(s, 60, 25);
                cache.shift(s, 20, 60, 7);
                cache.erase(s, 30, 35, Gap::keep);
                cache.set_next_position(s, 200);
            };
            move(expected, a[0]);
            move(found, b[0]);
            expected.truncate(a[1], 100);
            found.truncate(b[1], 100);
            expected.erase(a[2], 10, 30);
            found.erase(b[2], 10, 30);
            a.push_back(expected.fork(a[2]));
            b.push_back(found.fork(b[2]));
            expected.compact(a[2]);
            found.compact(b[2]);
        }
    }
    expected.seal(a[0]);
    found.seal(b[0]);
    for (std::size_t i = 0; i < a.size(); ++i) {
        std::vector<std::vector<std::byte>> pages;
        expected.for_each_page(a[i],
                               [&](const PageView& page) { pages.emplace_back(page.bytes.begin(), page.bytes.end()); });
        std::size_t number = 0;
        found.for_each_page(b[i], [&](const PageView& page) {
            if (number >= pages.size() || pages[number].size() != page.bytes.size()) {
                outcome.same_pages = false;
                return;
            }
            std::vector<std::byte> bytes(page.bytes.size());
            Memory::copy(bytes.data(), page.bytes.data(), bytes.size());
            for (std::size_t k = 0; k < bytes.size(); ++k) outcome.different += bytes[k] != pages[number][k] ? 1U : 0U;
            outcome.bytes += bytes.size();
            ++number;
        });
        outcome.same_pages &= number == pages.size();
    }
    outcome.bad_rows = found.take_bad_rows();
    return outcome;
}

/// Calls f(case, outcome) for every kind of scheme and shape that a device serves; `few`: for five of them.
template <class Backend, class Memory, class F>
void for_each_case(F&& f, bool few = false) {
    using namespace xquant;
    using Token = Layout<PerToken>;
    using Split = Layout<PerChannel, PerToken>;
    std::size_t number = 0;
    const auto run = [&]<class Q, class L, class P>(Q, L, P, const Case& c) {
        if (!few || number == 4 || number == 10 || number == 21)
            f(c, compare<Backend, Memory, Q, L, P, CrossLayer<Off>>(c));
        ++number;
    };
    const auto run_deltas = [&]<class Q, class A, class P>(Q, A, P, const char* name,
                                                           WeightType weights = WeightType::f32) {
        if (few && number++ % 2 == 0) return;
        Case c{name, {320, 6, 2, 64}, {.sinks = 4, .recent = 16, .weights = weights}};
        c.layers = 4;
        f(c, compare<Backend, Memory, Q, Layout<PerToken>, P, CrossLayer<Delta, FourBits, A>>(c));
    };
    const LayerShape gqa{192, 6, 2, 64};
    const Projection<HeadSvd> head;
    run(Unquantized<f16>{}, Token{}, Projection<KeyValue<AfterRope>>{}, {"f16", gqa});
    run(Uniform<8, 64>{}, Token{}, Projection<KeyValue<AfterRope, Hadamard>>{}, {"kv8", gqa});
    run(Uniform<4, 64>{}, Token{}, Projection<KeyValue<AfterRope, Hadamard>>{}, {"kv4", gqa});
    run(Uniform<4>{}, Split{}, Projection<KeyValue<BeforeRope>>{}, {"kivi4", gqa});
    run(Uniform<4>{}, Split{}, head, {"svd_head4", gqa});
    run(Uniform<3>{}, Split{}, head, {"svd_head3", gqa});
    run(Uniform<4, 32>{}, Split{}, head, {"svd_head4, groups of 32", gqa});
    run(Uniform<4>{}, Split{}, head, {"svd_head4, a norm of K", gqa, usual, true});
    run(Uniform<4>{}, Split{}, head,
        {"svd_head4, strict", gqa, {.sinks = 4, .recent = 0, .weights = WeightType::f32, .strict = true}});
    run(Uniform<2, 64>{}, Split{}, head, {"svd_head2, groups of 64", gqa});
    run(Uniform<3, 64>{}, Token{}, Projection<KeyValue<AfterRope>>{}, {"kv3", gqa});
    run(Uniform<4>{}, Split{}, Projection<SplitSvd>{}, {"svd_split4", gqa});
    run(Uniform<4>{}, Token{}, Projection<Rotated>{}, {"x4_rot", gqa});
    run(Uniform<4>{}, Token{}, Projection<Rotated>{}, {"x4_rot, MHA", {256, 4, 4, 64}});
    run(Uniform<4>{}, Token{}, Projection<Rotated>{}, {"x4_rot, head_dim 128", {256, 2, 2, 128}});
    run(Uniform<4>{}, Split{}, head, {"svd_head4, head_dim 128", {512, 4, 1, 128}, usual, false, true});
    run(Uniform<4>{}, Split{}, head, {"svd_head4, head_dim 256", {512, 4, 1, 256}, usual, false, true});
    run(Uniform<4>{}, Split{}, head, {"svd_head4, head_dim 80", {240, 3, 1, 80}, usual, false, true});
    run(Uniform<4>{}, Split{}, head, {"svd_head4, half of a head turned", gqa, usual, false, true, 16});
    run(Uniform<4>{}, Token{}, Projection<Rotated>{},
        {"x4_rot, weights in 8 bits", gqa, {.sinks = 4, .recent = 16, .weights = WeightType::q8}});
    run(Uniform<4>{}, Split{}, head,
        {"svd_head4, weights in f16", gqa, {.sinks = 4, .recent = 16, .weights = WeightType::f16}});
    run(WithFeedback<Uniform<4>>{}, Token{}, Projection<Rotated>{}, {"x4_rot, feedback", gqa});
    run(WithFeedback<Uniform<2, 64, MinMse>>{}, Token{}, Projection<Rotated>{},
        {"x2_rot, feedback, weights in 8 bits", gqa, {.sinks = 4, .recent = 16, .weights = WeightType::q8}});
    run(WithFeedback<Uniform<3, 128, MinMse>>{}, Layout<PerChannel>{}, Projection<Rotated>{},
        {"x3_rot per channel, feedback, weights in f16", gqa, {.sinks = 4, .recent = 16, .weights = WeightType::f16}});
    // Rows differ in the last bit here and there, and then feedback changes all codes behind one that differs.
    run(WithFeedback<Uniform<4, 32>>{}, Layout<PerChannel>{}, Projection<Rotated>{},
        {"x4_rot per channel, feedback, groups of 32", gqa});
    run(WithFeedback<Uniform<4>>{}, Token{}, Projection<Rotated>{},
        {"x4_rot, feedback, strict", gqa, {.sinks = 4, .recent = 0, .weights = WeightType::f32, .strict = true}});
    run(Requantizable<WithFeedback<Uniform<4>>, WithFeedback<Uniform<2>>>{}, Token{}, Projection<Rotated>{},
        {"x4_rot, feedback, requantizable", gqa});
    run_deltas(Uniform<4>{}, f16{}, Projection<Rotated>{}, "cl_x_rot4");
    run_deltas(Uniform<2, 128, MinMse>{}, Uniform<8>{}, Projection<Rotated>{}, "cl_x_rot2, sums in 8 bits");
    run_deltas(Uniform<3, 128, MinMse>{}, float{}, Projection<JointSvd<Hadamard, FullRank>>{},
               "cl_svd_rot3, weights in bf16", WeightType::bf16);
    run_deltas(WithFeedback<Uniform<3>>{}, f16{}, Projection<Rotated>{}, "cl_x_rot3, feedback, weights in bf16",
               WeightType::bf16);
}

/// The same for latents of least cost, whose rows are mixed or whose differences have a way back of their own; `few`:
/// for two of them.
template <class Backend, class Memory, class F>
void for_each_latent_case(F&& f, bool few = false) {
    using namespace xquant;
    using Token = Layout<PerToken>;
    using Split = Layout<PerChannel, PerToken>;
    using Keys3 = PerStream<WithFeedback<Uniform<3>>, WithFeedback<Uniform<4>>>;
    using Fed4 = WithFeedback<Uniform<4>>;
    const auto run = [&]<class Q, class L, class P>(Q, L, P, bool always, Case c) {
        c.known = true;
        if (!few || always) f(c, compare<Backend, Memory, Q, L, P, CrossLayer<Off>>(c));
    };
    const auto run_deltas = [&]<class Q, class A, class P>(Q, A, P, bool always, const char* name,
                                                           WeightType weights = WeightType::f32) {
        Case c{name, {192, 6, 1, 64}, {.sinks = 4, .recent = 16, .weights = weights}};
        c.layers = 4;
        c.known = true;
        if (!few || always) f(c, compare<Backend, Memory, Q, Token, P, CrossLayer<Delta, Fed4, A>>(c));
    };
    const LayerShape gqa{192, 6, 2, 64}, odd{160, 4, 2, 40};
    const auto with_bias = [](Case c) {
        c.biased = true;
        return c;
    };
    const Options half{.sinks = 4, .recent = 16, .weights = WeightType::f16};
    const Options strict{.sinks = 4, .recent = 0, .weights = WeightType::f32, .strict = true};
    const Projection<KeyValueLatent<EachHead>> heads;
    const Projection<KeyValueLatent<AllHeads>> joint;
    run(Keys3{}, Split{}, heads, false, {"head_latent 3, 4", gqa});
    run(Keys3{}, Split{}, heads, true, with_bias({"head_latent 3, 4, biases", gqa}));
    run(Keys3{}, Split{}, heads, false, with_bias({"head_latent 3, 4, a norm of K and biases", gqa, usual, true}));
    run(Keys3{}, Split{}, heads, false, {"head_latent 3, 4, strict", gqa, strict});
    run(Fed4{}, Split{}, heads, false, with_bias({"head_latent4, head_dim 80", {240, 3, 1, 80}, half, true, true}));
    run(Fed4{}, Split{}, heads, false,
        {"head_latent4, head_dim 96, half of a head turned", {192, 4, 2, 96}, usual, false, true, 24});
    run(Fed4{}, Split{}, heads, false, {"head_latent4, head_dim 256", {192, 2, 1, 256}, usual, false, true});
    run(Fed4{}, Split{}, heads, false, {"head_latent4, no RoPE", gqa, usual, false, false, 0});
    run(Uniform<4>{}, Split{}, heads, false, {"head_latent4 without feedback", gqa});
    run(Fed4{}, Token{}, heads, false, {"head_latent4 per token", gqa});
    run(Keys3{}, Split{}, joint, false, {"joint_latent 3, 4", gqa});
    run(Keys3{}, Split{}, joint, false, with_bias({"joint_latent 3, 4, a norm of K and biases", gqa, usual, true}));
    run(Fed4{}, Split{}, joint, false, with_bias({"joint_latent4, head_dim 40, weights in f16", odd, half}));
    run(WithFeedback<Uniform<4, 64>>{}, Split{}, joint, false, {"joint_latent4, head_dim 40, groups of 64", odd});
    run(Fed4{}, Token{}, Projection<XLatent<AllChannels>>{}, false, {"x_latent4", {192, 3, 3, 64}});
    run(Fed4{}, Token{}, Projection<XLatent<AllChannels>>{}, false,
        with_bias({"x_latent4, a norm of K and biases", odd, half, true}));
    run(Fed4{}, Token{}, Projection<XLatent<KeysAndValues>>{}, false, {"kv_latent4", {192, 6, 1, 64}});
    run(WithFeedback<Uniform<3, 32, MinMse>>{}, Token{}, Projection<XLatent<KeysAndValues>>{}, false,
        with_bias({"kv_latent3, head_dim 40, a norm of K and biases", {192, 4, 2, 40}, half, true}));
    run_deltas(WithFeedback<Uniform<3>>{}, f16{}, Projection<XLatent<KeysAndValues>>{}, true, "cross_layer_latent3");
    run_deltas(WithFeedback<Uniform<3, 64>>{}, float{}, Projection<XLatent<KeysAndValues>>{}, false,
               "cross_layer_latent3, groups of 64, weights in bf16", WeightType::bf16);
    run_deltas(Fed4{}, Uniform<8>{}, Projection<XLatent<AllChannels>>{}, false,
               "cross-layer latents of all channels, sums in 8 bits");
}

/// The same for caches whose codes meet 8-bit weights; `few`: for one of them.
template <class Backend, class Memory, class F>
void for_each_coded_case(F&& f, bool few = false) {
    using namespace xquant;
    const auto run = [&]<class Q>(Q, const Case& c) {
        f(c, compare<Backend, Memory, Q, Layout<PerToken>, Projection<Rotated>, CrossLayer<Off>>(c));
    };
    run(Uniform<4>{}, {"x4_rot, 8-bit weights", {192, 6, 2, 64}});
    if (few) return;
    run(Uniform<4>{}, {"x4_rot, 8-bit weights, MHA", {256, 2, 2, 128}});
    run(Uniform<3, 32>{}, {"x3_rot, groups of 32, 8-bit weights", {192, 6, 2, 64}});
    Case joint{"joint_latent4, 8-bit weights of V", {192, 6, 2, 64}};
    joint.known = true;
    f(joint, compare<Backend, Memory, WithFeedback<Uniform<4>>, Layout<PerChannel, PerToken>,
                     Projection<KeyValueLatent<AllHeads>>, CrossLayer<Off>>(joint));
}

}  // namespace on_device
