/// What a Calibrator finds, against the formulas of statistics.hpp in float64, for every rule that attention may have;
/// and what it refuses.
#include <xquant/calibration/calibrator.hpp>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/complaint.hpp"
#include "support/feed.hpp"
#include "support/model.hpp"
#include "support/oracle.hpp"
#include "support/threads.hpp"
#include "support/tolerance.hpp"

using namespace xquant;
using test::contains;

namespace {

using Matrix = std::vector<double>;

/// Statistics in float64, not yet divided by the number of tokens.
struct Sums {
    Matrix key_spread, key_cost, value_spread, value_cost, joint_keys, joint_values;
    double tokens = 0;
};

void add_square(Matrix& to, std::size_t block, const double* a, std::size_t n, double weight = 1) {
    for (std::size_t i = 0; i < n; ++i) {
        for (std::size_t j = 0; j < n; ++j) to[(block * n + i) * n + j] += weight * a[i] * a[j];
    }
}

/// A query of a head over its context: probabilities, what its scores move by, and its output.
struct Attended {
    Matrix p, slope, out;
};
Attended attended(const Layer& layer, const Matrix& keys, const Matrix& values, const float* q, std::size_t query,
                  std::size_t head) {
    const std::size_t dh = layer.shape.head_dim, r = layer.shape.kv_width();
    const std::size_t kv = head / (layer.shape.heads / layer.shape.kv_heads) * dh;
    const double scale = layer.softmax_scale > 0 ? layer.softmax_scale : 1 / std::sqrt(static_cast<double>(dh));
    std::size_t first = 0;
    if (layer.chunk > 0) first = query / layer.chunk * layer.chunk;
    if (layer.window > 0 && query + 1 > layer.window) first = query + 1 - layer.window;
    Attended of{Matrix(query + 1, 0.0), Matrix(query + 1, 0.0), Matrix(dh, 0.0)};
    double total = layer.sink_logits != nullptr ? std::exp(static_cast<double>(layer.sink_logits[head])) : 0;
    for (std::size_t m = first; m <= query; ++m) {
        double score = 0;
        for (std::size_t c = 0; c < dh; ++c) score += static_cast<double>(q[c]) * keys[m * r + kv + c];
        score *= scale;
        of.slope[m] = scale;
        if (layer.soft_cap > 0) {
            const double before = score;
            score = layer.soft_cap * std::tanh(before / layer.soft_cap);
            const double h = 1e-6;  // the slope by a difference, not by a formula
            of.slope[m] *= layer.soft_cap *
                           (std::tanh((before + h) / layer.soft_cap) - std::tanh((before - h) / layer.soft_cap)) /
                           (2 * h);
        }
        if (layer.alibi_slopes != nullptr) {
            score -= static_cast<double>(layer.alibi_slopes[head]) * static_cast<double>(query - m);
        }
        total += of.p[m] = std::exp(score);
    }
    for (std::size_t m = first; m <= query; ++m) {
        of.p[m] /= total;
        for (std::size_t c = 0; c < dh; ++c) of.out[c] += of.p[m] * values[m * r + kv + c];
    }
    return of;
}

/// |W_o,h^T e|^2 of a query head.
double output_square(const Layer& layer, std::size_t head, const Matrix& e) {
    const std::size_t dh = e.size();
    double sum = 0;
    if (layer.w_o.empty()) {
        for (const double value : e) sum += value * value;
        return sum;
    }
    const auto* const w = static_cast<const float*>(layer.w_o.data);
    for (std::size_t row = 0; row < layer.w_o.rows; ++row) {
        double moved = 0;
        for (std::size_t c = 0; c < dh; ++c)
            moved += static_cast<double>(w[row * layer.w_o.cols + head * dh + c]) * e[c];
        sum += moved * moved;
    }
    return sum;
}

/// Adds a context to the sums: every query, every pair.
void add_context(const Layer& layer, const CalibratorOptions& options, const std::vector<float>& x,
                 const std::vector<float>& q, Sums& sums) {
    const std::size_t dh = layer.shape.head_dim, heads = layer.shape.kv_heads, r = layer.shape.kv_width();
    const std::size_t n = x.size() / layer.shape.width, first = options.sinks;
    Layer plain = layer;
    plain.rope = {};
    plain.b_v = nullptr;
    const Matrix keys = test::oracle_rows(plain, x, true), values = test::oracle_rows(plain, x, false),
                 turned = test::oracle_rows(layer, x, true);
    for (Matrix* of : {&sums.key_spread, &sums.key_cost, &sums.value_spread, &sums.value_cost})
        of->resize(heads * dh * dh);
    for (Matrix* of : {&sums.joint_keys, &sums.joint_values}) of->resize(r * r);
    for (std::size_t begin = first; begin < n; begin += options.page) {
        const std::size_t end = std::min(begin + options.page, n);
        Matrix mean(r, 0.0);
        for (std::size_t t = begin; t < end; ++t) {
            for (std::size_t c = 0; c < r; ++c) mean[c] += keys[t * r + c] / static_cast<double>(end - begin);
        }
        for (std::size_t t = begin; t < end; ++t) {
            Matrix centred(r);
            for (std::size_t c = 0; c < r; ++c) centred[c] = keys[t * r + c] - mean[c];
            add_square(sums.joint_keys, 0, centred.data(), r);
            add_square(sums.joint_values, 0, values.data() + t * r, r);
            for (std::size_t h = 0; h < heads; ++h) {
                add_square(sums.key_spread, h, centred.data() + h * dh, dh);
                add_square(sums.value_spread, h, values.data() + t * r + h * dh, dh);
            }
        }
    }
    for (std::size_t query = first + 1; query < n; ++query) {
        for (std::size_t head = 0; head < layer.shape.heads; ++head) {
            const std::size_t kv = head / (layer.shape.heads / heads);
            const float* const q_of = q.data() + (query * layer.shape.heads + head) * dh;
            const Attended of = attended(layer, turned, values, q_of, query, head);
            for (std::size_t m = first; m <= query; ++m) {
                Matrix moved(dh), back(q_of, q_of + dh);
                for (std::size_t c = 0; c < dh; ++c) moved[c] = values[m * r + kv * dh + c] - of.out[c];
                test::oracle_rope(layer.rope, -static_cast<std::int64_t>(m), back.data());
                add_square(sums.key_cost, kv, back.data(), dh,
                           of.p[m] * of.p[m] * of.slope[m] * of.slope[m] * output_square(layer, head, moved));
                for (std::size_t i = 0; i < dh; ++i) {
                    for (std::size_t j = 0; j < dh; ++j) {
                        // |W e|^2 of e_i + e_j and e_i - e_j
                        Matrix plus(dh, 0.0), minus(dh, 0.0);
                        plus[i] += 1;
                        plus[j] += 1;
                        minus[i] += 1;
                        minus[j] -= 1;
                        if (m > first) continue;  // the same for every key: the sum of P^2 follows
                        double squares = 0;
                        for (std::size_t k = first; k <= query; ++k) squares += of.p[k] * of.p[k];
                        sums.value_cost[(kv * dh + i) * dh + j] +=
                            squares * (output_square(layer, head, plus) - output_square(layer, head, minus)) / 4;
                    }
                }
            }
        }
    }
    sums.tokens += static_cast<double>(n - first);
}

/// How far a matrix is from what is expected, in parts of it; infinite where the sizes differ.
double distance(const std::vector<float>& found, Matrix expected, double share = 1) {
    if (found.size() != expected.size()) return HUGE_VAL;
    test::RelativeDistance out;
    for (std::size_t i = 0; i < found.size(); ++i) out.add(static_cast<double>(found[i]), expected[i] * share);
    return out.value();
}
double distance(const std::vector<float>& found, const std::vector<float>& expected) {
    return distance(found, Matrix(expected.begin(), expected.end()));
}

std::vector<float> LayerStatistics::*const parts[] = {
    &LayerStatistics::key_spread, &LayerStatistics::key_cost,         &LayerStatistics::value_spread,
    &LayerStatistics::value_cost, &LayerStatistics::joint_keys,       &LayerStatistics::joint_values,
    &LayerStatistics::x_spread,   &LayerStatistics::difference_spread};

bool same_bits(const Calibration& a, const Calibration& b) {
    bool same = a.layers.size() == b.layers.size() && a.tokens == b.tokens && a.contexts == b.contexts;
    for (std::size_t i = 0; same && i < a.layers.size(); ++i) {
        for (const auto part : parts) same = same && a.layers[i].*part == b.layers[i].*part;
    }
    return same;
}

/// Everything that a layer may have.
struct Extras {
    explicit Extras(const LayerShape& s)
        : bias(test::Random(3).rows(s.kv_width())),
          norm(test::Random(4).rows(s.head_dim)),
          output(test::Random(5).rows(s.width * s.heads * s.head_dim)),
          slopes(s.heads),
          logits(test::Random(7).rows(s.heads)) {
        for (float& value : norm) value += 2;
        for (std::size_t h = 0; h < s.heads; ++h) slopes[h] = 0.1F / static_cast<float>(h + 1);
    }
    std::vector<float> bias, norm, output, slopes, logits;
};

const LayerShape shape{20, 4, 2, 6};
test::Setup one_layer() { return {shape, RopePairing::halves}; }

}  // namespace

