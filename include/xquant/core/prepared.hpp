// Prepared weights: the matrices of one layer's plan in one block, and the views of them that kernels read.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include <xquant/attention/task.hpp>
#include <xquant/core/weight_pool.hpp>
#include <xquant/error.hpp>
#include <xquant/model.hpp>
#include <xquant/position/rope.hpp>
#include <xquant/projection/plan.hpp>
#include <xquant/projection/projection.hpp>
#include <xquant/projection/rotation.hpp>
#include <xquant/storage/page.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// One layer, ready for the kernels.
class PreparedLayer {
public:
    /// Matrices are kept as `type`. Leaves room for `levels` floats of keep_levels. Throws shape_error if the plan does
    /// not fit the layer.
    PreparedLayer(Ledger& ledger, const Layer& layer, LayerPlan plan, CrossRole cross_role, std::size_t rope_table,
                  WeightType type = WeightType::f32, std::size_t levels = 0)
        : shape(layer.shape),
          rope(rope_table),
          role(cross_role),
          keys_after_rope(plan.keys_after_rope),
          keys_in_place(layer.input == LayerInput::keys_in_place),
          shared(plan.shared),
          encoders(LedgerAllocator<StreamEncoder, Purpose::weights>(ledger)),
          keys(LedgerAllocator<HeadDecoder, Purpose::weights>(ledger)),
          values(LedgerAllocator<HeadDecoder, Purpose::weights>(ledger)),
          matrices_(ledger, type, (check(plan, layer), matrix_floats(plan))),
          floats_(LedgerAllocator<float, Purpose::weights>(ledger)) {
        floats_.reserve(vector_floats(plan, shape.head_dim) + rule_floats(layer) + levels);
        encoders.reserve(plan.streams.size());
        const float* gain = keep(layer_floats(layer.k_norm, shape.head_dim));
        for (const StreamPlan& stream : plan.streams) {
            StreamEncoder out;
            out.source = stream.source;
            out.input = input_width(stream);
            out.width = stream.width;
            if (stream.by_head) out.blocks = shape.kv_heads;
            out.mean = keep(stream.mean);
            out.matrix = keeps_f32(stream) ? WeightMatrix(keep(stream.matrix)) : matrices_.keep(stream.matrix);
            out.bias = keep(stream.bias);
            const bool own_norm = !stream.row_norm.empty();
            out.norm = own_norm           ? keep(stream.row_norm)
                       : stream.norm      ? gain
                       : stream.unit_norm ? keep(std::vector<float>(shape.head_dim, 1.0F))
                                          : nullptr;
            out.norm_width = own_norm ? stream.width : shape.head_dim;
            out.norm_epsilon = static_cast<float>(own_norm ? stream.row_norm_epsilon : layer.k_norm_epsilon);
            out.rope = stream.rope;
            out.comes_with_rope = plan.keys_after_rope && stream.source == RowSource::keys && !stream.rope;
            out.rotate = stream.rotate;
            if (stream.rotate != 0) out.dct = keep(dct_matrix(dct_size(stream.rotate)));
            out.mixed = stream.mixed;
            out.mix = keep(stream.mix);
            out.coded_width = stream.coded_width();
            out.latent = matrices_.keep(stream.latent);
            if (!stream.latent.empty()) {
                out.spread = matrices_.keep(
                    stream.spread.empty() ? transpose(stream.latent, stream.width, out.coded_width) : stream.spread);
            }
            if (const std::size_t n = stream.metric.block; n > 0) {
                std::vector<float> columns;
                for (std::size_t first = 0; first < stream.metric.values.size(); first += n * n) {
                    factor_metric(stream.metric.values.data() + first, n, columns);
                }
                columns.resize(feedback_floats(out.coded_width, n), 0.0F);
                out.feedback = {n, matrices_.keep(columns)};
            }
            encoders.push_back(out);
        }
        const auto keep_heads = [this](const std::vector<HeadPlan>& heads, WeightVector<HeadDecoder>& out) {
            out.reserve(heads.size());
            for (const HeadPlan& head : heads) {
                out.push_back({head.stream, head.first, head.width, matrices_.keep(head.matrix), keep(head.constant),
                               shape.head_dim});
            }
        };
        keep_heads(plan.keys, keys);
        keep_heads(plan.values, values);
        matrices_.finish();
        rules.scale = static_cast<float>(
            layer.softmax_scale > 0 ? layer.softmax_scale : 1.0 / std::sqrt(static_cast<double>(shape.head_dim)));
        rules.soft_cap = static_cast<float>(layer.soft_cap);
        rules.window = layer.window;
        rules.chunk = layer.chunk;
        if (!plan.keys_normed) rules.key_norm = gain;
        rules.key_norm_epsilon = static_cast<float>(layer.k_norm_epsilon);
        rules.slopes = keep(layer_floats(layer.alibi_slopes, shape.heads));
        rules.sink_logits = keep(layer_floats(layer.sink_logits, shape.heads));
    }

