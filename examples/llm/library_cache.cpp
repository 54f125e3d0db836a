#include "library_cache.hpp"

#include <fmt/format.h>

#include <utility>
#include <xquant/calibration/prefix.hpp>
#include <xquant/mixed_bits.hpp>
#include <xquant/persistence.hpp>
#include <xquant/transcode.hpp>

#include "calibrate.hpp"
#include "device_cache.hpp"
#include "error.hpp"
#include "model.hpp"
#include "sequence_cache.hpp"

namespace llm {

namespace xq = xquant;

namespace {

xq::Rope describe(const Rope& rope) {
    return xq::Rope::standard(rope.dims, rope.base,
                              rope.pairs == Pairs::halves ? xq::RopePairing::halves : xq::RopePairing::interleaved);
}

}  // namespace

xq::Model describe(const Model& model) {
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
        to.w_o = view(from.W_o);
        to.b_k = or_null(from.b_k);
        to.b_v = or_null(from.b_v);
        to.k_norm = or_null(from.k_norm);
        to.k_norm_epsilon = static_cast<double>(config.norm_epsilon);
        to.rope = describe(from.rope);
        to.window = from.window;
        to.softmax_scale = static_cast<double>(config.softmax_scale);
    }
    return out;
}

namespace {

/// With what the scheme needs.
xq::Model described_for(const Scheme& scheme, const Model& model, const SchemeOptions& options) {
    xq::Model out = describe(model);
    for (std::size_t i = 0; i < out.layers.size(); ++i) {
        xq::Layer& layer = out.layers[i];
        if (scheme.needs == Needs::mean) layer.mean = options.calibration->mean[i].data();
        if (scheme.needs == Needs::calibration) {
            const std::vector<float>& rows = options.calibration->rows[i];
            layer.calibration = xq::MatrixView(rows.data(), rows.size() / layer.shape.width, layer.shape.width);
        }
    }
    if (options.statistics != nullptr) options.statistics->attach(out);
    return out;
}
xq::Options library_options(const SchemeOptions& options) {
    xq::Options out;
    out.sinks = options.sinks;
    out.recent = options.tail;
    out.strict = options.strict;
    out.weights = options.weights;
    out.rebuilt = options.rebuilt;
    return out;
}

class LibraryCache : public SequenceCache<xq::Cache<>> {
public:
    LibraryCache(std::unique_ptr<xq::Cache<>> cache, const Config& shape, ThreadPool& pool)
        : SequenceCache(std::move(cache)), shape_(shape), pool_(&pool) {}

    void append(std::size_t layer, const float* x) override {
        step_->append(layer, xq::MatrixView(x, step_->size(), shape_.width), *pool_);
    }
    void attend(std::size_t layer, const float* q, float* out) override {
        step_->attend(layer, xq::MatrixView(q, step_->size(), shape_.q_width()), out, 0, *pool_);
    }
    void save(std::ostream& out, const std::string& note) const override {
        xq::save(*cache_, {&sequence_, 1}, out, note);
    }
    void save(const std::string& path, const std::string& note) const override {
        xq::save(*cache_, {&sequence_, 1}, path, note);
    }
    std::string load(std::span<const std::byte> saved) override { return take(xq::load(*cache_, saved)); }
    std::string load(const std::string& path) override { return take(xq::load(*cache_, path)); }

protected:
    ThreadPool& pool() const { return *pool_; }

private:
    /// What was loaded becomes the sequence. The model here counts positions from 0 without a gap.
    std::string take(xq::Loaded loaded) {
        const bool one = loaded.sequences.size() == 1;
        if (!one || cache_->next_position(loaded.sequences[0]) !=
                        static_cast<std::int64_t>(cache_->size(loaded.sequences[0]))) {
            for (const xq::Sequence sequence : loaded.sequences) cache_->drop(sequence);
            throw Error(
                one ? "the saved sequence has tokens that were erased or shifted: this engine cannot continue it"
                    : fmt::format("{} sequences are saved there, not one", loaded.sequences.size()));
        }
        step_.reset();
        cache_->drop(std::exchange(sequence_, loaded.sequences[0]));
        return std::move(loaded.note);
    }