TEST_CASE("statistics are those of the formulas, whatever the rules of attention") {
    const Extras extras(shape);
    struct Case {
        const char* name;
        std::function<void(Layer&)> change;
    };
    const Rope partial{RopePairing::interleaved, {1.0, 0.3}, 1.25};
    const std::vector<Case> cases{
        {"nothing", [](Layer&) {}},
        {"no RoPE", [](Layer& l) { l.rope = {}; }},
        {"a window", [](Layer& l) { l.window = 9; }},
        {"chunks", [](Layer& l) { l.chunk = 16; }},
        {"a soft cap", [](Layer& l) { l.soft_cap = 0.7; }},
        {"sink logits", [&](Layer& l) { l.sink_logits = extras.logits.data(); }},
        {"ALiBi",
         [&](Layer& l) {
             l.rope = {};
             l.alibi_slopes = extras.slopes.data();
         }},
        {"RoPE of some channels, interleaved, with a factor", [&](Layer& l) { l.rope = partial; }},
        {"RoPE of halves with a factor", [](Layer& l) { l.rope.factor = 0.8; }},
        {"a norm of keys", [&](Layer& l) { l.k_norm = extras.norm.data(); }},
        {"biases",
         [&](Layer& l) {
             l.b_k = extras.bias.data();
             l.b_v = extras.bias.data();
         }},
        {"an output", [&](Layer& l) { l.w_o = MatrixView(extras.output.data(), shape.width, 24); }},
        {"a scale", [](Layer& l) { l.softmax_scale = 1.1; }},
        {"all of it",
         [&](Layer& l) {
             l.rope = partial;
             l.window = 21;
             l.soft_cap = 2;
             l.softmax_scale = 0.7;
             l.sink_logits = extras.logits.data();
             l.alibi_slopes = extras.slopes.data();
             l.k_norm = extras.norm.data();
             l.b_k = l.b_v = extras.bias.data();
             l.w_o = MatrixView(extras.output.data(), shape.width, 24);
         }},
    };
    test::Setup setup = one_layer();
    const Layer plain = setup.model.layers[0];
    for (const Case& c : cases) {
        INFO(c.name);
        Layer& layer = setup.model.layers[0];
        layer = plain;
        c.change(layer);
        CalibratorOptions options;
        options.sinks = 3;
        options.page = 16;
        options.queries = 1000;
        options.pairs = 30000;
        Calibrator calibrator(setup.model, options);
        Sums sums;
        for (const std::size_t n : {37U, 50U}) {
            const test::Rows rows = test::rows_of(layer, 0, static_cast<std::uint32_t>(n), 0, n);
            calibrator.add(0, n, rows.x.data(), rows.q.data());
            add_context(layer, options, rows.x, rows.q, sums);
        }
        const Calibration found = calibrator.finish();
        CHECK(found.tokens == 81);
        CHECK(found.contexts == 2);
        CHECK(calibrator.tokens() == 81);
        REQUIRE(found.layers.size() == 1);
        const LayerStatistics& of = found.layers[0];
        const double share = 1 / sums.tokens;
        CHECK(distance(of.key_spread, sums.key_spread, share) < 1e-5);
        CHECK(distance(of.value_spread, sums.value_spread, share) < 1e-5);
        CHECK(distance(of.joint_keys, sums.joint_keys, share) < 1e-5);
        CHECK(distance(of.joint_values, sums.joint_values, share) < 1e-5);
        CHECK(distance(of.value_cost, sums.value_cost, share) < 1e-5);
        // 700 to 1,100 pairs of each head share the draws, and each gets its part to one draw.
        CHECK(distance(of.key_cost, sums.key_cost, share) < 4e-3);
        CHECK(of.x_spread.empty());
        CHECK(of.difference_spread.empty());
        for (const auto part : {&LayerStatistics::joint_keys, &LayerStatistics::joint_values}) {
            for (std::size_t i = 0; i < 12; ++i) {
                for (std::size_t j = 0; j < 12; ++j) REQUIRE((of.*part)[i * 12 + j] == (of.*part)[j * 12 + i]);
            }
        }
    }
}

