// Calibrator: gathers LayerStatistics from the rows of a text.
//
//     xquant::Calibrator calibrator(model);
//     for each context of 512 to 2,048 tokens of the text, from its first token on, and each layer:
//         calibrator.add(layer, n, x, q);          // or add_kv(layer, n, k, v, q)
//     const xquant::Calibration calibration = calibrator.finish();
//
// What an error costs is summed over pairs of a query and a key. Of a context, 256 queries are taken, evenly spread, and
// of each head's pairs 512, drawn by what they cost; drawn numbers depend on Options::seed alone.
//
// Memory  8 bytes for each entry of the statistics.
// Cost    of a layer and context of n tokens: 256 n H (3 Dh) products, n R^2 with `joint`, 2 n D^2 with `x`.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <xquant/backend/project.hpp>
#include <xquant/backend/simd/backends.hpp>
#include <xquant/calibration/statistics.hpp>
#include <xquant/core/prepared.hpp>
#include <xquant/executor.hpp>
#include <xquant/projection/key_value.hpp>

namespace xquant {

/// What a Calibrator found: statistics of each layer.
struct Calibration {
    std::vector<LayerStatistics> layers;  ///< [L]
    std::size_t tokens = 0;               ///< that they were gathered from, sinks not counted
    std::size_t contexts = 0;             ///< places of the text

    /// Layers of the model point at their statistics, which have to outlive the construction of caches.
    void attach(Model& model) const {
        for (std::size_t i = 0; i < (std::min)(layers.size(), model.layers.size()); ++i) {
            model.layers[i].statistics = &layers[i];
        }
    }
};

/// What a Calibrator gathers.
struct CalibratorOptions {
    std::size_t sinks = 4;     ///< first tokens of a context that are left out, as a cache keeps them exact
    std::size_t page = 128;    ///< tokens whose mean is taken off keys: a group along a channel
    std::size_t queries = 256; ///< at most so many of a context
    std::size_t pairs = 512;   ///< of a query and a key, for each head of a context
    bool joint = true;         ///< joint_keys, joint_values: R^2 entries each
    bool x = false;            ///< x_spread, difference_spread: D^2 entries each; needs x of every layer
    std::uint64_t seed = 1;    ///< of what is drawn
};

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

/// K before RoPE and after it, V less its bias, and q of one context.
struct CalibrationRows {
    std::size_t n;
    const float *keys, *turned, *values, *queries;
};

}  // namespace detail

/// Gathers statistics of a model's layers. Layers that read the rows of others, or the model's own latent, are left out.
class Calibrator {
public:
    using Options = CalibratorOptions;

    /// `model` is copied; what its layers' views point at has to stay there, unless Model::load_layer gives it. Throws
    /// shape_error for options that gather nothing.
    explicit Calibrator(Model model, Options options = {}) : model_(std::move(model)), options_(options) {
        detail::expects(options_.page >= 2 && options_.queries >= 1 && options_.pairs >= 1,
                        "Calibrator: page is ", options_.page, ", queries ", options_.queries, ", pairs ",
                        options_.pairs, "; expected 2 or more, 1 or more and 1 or more");
        sums_.resize(model_.layers.size());
    }

    /// A context's rows of a layer: x [n, D] and its queries q [n, H Dh], after RoPE, as Step::append and Step::attend
    /// take them, from position 0 on. Throws shape_error where the layer takes K and V, value_error for rows that are
    /// not finite.
    void add(std::size_t layer, std::size_t n, const float* x, const float* q, ExecutorRef run = Serial{}) {
        const Layer of = loaded(layer, n);
        if (skipped(of)) return;
        detail::expects(of.input == LayerInput::x, "Calibrator::add: layer ", layer, " takes ", to_string(of.input),
                        "; hand over K and V to add_kv");
        check(layer, x, n * of.shape.width, "x");
        std::vector<float> keys(n * of.shape.kv_width()), values(keys.size());
        project(of, x, n, keys, values);
        add_rows(layer, of, n, keys, values, q, run);
        if (options_.x) add_x(layer, of, n, x);
    }
    /// Likewise for a layer whose K [n, Hkv Dh] before RoPE and V [n, Hkv Dh] the engine makes.
    void add_kv(std::size_t layer, std::size_t n, const float* k, const float* v, const float* q,
                ExecutorRef run = Serial{}) {
        const Layer of = loaded(layer, n);
        if (skipped(of)) return;
        const std::size_t r = of.shape.kv_width();
        check(layer, k, n * r, "k");
        check(layer, v, n * r, "v");
        std::vector<float> values(v, v + n * r);
        for (std::size_t i = 0; i < values.size() && of.b_v != nullptr; ++i) values[i] -= of.b_v[i % r];
        add_rows(layer, of, n, std::vector<float>(k, k + n * r), values, q, run);
    }

