/// The exact cache, for those who want to hear what goes in: they override append or attend.
#pragma once

#include <memory>

#include "exact_cache.hpp"

namespace llm {

class ListeningCache : public AttentionCache {
public:
    ListeningCache(const Model& model, ThreadPool& pool) : cache_(make_exact_cache(model, pool)) {}

    void reset() override { cache_->reset(); }
    void begin(std::size_t n) override { cache_->begin(step_ = n); }
    void append(std::size_t layer, const float* x) override { cache_->append(layer, x); }
    void attend(std::size_t layer, const float* q, float* out) override { cache_->attend(layer, q, out); }
    void commit() override { cache_->commit(); }
    void seal() override { cache_->seal(); }
    std::size_t size() const override { return cache_->size(); }
    double bits_per_token_layer() const override { return cache_->bits_per_token_layer(); }
    CacheBytes bytes() const override { return cache_->bytes(); }

protected:
    std::size_t step() const { return step_; }  // tokens of the step that runs

private:
    std::unique_ptr<AttentionCache> cache_;
    std::size_t step_ = 0;
};

}  // namespace llm
