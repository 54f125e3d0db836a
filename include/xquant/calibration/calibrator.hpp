// Calibrator: gathers LayerStatistics from the rows of a text.
//
//     xquant::Calibrator calibrator(model);
//     for each context of 512 to 2,048 tokens of the text, from its first token on, and each layer:
//         calibrator.add(layer, n, x, q);          // or add_kv(layer, n, k, v, q)
//     const xquant::Calibration calibration = calibrator.finish();
//
// What an error costs is summed over pairs of a query and a key. Of a context, 256 queries are taken, evenly spread,
// and of each head's pairs 512, drawn by what they cost; drawn numbers depend on Options::seed alone.
//
// Memory  8 bytes for each entry of the statistics.
// Cost    of a layer and context of n tokens: 256 n H (3 Dh) products, n R^2 with `joint`, 2 n D^2 with `x`.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <xquant/backend/project.hpp>
#include <xquant/backend/simd/backends.hpp>
#include <xquant/calibration.hpp>
#include <xquant/calibration/costs.hpp>
#include <xquant/core/prepared.hpp>
#include <xquant/executor.hpp>
#include <xquant/projection/key_value.hpp>
#include <xquant/projection/x_latent.hpp>

namespace xquant {

/// What a Calibrator gathers.
struct CalibratorOptions {
    std::size_t sinks = 4;       ///< first tokens of a context that are left out, as a cache keeps them exact
    std::size_t page = 128;      ///< tokens whose mean is taken off keys: a group along a channel
    std::size_t queries = 256;   ///< at most so many of a context
    std::size_t pairs = 512;     ///< of a query and a key, for each head of a context
    bool joint = true;           ///< joint_keys, joint_values: R^2 entries each
    bool x = false;              ///< x_spread, difference_spread: D^2 entries each; needs x of every layer, in order
    std::size_t base_layer = 2;  ///< Options::base_layer of cross-layer caches
    std::uint64_t seed = 1;      ///< of what is drawn
};

inline namespace XQUANT_ABI_NS {

/// Gathers statistics of a model's layers. Layers that read the model's own latent are left out. For a layer that reads
/// the rows of another one, hand over these.
class Calibrator {
public:
    using Options = CalibratorOptions;  ///< what it gathers

    /// `model` is copied; what its layers' views point at has to stay there, unless Model::load_layer gives it. Throws
    /// shape_error for options that gather nothing.
    explicit Calibrator(Model model, Options options = {}) : model_(std::move(model)), options_(options) {
        detail::expects(options_.page >= 2 && options_.queries >= 1 && options_.pairs >= 1, "Calibrator: page is ",
                        options_.page, ", queries ", options_.queries, ", pairs ", options_.pairs,
                        "; expected 2 or more, 1 or more and 1 or more");
        sums_.resize(model_.layers.size());
    }

    /// A context's rows of a layer: x [n, D] and its queries q [n, H Dh], after RoPE, as Step::append and Step::attend
    /// take them, from position 0 on. Throws shape_error where the layer takes K and V, value_error for rows that are
    /// not finite.
    void add(std::size_t layer, std::size_t n, const float* x, const float* q, ExecutorRef run = Serial{}) {
        add_of_x(layer, n, x, 0, q, run);
    }
    /// Likewise for cross attention: the rows x [n, D] of an encoder, and `queries` rows q [queries, H Dh] of a
    /// decoder, each of which sees all of x (Visibility::whole). Throws as add, and shape_error without queries, or for
    /// a layer with a window, chunks, RoPE or ALiBi.
    void add_cross(std::size_t layer, std::size_t n, const float* x, std::size_t queries, const float* q,
                   ExecutorRef run = Serial{}) {
        detail::expects(queries > 0, "Calibrator::add_cross: layer ", layer, ": no queries; expected 1 or more");
        add_of_x(layer, n, x, queries, q, run);
    }
    /// Likewise for a layer whose K [n, Hkv Dh] before RoPE and V [n, Hkv Dh] the engine makes.
    void add_kv(std::size_t layer, std::size_t n, const float* k, const float* v, const float* q,
                ExecutorRef run = Serial{}) {
        const Layer of = loaded(layer, n);
        if (skipped(of)) return;
        const std::size_t r = of.shape.kv_width();
        detail::check_finite(layer, k, n * r, "k");
        detail::check_finite(layer, v, n * r, "v");
        std::vector<float> values(v, v + n * r);
        for (std::size_t i = 0; i < values.size() && of.b_v != nullptr; ++i) values[i] -= of.b_v[i % r];
        add_rows(layer, of, n, std::vector<float>(k, k + n * r), values, 0, q, run);
    }

    /// Tokens of layer 0 so far, sinks not counted.
    [[nodiscard]] std::size_t tokens() const noexcept { return sums_.empty() ? 0 : sums_.front().tokens; }

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
        std::vector<float> read;  // an orthonormal basis of what K and V read of x
    };

    static bool skipped(const Layer& layer) noexcept { return layer.latent.present(); }

    [[nodiscard]] Layer loaded(std::size_t layer, std::size_t n) {
        detail::expects(layer < model_.layers.size(), "Calibrator: layer ", layer, "; the model has ",
                        model_.layers.size());
        detail::expects(n > options_.sinks + 1, "Calibrator: a context of ", n, " tokens; expected more than ",
                        options_.sinks + 1, ", the sinks and one");
        Layer of = model_.layers[layer];
        if (model_.load_layer) model_.load_layer(layer, of);
        return of;
    }

    /// `asked`: queries of cross attention; 0: one of each token.
    void add_of_x(std::size_t layer, std::size_t n, const float* x, std::size_t asked, const float* q,
                  ExecutorRef run) {
        const Layer of = loaded(layer, n);
        if (skipped(of)) return;
        detail::expects(of.input == LayerInput::x, "Calibrator::add: layer ", layer, " takes ", to_string(of.input),
                        "; hand over K and V to add_kv");
        detail::expects(asked == 0 || (of.reach() == 0 && pairs_of(of) == 0 && of.alibi_slopes == nullptr),
                        "Calibrator::add_cross: layer ", layer,
                        " has a window, chunks, RoPE or ALiBi; queries of cross attention have no position");
        detail::check_finite(layer, x, n * of.shape.width, "x");
        std::vector<float> keys(n * of.shape.kv_width()), values(keys.size());
        project(of, x, n, keys, values);
        add_rows(layer, of, n, keys, values, asked, q, run);
        if (options_.x && !of.borrows()) add_x(layer, of, n, x);
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
                  const std::vector<float>& values, std::size_t asked, const float* q, ExecutorRef run) {
        const LayerShape& shape = layer.shape;
        const std::size_t dh = shape.head_dim, r = shape.kv_width(), first = options_.sinks;
        detail::check_finite(index, q, (asked > 0 ? asked : n) * shape.heads * dh, "q");
        Sums& sums = sums_[index];
        const std::size_t each = shape.kv_heads * dh * dh;
        for (auto* of : {&sums.key_spread, &sums.key_cost, &sums.value_spread, &sums.value_cost}) of->resize(each);
        if (options_.joint) {
            sums.joint_keys.resize(r * r);
            sums.joint_values.resize(r * r);
        }
        std::vector<float> turned = keys, cosines(n * pairs_of(layer)), sines(cosines.size());
        const RopeView rope = turn(layer, n, turned, cosines, sines);
        const detail::CalibrationRows rows{n, turned.data(), values.data(), q, rope, asked};
        add_spreads(shape, n, keys.data(), values.data(), sums);
        run.parallel_for(shape.kv_heads, [&](std::size_t head) {
            const std::uint64_t seed = options_.seed + sums.contexts * 1000003 + index * 1009 + head;
            detail::add_costs(layer, rows, head, {first, options_.queries, options_.pairs, detail::UnitNumbers(seed)},
                              sums.key_cost.data() + head * dh * dh, sums.value_cost.data() + head * dh * dh);
        });
        sums.tokens += n - first;
        ++sums.contexts;
    }

    static std::size_t pairs_of(const Layer& layer) noexcept { return layer.rope.inverse_frequencies.size(); }

    /// Keys get their RoPE. The tables are [position][pair], Rope::factor in them.
    static RopeView turn(const Layer& layer, std::size_t n, std::vector<float>& keys, std::vector<float>& cosines,
                         std::vector<float>& sines) {
        const RopeView rope{layer.rope.pairing,
                            pairs_of(layer),
                            n,
                            layer.rope.inverse_frequencies.data(),
                            nullptr,
                            nullptr,
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
    void add_spreads(const LayerShape& shape, std::size_t n, const float* keys, const float* all_values,
                     Sums& sums) const {
        const std::size_t r = shape.kv_width(), dh = shape.head_dim, heads = shape.kv_heads;
        std::vector<float> page;
        for (std::size_t t = options_.sinks; t < n; t += options_.page) {
            const std::size_t count = (std::min)(options_.page, n - t);
            page.assign(keys + t * r, keys + (t + count) * r);
            for (std::size_t c = 0; c < r; ++c) {
                double mean = 0;
                for (std::size_t i = 0; i < count; ++i) mean += static_cast<double>(page[i * r + c]);
                for (std::size_t i = 0; i < count; ++i)
                    page[i * r + c] -= static_cast<float>(mean / static_cast<double>(count));
            }
            const float* const values = all_values + t * r;
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
    static void add_to(std::vector<double>& sums, std::size_t block, std::size_t n, const float* rows,
                       std::size_t count, std::size_t stride) {
        std::vector<float> some(n * n);
        multiply(backend::best{}, backend::Operand{rows, 1, stride}, backend::Matrix{rows, count, n, stride},
                 backend::MutableMatrix{some.data(), n, n, n}, false);
        for (std::size_t i = 0; i < some.size(); ++i) sums[block * n * n + i] += static_cast<double>(some[i]);
    }

    /// E[x x^T], and that of what x adds to what a cross-layer cache has of the layers below: of each layer's x, it
    /// sees what K and V read.
    void add_x(std::size_t index, const Layer& layer, std::size_t n, const float* x) {
        const std::size_t d = layer.shape.width, first = options_.sinks;
        Sums& sums = sums_[index];
        sums.x_spread.resize(d * d);
        add_to(sums.x_spread, 0, d, x + first * d, n - first, d);
        if (index <= options_.base_layer || below_.size() != n * d) {
            below_.assign(x, x + n * d);
            return;
        }
        sums.difference_spread.resize(d * d);
        std::vector<float> difference(n * d);
        for (std::size_t i = 0; i < difference.size(); ++i) difference[i] = x[i] - below_[i];
        add_to(sums.difference_spread, 0, d, difference.data() + first * d, n - first, d);
        const std::size_t latent = 2 * layer.shape.kv_width();
        if (latent > d) {
            below_.assign(x, x + n * d);
            return;
        }
        if (sums.read.empty()) sums.read = detail::read_by_keys_and_values(layer);
        const std::vector<float> back = detail::transpose(sums.read, d, latent);
        std::vector<float> coded(n * latent);
        multiply(backend::best{}, backend::Operand{difference.data(), d, 1},
                 backend::Matrix{sums.read.data(), d, latent, latent},
                 backend::MutableMatrix{coded.data(), n, latent, latent}, false);
        multiply(backend::best{}, backend::Operand{coded.data(), latent, 1}, backend::Matrix{back.data(), latent, d, d},
                 backend::MutableMatrix{below_.data(), n, d, d}, true);
    }

    Model model_;
    Options options_;
    std::vector<Sums> sums_;
    std::vector<float> below_;  // what a cross-layer cache has of the layers below, of the context that is being added
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