TEST_CASE("statistics of cross attention: as many queries as there are, and each sees all rows") {
    const Extras extras(shape);
    test::Setup setup = one_layer();
    Layer& layer = setup.model.layers[0];
    layer.rope = {};
    layer.b_v = extras.bias.data();
    layer.soft_cap = 2;
    layer.w_o = MatrixView(extras.output.data(), shape.width, 24);
    constexpr std::size_t n = 41, asked = 23, dh = 6, r = 12;
    const test::Rows rows = test::rows_of(layer, 0, 9, 0, n);
    CalibratorOptions options;
    options.sinks = 3;
    options.queries = 1000;
    options.pairs = 30000;
    Calibrator calibrator(setup.model, options);
    calibrator.add_cross(0, n, rows.x.data(), asked, rows.q.data());
    const LayerStatistics of = calibrator.finish().layers[0];

    // A query at the last position sees all of a context.
    Layer unbiased = layer;
    unbiased.b_v = nullptr;
    const Matrix keys = test::oracle_rows(unbiased, rows.x, true), values = test::oracle_rows(unbiased, rows.x, false);
    Matrix key_cost(2 * dh * dh, 0.0), squares(2, 0.0);
    for (std::size_t query = 0; query < asked; ++query) {
        for (std::size_t head = 0; head < shape.heads; ++head) {
            const std::size_t kv = head / 2;
            const float* const q = rows.q.data() + (query * shape.heads + head) * dh;
            const Attended seen = attended(layer, keys, values, q, n - 1, head);
            for (std::size_t m = options.sinks; m < n; ++m) {
                Matrix moved(dh);
                for (std::size_t c = 0; c < dh; ++c) moved[c] = values[m * r + kv * dh + c] - seen.out[c];
                const double p = seen.p[m] * seen.slope[m];
                add_square(key_cost, kv, Matrix(q, q + dh).data(), dh, p * p * output_square(layer, head, moved));
                Matrix first(dh, 0.0);
                first[0] = 1;
                squares[kv] += seen.p[m] * seen.p[m] * output_square(layer, head, first);
            }
        }
    }
    CHECK(distance(of.key_cost, key_cost, 1.0 / (n - 3)) < 4e-3);
    for (std::size_t kv = 0; kv < 2; ++kv) {
        CHECK(std::abs(static_cast<double>(of.value_cost[kv * dh * dh]) * (n - 3) / squares[kv] - 1) < 1e-5);
    }

    CHECK_THROWS_AS(calibrator.add_cross(0, n, rows.x.data(), 0, rows.q.data()), shape_error);
    layer.rope = Rope::standard(dh);
    Calibrator turned(setup.model, options);
    CHECK_THROWS_AS(turned.add_cross(0, n, rows.x.data(), asked, rows.q.data()), shape_error);
}