    Config shape_;
    ThreadPool* pool_;
};

std::unique_ptr<xq::Cache<>> made(const Scheme& scheme, const xq::Model& model, const xq::Options& options) {
    if (scheme.recipe.empty()) return xq::make_cache(scheme.library_name(), model, options);
    return xq::make_cache(xq::parse_recipe(read_text(scheme.recipe)), model, options);
}

/// A cache that learns from the first tokens of its sequence: f16 until then, the scheme from the next step on.
class PrefixCache final : public LibraryCache {
public:
    PrefixCache(const Scheme& scheme, const Model& model, const xq::Options& options, ThreadPool& pool)
        : LibraryCache(xq::make_cache("f16", describe(model), while_learning(options)), model.config(), pool),
          scheme_(scheme),
          model_(describe(model)),
          options_(options),
          prefix_(model_, *scheme.prefix, learnt(options)) {}

    void reset() override {
        if (learning_) {
            LibraryCache::reset();
        } else {
            replace(xq::make_cache("f16", model_, while_learning(options_)));
        }
        prefix_.clear();
        learning_ = true;
    }
    void begin(std::size_t n) override {
        if (learning_ && prefix_.ready()) fix();
        LibraryCache::begin(n);
    }
    void append(std::size_t layer, const float* x) override {
        x_ = x;
        LibraryCache::append(layer, x);
    }
    void attend(std::size_t layer, const float* q, float* out) override {
        if (learning_) prefix_.add(layer, step_->size(), x_, q);
        LibraryCache::attend(layer, q, out);
    }
    void truncate(std::size_t n) override {
        if (learning_) throw Error(fmt::format("the cache still learns from its first {} tokens", *scheme_.prefix));
        LibraryCache::truncate(n);
    }
    CacheBytes bytes() const override {
        CacheBytes out = LibraryCache::bytes();
        out.workspace += prefix_.bytes();
        return out;
    }

private:
    /// f16 keeps K itself.
    static xq::Options while_learning(xq::Options options) {
        options.rebuilt = 0;
        return options;
    }
    static xq::CalibratorOptions learnt(const xq::Options& options) {
        xq::CalibratorOptions out;
        out.sinks = options.sinks;
        out.x = true;
        return out;
    }
    void replace(std::unique_ptr<xq::Cache<>> cache) {
        step_.reset();
        cache_ = std::move(cache);
        sequence_ = cache_->create();
    }
    void fix() {
        const xq::Calibration calibration = prefix_.finish(pool());
        xq::Model model = model_;
        calibration.attach(model);
        replace(made(scheme_, model, options_));
        prefix_.replay(*cache_, sequence_, pool());
        prefix_.clear();
        learning_ = false;
    }

    Scheme scheme_;
    xq::Model model_;
    xq::Options options_;
    xq::PrefixCalibrator prefix_;
    bool learning_ = true;
    const float* x_ = nullptr;  // of the layer that was appended last
};

/// A cache whose tokens rest in one scheme, which may take X, until it wakes: then they are in another, which gets K
/// and V. What rests can be saved and loaded.
class RestingCache final : public LibraryCache {
public:
    RestingCache(std::unique_ptr<xq::Cache<>> rest, std::unique_ptr<xq::Cache<>> fast, const Model& model,
                 ThreadPool& pool)
        : LibraryCache(std::move(rest), model.config(), pool), model_(model), other_(std::move(fast)) {}