    /// Whether the engine hands over K and V, not X.
    [[nodiscard]] bool takes_keys_and_values() const noexcept {
        return !borrows() && encoders.front().source != RowSource::x;
    }
    /// Whether the layer reads rows that another one stores.
    [[nodiscard]] bool borrows() const noexcept { return rows_of != Layer::itself; }

    /// The layer reads the rows of another one, which has the number `index`. Throws shape_error where these depend on
    /// that layer's weights.
    void borrow(const PreparedLayer& from, std::size_t index, std::size_t own_index) {
        const auto is_x = [](const StreamEncoder& encoder) {
            return encoder.source == RowSource::x && encoder.matrix == nullptr && encoder.bias == nullptr &&
                   encoder.norm == nullptr && !encoder.rope && encoder.latent == nullptr;
        };
        bool same = encoders.size() == from.encoders.size() && shared.width == 0 && from.shared.width == 0;
        for (std::size_t i = 0; same && i < encoders.size(); ++i) {
            const StreamEncoder &a = encoders[i], &b = from.encoders[i];
            same = is_x(a) && is_x(b) && a.width == b.width && a.rotate == b.rotate &&
                   (a.mean == nullptr) == (b.mean == nullptr);
        }
        expects(same, "layer ", own_index, ": rows_of is ", index,
                ", and the rows of one of the two are no X that both store in the same way; rows are shared where "
                "Projection<Plain> or Projection<Rotated> stores both (x4, x4_rot)");
        rows_of = index;
        page_group = from.page_group;
        place = from.place;
        encoders.clear();
    }

    /// The matrices of the plan.
    [[nodiscard]] const WeightPool& matrices() const noexcept { return matrices_; }
    /// The vectors of the plan, one after another: what all other pointers of encoders, heads and rules point into.
    [[nodiscard]] std::span<const float> floats() const noexcept { return {floats_.data(), floats_.size()}; }

    /// Levels that a quantizer learnt become part of the weights.
    const float* keep_levels(const std::vector<float>& levels) { return keep(levels); }

    /// Bytes a layer takes whose plan has matrices of this many entries, and with learnt levels this many other floats.
    static constexpr std::size_t bytes(const Layer& layer, WeightType type, std::size_t entries, std::size_t floats,
                                       std::size_t streams) noexcept {
        return WeightPool::bytes(type, entries) + (floats + rule_floats(layer)) * sizeof(float) +
               streams * sizeof(StreamEncoder) + 2 * layer.shape.kv_heads * sizeof(HeadDecoder);
    }