TEST_CASE("of some queries and pairs, what is found is right on average") {
    const test::Setup setup = one_layer();
    const Layer& layer = setup.model.layers[0];
    constexpr std::size_t n = 90;
    const test::Rows rows = test::rows_of(layer, 0, 5, 0, n);
    CalibratorOptions options;
    options.queries = 20;
    options.pairs = 24;
    Sums sums;
    add_context(layer, options, rows.x, rows.q, sums);
    Matrix keys(sums.key_cost.size(), 0.0), values(keys.size(), 0.0);
    constexpr std::size_t seeds = 400;
    double one = 0;
    for (std::size_t seed = 0; seed < seeds; ++seed) {
        options.seed = seed;
        Calibrator calibrator(setup.model, options);
        calibrator.add(0, n, rows.x.data(), rows.q.data());
        const LayerStatistics of = calibrator.finish().layers[0];
        for (std::size_t i = 0; i < keys.size(); ++i) {
            keys[i] += static_cast<double>(of.key_cost[i]) / seeds;
            values[i] += static_cast<double>(of.value_cost[i]) / seeds;
        }
        one = std::max(one, distance(of.key_cost, sums.key_cost, 1 / sums.tokens));
    }
    const auto off = [&](const Matrix& found, const Matrix& expected) {
        return distance(std::vector<float>(found.begin(), found.end()), expected, 1 / sums.tokens);
    };
    INFO("one seed is off by up to " << one << ", all together by " << off(keys, sums.key_cost) << " and "
                                     << off(values, sums.value_cost));
    CHECK(one > 0.1);
    CHECK(off(keys, sums.key_cost) < 0.04);
    CHECK(off(values, sums.value_cost) < 0.01);
}

