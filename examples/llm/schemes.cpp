/// Every scheme of the perplexity table is an XCache of the library; this file gives them their names.
///
/// The exact f32 cache is the engine's own (exact_cache.hpp), so that the yardstick owes nothing to the library.
#include "schemes.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <optional>
#include <utility>
#include <xquant/projection/joint_svd.hpp>
#include <xquant/xquant.hpp>

#include "error.hpp"
#include "exact_cache.hpp"
#include "model.hpp"

namespace llm {
namespace {

namespace xq = xquant;

xq::Rope describe(const Rope& rope) {
    return xq::Rope::standard(rope.dims, rope.base,
                              rope.pairs == Pairs::halves ? xq::RopePairing::halves : xq::RopePairing::interleaved);
}

xq::Model describe(const Model& model, const SchemeOptions& options) {
    const Config& config = model.config();
    const auto view = [](const Matrix& matrix) {
        return xq::MatrixView(matrix.values.data(), matrix.rows, matrix.columns);
    };
    const auto or_null = [](const std::vector<float>& values) { return values.empty() ? nullptr : values.data(); };
    xq::Model out;
    for (std::size_t i = 0; i < config.layers; ++i) {
        const Layer& from = model.layer(i);
        xq::Layer& to = out.layers.emplace_back();
        to.shape = {config.width, config.heads, config.kv_heads, config.head_dim};
        to.w_k = view(from.W_k);
        to.w_v = view(from.W_v);
        to.b_k = or_null(from.b_k);
        to.b_v = or_null(from.b_v);
        to.k_norm = or_null(from.k_norm);
        to.k_norm_epsilon = static_cast<double>(config.norm_epsilon);
        to.rope = describe(from.rope);
        to.window = from.window;
        to.softmax_scale = static_cast<double>(config.softmax_scale);
        if (options.mean != nullptr) to.mean = (*options.mean)[i].data();
    }
    return out;
}

/// One sequence of a library cache behind the engine's interface.
template <class Cache>
class LibraryCache final : public AttentionCache {
public:
    LibraryCache(const Model& model, const SchemeOptions& options)
        : shape_(model.config()),
          pool_(options.pool),
          cache_(describe(model, options), library_options(options)),
          sequence_(cache_.create()) {}

    void reset() override {
        step_.reset();
        cache_.drop(sequence_);
        sequence_ = cache_.create();
    }
    void begin(std::size_t n) override { step_.emplace(cache_.begin({{sequence_, n}})); }
    void append(std::size_t layer, const float* x) override {
        step_->append(layer, xq::MatrixView(x, step_->size(), shape_.width), *pool_);
    }
    void attend(std::size_t layer, const float* q, float* out) override {
        step_->attend(layer, xq::MatrixView(q, step_->size(), shape_.q_width()), out, 0, *pool_);
    }
    void commit() override {
        step_->commit();
        step_.reset();
    }
    void seal() override { cache_.seal(sequence_); }
    [[nodiscard]] std::size_t size() const override { return cache_.size(sequence_); }
    [[nodiscard]] double bits_per_token_layer() const override {
        return cache_.bits_per_token_layer(size() - std::min(size(), cache_.options().sinks));
    }
    [[nodiscard]] CacheBytes bytes() const override {
        const xq::Bytes b = cache_.bytes();
        return {b.codes, b.scales, b.tail, b.sinks, b.index, b.weights, b.workspace};
    }

private:
    static xq::Options library_options(const SchemeOptions& options) {
        xq::Options out;
        out.sinks = options.sinks;
        out.recent = options.tail;
        out.strict = options.strict;
        return out;
    }

