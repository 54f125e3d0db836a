/// A naive forward pass in float64, for every architecture, straight from their papers. It shares nothing with the
/// engine.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "tiny_model.hpp"
#include "tokenizer.hpp"

namespace llm::test {

using Doubles = std::vector<double>;
using Rows = std::vector<Doubles>;

class NaiveModel {
public:
    explicit NaiveModel(const TinyModel& model) : m(model) {}

    /// ids -> logits [T][vocabulary]; inputs, if given, gets each layer's mean of x over the tokens from `skip` on
    Rows logits(const std::vector<Token>& ids, Rows* inputs = nullptr, std::size_t skip = 0) const {
        const bool gemma3 = m.architecture == "gemma3", gpt2 = m.architecture == "gpt2";
        const std::size_t T = ids.size();
        Rows x(T);
        for (std::size_t t = 0; t < T; ++t) {
            x[t] = row("token_embd.weight", static_cast<std::size_t>(ids[t]));
            if (gemma3)
                for (double& value : x[t]) value *= std::sqrt(static_cast<double>(m.width));
            if (gpt2) x[t] = sum(x[t], row("position_embd.weight", t));
        }
        for (std::size_t layer = 0; layer < m.layers; ++layer) {
            const std::string blk = "blk." + std::to_string(layer) + ".";
            Rows a(T);
            Doubles mean(m.width);
            for (std::size_t t = 0; t < T; ++t) {
                a[t] = norm(blk + "attn_norm", x[t]);
                if (t >= skip)
                    for (std::size_t i = 0; i < m.width; ++i) mean[i] += a[t][i] / static_cast<double>(T - skip);
            }
            if (inputs) inputs->push_back(mean);
            const Rows attended = attention(layer, a);
            for (std::size_t t = 0; t < T; ++t) {
                Doubles more = affine(blk + "attn_output", attended[t]);
                if (gemma3) more = norm(blk + "post_attention_norm", more);
                x[t] = sum(x[t], more);

                const Doubles b = norm(blk + "ffn_norm", x[t]);
                Doubles inner = affine(blk + "ffn_up", b);
                if (gpt2) {
                    for (double& value : inner) value = gelu(value);
                } else {
                    const Doubles gate = affine(blk + "ffn_gate", b);
                    for (std::size_t i = 0; i < inner.size(); ++i)
                        inner[i] *= gemma3 ? gelu(gate[i]) : gate[i] / (1 + std::exp(-gate[i]));
                }
                more = affine(blk + "ffn_down", inner);
                if (gemma3) more = norm(blk + "post_ffw_norm", more);
                x[t] = sum(x[t], more);
            }
        }
        Rows out;
        for (const Doubles& last : x)
            out.push_back(times(m.own_output ? "output.weight" : "token_embd.weight", norm("output_norm", last)));
        return out;
    }

private:
    const std::vector<float>& tensor(const std::string& name) const { return m.tensors.at(name); }
    bool has(const std::string& name) const { return m.tensors.contains(name); }

    Doubles row(const std::string& name, std::size_t index) const {
        const auto begin = tensor(name).begin() + static_cast<std::ptrdiff_t>(index * m.width);
        return {begin, begin + static_cast<std::ptrdiff_t>(m.width)};
    }

    static Doubles sum(const Doubles& a, const Doubles& b) {
        Doubles out(a.size());
        std::transform(a.begin(), a.end(), b.begin(), out.begin(), std::plus<>());
        return out;
    }

