/// What caches of the library have in common behind the engine's interface, wherever their pages lie: one sequence, and
/// the step that runs.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <optional>
#include <utility>

#include <xquant/xquant.hpp>

#include "attention_cache.hpp"

namespace llm {

/// @tparam Base  xquant::Cache of a backend
template <class Base>
class SequenceCache : public AttentionCache {
public:
    explicit SequenceCache(std::unique_ptr<Base> cache) : cache_(std::move(cache)), sequence_(cache_->create()) {}

    void reset() override {
        step_.reset();
        cache_->drop(sequence_);
        sequence_ = cache_->create();
    }
    void begin(std::size_t n) override { step_.emplace(cache_->begin({{sequence_, n}})); }
    void commit() override {
        step_->commit();
        step_.reset();
    }
    void seal() override { cache_->seal(sequence_); }
    void truncate(std::size_t n) override { cache_->truncate(sequence_, n); }
    [[nodiscard]] std::size_t size() const override { return cache_->size(sequence_); }
    [[nodiscard]] double bits_per_token_layer() const override {
        return cache_->bits_per_token_layer(size() - std::min(size(), cache_->options().sinks));
    }
    [[nodiscard]] CacheBytes bytes() const override {
        const xquant::Bytes b = cache_->bytes();
        return {b.codes, b.scales, b.tail, b.sinks, b.index, b.weights, b.workspace, b.mapped, b.rebuilt};
    }

protected:
    std::unique_ptr<Base> cache_;
    xquant::Sequence sequence_;
    std::optional<typename Base::Step> step_;
};

}  // namespace llm
