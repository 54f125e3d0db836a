#include "subjects.hpp"

#ifdef XQUANT_BENCH_SVD
#include <xquant/projection/svd.hpp>
#endif

#include "../caches.hpp"
#include "compiled/best.hpp"

namespace bench {
namespace {

namespace xq = xquant;
namespace preset = xquant::preset;

/// The plan of a layer takes an SVD to make: once for each model.
template <class Library>
const xq::LayerPlan& plan_of(const xq::Model& model) {
    static xq::LayerPlan plan;
    static const float* of = nullptr;
    const xq::Layer& layer = model.layers.front();
    const auto* weights = static_cast<const float*>(layer.w_k.row(0));
    if (of != weights) plan = Library::scheme::prepare(layer).plan;
    of = weights;
    return plan;
}

/// Whether codes meet 8-bit queries and 8-bit matrices, in integer products.
template <class Library>
constexpr bool in_integers = !std::is_same_v<Library, preset::f16_kv>;

template <class Library>
Load attend_load(const xq::Model& model, std::size_t tokens) {
    const xq::LayerPlan& plan = plan_of<Library>(model);
    const xq::LayerShape& shape = model.layers.front().shape;
    const std::size_t dh = shape.head_dim;
    xq::AttendTask task;
    task.head_dim = dh;
    task.rows = 1;
    task.queries_per_kv = shape.heads / shape.kv_heads;
    if (!plan.keys_after_rope) task.rope.pairs = dh / 2;
    const float some = 0;
    const auto decoder = [&](const xq::HeadPlan& head) {
        return xq::HeadDecoder{head.stream, head.first, head.width, head.matrix.empty() ? nullptr : &some, nullptr, dh};
    };
    task.key = decoder(plan.keys.front());
    task.value = decoder(plan.values.front());
    double each = 0;  // of a token and kv head
    const auto add = [&](const xq::HeadDecoder& head, bool absorbed) {
        const bool rebuilt = head.matrix != nullptr && !absorbed;
        if (rebuilt) each += 2.0 * static_cast<double>(head.width * dh);
        each += 2.0 * static_cast<double>(task.queries() * (rebuilt ? dh : head.width));
    };
    add(task.key, xq::absorbs_keys(task));
    add(task.value, xq::absorbs_values(task.value, task.queries(), dh));
    const double operations = each * static_cast<double>(tokens * shape.kv_heads);
    xq::Model one = model;
    one.layers.resize(1);
    const xq::Bytes bytes = Library::predict(one, options(), tokens);
    Load out;
    out.bytes = static_cast<double>(bytes.codes + bytes.scales + bytes.tail + bytes.sinks);
    (in_integers<Library> ? out.int8 : out.f32) = operations;
    return out;
}

template <class Library>
Load append_load(const xq::Model& model, std::size_t rows) {
    Load out;
    for (const xq::StreamPlan& stream : plan_of<Library>(model).streams) {
        const double passes = stream.metric.block > 0 ? 2 : 0;
        const auto products = static_cast<double>(stream.matrix.size() + stream.mix.size());
        const auto feedback = static_cast<double>(xq::feedback_floats(stream.coded_width(), stream.metric.block));
        out.bytes += static_cast<double>(xq::size_of(options().weights)) * (products + feedback) +
                     static_cast<double>(4 * rows * stream.width);
        out.f32 += 2 * static_cast<double>(rows) * (products + passes * feedback);
    }
    return out;
}

template <class Library>
Kind kind(const char* name, xq::LayerInput input, double bound) {
    return {
        name,
        input,
        bound,
        [](const xq::Model& model) -> std::unique_ptr<Caches> { return std::make_unique<Library>(model, options()); },
        attend_load<Library>,
        append_load<Library>};
}

}  // namespace

const std::vector<Kind>& kinds() {
    using enum xq::LayerInput;
    static const std::vector<Kind> all{
        kind<preset::f16_kv>("f16", keys_before_rope, 1.2e-3),
        kind<preset::kv<4>>("kv4", keys_before_rope, 0.3),
#ifdef XQUANT_BENCH_SVD
        kind<preset::head_svd<4>>("svd_head4", keys_before_rope, 0.3),
#endif
        kind<preset::rotated_x<4>>("x4_rot", x, 0.3),
    };
    return all;
}

RandomModel::RandomModel(const Shape& shape, const Kind& kind, std::size_t layers)
    : layer_(shape, kind.input == xq::LayerInput::x ? shape.layer.width : shape.layer.head_dim, shape.layer.head_dim),
      model_(layer_.model),
      x_(layer_.x(0, period)) {
    model_.layers.front().input = kind.input;
    model_.layers.resize(layers, model_.layers.front());
    if (kind.input == xq::LayerInput::x) return;
    const std::size_t width = shape.layer.kv_width(), used = shape.layer.head_dim;
    const auto project = [&](const std::vector<float>& weights) {
        std::vector<float> out(period * width);
        for (std::size_t i = 0; i < period; ++i) {
            for (std::size_t c = 0; c < width; ++c) {
                double sum = 0;
                for (std::size_t j = 0; j < used; ++j) {
                    sum += static_cast<double>(x_[i * used + j]) * static_cast<double>(weights[c * used + j]);
                }
                out[i * width + c] = static_cast<float>(sum);
            }
        }
        return out;
    };
    k_ = project(layer_.w_k);
    v_ = project(layer_.w_v);
}

RandomModel::Rows RandomModel::rows(std::size_t first, std::size_t n) const {
    const auto view = [&](const std::vector<float>& of) {
        const std::size_t width = of.size() / period;
        return of.empty() ? xq::MatrixView() : xq::MatrixView(of.data() + first % period * width, n, width);
    };
    return {k_.empty() ? view(x_) : xq::MatrixView(), view(k_), view(v_)};
}

}  // namespace bench