    static double gelu(double x) { return x / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))); }

    Doubles times(const std::string& name, const Doubles& x) const {  // W [out][in]
        const auto& W = tensor(name);
        Doubles y(W.size() / x.size());
        for (std::size_t o = 0; o < y.size(); ++o)
            for (std::size_t i = 0; i < x.size(); ++i) y[o] += static_cast<double>(W[o * x.size() + i]) * x[i];
        return y;
    }

    Doubles affine(const std::string& name, const Doubles& x) const {
        Doubles y = times(name + ".weight", x);
        if (has(name + ".bias"))
            for (std::size_t o = 0; o < y.size(); ++o) y[o] += static_cast<double>(tensor(name + ".bias")[o]);
        return y;
    }

    Doubles norm(const std::string& name, const Doubles& x) const {
        const double n = static_cast<double>(x.size());
        const bool layer_norm = has(name + ".bias");
        const double mean = layer_norm ? std::accumulate(x.begin(), x.end(), 0.0) / n : 0;
        double square = 0;
        for (const double value : x) square += (value - mean) * (value - mean) / n;
        Doubles y(x.size());
        for (std::size_t i = 0; i < x.size(); ++i) {
            y[i] = (x[i] - mean) / std::sqrt(square + static_cast<double>(m.epsilon)) *
                   static_cast<double>(tensor(name + ".weight")[i]);
            if (layer_norm) y[i] += static_cast<double>(tensor(name + ".bias")[i]);
        }
        return y;
    }

    /// Norm and RoPE of one head of q or k.
    Doubles turned(const Doubles& all, std::size_t head, const std::string& norm_name, std::size_t position,
                   double base) const {
        const std::size_t Dh = m.head_dim;
        const auto begin = all.begin() + static_cast<std::ptrdiff_t>(head * Dh);
        Doubles x(begin, begin + static_cast<std::ptrdiff_t>(Dh));
        if (has(norm_name + ".weight")) x = norm(norm_name, x);
        if (m.architecture == "gpt2") return x;
        Doubles y = x;
        for (std::size_t j = 0; j < Dh / 2; ++j) {
            const double angle =
                static_cast<double>(position) * std::pow(base, -2 * static_cast<double>(j) / static_cast<double>(Dh));
            const bool neighbours = m.architecture == "llama";
            const std::size_t one = neighbours ? 2 * j : j, other = neighbours ? 2 * j + 1 : j + Dh / 2;
            y[one] = x[one] * std::cos(angle) - x[other] * std::sin(angle);
            y[other] = x[one] * std::sin(angle) + x[other] * std::cos(angle);
        }
        return y;
    }

    Rows attention(std::size_t layer, const Rows& a) const {
        const std::string blk = "blk." + std::to_string(layer) + ".";
        const std::size_t T = a.size(), Dh = m.head_dim, Q = m.heads * Dh, R = m.kv_heads * Dh;
        const bool local = m.window != 0 && layer % 6 != 5;
        const double base = local ? 10000 : m.rope_base;
        std::vector<Rows> q(T), k(T);  // [T][head][Dh]
        Rows v(T);
        for (std::size_t t = 0; t < T; ++t) {
            Doubles q_all, k_all;
            if (m.architecture == "gpt2") {
                const Doubles qkv = affine(blk + "attn_qkv", a[t]);
                const auto at = [&](std::size_t i) { return qkv.begin() + static_cast<std::ptrdiff_t>(i); };
                q_all.assign(at(0), at(Q)), k_all.assign(at(Q), at(Q + R)), v[t].assign(at(Q + R), qkv.end());
            } else {
                q_all = affine(blk + "attn_q", a[t]), k_all = affine(blk + "attn_k", a[t]);
                v[t] = affine(blk + "attn_v", a[t]);
            }
            for (std::size_t h = 0; h < m.heads; ++h) q[t].push_back(turned(q_all, h, blk + "attn_q_norm", t, base));
            for (std::size_t g = 0; g < m.kv_heads; ++g) k[t].push_back(turned(k_all, g, blk + "attn_k_norm", t, base));
        }
        Rows out(T, Doubles(Q));
        for (std::size_t t = 0; t < T; ++t) {
            for (std::size_t h = 0; h < m.heads; ++h) {
                const std::size_t g = h / (m.heads / m.kv_heads);
                Doubles p(t + 1);
                for (std::size_t s = 0; s <= t; ++s) {
                    if (local && s + m.window <= t) continue;  // the window holds the newest, t itself included
                    const double score = std::inner_product(q[t][h].begin(), q[t][h].end(), k[s][g].begin(), 0.0);
                    p[s] = std::exp(score / std::sqrt(static_cast<double>(Dh)));
                }
                const double total = std::accumulate(p.begin(), p.end(), 0.0);
                for (std::size_t s = 0; s <= t; ++s)
                    for (std::size_t i = 0; i < Dh; ++i) out[t][h * Dh + i] += p[s] / total * v[s][g * Dh + i];
            }
        }
        return out;
    }

    const TinyModel& m;
};

inline std::vector<Token> some_ids(std::size_t n) {
    std::vector<Token> ids(n);
    for (std::size_t t = 0; t < n; ++t) ids[t] = static_cast<Token>((t * 37 + t * t * 11 + 5) % 259);
    return ids;
}

}  // namespace llm::test
