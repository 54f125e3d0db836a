// A projection of your own: X with each channel divided by its size over calibration rows, so that a group along a
// token has values of one kind. Dividing and multiplying back are folded into the matrices: reading costs nothing.
//
// (On real models a rotation does better: see docs/accuracy.md. This one is short.)
#include <xquant/testing/contract.hpp>
#include <xquant/xquant.hpp>

#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

namespace xq = xquant;

struct Normalized {
    static constexpr std::size_t streams = 1;  // rows that are stored for a token and layer

    /// Their widths, and the entries of the matrices that prepare will make: T [D, D], and A [D, Dh] for K and V of
    /// each head.
    static xq::LayerFootprint<1> footprint(const xq::Layer& layer) noexcept {
        const std::size_t d = layer.shape.width;
        return {{d}, d * d + 2 * d * layer.shape.kv_width()};
    }

    /// z = x T with T = diag(1 / size);  K_h = z A_h with A_h = diag(size) W_k,h^T, V_h likewise.
    static xq::LayerPlan prepare(const xq::Layer& layer) {
        const std::size_t d = layer.shape.width, dh = layer.shape.head_dim;
        const std::vector<float> size = sizes(layer.calibration);
        xq::LayerPlan plan;
        xq::StreamPlan stream;
        stream.width = d;
        stream.matrix.assign(d * d, 0.0F);
        for (std::size_t c = 0; c < d; ++c) stream.matrix[c * d + c] = 1 / size[c];
        plan.streams.push_back(std::move(stream));
        const auto head_plan = [&](const xq::MatrixView& weight, std::size_t head) {
            xq::HeadPlan out{.stream = 0, .first = 0, .width = d, .matrix = std::vector<float>(d * dh), .constant = {}};
            std::vector<float> row(d);
            for (std::size_t i = 0; i < dh; ++i) {
                xq::load_row(weight.row(head * dh + i), weight.type, d, row.data());
                for (std::size_t c = 0; c < d; ++c) out.matrix[c * dh + i] = size[c] * row[c];
            }
            return out;
        };
        for (std::size_t head = 0; head < layer.shape.kv_heads; ++head) {
            plan.keys.push_back(head_plan(layer.w_k, head));
            plan.values.push_back(head_plan(layer.w_v, head));
        }
        return plan;
    }

private:
    /// Root mean square of each channel, 1 where there are no rows.
    static std::vector<float> sizes(const xq::MatrixView& rows) {
        std::vector<float> out(rows.cols, 0.0F), row(rows.cols);
        for (std::size_t i = 0; i < rows.rows; ++i) {
            xq::load_row(rows.row(i), rows.type, rows.cols, row.data());
            for (std::size_t c = 0; c < rows.cols; ++c) out[c] += row[c] * row[c] / static_cast<float>(rows.rows);
        }
        for (float& value : out) value = value > 0 ? std::sqrt(value) : 1.0F;
        return out;
    }
};

constexpr std::size_t d = 128, tokens = 300;

/// Attention of all rows, all but the first four read from codes.
template <class Cache>
std::vector<float> attend(const xq::Model& model, const std::vector<float>& x, const std::vector<float>& q) {
    Cache cache(model, {.sinks = 4, .recent = 0, .strict = true});
    auto step = cache.begin({{cache.create(), tokens}});
    std::vector<float> out(tokens * d);
    step.append(0, xq::MatrixView(x.data(), tokens, d));
    step.attend(0, xq::MatrixView(q.data(), tokens, d), out.data());
    return out;
}

int main() {
    std::mt19937 random(2);
    std::normal_distribution<float> normal;
    const auto rows = [&](std::size_t count, bool sized) {
        std::vector<float> x(count * d);
        for (std::size_t i = 0; i < x.size(); ++i) x[i] = normal(random) * (sized && i % d % 16 == 0 ? 20.0F : 1.0F);
        return x;
    };
    const std::vector<float> w_k = rows(d, false), w_v = rows(d, false), calibration = rows(200, true);
    const std::vector<float> x = rows(tokens, true), q = rows(tokens, false);
    xq::Model model =
        xq::Model::uniform(1, {.width = d, .heads = 2, .kv_heads = 2, .head_dim = 64}, xq::Rope::standard(64));
    xq::Layer& layer = model.layers[0];
    layer.w_k = xq::MatrixView(w_k.data(), d, d);
    layer.w_v = xq::MatrixView(w_v.data(), d, d);
    layer.calibration = xq::MatrixView(calibration.data(), 200, d);
    layer.softmax_scale = 1e-3;  // such weights make large scores

    xq::testing::check_projection<Normalized>(layer);  // throws with a sentence where the projection breaks a rule
    std::printf("Normalized keeps the contract\n");

    using namespace xq;
    const auto exact =
        attend<XCache<Unquantized<float>, Layout<PerToken>, CrossLayer<Off>, Projection<Plain>>>(model, x, q);
    const auto show = [&](const char* name, const std::vector<float>& out) {
        double error = 0, size = 0;
        for (std::size_t i = 0; i < out.size(); ++i) {
            error += std::pow(static_cast<double>(out[i] - exact[i]), 2);
            size += std::pow(static_cast<double>(exact[i]), 2);
        }
        std::printf("%-26s error %5.2f %%\n", name, 100 * std::sqrt(error / size));
    };
    show("X, 4 bits", attend<preset::plain_x<4>>(model, x, q));
    show("X normalized, 4 bits",
         attend<XCache<Uniform<4>, Layout<PerToken>, CrossLayer<Off>, Projection<Normalized>>>(model, x, q));
    show("X rotated, 4 bits", attend<preset::rotated_x<4>>(model, x, q));
}
