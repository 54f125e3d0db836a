#include "caches.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>
#include <xquant/registry_svd.hpp>

#include "error.hpp"
#include "sequence_cache.hpp"

namespace whisper {

namespace xq = xquant;

namespace {

xq::MatrixView view(const llm::Matrix& matrix) { return {matrix.values.data(), matrix.rows, matrix.columns}; }
const float* or_null(const std::vector<float>& values) { return values.empty() ? nullptr : values.data(); }

/// Without RoPE: positions are added to the embedding, and frames have theirs.
xq::Layer describe(const Decoder& decoder, const Attention& attention) {
    xq::Layer out;
    out.shape = {decoder.width(), decoder.heads(), decoder.heads(), decoder.head_dim()};
    out.w_k = view(attention.k.weights);
    out.w_v = view(attention.v.weights);
    out.w_o = view(attention.o.weights);
    out.b_k = or_null(attention.k.bias);
    out.b_v = or_null(attention.v.bias);
    return out;
}

class LibrarySelf final : public llm::SequenceCache<xq::Cache<>> {
public:
    LibrarySelf(std::unique_ptr<xq::Cache<>> cache, std::size_t width, llm::ThreadPool& pool)
        : SequenceCache(std::move(cache)), width_(width), pool_(&pool) {}

    void append(std::size_t layer, const float* x) override {
        step_->append(layer, xq::MatrixView(x, step_->size(), width_), *pool_);
    }
    void attend(std::size_t layer, const float* q, float* out) override {
        step_->attend(layer, xq::MatrixView(q, step_->size(), width_), out, 0, *pool_);
    }

private:
    std::size_t width_;
    llm::ThreadPool* pool_;
};

class LibraryCross final : public CrossCache {
public:
    LibraryCross(std::unique_ptr<xq::Cache<>> cache, CrossForm form, const Decoder& decoder, llm::ThreadPool& pool)
        : cache_(std::move(cache)),
          form_(form),
          layers_(decoder.layers()),
          width_(decoder.width()),
          pool_(&pool),
          sequence_(cache_->create()) {}

    void set(const float* x, std::size_t frames) override {
        cache_->drop(sequence_);
        sequence_ = cache_->create();
        auto step = cache_->begin({{sequence_, frames}});
        const std::size_t storing = form_ == CrossForm::own ? layers_ : 1;
        for (std::size_t l = 0; l < storing; ++l) step.append(l, xq::MatrixView(x, frames, width_), *pool_);
        step.commit();
        cache_->seal(sequence_);
    }

    void attend(std::size_t layer, std::size_t n, const float* q, float* out) override {
        const auto ask = [&](std::size_t of, const xq::MatrixView& queries, float* to) {
            cache_->attend(of, {{sequence_, n}}, queries, to, xq::Visibility::whole, 0, *pool_);
        };
        if (form_ != CrossForm::stacked) {
            ask(layer, xq::MatrixView(q, n, width_), out);
            return;
        }
        const std::size_t all = layers_ * width_;
        queries_.assign(n * all, 0.0F);
        answers_.resize(n * all);
        for (std::size_t t = 0; t < n; ++t)
            std::copy_n(q + t * width_, width_, queries_.data() + t * all + layer * width_);
        ask(0, xq::MatrixView(queries_.data(), n, all), answers_.data());
        for (std::size_t t = 0; t < n; ++t)
            std::copy_n(answers_.data() + t * all + layer * width_, width_, out + t * width_);
    }