TEST_CASE("x, and what it adds to what a cross-layer cache has of the layers below") {
    for (const std::size_t width : {20U, 40U}) {
        INFO("width " << width);
        const bool cut = width == 40;  // K and V read 24 channels: of X of 20, all there are
        const LayerShape of_all{width, 4, 2, 6};
        const test::Setup setup(of_all, RopePairing::halves, 6);
        for (const std::size_t base : {0U, 2U}) {
            INFO("base " << base);
            CalibratorOptions options;
            options.sinks = 2;
            options.x = true;
            options.joint = false;
            options.base_layer = base;
            Calibrator calibrator(setup.model, options);
            std::vector<Matrix> spread(6, Matrix(width * width, 0.0)), differences = spread;
            double tokens = 0;
            for (const std::size_t n : {30U, 23U}) {
                tokens += static_cast<double>(n - 2);
                Matrix below;
                for (std::size_t layer = 0; layer < 6; ++layer) {
                    // X changes little from layer to layer.
                    test::Rows rows = test::rows_of(setup.model.layers[layer], layer, 7, 0, n);
                    const test::Rows common = test::rows_of(setup.model.layers[0], 0, 8, 0, n);
                    for (std::size_t i = 0; i < rows.x.size(); ++i) rows.x[i] = common.x[i] + 0.3F * rows.x[i];
                    calibrator.add(layer, n, rows.x.data(), rows.q.data());
                    const Matrix x(rows.x.begin(), rows.x.end());
                    for (std::size_t t = 2; t < n; ++t) add_square(spread[layer], 0, x.data() + t * width, width);
                    if (layer <= base) {
                        below = x;
                        continue;
                    }
                    Matrix difference(x.size());
                    for (std::size_t i = 0; i < x.size(); ++i) difference[i] = x[i] - below[i];
                    for (std::size_t t = 2; t < n; ++t) {
                        add_square(differences[layer], 0, difference.data() + t * width, width);
                    }
                    if (!cut) {
                        below = x;
                        continue;
                    }
                    // What K and V read of the difference: its part in the space of their rows, made orthonormal.
                    std::vector<Matrix> basis;
                    for (const MatrixView& weight : {setup.model.layers[layer].w_k, setup.model.layers[layer].w_v}) {
                        for (std::size_t row = 0; row < 12; ++row) {
                            const auto* const w = static_cast<const float*>(weight.data) + row * width;
                            Matrix direction(w, w + width);
                            for (int twice = 0; twice < 2; ++twice) {
                                for (const Matrix& other : basis) {
                                    double product = 0;
                                    for (std::size_t c = 0; c < width; ++c) product += direction[c] * other[c];
                                    for (std::size_t c = 0; c < width; ++c) direction[c] -= product * other[c];
                                }
                            }
                            double square = 0;
                            for (const double value : direction) square += value * value;
                            for (double& value : direction) value /= std::sqrt(square);
                            basis.push_back(direction);
                        }
                    }
                    for (std::size_t t = 0; t < n; ++t) {
                        for (const Matrix& direction : basis) {
                            double product = 0;
                            for (std::size_t c = 0; c < width; ++c) product += difference[t * width + c] * direction[c];
                            for (std::size_t c = 0; c < width; ++c) below[t * width + c] += product * direction[c];
                        }
                    }
                }
            }
            const Calibration found = calibrator.finish();
            for (std::size_t layer = 0; layer < 6; ++layer) {
                INFO("layer " << layer);
                CHECK(distance(found.layers[layer].x_spread, spread[layer], 1 / tokens) < 1e-5);
                if (layer <= base) {
                    CHECK(found.layers[layer].difference_spread.empty());
                } else {
                    CHECK(distance(found.layers[layer].difference_spread, differences[layer], 1 / tokens) < 1e-4);
                }
                CHECK(found.layers[layer].joint_keys.empty());
                CHECK(found.layers[layer].joint_values.empty());
                CHECK(found.layers[layer].key_cost.size() == 72);
            }
        }
    }
}

