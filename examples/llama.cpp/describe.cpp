#include "describe.hpp"

#include <algorithm>
#include <cmath>

#include "error.hpp"
#include "llama-hparams.h"
#include "rope.hpp"
#include "weights.hpp"

namespace adapter {
namespace {

using xquant::Layer;
using xquant::LayerInput;

/// W, as `scale` and `factor` make it.
std::vector<float> weight_of(const Origin& from, std::size_t rows) {
    std::vector<float> out = rows_of(from.weight, from.first_row, rows);
    double factor = from.normed ? 1 : from.factor;
    if (from.scale != nullptr) factor *= static_cast<double>(vector_of(from.scale, 0, 1).front());
    for (float& value : out) value *= static_cast<float>(factor);
    return out;
}

std::vector<float> bias_of(const Origin& from, std::size_t channels) {
    std::vector<float> out(from.biases.empty() ? 0 : channels);
    for (const auto& [bias, first] : from.biases) {
        const std::vector<float> part = vector_of(bias, first, channels);
        for (std::size_t i = 0; i < channels; ++i) out[i] += part[i];
    }
    for (float& value : out) value *= static_cast<float>(from.normed ? 1 : from.factor);
    return out;
}

/// Whether xquant takes these frequencies.
bool is_served(const xquant::Rope& rope) {
    return std::all_of(rope.inverse_frequencies.begin(), rope.inverse_frequencies.end(),
                       [](double frequency) { return std::abs(frequency) <= 10; });
}

/// Refuses what xquant cannot do on the way from X to K and V.
void check_projection(const Description& out, int il) {
    if (!out.k.complete()) refuse(il, "K: the graph has " + out.k.stopped + ", which xquant cannot do from X");
    if (!out.v.complete()) refuse(il, "V: the graph has " + out.v.stopped + ", which xquant cannot do from X");
    if (out.k.x != out.v.x) refuse(il, "V is not made from the X that K is made from");
    if (out.v.rope.present() || out.v.normed) refuse(il, "V: turned or normed, which xquant cannot do from X");
}

/// Biases, and the norm of K. The weights themselves come with read_weights.
void describe_vectors(Description& out) {
    Layer& layer = out.layer;
    const std::size_t r = layer.shape.kv_width(), dh = layer.shape.head_dim;
    out.b_k = bias_of(out.k, r);
    if (out.v.complete()) out.b_v = bias_of(out.v, r);
    if (!out.b_k.empty()) layer.b_k = out.b_k.data();
    if (!out.b_v.empty()) layer.b_v = out.b_v.data();
    if (!out.k.normed) return;
    out.gain = out.k.gain != nullptr ? vector_of(out.k.gain, 0, dh) : std::vector<float>(dh, 1.0F);
    for (float& value : out.gain) value *= static_cast<float>(out.k.factor);
    layer.k_norm = out.gain.data();
    layer.k_norm_epsilon = out.k.epsilon;
}

/// What the graph asks of the scores.
void describe_scores(Description& out, const llm_graph_context& graph, const AttentionArguments& a, bool data) {
    const llama_hparams& h = graph.hparams;
    Layer& layer = out.layer;
    layer.softmax_scale = static_cast<double>(a.kq_scale);
    if (h.attn_soft_cap) layer.soft_cap = static_cast<double>(h.f_attn_logit_softcapping);
    if (graph.arch == LLM_ARCH_GROK) {
        // s = scale * cap * tanh(factor * q k / cap), which stands in build_attn itself.
        layer.softmax_scale *= static_cast<double>(h.f_attn_out_scale);
        layer.soft_cap = static_cast<double>(a.kq_scale * h.f_attn_logit_softcapping);
    }
    if (h.is_swa(static_cast<std::uint32_t>(a.il))) {
        if (h.swa_type == LLAMA_SWA_TYPE_SYMMETRIC) refuse(a.il, "a window to both sides");
        (h.swa_type == LLAMA_SWA_TYPE_CHUNKED ? layer.chunk : layer.window) = h.n_swa;
    }
    if (h.f_max_alibi_bias > 0) {
        const double most = static_cast<double>(h.f_max_alibi_bias);
        const auto heads = layer.shape.heads;
        const double first = std::exp2(std::floor(std::log2(static_cast<double>(heads))));
        for (std::size_t i = 0; i < heads; ++i) {
            const auto at = static_cast<double>(i);
            out.slopes.push_back(static_cast<float>(at < first
                                                        ? std::exp2(-most / first * (at + 1))
                                                        : std::exp2(-most / 2 / first * (2 * (at - first) + 1))));
        }
        layer.alibi_slopes = out.slopes.data();
    }
    if (a.sinks != nullptr && data) {
        out.sinks = vector_of(a.sinks, 0, layer.shape.heads);
        layer.sink_logits = out.sinks.data();
    }
}

}  // namespace

void refuse(int il, const std::string& what) { fail("layer " + std::to_string(il) + ": " + what); }

Description describe(const llm_graph_context& graph, const AttentionArguments& a, const Settings& settings, bool data) {
    if (a.kq_b != nullptr) refuse(a.il, "a bias of the scores");
    if (a.v_mla != nullptr) refuse(a.il, "latent attention");
    if (a.k->ne[1] != a.v->ne[1]) refuse(a.il, "K has other heads than V");
    Description out;
    out.k = trace(a.k);
    out.v = trace(a.v);
    out.value_channels = a.v->ne[0];
    Layer& layer = out.layer;
    const auto size = [](std::int64_t of) { return static_cast<std::size_t>(of); };
    layer.input = settings.input;
    layer.shape = {out.k.x != nullptr ? size(out.k.x->ne[0]) : 0, size(a.q->ne[1]), size(a.k->ne[1]),
                   size(std::max(a.k->ne[0], a.v->ne[0]))};
    const bool from_x = settings.input == LayerInput::x;
    const std::string foreign = foreign_rope(out.k.rope);
    if (settings.input == LayerInput::keys_after_rope) {
        out.shiftable = foreign.empty() && (out.k.rope.present() || out.k.complete());
    } else {
        if (!foreign.empty()) refuse(a.il, "K: " + foreign);
        if (out.k.rope.present() && out.k.after_rope && !from_x) refuse(a.il, "K: a norm or a factor behind RoPE");
        if (!out.k.rope.present() && !out.k.complete())
            refuse(a.il, "K: RoPE was not found, the graph has " + out.k.stopped);
    }
    if (from_x) check_projection(out, a.il);
    if (settings.reads_w_k && !out.k.complete()) refuse(a.il, "K: W_k was not found, the graph has " + out.k.stopped);
    if (settings.reads_w_k && a.k->ne[0] != a.v->ne[0]) refuse(a.il, "heads of K and V have different sizes");
    if (data && out.shiftable) {
        layer.rope = rope_of(out.k.rope);
        // Where K is stored as the queries meet it, RoPE is needed for shifting alone.
        if (settings.input == LayerInput::keys_after_rope && !is_served(layer.rope)) {
            layer.rope = {};
            out.shiftable = false;
        }
    }
    if (data && settings.reads_w_k) describe_vectors(out);
    if (!out.shiftable) layer.input = LayerInput::keys_in_place;
    describe_scores(out, graph, a, data);
    return out;
}

std::pair<std::vector<float>, std::vector<float>> Description::weights() const {
    const std::size_t r = layer.shape.kv_width();
    return {weight_of(k, r), layer.input == LayerInput::x ? weight_of(v, r) : std::vector<float>()};
}

}  // namespace adapter