    /// Tokens of layer 0 so far, sinks not counted.
    [[nodiscard]] std::size_t tokens() const noexcept { return sums_.front().tokens; }

    /// The statistics of what was added.
    [[nodiscard]] Calibration finish() const {
        Calibration out;
        for (const Sums& sums : sums_) {
            LayerStatistics& of = out.layers.emplace_back();
            const double share = sums.tokens > 0 ? 1 / static_cast<double>(sums.tokens) : 0.0;
            const auto mean = [share](const std::vector<double>& from, std::vector<float>& to) {
                for (const double value : from) to.push_back(static_cast<float>(value * share));
            };
            mean(sums.key_spread, of.key_spread);
            mean(sums.key_cost, of.key_cost);
            mean(sums.value_spread, of.value_spread);
            mean(sums.value_cost, of.value_cost);
            mean(sums.joint_keys, of.joint_keys);
            mean(sums.joint_values, of.joint_values);
            mean(sums.x_spread, of.x_spread);
            mean(sums.difference_spread, of.difference_spread);
            out.tokens = (std::max)(out.tokens, sums.tokens);
            out.contexts = (std::max)(out.contexts, sums.contexts);
        }
        return out;
    }

private:
    struct Sums {
        std::size_t tokens = 0, contexts = 0;
        std::vector<double> key_spread, key_cost, value_spread, value_cost, joint_keys, joint_values, x_spread,
            difference_spread;
    };

    static bool skipped(const Layer& layer) noexcept { return layer.borrows() || layer.latent.present(); }

    [[nodiscard]] Layer loaded(std::size_t layer, std::size_t n) {
        detail::expects(layer < model_.layers.size(), "Calibrator: layer ", layer, "; the model has ",
                        model_.layers.size());
        detail::expects(n > options_.sinks + 1, "Calibrator: a context of ", n, " tokens; expected more than ",
                        options_.sinks + 1, ", the sinks and one");
        Layer of = model_.layers[layer];
        if (model_.load_layer) model_.load_layer(layer, of);
        return of;
    }
    static void check(std::size_t layer, const float* values, std::size_t count, const char* name) {
        detail::check_finite(layer, values, count, name);
    }

    /// K before RoPE, after k_norm, and V less b_v.
    static void project(const Layer& layer, const float* x, std::size_t n, std::vector<float>& keys,
                        std::vector<float>& values) {
        detail::Ledger ledger(nullptr);
        const detail::PreparedLayer prepared(ledger, layer, KeyValue<BeforeRope>::prepare(layer), CrossRole::none, 0);
        const std::size_t d = layer.shape.width, r = layer.shape.kv_width();
        std::vector<float> scratch(backend::project_scratch(d, r, n));
        const RopeView none;
        for (const bool key : {true, false}) {
            StreamEncoder encoder = prepared.encoders[key ? 0 : 1];
            if (!key) encoder.bias = nullptr;
            backend::project(backend::best{}, encoder, {x, n, d, d}, {nullptr, nullptr, none, layer.shape.head_dim},
                             (key ? keys : values).data(), scratch.data());
        }
    }