TEST_CASE("K and V that an engine hands over are as good as X") {
    test::Setup setup = one_layer();
    const Extras extras(shape);
    for (const bool normed : {false, true}) {
        Layer& layer = setup.model.layers[0];
        layer.b_k = layer.b_v = extras.bias.data();
        layer.k_norm = normed ? extras.norm.data() : nullptr;
        Model given = setup.model;
        given.layers[0].input = LayerInput::keys_before_rope;
        given.layers[0].w_k = given.layers[0].w_v = {};
        given.layers[0].shape.width = 0;
        CalibratorOptions options;
        options.x = true;  // of X that is not there, nothing is gathered
        Calibrator from_x(setup.model), from_kv(given, options);
        for (const std::size_t n : {40U, 300U}) {
            const test::Rows rows = test::rows_of(layer, 0, static_cast<std::uint32_t>(n), 0, n);
            Layer plain = layer;
            plain.rope = {};
            const auto floats = [](const Matrix& values) { return std::vector<float>(values.begin(), values.end()); };
            const std::vector<float> k = floats(test::oracle_rows(plain, rows.x, true)),
                                     v = floats(test::oracle_rows(plain, rows.x, false));
            from_x.add(0, n, rows.x.data(), rows.q.data());
            from_kv.add_kv(0, n, k.data(), v.data(), rows.q.data());
        }
        const Calibration a = from_x.finish(), b = from_kv.finish();
        CHECK(a.tokens == b.tokens);
        CHECK(a.contexts == b.contexts);
        for (const auto part : parts) {
            if ((a.layers[0].*part).empty()) {
                CHECK((b.layers[0].*part).empty());
                continue;
            }
            // A draw may fall on a neighbour where the rows differ in their last bit.
            CHECK(distance(b.layers[0].*part, a.layers[0].*part) < (part == &LayerStatistics::key_cost ? 1e-2 : 1e-5));
        }
    }
}

