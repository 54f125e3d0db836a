#include <algorithm>
#include <xquant/calibration/calibrator.hpp>

#include "caches.hpp"

namespace whisper {
namespace {

namespace xq = xquant;

/// The exact caches, of which calibrators hear what goes in.
class ListeningSelf final : public llm::AttentionCache {
public:
    ListeningSelf(const Decoder& decoder, llm::ThreadPool& pool, xq::Calibrator& calibrator)
        : cache_(make_exact_self(decoder, pool)), pool_(&pool), calibrator_(&calibrator), width_(decoder.width()) {}

    void reset() override { cache_->reset(); }
    void begin(std::size_t n) override { cache_->begin(step_ = n); }
    void append(std::size_t layer, const float* x) override {
        x_.assign(x, x + step_ * width_);
        cache_->append(layer, x);
    }
    void attend(std::size_t layer, const float* q, float* out) override {
        calibrator_->add(layer, step_, x_.data(), q, *pool_);
        cache_->attend(layer, q, out);
    }
    void commit() override { cache_->commit(); }
    void seal() override { cache_->seal(); }
    std::size_t size() const override { return cache_->size(); }
    double bits_per_token_layer() const override { return cache_->bits_per_token_layer(); }
    llm::CacheBytes bytes() const override { return cache_->bytes(); }

private:
    std::unique_ptr<llm::AttentionCache> cache_;
    llm::ThreadPool* pool_;
    xq::Calibrator* calibrator_;
    std::size_t width_, step_ = 0;
    std::vector<float> x_;
};

class ListeningCross final : public CrossCache {
public:
    ListeningCross(const Decoder& decoder, llm::ThreadPool& pool, xq::Calibrator& each, xq::Calibrator& stacked)
        : cache_(make_exact_cross(decoder, pool)),
          pool_(&pool),
          each_(&each),
          stacked_(&stacked),
          layers_(decoder.layers()),
          width_(decoder.width()) {}

    void set(const float* x, std::size_t frames) override {
        x_.assign(x, x + frames * width_);
        cache_->set(x, frames);
    }
    void attend(std::size_t layer, std::size_t n, const float* q, float* out) override {
        const std::size_t frames = x_.size() / width_, all = layers_ * width_;
        each_->add_cross(layer, frames, x_.data(), n, q, *pool_);
        queries_.resize(n * all);
        for (std::size_t t = 0; t < n; ++t)
            std::copy_n(q + t * width_, width_, queries_.data() + t * all + layer * width_);
        if (layer + 1 == layers_) stacked_->add_cross(0, frames, x_.data(), n, queries_.data(), *pool_);
        cache_->attend(layer, n, q, out);
    }
    double bits_per_frame_layer() const override { return cache_->bits_per_frame_layer(); }
    std::size_t stored() const override { return cache_->stored(); }

private:
    std::unique_ptr<CrossCache> cache_;
    llm::ThreadPool* pool_;
    xq::Calibrator *each_, *stacked_;
    std::size_t layers_, width_;
    std::vector<float> x_, queries_;
};

}  // namespace

Statistics gather_statistics(const Decoder& decoder, const std::vector<Window>& windows, std::size_t sinks,
                             std::size_t cross_sinks, llm::ThreadPool& pool, llm::Progress& progress) {
    const Described self = describe_self(decoder), cross = describe_cross(decoder, CrossForm::own),
                    stacked = describe_cross(decoder, CrossForm::stacked);
    xq::CalibratorOptions of_self, of_cross, of_stacked;
    of_self.sinks = sinks;
    of_self.x = true;
    of_cross.sinks = of_stacked.sinks = cross_sinks;
    of_stacked.x = true;
    of_stacked.joint = false;
    xq::Calibrator self_calibrator(self.model, of_self), cross_calibrator(cross.model, of_cross),
        stacked_calibrator(stacked.model, of_stacked);
    ListeningSelf self_cache(decoder, pool, self_calibrator);
    ListeningCross cross_cache(decoder, pool, cross_calibrator, stacked_calibrator);
    for (const Window& window : windows) {
        self_cache.reset();
        cross_cache.set(window.x.data(), window.frames);
        decoder.forward(window.tokens, self_cache, cross_cache, pool);
        progress.advance(1);
    }
    return {self_calibrator.finish(), cross_calibrator.finish(), stacked_calibrator.finish()};
}

}  // namespace whisper