    void add_rows(std::size_t index, const Layer& layer, std::size_t n, const std::vector<float>& keys,
                  const std::vector<float>& values, const float* q, ExecutorRef run) {
        const LayerShape& shape = layer.shape;
        const std::size_t dh = shape.head_dim, r = shape.kv_width(), first = options_.sinks;
        check(index, q, n * shape.heads * dh, "q");
        Sums& sums = sums_[index];
        const std::size_t each = shape.kv_heads * dh * dh;
        for (auto* of : {&sums.key_spread, &sums.key_cost, &sums.value_spread, &sums.value_cost}) of->resize(each);
        if (options_.joint) {
            sums.joint_keys.resize(r * r);
            sums.joint_values.resize(r * r);
        }
        std::vector<float> turned = keys, cosines(n * pairs_of(layer)), sines(cosines.size());
        const RopeView rope = turn(layer, n, turned, cosines, sines);
        const detail::CalibrationRows rows{n, keys.data(), turned.data(), values.data(), q};
        add_spreads(shape, rows, sums);
        run.parallel_for(shape.kv_heads, [&](std::size_t head) {
            add_costs(layer, rows, rope, head, detail::UnitNumbers(options_.seed + sums.contexts * 1000003 + index * 1009 + head),
                      sums);
        });
        sums.tokens += n - first;
        ++sums.contexts;
    }

    static std::size_t pairs_of(const Layer& layer) noexcept { return layer.rope.inverse_frequencies.size(); }

    /// Keys get their RoPE. The tables are [position][pair], Rope::factor in them.
    static RopeView turn(const Layer& layer, std::size_t n, std::vector<float>& keys, std::vector<float>& cosines,
                         std::vector<float>& sines) {
        const RopeView rope{layer.rope.pairing, pairs_of(layer), n, layer.rope.inverse_frequencies.data(), nullptr, nullptr,
                            static_cast<float>(layer.rope.factor)};
        const std::size_t dh = layer.shape.head_dim;
        for (std::size_t t = 0; t < n && rope.pairs > 0; ++t) {
            float *const c = cosines.data() + t * rope.pairs, *const s = sines.data() + t * rope.pairs;
            rope_angles(rope, static_cast<std::int64_t>(t), c, s);
            for (std::size_t j = 0; j < rope.pairs; ++j) {
                c[j] *= rope.factor;
                s[j] *= rope.factor;
            }
            for (std::size_t head = 0; head < layer.shape.kv_heads; ++head) {
                backend::apply_rope(backend::scalar{}, rope, c, s, 1.0F,
                                    keys.data() + t * layer.shape.kv_width() + head * dh);
            }
        }
        return {rope.pairing, rope.pairs, n, rope.inverse_frequencies, cosines.data(), sines.data(), rope.factor};
    }

    /// C_k and C_v, of each head and of all.
    void add_spreads(const LayerShape& shape, const detail::CalibrationRows& rows, Sums& sums) const {
        const std::size_t r = shape.kv_width(), dh = shape.head_dim, heads = shape.kv_heads;
        std::vector<float> page;
        for (std::size_t t = options_.sinks; t < rows.n; t += options_.page) {
            const std::size_t count = (std::min)(options_.page, rows.n - t);
            page.assign(rows.keys + t * r, rows.keys + (t + count) * r);
            for (std::size_t c = 0; c < r; ++c) {
                double mean = 0;
                for (std::size_t i = 0; i < count; ++i) mean += static_cast<double>(page[i * r + c]);
                for (std::size_t i = 0; i < count; ++i) page[i * r + c] -= static_cast<float>(mean / static_cast<double>(count));
            }
            const float* const values = rows.values + t * r;
            for (std::size_t head = 0; head < heads; ++head) {
                add_to(sums.key_spread, head, dh, page.data() + head * dh, count, r);
                add_to(sums.value_spread, head, dh, values + head * dh, count, r);
            }
            if (!options_.joint) continue;
            add_to(sums.joint_keys, 0, r, page.data(), count, r);
            add_to(sums.joint_values, 0, r, values, count, r);
        }
    }
    /// sums[block] [n, n] += rows^T rows.
    static void add_to(std::vector<double>& sums, std::size_t block, std::size_t n, const float* rows, std::size_t count,
                       std::size_t stride) {
        std::vector<float> some(n * n);
        multiply(backend::best{}, backend::Operand{rows, 1, stride}, backend::Matrix{rows, count, n, stride},
                 backend::MutableMatrix{some.data(), n, n, n}, false);
        for (std::size_t i = 0; i < some.size(); ++i) sums[block * n * n + i] += static_cast<double>(some[i]);
    }