TEST_CASE("what is found depends on neither threads, nor where weights come from, but on the seed") {
    const test::Setup setup({.width = 48, .heads = 6, .kv_heads = 3, .head_dim = 8}, RopePairing::halves, 4);
    Model loading = setup.model;
    for (Layer& layer : loading.layers) layer.w_k = layer.w_v = {};
    loading.load_layer = [&](std::size_t index, Layer& layer) {
        layer.w_k = setup.model.layers[index].w_k;
        layer.w_v = setup.model.layers[index].w_v;
    };
    const auto found = [&](const Model& model, ExecutorRef run, std::uint64_t seed = 1) {
        CalibratorOptions options;
        options.x = true;
        options.seed = seed;
        Calibrator calibrator(model, options);
        for (const std::uint32_t context : {1U, 2U}) {
            for (std::size_t layer = 0; layer < 4; ++layer) {
                const test::Rows rows = test::rows_of(model.layers[layer], layer, context, 0, 150);
                calibrator.add(layer, 150, rows.x.data(), rows.q.data(), run);
            }
        }
        return calibrator.finish();
    };
    test::Threads threads{4};
    const Calibration expected = found(setup.model, Serial{});
    CHECK(same_bits(found(setup.model, threads), expected));
    CHECK(same_bits(found(loading, Serial{}), expected));
    const Calibration other = found(setup.model, Serial{}, 2);
    CHECK(other.layers[0].key_cost != expected.layers[0].key_cost);
    CHECK(other.layers[0].key_spread == expected.layers[0].key_spread);
    // Heads, layers and contexts draw numbers of their own.
    CHECK(expected.layers[0].key_cost != expected.layers[1].key_cost);
}