    double bits_per_frame_layer() const override {
        const std::size_t frames = cache_->size(sequence_);
        const double bits = cache_->bits_per_token_layer(frames - std::min(frames, cache_->options().sinks));
        return form_ == CrossForm::stacked ? bits / static_cast<double>(layers_) : bits;
    }
    std::size_t stored() const override { return cache_->bytes().stored(); }

private:
    std::unique_ptr<xq::Cache<>> cache_;
    CrossForm form_;
    std::size_t layers_, width_;
    llm::ThreadPool* pool_;
    xq::Sequence sequence_;
    std::vector<float> queries_, answers_;  // of all layers' heads
};

std::unique_ptr<xq::Cache<>> made(const Scheme& scheme, xq::Model& model, const xq::Calibration* known,
                                  std::size_t sinks) {
    if (scheme.needs_statistics) {
        if (known == nullptr) throw llm::Error(fmt::format("scheme '{}' needs --calibrate", scheme.text));
        known->attach(model);
    }
    xq::Options options;
    options.sinks = sinks;
    options.recent = 0;
    options.strict = true;
    return xq::make_cache(scheme.library_name, model, options);
}

}  // namespace

Described describe_self(const Decoder& decoder) {
    Described out;
    for (std::size_t l = 0; l < decoder.layers(); ++l)
        out.model.layers.push_back(describe(decoder, decoder.layer(l).self));
    return out;
}

Described describe_cross(const Decoder& decoder, CrossForm form) {
    Described out;
    const std::size_t L = decoder.layers(), D = decoder.width();
    if (form != CrossForm::stacked) {
        for (std::size_t l = 0; l < L; ++l) {
            out.model.layers.push_back(describe(decoder, decoder.layer(l).cross));
            if (form == CrossForm::shared && l > 0) out.model.layers.back().rows_of = 0;
        }
        return out;
    }
    out.w_o.resize(D * L * D);
    out.b_v.resize(L * D);
    for (std::size_t l = 0; l < L; ++l) {
        const Attention& of = decoder.layer(l).cross;
        const std::vector<float>&k = of.k.weights.values, &v = of.v.weights.values, &o = of.o.weights.values;
        out.w_k.insert(out.w_k.end(), k.begin(), k.end());
        out.w_v.insert(out.w_v.end(), v.begin(), v.end());
        for (std::size_t row = 0; row < D; ++row)
            std::copy_n(o.data() + row * D, D, out.w_o.data() + (row * L + l) * D);
        std::copy(of.v.bias.begin(), of.v.bias.end(), out.b_v.begin() + static_cast<std::ptrdiff_t>(l * D));
    }
    xq::Layer layer;
    const std::size_t heads = L * decoder.heads();
    layer.shape = {D, heads, heads, decoder.head_dim()};
    layer.w_k = {out.w_k.data(), L * D, D};
    layer.w_v = {out.w_v.data(), L * D, D};
    layer.w_o = {out.w_o.data(), D, L * D};
    layer.b_v = out.b_v.data();
    out.model.layers.push_back(layer);
    return out;
}

CrossForm Scheme::cross_form() const {
    if (stacked || library_name.starts_with("xc")) return CrossForm::stacked;
    return library_name.starts_with("x") ? CrossForm::shared : CrossForm::own;
}

Scheme parse_scheme(const std::string& text) {
    Scheme scheme;
    scheme.text = scheme.library_name = text;
    const auto takes = [&](const std::string& suffix) {
        const std::size_t at = scheme.library_name.find(suffix);
        if (at == std::string::npos) return false;
        scheme.library_name.erase(at, suffix.size());
        return true;
    };
    scheme.stacked = takes(":stacked");
    scheme.needs_statistics = takes(":calibrated");
    xq::Needs needs{};
    try {
        needs = xq::find_scheme(scheme.library_name).needs;
    } catch (const xq::error& unknown) {
        throw llm::Error(unknown.what());
    }
    if (needs != xq::Needs::nothing && needs != xq::Needs::statistics)
        throw llm::Error(fmt::format("scheme '{}' needs a mean or rows of X, which are not gathered here", text));
    scheme.needs_statistics |= needs == xq::Needs::statistics;
    return scheme;
}

void check_scheme(const Scheme& scheme, const Decoder& decoder, bool cross) {
    const Described described = cross ? describe_cross(decoder, scheme.cross_form()) : describe_self(decoder);
    try {
        static_cast<void>(xq::predict(scheme.library_name, described.model, {}, 100));
        if (cross && scheme.library_name.starts_with("cl"))
            throw llm::Error("differences between layers are what steps add up, and frames are read without one");
    } catch (const std::exception& error) {
        throw llm::Error(
            fmt::format("scheme '{}' of {} attention: {}", scheme.text, cross ? "cross" : "self", error.what()));
    }
}

std::unique_ptr<llm::AttentionCache> make_self(const Scheme& scheme, const Decoder& decoder,
                                               const CacheOptions& options) {
    Described described = describe_self(decoder);
    return std::make_unique<LibrarySelf>(
        made(scheme, described.model, options.statistics == nullptr ? nullptr : &options.statistics->self,
             options.sinks),
        decoder.width(), *options.pool);
}

std::unique_ptr<CrossCache> make_cross(const Scheme& scheme, const Decoder& decoder, const CacheOptions& options) {
    const CrossForm form = scheme.cross_form();
    Described described = describe_cross(decoder, form);
    const Statistics* const known = options.statistics;
    const xq::Calibration* const of = known == nullptr             ? nullptr
                                      : form == CrossForm::stacked ? &known->stacked
                                                                   : &known->cross;
    return std::make_unique<LibraryCross>(made(scheme, described.model, of, options.sinks), form, decoder,
                                          *options.pool);
}

}  // namespace whisper
