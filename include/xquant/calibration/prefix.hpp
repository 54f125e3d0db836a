// PrefixCalibrator: the first tokens that a model reads become its calibration, for engines without a text to calibrate
// on. Until there are enough of them a cache that needs no statistics serves; then the prefix is stored anew.
//
//     PrefixCalibrator prefix(model, 512);
//     auto cache = make_cache("f16", model, options);               // for the first tokens
//     const Sequence s = cache->create();
//     for each step of n tokens: as ever, and beside step.append and step.attend of each layer
//         prefix.add(layer, n, x, q);                               // or add_kv(layer, n, k, v, q)
//     once prefix.ready():
//         const Calibration calibration = prefix.finish();
//         calibration.attach(model);
//         auto fixed = make_cache("head4:uniform", model, options);
//         const Sequence t = fixed->create();
//         prefix.replay(*fixed, t);                                 // tokens and positions of s
//
// Bases of one sequence fit its later tokens, and others of its kind, as well as those of twenty others' do
// (docs/accuracy.md). Bits cannot be divided among layers: nobody has measured sensitivities.
//
// Memory  4 bytes for each entry of x (or K and V) and q of the prefix, of every layer; clear() gives it back.
// Cost    that of Calibrator for one context.
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include <xquant/calibration/calibrator.hpp>
#include <xquant/sequence/handle.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {

/// Keeps the rows of a sequence's first tokens, and makes statistics of them. Every layer gives X, or every layer K
/// before RoPE and V; a layer that reads the rows of another one is given these.
class PrefixCalibrator {
public:
    /// `tokens` (more than the sinks, and 128 at least: a page of keys): when ready() says so. `model` is copied, as by
    /// Calibrator. Throws shape_error.
    explicit PrefixCalibrator(Model model, std::size_t tokens = 512, CalibratorOptions options = {})
        : model_(std::move(model)), options_(options), wanted_(tokens), rows_(model_.layers.size()) {
        detail::expects(tokens >= 128 && tokens > options.sinks + 1, "PrefixCalibrator: ", tokens,
                        " tokens; expected 128 or more, and more than ", options.sinks + 1, ", the sinks and one");
        for (std::size_t l = 0; l < model_.layers.size(); ++l) {
            const LayerInput input = model_.layers[l].input;
            detail::expects(input == LayerInput::x || input == LayerInput::keys_before_rope, "PrefixCalibrator: layer ",
                            l, " takes ", to_string(input), "; expected X, or K before RoPE and V");
        }
    }

    /// The next n tokens' x [n, D] of a layer and their queries [n, H Dh] after RoPE. Throws shape_error where the
    /// layer takes K and V.
    void add(std::size_t layer, std::size_t n, const float* x, const float* q) {
        const Layer& of = checked(layer);
        detail::expects(of.input == LayerInput::x, "PrefixCalibrator::add: layer ", layer, " takes ",
                        to_string(of.input), "; hand over K and V to add_kv");
        keep(layer, n, {{x, of.shape.width}, {nullptr, 0}}, q);
    }
    /// Likewise K [n, Hkv Dh] before RoPE and V [n, Hkv Dh], as Step::append_kv takes them.
    void add_kv(std::size_t layer, std::size_t n, const float* k, const float* v, const float* q) {
        const Layer& of = checked(layer);
        detail::expects(of.input != LayerInput::x, "PrefixCalibrator::add_kv: layer ", layer,
                        " takes X; hand it over to add");
        keep(layer, n, {{k, of.shape.kv_width()}, {v, of.shape.kv_width()}}, q);
    }

    /// Tokens that every layer has.
    [[nodiscard]] std::size_t tokens() const noexcept {
        std::size_t least = rows_.empty() ? 0 : rows_.front().tokens;
        for (const Rows& rows : rows_) least = (std::min)(least, rows.tokens);
        return least;
    }
    /// Whether every layer has as many tokens as were asked for.
    [[nodiscard]] bool ready() const noexcept { return tokens() >= wanted_; }
    /// Bytes of the rows.
    [[nodiscard]] std::size_t bytes() const noexcept {
        std::size_t floats = 0;
        for (const Rows& rows : rows_) floats += rows.first.capacity() + rows.second.capacity() + rows.q.capacity();
        return floats * sizeof(float);
    }

