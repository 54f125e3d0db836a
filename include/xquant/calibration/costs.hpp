// What errors of one kv head's K and V cost on a context: M_k and M_v of statistics.hpp, by attention in plain code.
//
// Pairs of a query and a key are drawn by what they cost, each from its own part of the running sum (stratified), so
// few of them are enough.
// Cost    for each query head: queries x n x 3 Dh products.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <xquant/backend/scalar/rope.hpp>
#include <xquant/model.hpp>
#include <xquant/projection/cost.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// Numbers in [0, 1), the same ones everywhere (SplitMix64).
class UnitNumbers {
public:
    explicit UnitNumbers(std::uint64_t seed) noexcept : state_(seed) {}
    double next() noexcept {
        std::uint64_t z = (state_ += 0x9E3779B97F4A7C15ULL);
        z = (z ^ (z >> 30U)) * 0xBF58476D1CE4E5B9ULL;
        z = (z ^ (z >> 27U)) * 0x94D049BB133111EBULL;
        return static_cast<double>((z ^ (z >> 31U)) >> 11U) * 0x1.0p-53;
    }

private:
    std::uint64_t state_;
};

/// A context's rows of a layer.
struct CalibrationRows {
    std::size_t n = 0;              ///< tokens
    const float *turned = nullptr,  ///< K after RoPE [n, Hkv Dh]
        *values = nullptr,          ///< V less its bias [n, Hkv Dh]
            *queries = nullptr;     ///< q after RoPE [n, H Dh]; of cross attention [asked, H Dh]
    RopeView rope;                  ///< tables [position][pair], Rope::factor in them
    std::size_t asked = 0;          ///< queries of cross attention, which see all tokens; 0: one of each token
};

/// How pairs are drawn.
struct PairDraws {
    std::size_t first = 0,  ///< keys before it are left out
        queries = 0, pairs = 0;
    UnitNumbers numbers;
};

/// a . b of n floats.
inline float dot(const float* a, const float* b, std::size_t n) noexcept {
    float sum = 0;
    for (std::size_t i = 0; i < n; ++i) sum += a[i] * b[i];
    return sum;
}

/// v^T S v; `through` [n] becomes S v.
inline float square_through(const std::vector<float>& s, const float* v, std::size_t n, float* through) noexcept {
    for (std::size_t i = 0; i < n; ++i) through[i] = dot(s.data() + i * n, v, n);
    return dot(v, through, n);
}

/// Attention of one query of a head, from the rows of a context.
class ContextAttention {
public:
    ContextAttention(const Layer& layer, const CalibrationRows& rows, std::size_t head)
        : layer_(layer),
          rows_(rows),
          head_(head),
          kv_(head / (layer.shape.heads / layer.shape.kv_heads) * layer.shape.head_dim),
          p(rows.n),
          slope(rows.n),
          out(layer.shape.head_dim) {}

    /// Fills p, slope and out.
    void attend(std::size_t query) {
        const std::size_t dh = layer_.shape.head_dim, r = layer_.shape.kv_width();
        const double scale = layer_.softmax_scale > 0 ? layer_.softmax_scale : 1 / std::sqrt(static_cast<double>(dh));
        const bool whole = rows_.asked > 0;
        const std::size_t last = whole ? rows_.n - 1 : query;
        const std::size_t first = whole                                         ? 0
                                  : layer_.chunk > 0                            ? query - query % layer_.chunk
                                  : layer_.window > 0 && query >= layer_.window ? query - layer_.window + 1
                                                                                : 0;
        std::fill(p.begin(), p.end(), 0.0F);
        double most = layer_.sink_logits != nullptr ? double{layer_.sink_logits[head_]} : -1e300;
        for (std::size_t m = first; m <= last; ++m) {
            const float* const q = rows_.queries + (query * layer_.shape.heads + head_) * dh;
            double score = scale * static_cast<double>(dot(q, rows_.turned + m * r + kv_, dh));
            slope[m] = static_cast<float>(scale);
            if (layer_.soft_cap > 0) {
                const double bent = std::tanh(score / layer_.soft_cap);
                slope[m] = static_cast<float>(scale * (1 - bent * bent));
                score = layer_.soft_cap * bent;
            }
            if (layer_.alibi_slopes != nullptr) {
                score -= double{layer_.alibi_slopes[head_]} * static_cast<double>(query - m);
            }
            p[m] = static_cast<float>(score);
            most = (std::max)(most, score);
        }
        double total = layer_.sink_logits != nullptr ? std::exp(double{layer_.sink_logits[head_]} - most) : 0.0;
        for (std::size_t m = first; m <= last; ++m) {
            p[m] = static_cast<float>(std::exp(static_cast<double>(p[m]) - most));
            total += static_cast<double>(p[m]);
        }
        std::fill(out.begin(), out.end(), 0.0F);
        for (std::size_t m = first; m <= last; ++m) {
            p[m] = static_cast<float>(static_cast<double>(p[m]) / total);
            for (std::size_t c = 0; c < dh; ++c) out[c] += p[m] * value(m)[c];
        }
    }

