/// Attention in float64, written as its formulas are written: what every cache is compared with.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <xquant/model.hpp>

namespace test {

/// How far an answer is off. What is not finite is far off: std::max(worst, NaN) is `worst`.
inline double distance_to(double exact, float found) {
    const double off = std::abs(exact - double{found});
    return std::isfinite(off) ? off : 1e9;
}

/// Turns a head [Dh] of a token by its position.
inline void oracle_rope(const xquant::Rope& rope, std::int64_t position, double* head) {
    const std::size_t pairs = rope.inverse_frequencies.size();
    for (std::size_t j = 0; j < pairs; ++j) {
        const bool halves = rope.pairing == xquant::RopePairing::halves;
        double& a = head[halves ? j : 2 * j];
        double& b = head[halves ? j + pairs : 2 * j + 1];
        const double angle = static_cast<double>(position) * rope.inverse_frequencies[j];
        const double x = a, y = b;
        a = rope.factor * (x * std::cos(angle) - y * std::sin(angle));
        b = rope.factor * (x * std::sin(angle) + y * std::cos(angle));
    }
}

/// K (after its norm and RoPE) or V of every token: [tokens, Hkv * Dh].
inline std::vector<double> oracle_rows(const xquant::Layer& layer, const std::vector<float>& x, bool key) {
    const std::size_t d = layer.shape.width, dh = layer.shape.head_dim, r = layer.shape.kv_width();
    const std::size_t tokens = x.size() / d;
    const auto* weight = static_cast<const float*>((key ? layer.w_k : layer.w_v).data);
    const float* bias = key ? layer.b_k : layer.b_v;
    std::vector<double> out(tokens * r);
    for (std::size_t t = 0; t < tokens; ++t) {
        for (std::size_t i = 0; i < r; ++i) {
            double sum = bias != nullptr ? static_cast<double>(bias[i]) : 0;
            for (std::size_t c = 0; c < d; ++c) {
                sum += static_cast<double>(x[t * d + c]) * static_cast<double>(weight[i * d + c]);
            }
            out[t * r + i] = sum;
        }
        for (std::size_t head = 0; head < r && key; head += dh) {
            double* k = out.data() + t * r + head;
            if (layer.k_norm != nullptr) {
                double square = 0;
                for (std::size_t c = 0; c < dh; ++c) square += k[c] * k[c];
                const double inverse = 1 / std::sqrt(square / static_cast<double>(dh) + layer.k_norm_epsilon);
                for (std::size_t c = 0; c < dh; ++c) k[c] *= inverse * static_cast<double>(layer.k_norm[c]);
            }
            oracle_rope(layer.rope, static_cast<std::int64_t>(t), k);
        }
    }
    return out;
}

/// out [tokens, H * Dh] of queries q [tokens, H * Dh] (after RoPE) over x [tokens, D], from position 0 on. Rows
/// before `from` are left 0; the others see the tokens behind them as well, if `whole`.
inline std::vector<double> oracle_attention(const xquant::Layer& layer, const std::vector<float>& x,
                                            const std::vector<float>& q, std::size_t from = 0, bool whole = false) {
    const std::size_t d = layer.shape.width, dh = layer.shape.head_dim, r = layer.shape.kv_width();
    const std::size_t heads = layer.shape.heads, group = heads / layer.shape.kv_heads, tokens = x.size() / d;
    const std::vector<double> k = oracle_rows(layer, x, true), v = oracle_rows(layer, x, false);
    const double scale = layer.softmax_scale > 0 ? layer.softmax_scale : 1 / std::sqrt(static_cast<double>(dh));
    std::vector<double> out(tokens * heads * dh, 0.0), scores(tokens);
    for (std::size_t t = from; t < tokens; ++t) {
        for (std::size_t head = 0; head < heads; ++head) {
            const float* query = q.data() + (t * heads + head) * dh;
            const std::size_t at = head / group * dh;
            const std::size_t first = layer.chunk > 0                            ? t / layer.chunk * layer.chunk
                                      : layer.window > 0 && t + 1 > layer.window ? t + 1 - layer.window
                                                                                 : 0;
            const std::size_t ahead = layer.chunk > 0 ? std::min(tokens, first + layer.chunk) : tokens;
            const std::size_t end = whole ? ahead : t + 1;
            const double logit = layer.sink_logits != nullptr ? static_cast<double>(layer.sink_logits[head])
                                                              : -std::numeric_limits<double>::infinity();
            double highest = logit;
            for (std::size_t s = first; s < end; ++s) {
                double sum = 0;
                for (std::size_t c = 0; c < dh; ++c) sum += static_cast<double>(query[c]) * k[s * r + at + c];
                sum *= scale;
                if (layer.soft_cap > 0) sum = layer.soft_cap * std::tanh(sum / layer.soft_cap);
                if (layer.alibi_slopes != nullptr) {
                    sum -= static_cast<double>(layer.alibi_slopes[head]) *
                           (static_cast<double>(t) - static_cast<double>(s));
                }
                scores[s] = sum;
                highest = std::max(highest, sum);
            }
            double total = std::exp(logit - highest);
            for (std::size_t s = first; s < end; ++s) total += scores[s] = std::exp(scores[s] - highest);
            for (std::size_t s = first; s < end; ++s) {
                for (std::size_t c = 0; c < dh; ++c) {
                    out[(t * heads + head) * dh + c] += scores[s] / total * v[s * r + at + c];
                }
            }
        }
    }
    return out;
}

}  // namespace test
