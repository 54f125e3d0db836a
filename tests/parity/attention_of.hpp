/// The body of parity::run_* for one backend.
#pragma once

#include <xquant/projection/joint_svd.hpp>
#include <xquant/xquant.hpp>

#include "parity/attention.hpp"
#include "support/model.hpp"

namespace parity {

template <class Cache>
std::vector<float> attend(const xquant::Model& model, const Case& c, const std::vector<float>& x,
                          const std::vector<float>& q) {
    using xquant::MatrixView;
    Cache cache(model, {.sinks = 4, .recent = 16, .weights = c.weights});
    const xquant::Sequence sequence = cache.create();
    const std::size_t d = c.shape.width, width = c.shape.heads * c.shape.head_dim;
    if (c.tokens > 0) {
        auto prompt = cache.begin({{sequence, c.tokens}});
        prompt.append(0, MatrixView(x.data(), c.tokens, d));
        prompt.commit();
    }
    auto step = cache.begin({{sequence, c.queries}});
    std::vector<float> out(c.queries * width);
    step.append(0, MatrixView(x.data() + c.tokens * d, c.queries, d));
    step.attend(0, MatrixView(q.data(), c.queries, width), out.data());
    return out;
}

template <class Backend>
std::vector<float> run(Form form, const Case& c) {
    using namespace xquant;
    test::Setup setup(c.shape, c.interleaved ? RopePairing::interleaved : RopePairing::halves);
    test::Random random(17);
    const std::vector<float> x = random.rows((c.tokens + c.queries) * c.shape.width);
    std::vector<float> q = random.rows(c.queries * c.shape.heads * c.shape.head_dim, 2);
    if (c.bad_query != 0) q[(c.shape.heads - 1) * c.shape.head_dim + 1] = c.bad_query;
    std::vector<float> gain = random.rows(c.shape.head_dim, 0.5F), slopes = random.rows(c.shape.heads, 0.02F);
    for (float& value : gain) value += 1;
    for (float& value : slopes) value = std::abs(value);
    const std::vector<float> logits = random.rows(c.shape.heads, 2), bias = random.rows(2 * c.shape.kv_width(), 1);
    Layer& layer = setup.model.layers[0];
    layer.window = c.window;
    layer.chunk = c.chunk;
    if (c.normed) layer.k_norm = gain.data();
    if (c.many_things) {
        layer.soft_cap = 8;
        layer.alibi_slopes = slopes.data();
        layer.sink_logits = logits.data();
        layer.b_k = bias.data();
        layer.b_v = bias.data() + c.shape.kv_width();
    }
    using Token = Layout<PerToken>;
    using Split = Layout<PerChannel, PerToken>;
    const auto with = [&]<class Q, class L, class P>(Q, L, P) {
        return attend<XCache<Q, L, CrossLayer<Off>, P, Backend>>(setup.model, c, x, q);
    };
    const Projection<KeyValue<AfterRope>> turned;
    const Projection<KeyValue<BeforeRope>> unturned;
    const Projection<HeadSvd> head;
    switch (form) {
        case Form::exact:
            return with(Unquantized<float>{}, Token{}, head);
        case Form::f16:
            return with(Unquantized<f16>{}, Token{}, turned);
        case Form::bf16:
            return with(Unquantized<bf16>{}, Token{}, turned);
        case Form::kv4:
            return with(Uniform<4, 64>{}, Token{}, turned);
        case Form::kv8:
            return with(Uniform<8, 64>{}, Token{}, turned);
        case Form::q8_0:
            return with(GgmlQ8_0{}, Token{}, turned);
        case Form::q4_0_hadamard:
            return with(GgmlQ4_0{}, Token{}, Projection<KeyValue<AfterRope, Hadamard>>{});
        case Form::kivi2:
            return with(Uniform<2>{}, Split{}, unturned);
        case Form::kivi4:
            return with(Uniform<4>{}, Split{}, unturned);
        case Form::head3:
            return with(Uniform<3>{}, Split{}, head);
        case Form::head4:
            return with(Uniform<4>{}, Split{}, head);
        case Form::head4_group32:
            return with(Uniform<4, 32>{}, Split{}, head);
        case Form::head5:
            return with(Uniform<5>{}, Split{}, head);
        case Form::head8:
            return with(Uniform<8>{}, Split{}, head);
        case Form::head4_rank64:
            return with(Uniform<4>{}, Split{}, Projection<HeadSvdOf<Rank<64>>>{});
        case Form::split4:
            return with(Uniform<4>{}, Split{}, Projection<SplitSvd>{});
        case Form::x4:
            return with(Uniform<4>{}, Token{}, Projection<Rotated>{});
        case Form::x4_group64:
            return with(Uniform<4, 64>{}, Token{}, Projection<Rotated>{});
        case Form::x4_group32:
            return with(Uniform<4, 32>{}, Token{}, Projection<Rotated>{});
        case Form::x3_group32:
            return with(Uniform<3, 32>{}, Token{}, Projection<Rotated>{});
        case Form::kv3:
            return with(Uniform<3, 64>{}, Token{}, turned);
        case Form::nf4:
            return with(Nf4<>{}, Token{}, turned);
        case Form::count:
            break;
    }
    return {};
}

}  // namespace parity