    LayerShape shape;
    std::size_t rope;                       ///< which table
    std::size_t page_group = 0, place = 0;  ///< which page group, and the layer's number in it
    std::size_t rows_of = Layer::itself;  ///< the layer that stores the rows, where another one does; no encoders then
    CrossRole role;
    bool keys_after_rope;
    bool keys_in_place;  ///< keys cannot move to other positions
    SharedKeys shared;
    ScoreRules rules;
    WeightVector<StreamEncoder> encoders;
    WeightVector<HeadDecoder> keys, values;

private:
    /// Throws shape_error for a plan that does not fit the layer, which is a mistake of the projection policy.
    void check(const LayerPlan& plan, const Layer& layer) const {
        const std::size_t dh = shape.head_dim;
        expects(plan.keys.size() == shape.kv_heads && plan.values.size() == shape.kv_heads, "plan: ", plan.keys.size(),
                " keys and ", plan.values.size(), " values; expected one of each for ", shape.kv_heads, " kv heads");
        for (std::size_t i = 0; i < plan.streams.size(); ++i) {
            const StreamPlan& s = plan.streams[i];
            const auto must = [i](bool holds, const auto&... parts) {
                expects(holds, "plan, stream ", i, ": ", parts...);
            };
            const std::size_t d = input_width(s), blocks = s.by_head ? shape.kv_heads : 1;
            must(s.width > 0, "width is 0");
            must((s.source == RowSource::x) == (layer.input == LayerInput::x), "it is made from ",
                 s.source == RowSource::x ? "X" : "K or V", ", and the engine hands over ",
                 layer.input == LayerInput::x ? "X" : "K and V");
            must(!s.by_head || (s.source != RowSource::x && s.width % blocks == 0),
                 "by_head needs K or V, and as many channels for each of ", blocks, " heads; width is ", s.width);
            must(s.matrix.empty() ? s.width == d : s.matrix.size() == d * s.width / blocks, "matrix has ",
                 s.matrix.size(), " floats; expected [D, width] = ", Shape{d, s.width}, ", one ", blocks,
                 "th of it by_head, or none with width = D");
            must(s.mean.empty() || s.mean.size() == d, "mean has ", s.mean.size(),
                 " floats; expected none, or D = ", d);
            must(s.rotate == 0 || s.width % s.rotate == 0, "rotate is ", s.rotate,
                 "; expected a divisor of width = ", s.width);
            must(s.mixed == 0 ? s.mix.empty() : s.width % s.mixed == 0 && s.mix.size() == s.width * s.mixed, "mix has ",
                 s.mix.size(), " floats for blocks of ", s.mixed,
                 " channels; expected [width / n][n, n] for a divisor ", "n of width = ", s.width);
            must(!(s.rope || s.norm || s.unit_norm) || s.width % dh == 0,
                 "rope, norm and unit_norm take whole heads of ", dh, " channels; width is ", s.width);
            must(s.row_norm.empty() || s.row_norm.size() == s.width, "row_norm has ", s.row_norm.size(),
                 " floats; expected none, or width = ", s.width);
            must(s.row_norm.empty() || (!s.norm && !s.unit_norm),
                 "row_norm excludes norm and unit_norm; at most one of the three may be set");
            must(s.bias.empty() || s.bias.size() == s.width, "bias has ", s.bias.size(),
                 " floats; expected none, or width = ", s.width);
            must(s.latent.size() % s.width == 0, "latent has ", s.latent.size(), " floats; expected [width = ", s.width,
                 ", coded channels]");
            must(s.spread.empty() || s.spread.size() == s.latent.size(), "spread has ", s.spread.size(),
                 " floats; expected none, or [coded channels, width], as many as latent has");
            must(s.latent.empty() || role == CrossRole::difference, "latent is for layers that store a difference");
            const std::size_t n = s.metric.block, coded = s.coded_width();
            must(n == 0 || coded % n == 0, "the metric has blocks of ", n, " channels; expected a divisor of ", coded,
                 ", the coded channels");
            must(s.metric.values.size() == (n > 0 ? coded / n * n * n : 0), "the metric has ", s.metric.values.size(),
                 " values; expected [", n > 0 ? coded / n : 0, "] blocks [", n, ", ", n, "]");
        }
        if (plan.shared.width > 0) {
            const std::size_t turned = 2 * layer.rope.inverse_frequencies.size();
            expects(
                plan.shared.stream < plan.streams.size() && plan.streams[plan.shared.stream].width == plan.shared.width,
                "plan: shared keys need a stream of their own: stream ", plan.shared.stream, " with ",
                plan.shared.width, " channels");
            expects(plan.shared.width == turned, "plan: ", plan.shared.width, " shared channels; expected the ", turned,
                    " that RoPE turns");
            expects(!plan.keys_after_rope && layer.k_norm == nullptr,
                    "plan: shared keys are turned when they are read, and have no norm");
        }
        for (const auto* heads : {&plan.keys, &plan.values}) {
            for (std::size_t i = 0; i < heads->size(); ++i) {
                const HeadPlan& head = (*heads)[i];
                const auto must = [&](bool holds, const auto&... parts) {
                    expects(holds, "plan, ", heads == &plan.keys ? "key of kv head " : "value of kv head ", i, ": ",
                            parts...);
                };
                must(head.stream < plan.streams.size() && head.stream == heads->front().stream, "stream ", head.stream,
                     "; expected the stream of kv head 0, one of ", plan.streams.size());
                const std::size_t width = plan.streams[head.stream].width;
                must(head.first <= width && head.width <= width - head.first, "reads channels ", head.first, " .. ",
                     head.first, " + ", head.width, " of a stream of ", width);
                must(head.matrix.empty() ? head.width == dh : head.matrix.size() == head.width * dh, "matrix has ",
                     head.matrix.size(), " floats; expected [width, head_dim] = ", Shape{head.width, dh},
                     ", or none with width = head_dim");
                must(head.constant.empty() || head.constant.size() == dh, "constant has ", head.constant.size(),
                     " floats; expected none, or head_dim = ", dh);
            }
        }
    }