    void reset() override {
        if (awake_) return change_to(other_->create());
        LibraryCache::reset();
    }
    void rest() override {
        if (!awake_) cache_->seal(sequence_);
    }
    void wake() override {
        if (!awake_) change_to(xq::transcode(*cache_, sequence_, *other_, pool()));
    }
    void append(std::size_t layer, const float* x) override {
        if (!awake_) return LibraryCache::append(layer, x);
        const Config& c = model_.config();
        const Layer& l = model_.layer(layer);
        const std::size_t n = step_->size(), width = c.kv_width();
        rows_.resize(2 * n * width);
        float *const keys = rows_.data(), *const values = keys + n * width;
        multiply(x, n, l.W_k, l.b_k, keys, pool());
        norm_heads(l.k_norm, c.norm_epsilon, keys, n, c.kv_heads, pool());
        multiply(x, n, l.W_v, l.b_v, values, pool());
        step_->append_kv(layer, xq::MatrixView(keys, n, width), xq::MatrixView(values, n, width), pool());
    }
    void save(std::ostream& out, const std::string& note) const override {
        check_rests();
        LibraryCache::save(out, note);
    }
    void save(const std::string& path, const std::string& note) const override {
        check_rests();
        LibraryCache::save(path, note);
    }
    std::string load(std::span<const std::byte> saved) override {
        if (awake_) reset();
        return LibraryCache::load(saved);
    }
    std::string load(const std::string& path) override {
        if (awake_) reset();
        return LibraryCache::load(path);
    }
    CacheBytes bytes() const override {
        CacheBytes out = LibraryCache::bytes();
        const xquant::Bytes other = other_->bytes();
        out.weights += other.weights;
        out.workspace += other.workspace + rows_.capacity() * sizeof(float);
        return out;
    }

private:
    void check_rests() const {
        if (awake_) throw Error("the cache has woken: what it had when it rested is gone, and nothing else is saved");
    }
    /// The other cache's sequence is the one from now on.
    void change_to(xq::Sequence sequence) {
        step_.reset();
        cache_->drop(sequence_);
        std::swap(cache_, other_);
        sequence_ = sequence;
        awake_ = !awake_;
    }

    const Model& model_;
    std::unique_ptr<xq::Cache<>> other_;  // the one that has no sequence
    bool awake_ = false;
    std::vector<float> rows_;  // K and V of a step
};

/// The same layers, whose K and V an engine gives.
xq::Model given_keys(xq::Model model) {
    for (xq::Layer& layer : model.layers) layer.input = xq::LayerInput::keys_before_rope;
    return model;
}

}  // namespace

std::unique_ptr<AttentionCache> make_library_sequence(std::unique_ptr<xq::Cache<>> cache, const Model& model,
                                                      ThreadPool& pool) {
    return std::make_unique<LibraryCache>(std::move(cache), model.config(), pool);
}

std::unique_ptr<AttentionCache> make_library_sequence(const Scheme& scheme, const Model& model,
                                                      const SchemeOptions& options) {
    if (scheme.prefix) {
        if (scheme.needs != Needs::statistics || options.place != Place::processor)
            throw Error(fmt::format("scheme '{}': prefix=N is for schemes that need statistics, on the processor",
                                    scheme.text));
        return std::make_unique<PrefixCache>(scheme, model, library_options(options), *options.pool);
    }
    if (scheme.needs == Needs::statistics && options.statistics == nullptr)
        throw Error(
            fmt::format("scheme '{}' needs --calibration FILE, which `xquant-llm calibrate` makes", scheme.text));
    if (learns_from_text(scheme.needs) && options.calibration == nullptr)
        throw Error(fmt::format("{} needs a calibration, which only perplexity has", scheme.name));
    if (!scheme.rest.empty()) {
        if (options.place != Place::processor) throw Error("rest=NAME is for the processor");
        const xq::Model described = described_for(scheme, model, options);
        xq::Options at_rest = library_options(options);
        at_rest.recent = 0;  // nobody answers from what rests
        return std::make_unique<RestingCache>(xq::make_cache(scheme.rest, described, at_rest),
                                              made(scheme, given_keys(described), library_options(options)), model,
                                              *options.pool);
    }
    if (options.place == Place::processor) {
        return make_library_sequence(made(scheme, described_for(scheme, model, options), library_options(options)),
                                     model, *options.pool);
    }
    if (!scheme.recipe.empty()) throw Error("recipe=FILE is for the processor");
    [[maybe_unused]] const DeviceShape shape{model.config().width, model.config().q_width()};
    const xq::Model described = described_for(scheme, model, options);
#if defined(XQUANT_LLM_CUDA)
    if (options.place == Place::cuda)
        return make_cuda_cache(scheme.library_name(), described, library_options(options), shape);
#endif
#if defined(XQUANT_LLM_EMULATED_CUDA)
    if (options.place == Place::emulated_cuda)
        return make_emulated_cache(scheme.library_name(), described, library_options(options), shape);
#endif
    throw Error("this program was built without that backend");  // parse_place says so before
}

}  // namespace llm