    /// V of a token.
    [[nodiscard]] const float* value(std::size_t token) const noexcept {
        return rows_.values + token * layer_.shape.kv_width() + kv_;
    }

private:
    const Layer& layer_;
    const CalibrationRows& rows_;
    std::size_t head_, kv_;

public:
    std::vector<float> p,  ///< [n] probabilities; 0 where the query does not see
        slope,             ///< [n] what its score moves by where q k^T moves by 1
        out;               ///< [Dh] the sum of p V
};

/// M_k and M_v [Dh, Dh] += those of a kv head on a context, as sums over its tokens.
inline void add_costs(const Layer& layer, const CalibrationRows& rows, std::size_t kv_head, PairDraws draws,
                      double* key_cost, double* value_cost) {
    const std::size_t dh = layer.shape.head_dim, n = rows.n, group = layer.shape.heads / layer.shape.kv_heads;
    // Queries of cross attention all count; of a token's own, those that see a token behind the first ones.
    const std::size_t before = rows.asked > 0 ? 0 : draws.first + 1, all = rows.asked > 0 ? rows.asked : n - before;
    const std::size_t queries = (std::min)(draws.queries, all);
    const double each = static_cast<double>(all) / static_cast<double>(queries);  // that one stands for
    std::vector<float> own(n), through(dh), turned(dh);
    std::vector<std::size_t> chosen(queries);
    std::vector<double> costs(queries * n);  // running sum of what pairs cost
    for (std::size_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        std::vector<double> squares(dh * dh, 0.0);
        for (std::size_t i = 0; i < dh && layer.w_o.empty(); ++i) squares[i * dh + i] = 1;
        if (!layer.w_o.empty()) squares = output_squares(layer.w_o, head, 1, dh);
        const std::vector<float> output(squares.begin(), squares.end());
        ContextAttention attention(layer, rows, head);
        for (std::size_t m = 0; m < n; ++m) own[m] = square_through(output, attention.value(m), dh, through.data());
        double rho = 0, total = 0;
        for (std::size_t i = 0; i < queries; ++i) {
            const double at = (static_cast<double>(i) + draws.numbers.next()) * each;
            chosen[i] = before + (std::min)(static_cast<std::size_t>(at), all - 1);
            attention.attend(chosen[i]);
            const double own_out =
                static_cast<double>(square_through(output, attention.out.data(), dh, through.data()));
            for (std::size_t m = 0; m < n; ++m) {
                const double p = static_cast<double>(attention.p[m]), slope = static_cast<double>(attention.slope[m]);
                if (m >= draws.first && p > 0) {
                    // |W_o^T (v - out)|^2
                    const double moved = static_cast<double>(own[m]) + own_out -
                                         2 * static_cast<double>(dot(attention.value(m), through.data(), dh));
                    rho += p * p;
                    total += p * p * slope * slope * (std::max)(moved, 0.0);
                }
                costs[i * n + m] = total;
            }
        }
        for (std::size_t i = 0; i < dh * dh; ++i) value_cost[i] += each * rho * squares[i];
        if (!(total > 0)) continue;
        const double part = total / static_cast<double>(draws.pairs);
        for (std::size_t k = 0; k < draws.pairs; ++k) {
            const double at = (static_cast<double>(k) + draws.numbers.next()) * part;
            const auto found = std::upper_bound(costs.begin(), costs.end(), at) - costs.begin();
            const std::size_t pair = (std::min)(static_cast<std::size_t>(found), costs.size() - 1), m = pair % n;
            std::copy_n(rows.queries + (chosen[pair / n] * layer.shape.heads + head) * dh, dh, turned.begin());
            if (rows.rope.pairs > 0) {
                backend::apply_rope(backend::scalar{}, rows.rope, rows.rope.cosines + m * rows.rope.pairs,
                                    rows.rope.sines + m * rows.rope.pairs, -1.0F, turned.data());
            }
            for (std::size_t i = 0; i < dh; ++i) {
                const double factor = each * part * static_cast<double>(turned[i]);
                for (std::size_t j = 0; j < dh; ++j) key_cost[i * dh + j] += factor * static_cast<double>(turned[j]);
            }
        }
    }
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