    Config shape_;
    ThreadPool* pool_;
    Cache cache_;
    xq::Sequence sequence_;
    std::optional<typename Cache::Step> step_;
};

using Make = std::unique_ptr<AttentionCache> (*)(const Model&, const SchemeOptions&);

template <class Cache>
std::unique_ptr<AttentionCache> make(const Model& model, const SchemeOptions& options) {
    return std::make_unique<LibraryCache<Cache>>(model, options);
}

/// x{4,3,2}_rot is rotated_x without a mean, x{4,3,2}_rot_mean the same with one.
template <class Cache>
std::unique_ptr<AttentionCache> make_rotated(const Model& model, const SchemeOptions& options) {
    SchemeOptions plain = options;
    plain.mean = nullptr;
    return make<Cache>(model, plain);
}

template <class Cache>
std::unique_ptr<AttentionCache> make_centred(const Model& model, const SchemeOptions& options) {
    if (options.mean == nullptr) throw Error("the *_rot_mean schemes need a calibrated mean of x");
    return make<Cache>(model, options);
}

const std::vector<std::pair<std::string, Make>>& schemes() {
    namespace preset = xq::preset;
    static const std::vector<std::pair<std::string, Make>> all{
        {"f16", make<preset::f16_kv>},
        {"q8_0", make<preset::q8_0>},
        {"q4_0", make<preset::q4_0>},
        {"q4_0_hadamard", make<preset::q4_0_hadamard>},
        {"kivi4", make<preset::kivi<4>>},
        {"kivi3", make<preset::kivi<3>>},
        {"kivi2", make<preset::kivi<2>>},
        {"x4", make<preset::plain_x<4>>},
        {"x3", make<preset::plain_x<3>>},
        {"x2", make<preset::plain_x<2>>},
        {"x4_rot", make_rotated<preset::rotated_x<4>>},
        {"x3_rot", make_rotated<preset::rotated_x<3>>},
        {"x2_rot", make_rotated<preset::rotated_x<2>>},
        {"x4_rot_mean", make_centred<preset::rotated_x<4>>},
        {"x3_rot_mean", make_centred<preset::rotated_x<3>>},
        {"x2_rot_mean", make_centred<preset::rotated_x<2>>},
        {"svd_joint4", make<preset::split_svd<4>>},
        {"svd_joint3", make<preset::split_svd<3>>},
        {"svd_joint2", make<preset::split_svd<2>>},
        {"svd_head4", make<preset::head_svd<4>>},
        {"svd_head3", make<preset::head_svd<3>>},
        {"svd_head2", make<preset::head_svd<2>>},
        {"cl_x4", make<preset::cross_layer_x<4>>},
        {"cl_x3", make<preset::cross_layer_x<3>>},
        {"cl_x2", make<preset::cross_layer_x<2>>},
        {"cl_x_rot4", make_rotated<preset::cross_layer_rotated_x<4>>},
        {"cl_x_rot3", make_rotated<preset::cross_layer_rotated_x<3>>},
        {"cl_x_rot2", make_rotated<preset::cross_layer_rotated_x<2>>},
        {"cl_svd4", make<preset::cross_layer_svd<4>>},
        {"cl_svd3", make<preset::cross_layer_svd<3>>},
        {"cl_svd2", make<preset::cross_layer_svd<2>>},
        {"cl_svd_rot4", make_rotated<preset::cross_layer_rotated_svd<4>>},
        {"cl_svd_rot3", make_rotated<preset::cross_layer_rotated_svd<3>>},
        {"cl_svd_rot2", make_rotated<preset::cross_layer_rotated_svd<2>>},
    };
    return all;
}

}  // namespace

std::vector<std::string> scheme_names() {
    std::vector<std::string> names{"f32"};
    for (const auto& [name, make_it] : schemes()) names.push_back(name);
    return names;
}

bool scheme_needs_mean(const std::string& name) { return name.ends_with("_rot_mean"); }

std::unique_ptr<AttentionCache> make_cache(const std::string& name, const Model& model, const SchemeOptions& options) {
    if (name == "f32") return make_exact_cache(model, *options.pool);
    for (const auto& [known, make_it] : schemes()) {
        if (known == name) return make_it(model, options);
    }
    throw Error(fmt::format("unknown scheme '{}'; known are {}", name, fmt::join(scheme_names(), ", ")));
}

}  // namespace llm