    /// Statistics of the prefix. Throws state_error before it is complete, or if layers have not as many tokens each.
    [[nodiscard]] Calibration finish(ExecutorRef run = Serial{}) const {
        check_complete("finish");
        Calibrator calibrator(model_, options_);
        for (std::size_t l = 0; l < rows_.size(); ++l) {
            const Rows& rows = rows_[l];
            if (model_.layers[l].input == LayerInput::x) {
                calibrator.add(l, rows.tokens, rows.first.data(), rows.q.data(), run);
            } else {
                calibrator.add_kv(l, rows.tokens, rows.first.data(), rows.second.data(), rows.q.data(), run);
            }
        }
        return calibrator.finish();
    }

    /// Appends the prefix to a sequence of another cache of the model, 512 tokens a step. Throws state_error as finish,
    /// and what begin and append throw; the sequence has the steps until then.
    template <class Cache>
    void replay(Cache& cache, Sequence sequence, ExecutorRef run = Serial{}) const {
        check_complete("replay");
        constexpr std::size_t most = 512;
        for (std::size_t at = 0; at < tokens(); at += most) {
            const std::size_t n = (std::min)(most, tokens() - at);
            auto step = cache.begin({{sequence, n}});
            for (std::size_t l = 0; l < rows_.size(); ++l) {
                const Layer& of = model_.layers[l];
                if (of.borrows()) continue;
                const std::size_t width = of.input == LayerInput::x ? of.shape.width : of.shape.kv_width();
                const auto view = [&](const std::vector<float>& rows) {
                    return MatrixView(rows.data() + at * width, n, width);
                };
                if (of.input == LayerInput::x) {
                    step.append(l, view(rows_[l].first), run);
                } else {
                    step.append_kv(l, view(rows_[l].first), view(rows_[l].second), run);
                }
            }
            step.commit();
        }
    }

    /// Gives the rows' memory back: another prefix may begin.
    void clear() { std::vector<Rows>(rows_.size()).swap(rows_); }

private:
    struct Rows {
        std::size_t tokens = 0;
        std::vector<float> first, second, q;  // x, or K and V
    };
    struct Part {
        const float* rows;
        std::size_t width;
    };

    [[nodiscard]] const Layer& checked(std::size_t layer) const {
        detail::expects(layer < rows_.size(), "PrefixCalibrator: layer ", layer, "; the model has ", rows_.size());
        return model_.layers[layer];
    }

    void keep(std::size_t layer, std::size_t n, const Part (&parts)[2], const float* q) {
        Rows& rows = rows_[layer];
        const std::size_t queries = model_.layers[layer].shape.heads * model_.layers[layer].shape.head_dim;
        detail::check_finite(layer, q, n * queries, "q");
        for (const Part& part : parts) detail::check_finite(layer, part.rows, n * part.width, "rows");
        rows.first.insert(rows.first.end(), parts[0].rows, parts[0].rows + n * parts[0].width);
        rows.second.insert(rows.second.end(), parts[1].rows, parts[1].rows + n * parts[1].width);
        rows.q.insert(rows.q.end(), q, q + n * queries);
        rows.tokens += n;
    }

    void check_complete(const char* verb) const {
        for (std::size_t l = 0; l < rows_.size(); ++l) {
            detail::expects<state_error>(rows_[l].tokens >= wanted_ && rows_[l].tokens == rows_[0].tokens,
                                         "PrefixCalibrator::", verb, ": layer ", l, " has ", rows_[l].tokens,
                                         " tokens, layer 0 ", rows_[0].tokens, "; expected ", wanted_,
                                         " or more, and as many in every layer");
        }
    }

    Model model_;
    CalibratorOptions options_;
    std::size_t wanted_;
    std::vector<Rows> rows_;
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