    /// E[x x^T], and that of what x adds to the layer below.
    void add_x(std::size_t index, const Layer& layer, std::size_t n, const float* x) {
        const std::size_t d = layer.shape.width, first = options_.sinks;
        Sums& sums = sums_[index];
        sums.x_spread.resize(d * d);
        add_to(sums.x_spread, 0, d, x + first * d, n - first, d);
        std::vector<float> rows(x, x + n * d);
        if (index > 0 && below_.size() == rows.size()) {
            sums.difference_spread.resize(d * d);
            for (std::size_t i = 0; i < rows.size(); ++i) below_[i] = rows[i] - below_[i];
            add_to(sums.difference_spread, 0, d, below_.data() + first * d, n - first, d);
        }
        below_ = std::move(rows);
    }

    /// W_o^T W_o of a query head [Dh, Dh], or the identity.
    static std::vector<float> output_cost(const Layer& layer, std::size_t head) {
        const std::size_t dh = layer.shape.head_dim;
        std::vector<double> sum(dh * dh, 0.0);
        std::vector<float> row(layer.w_o.cols);
        for (std::size_t i = 0; i < dh && layer.w_o.empty(); ++i) sum[i * dh + i] = 1;
        for (std::size_t r = 0; r < layer.w_o.rows; ++r) {
            load_row(layer.w_o.row(r), layer.w_o.type, layer.w_o.cols, row.data());
            const float* const of = row.data() + head * dh;
            for (std::size_t i = 0; i < dh; ++i) {
                for (std::size_t j = 0; j < dh; ++j) {
                    sum[i * dh + j] += static_cast<double>(of[i]) * static_cast<double>(of[j]);
                }
            }
        }
        return {sum.begin(), sum.end()};
    }

    /// One query's probabilities [n] (0 where it does not see) and what an error of a score is worth in its score.
    static void attend(const Layer& layer, const detail::CalibrationRows& rows, std::size_t head, std::size_t kv_head,
                       std::size_t query, std::vector<float>& p, std::vector<float>& slope) {
        const std::size_t dh = layer.shape.head_dim, r = layer.shape.kv_width();
        const float* const q = rows.queries + (query * layer.shape.heads + head) * dh;
        const double scale = layer.softmax_scale > 0 ? layer.softmax_scale : 1 / std::sqrt(static_cast<double>(dh));
        const std::size_t first = layer.chunk > 0                              ? query - query % layer.chunk
                                  : layer.window > 0 && query >= layer.window ? query - layer.window + 1
                                                                              : 0;
        std::fill(p.begin(), p.end(), 0.0F);
        double most = layer.sink_logits != nullptr ? double{layer.sink_logits[head]} : -1e300;
        for (std::size_t m = first; m <= query; ++m) {
            const float* const k = rows.turned + m * r + kv_head * dh;
            float dot = 0;
            for (std::size_t c = 0; c < dh; ++c) dot += q[c] * k[c];
            double score = scale * static_cast<double>(dot);
            slope[m] = static_cast<float>(scale);
            if (layer.soft_cap > 0) {
                const double bent = std::tanh(score / layer.soft_cap);
                slope[m] = static_cast<float>(scale * (1 - bent * bent));
                score = layer.soft_cap * bent;
            }
            if (layer.alibi_slopes != nullptr) {
                score -= double{layer.alibi_slopes[head]} * static_cast<double>(query - m);
            }
            p[m] = static_cast<float>(score);
            most = (std::max)(most, score);
        }
        double total = layer.sink_logits != nullptr ? std::exp(double{layer.sink_logits[head]} - most) : 0.0;
        for (std::size_t m = first; m <= query; ++m) {
            p[m] = static_cast<float>(std::exp(static_cast<double>(p[m]) - most));
            total += static_cast<double>(p[m]);
        }
        for (std::size_t m = first; m <= query; ++m) p[m] = static_cast<float>(static_cast<double>(p[m]) / total);
    }