    /// Channels of what a stream is made from.
    [[nodiscard]] std::size_t input_width(const StreamPlan& stream) const noexcept {
        return stream.source == RowSource::x ? shape.width : shape.kv_width();
    }

    /// Floats of a layer that are not in its plan. The gain of k_norm is kept once, for the encoder or for the reader.
    static constexpr std::size_t rule_floats(const Layer& layer) noexcept {
        return (layer.k_norm != nullptr ? layer.shape.head_dim : 0) +
               (layer.alibi_slopes != nullptr ? layer.shape.heads : 0) +
               (layer.sink_logits != nullptr ? layer.shape.heads : 0);
    }

    static std::vector<float> layer_floats(const float* values, std::size_t count) {
        return values != nullptr ? std::vector<float>(values, values + count) : std::vector<float>();
    }

    const float* keep(const std::vector<float>& source) {
        if (source.empty()) return nullptr;
        const std::size_t at = floats_.size();
        floats_.insert(floats_.end(), source.begin(), source.end());
        return floats_.data() + at;
    }

    WeightPool matrices_;
    WeightVector<float> floats_;
};

/// The RoPE tables of a tile for one set of frequencies.
class RopeTable {
public:
    RopeTable(Ledger& ledger, const Rope& rope, std::size_t tokens)
        : pairing_(rope.pairing),
          factor_(static_cast<float>(rope.factor)),
          tokens_(tokens),
          frequencies_(rope.inverse_frequencies.begin(), rope.inverse_frequencies.end(),
                       LedgerAllocator<double, Purpose::weights>(ledger)),
          table_(2 * frequencies_.size() * tokens, LedgerAllocator<float, Purpose::weights>(ledger)) {
        fill_rope_table(rope, tokens, table_.data(), table_.data() + table_.size() / 2);
    }

    static constexpr std::size_t bytes(std::size_t pairs, std::size_t tokens) noexcept {
        return pairs * sizeof(double) + 2 * pairs * tokens * sizeof(float);
    }

    [[nodiscard]] RopeView view() const noexcept {
        return {pairing_,      frequencies_.size(),
                tokens_,       frequencies_.data(),
                table_.data(), table_.data() + table_.size() / 2,
                factor_};
    }

private:
    RopePairing pairing_;
    float factor_;
    std::size_t tokens_;
    WeightVector<double> frequencies_;
    WeightVector<float> table_;
};

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