TEST_CASE("what cannot be gathered is refused, and nothing is added") {
    test::Setup setup = one_layer();
    setup.model.layers.push_back(setup.model.layers[0]);
    setup.model.layers[1].input = LayerInput::keys_before_rope;
    const test::Rows rows = test::rows_of(setup.model.layers[0], 0, 1, 0, 20);
    const std::vector<float> k = test::Random(1).rows(20 * 12), v = test::Random(2).rows(20 * 12);
    CalibratorOptions options;
    options.x = true;
    Calibrator calibrator(setup.model, options);
    calibrator.add(0, 20, rows.x.data(), rows.q.data());
    calibrator.add_kv(1, 20, k.data(), v.data(), rows.q.data());
    const Calibration before = calibrator.finish();
    const auto shape_said = [&](auto&& call) { return test::complaint<shape_error>(call); };
    const auto value_said = [&](auto&& call) { return test::complaint<value_error>(call); };
    const auto add = [&](std::size_t layer, std::size_t n) {
        return [&, layer, n] { calibrator.add(layer, n, rows.x.data(), rows.q.data()); };
    };
    CHECK(contains(shape_said(add(2, 20)), "layer 2; the model has 2"));
    CHECK(contains(shape_said(add(0, 5)), "a context of 5 tokens; expected more than 5"));
    CHECK(contains(shape_said(add(0, 0)), "a context of 0 tokens"));
    CHECK(contains(shape_said(add(1, 20)), "layer 1 takes keys_before_rope; hand over K and V to add_kv"));
    CHECK(contains(shape_said([&] { calibrator.add_kv(2, 20, k.data(), v.data(), rows.q.data()); }), "layer 2"));
    CHECK(contains(shape_said([&] { calibrator.add_kv(1, 5, k.data(), v.data(), rows.q.data()); }), "5 tokens"));
    for (const float wrong : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
        std::vector<float> x = rows.x, q = rows.q, keys = k, values = v;
        x.back() = q.back() = keys.back() = values.back() = wrong;
        CHECK(contains(value_said([&] { calibrator.add(0, 20, x.data(), rows.q.data()); }), "layer 0: x: value 399"));
        CHECK(contains(value_said([&] { calibrator.add(0, 20, rows.x.data(), q.data()); }), "layer 0: q: value 479"));
        CHECK(contains(value_said([&] { calibrator.add_kv(1, 20, keys.data(), v.data(), rows.q.data()); }),
                       "layer 1: k: value 239"));
        CHECK(contains(value_said([&] { calibrator.add_kv(1, 20, k.data(), values.data(), rows.q.data()); }),
                       "layer 1: v: value 239"));
        CHECK(contains(value_said([&] { calibrator.add_kv(1, 20, k.data(), v.data(), q.data()); }),
                       "layer 1: q: value 479"));
    }
    CHECK(same_bits(calibrator.finish(), before));
    const auto refused = [&](auto&& change) {
        CalibratorOptions wrong;
        change(wrong);
        return shape_said([&] { static_cast<void>(Calibrator(setup.model, wrong)); });
    };
    CHECK(refused([](CalibratorOptions&) {}) == "");
    CHECK(contains(refused([](CalibratorOptions& o) { o.page = 1; }), "page is 1"));
    CHECK(contains(refused([](CalibratorOptions& o) { o.queries = 0; }), "queries 0"));
    CHECK(contains(refused([](CalibratorOptions& o) { o.pairs = 0; }), "pairs 0"));
}

TEST_CASE("layers that store the model's own latent have no statistics, and those that read another one's rows do") {
    test::Setup setup = one_layer();
    setup.model.layers.resize(3, setup.model.layers[0]);
    setup.model.layers[1].rows_of = 0;
    setup.model.layers[2].latent.w_down = setup.model.layers[0].w_k;
    Calibrator calibrator(setup.model);
    const test::Rows rows = test::rows_of(setup.model.layers[0], 0, 1, 0, 20);
    for (std::size_t layer = 0; layer < 3; ++layer) calibrator.add(layer, 20, rows.x.data(), rows.q.data());
    const Calibration found = calibrator.finish();
    for (const auto part : parts) CHECK((found.layers[2].*part).empty());
    CHECK_FALSE(found.layers[0].key_cost.empty());
    CHECK(found.layers[1].key_cost.size() == found.layers[0].key_cost.size());
    CHECK(found.tokens == 16);
    CHECK(found.contexts == 1);
    const Calibration nothing = Calibrator(setup.model).finish();
    CHECK(nothing.tokens == 0);
    CHECK(nothing.layers.size() == 3);
    CHECK(nothing.layers[0].key_cost.empty());
}

TEST_CASE("the fewest tokens of a context are enough") {
    const test::Setup setup = one_layer();
    for (const std::size_t sinks : {0U, 4U}) {
        CalibratorOptions options;
        options.sinks = sinks;
        Calibrator calibrator(setup.model, options);
        const std::size_t n = sinks + 2;
        const test::Rows rows = test::rows_of(setup.model.layers[0], 0, 1, 0, n);
        Sums sums;
        add_context(setup.model.layers[0], options, rows.x, rows.q, sums);
        calibrator.add(0, n, rows.x.data(), rows.q.data());
        const Calibration found = calibrator.finish();
        CHECK(found.tokens == 2);
        CHECK(distance(found.layers[0].value_cost, sums.value_cost, 0.5) < 1e-5);
        CHECK(distance(found.layers[0].key_cost, sums.key_cost, 0.5) < 1e-2);
    }
}