    /// M_k and M_v of a kv head.
    void add_costs(const Layer& layer, const detail::CalibrationRows& rows, const RopeView& rope, std::size_t kv_head,
                   detail::UnitNumbers random, Sums& sums) const {
        const std::size_t dh = layer.shape.head_dim, r = layer.shape.kv_width(), n = rows.n, first = options_.sinks;
        const std::size_t group = layer.shape.heads / layer.shape.kv_heads;
        const std::size_t queries = (std::min)(options_.queries, n - first - 1);
        const double each = static_cast<double>(n - first - 1) / static_cast<double>(queries);  // queries that one stands for
        double* const key_cost = sums.key_cost.data() + kv_head * dh * dh;
        double* const value_cost = sums.value_cost.data() + kv_head * dh * dh;
        std::vector<float> p(n), slope(n), own(n), out(dh), through(dh), turned(dh);
        std::vector<std::size_t> chosen(queries);
        std::vector<double> costs(queries * n);  // running sum of what pairs cost
        for (std::size_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
            const std::vector<float> output = output_cost(layer, head);
            for (std::size_t m = 0; m < n; ++m) {
                own[m] = square(output, rows.values + m * r + kv_head * dh, dh, through.data());
            }
            double rho = 0, total = 0;
            for (std::size_t i = 0; i < queries; ++i) {
                const std::size_t query = first + 1 + static_cast<std::size_t>((static_cast<double>(i) + random.next()) * each);
                chosen[i] = (std::min)(query, n - 1);
                attend(layer, rows, head, kv_head, chosen[i], p, slope);
                std::fill(out.begin(), out.end(), 0.0F);
                for (std::size_t m = 0; m <= chosen[i]; ++m) {
                    const float* const v = rows.values + m * r + kv_head * dh;
                    for (std::size_t c = 0; c < dh; ++c) out[c] += p[m] * v[c];
                }
                const float own_out = square(output, out.data(), dh, through.data());
                for (std::size_t m = 0; m < n; ++m) {
                    if (m >= first && m <= chosen[i] && p[m] > 0) {
                        const float* const v = rows.values + m * r + kv_head * dh;
                        float with = 0;
                        for (std::size_t c = 0; c < dh; ++c) with += v[c] * through[c];
                        const double square_p = static_cast<double>(p[m]) * static_cast<double>(p[m]);
                        const double moved = (std::max)(0.0, static_cast<double>(own[m]) - 2 * static_cast<double>(with) +
                                                                 static_cast<double>(own_out));
                        rho += square_p;
                        total += square_p * moved * static_cast<double>(slope[m]) * static_cast<double>(slope[m]);
                    }
                    costs[i * n + m] = total;
                }
            }
            for (std::size_t i = 0; i < dh * dh; ++i) value_cost[i] += each * rho * static_cast<double>(output[i]);
            if (!(total > 0)) continue;
            const double weight = each * total / static_cast<double>(options_.pairs);
            for (std::size_t k = 0; k < options_.pairs; ++k) {
                const double at = (static_cast<double>(k) + random.next()) / static_cast<double>(options_.pairs) * total;
                const auto found = static_cast<std::size_t>(std::upper_bound(costs.begin(), costs.end(), at) - costs.begin());
                const std::size_t pair = (std::min)(found, costs.size() - 1), m = pair % n;
                const float* const q = rows.queries + (chosen[pair / n] * layer.shape.heads + head) * dh;
                std::copy_n(q, dh, turned.begin());
                if (rope.pairs > 0) {
                    backend::apply_rope(backend::scalar{}, rope, rope.cosines + m * rope.pairs, rope.sines + m * rope.pairs,
                                        -1.0F, turned.data());
                }
                for (std::size_t i = 0; i < dh; ++i) {
                    const double factor = weight * static_cast<double>(turned[i]);
                    for (std::size_t j = 0; j < dh; ++j) key_cost[i * dh + j] += factor * static_cast<double>(turned[j]);
                }
            }
        }
    }

    /// v^T S v; `through` [n] becomes S v.
    static float square(const std::vector<float>& s, const float* v, std::size_t n, float* through) noexcept {
        float sum = 0;
        for (std::size_t i = 0; i < n; ++i) {
            float row = 0;
            for (std::size_t j = 0; j < n; ++j) row += s[i * n + j] * v[j];
            through[i] = row;
            sum += v[i] * row;
        }
        return sum;
    }

    Model model_;
    Options options_;
    std::vector<Sums> sums_;
    std::vector<float> below_;  // x of the layer below, of the context that is being added
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
