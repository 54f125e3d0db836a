// The bodies of cache.hpp's members. They stand outside the class, so they are not inline, and `extern template` spares
// a translation unit from compiling them.
#pragma once

#include <xquant/cache.hpp>
#include <xquant/core/attend_stored.hpp>
#include <xquant/core/compact.hpp>
#include <xquant/core/learn.hpp>
#include <xquant/core/operations.hpp>
#include <xquant/core/requantize.hpp>
#include <xquant/core/shared_rows.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {

template <class Backend>
std::size_t Cache<Backend>::Step::size() const noexcept {
    return step_.size();
}
template <class Backend>
void Cache<Backend>::Step::append(std::size_t layer, const MatrixView& x, ExecutorRef threads) {
    step_.append(layer, x, threads);
}
template <class Backend>
void Cache<Backend>::Step::append_kv(std::size_t layer, const MatrixView& k, const MatrixView& v, ExecutorRef threads) {
    step_.append_kv(layer, k, v, threads);
}
template <class Backend>
void Cache<Backend>::Step::attend(std::size_t layer, const MatrixView& q, float* out, Visibility visibility,
                                  std::size_t out_stride, ExecutorRef threads) {
    step_.attend(layer, q, out, visibility, out_stride, threads);
}
template <class Backend>
void Cache<Backend>::Step::commit() {
    step_.commit();
}
template <class Backend>
void Cache<Backend>::Step::commit(std::span<const std::size_t> kept) {
    step_.commit(kept);
}

template <class Backend>
Cache<Backend>::Body::Body(const Options& options, const Model& model, const detail::Recipe& recipe)
    : core(options, detail::page_groups_of(model, recipe.accumulator != nullptr), recipe.streams(),
           recipe.requantizes()),
      state(core, options) {
    detail::expects(!Parts::on_device || options.rebuilt == 0, "Options::rebuilt is ", options.rebuilt,
                    " bytes, and the cache is on a device, where no keys are kept; expected 0");
    if (recipe.accumulator != nullptr) core.set_accumulator(recipe.accumulator(model.layers.front().shape.width));
    const Rope* previous = nullptr;
    for (std::size_t i = 0; i < model.layers.size(); ++i) {
        detail::check_borrowing(model, i);
        const Layer layer = detail::loaded_layer(model, i);
        detail::check_layer(layer, i);
        detail::expects(!layer.borrows() || recipe.accumulator == nullptr, "layer ", i, ": rows_of is ", layer.rows_of,
                        ", and CrossLayer<Delta> stores differences between layers; each has rows of its own there");
        Layer prepared = detail::with_mean_of_rows(model, layer);
        detail::LayerParts parts = recipe.layers[i].prepare(prepared, recipe.layers[i].bits);
        if (detail::add_metrics_of_readers(model, recipe, i, prepared, parts.plan)) {
            prepared = detail::with_mean_of_rows(model, detail::loaded_layer(model, i));  // its views may be gone
        }
        core.add_layer(prepared, recipe.layers[i].role, std::move(parts), previous, &detail::learn_stream<Backend>);
        previous = &model.layers[i].rope;
    }
    core.keep_rebuilt();
    state.prepare(core);
}

template <class Backend>
Cache<Backend>::Cache(const Model& model, const Options& options, const detail::Recipe& recipe)
    : body_(std::make_shared<Body>(options, model, recipe)) {}
template <class Backend>
Cache<Backend>::~Cache() {
    if (body_ != nullptr) body_->core.abandon();
}
template <class Backend>
Cache<Backend>::Cache(Cache&&) noexcept = default;
template <class Backend>
Cache<Backend>& Cache<Backend>::operator=(Cache&& other) noexcept {
    Cache taken(std::move(other));
    std::swap(body_, taken.body_);
    return *this;
}
template <class Backend>
typename Cache<Backend>::Body& Cache<Backend>::body() const {
    detail::expects<state_error>(body_ != nullptr, "the cache was moved from: it can be destroyed or assigned to");
    return *body_;
}

template <class Backend>
Sequence Cache<Backend>::create() {
    return core().create();
}
template <class Backend>
void Cache<Backend>::drop(Sequence sequence) {
    core().drop(sequence);
}
template <class Backend>
Sequence Cache<Backend>::fork(Sequence sequence) {
    return detail::fork_sequence(core(), sequence, size(sequence));
}
template <class Backend>
Sequence Cache<Backend>::fork(Sequence sequence, std::size_t tokens) {
    return detail::fork_sequence(core(), sequence, tokens);
}
template <class Backend>
void Cache<Backend>::truncate(Sequence sequence, std::size_t tokens) {
    detail::truncate_sequence(core(), sequence, tokens);
}
template <class Backend>
void Cache<Backend>::erase(Sequence sequence, std::size_t begin, std::size_t end, Gap gap) {
    detail::erase_tokens(core(), sequence, begin, end, gap);
}
template <class Backend>
void Cache<Backend>::shift(Sequence sequence, std::size_t begin, std::int64_t delta) {
    detail::shift_from(core(), sequence, begin, delta);
}
template <class Backend>
void Cache<Backend>::shift(Sequence sequence, std::size_t begin, std::size_t end, std::int64_t delta) {
    detail::shift_range(core(), sequence, begin, end, delta);
}
template <class Backend>
void Cache<Backend>::set_next_position(Sequence sequence, std::int64_t position) {
    detail::place_next(core(), sequence, position);
}
template <class Backend>
void Cache<Backend>::gather(std::span<const Sequence> sequences, std::span<const std::size_t> parents) {
    detail::gather_sequences(core(), sequences, parents);
}

template <class Backend>
std::size_t Cache<Backend>::size(Sequence sequence) const {
    return core().find(sequence).states.front().tokens;
}
template <class Backend>
std::int64_t Cache<Backend>::next_position(Sequence sequence) const {
    return core().find(sequence).states.front().next_position;
}
template <class Backend>
std::int64_t Cache<Backend>::position_of(Sequence sequence, std::size_t token) const {
    return detail::position_of_token(core().find(sequence), token);
}
template <class Backend>
std::size_t Cache<Backend>::token_at(Sequence sequence, std::int64_t position) const {
    return detail::token_at_position(core().find(sequence), position);
}
template <class Backend>
std::size_t Cache<Backend>::shortest_prefix(Sequence sequence) const {
    return detail::shortest_prefix_of(core(), core().find(sequence));
}

template <class Backend>
typename Cache<Backend>::Step Cache<Backend>::begin(std::span<const StepPart> parts) {
    Body& in = body();
    return Step(body_, Parts::begin(in.core, in.state, parts));
}
template <class Backend>
void Cache<Backend>::attend(std::size_t layer, std::span<const QueryPart> parts, const MatrixView& q, float* out,
                            Visibility visibility, std::size_t out_stride, ExecutorRef threads) const {
    detail::Core& in = core();
    detail::expects<state_error>(!Parts::on_device, "attend: a cache on a device attends in a step alone");
    if constexpr (!Parts::on_device) {
        detail::attend_stored<Backend>(in, layer, parts, q, out, visibility, out_stride, threads);
    }
}
template <class Backend>
void Cache<Backend>::seal(Sequence sequence) {
    Body& in = body();
    Parts::seal(in.core, in.state, in.core.find_idle(sequence));
}
template <class Backend>
void Cache<Backend>::compact(Sequence sequence) {
    detail::compact_sequence(core(), sequence);
}
template <class Backend>
Requantized Cache<Backend>::requantize_chosen(std::span<const Sequence> sequences,
                                              detail::FunctionRef<bool(const PageChoice&)> choose) {
    if constexpr (Parts::on_device) {
        return {};  // requantize does not compile there
    } else {
        return detail::requantize_pages(Backend{}, core(), sequences, choose);
    }
}
template <class Backend>
bool Cache<Backend>::take_bad_rows() {
    if constexpr (Parts::on_device) return body().state.take_bad_rows();
    return false;
}

template <class Backend>
Bytes Cache<Backend>::bytes() const noexcept {
    return body_ == nullptr ? Bytes{} : body_->core.ledger().bytes();
}
template <class Backend>
std::size_t Cache<Backend>::peak_accumulator_bytes() const noexcept {
    return body_ == nullptr ? 0 : body_->core.peak_accumulator();
}
template <class Backend>
double Cache<Backend>::bits_per_token_layer(std::size_t tokens) const {
    const detail::Core& in = core();
    double bits = 0;
    for (std::size_t layer = 0; layer < in.layers().size(); ++layer) {
        for (std::size_t stream = 0; stream < in.layers()[layer].encoders.size(); ++stream) {
            bits += static_cast<double>(in.codec(layer, stream).format.ideal_bits(tokens));
        }
    }
    return tokens == 0 ? 0 : bits / static_cast<double>(tokens * in.layers().size());
}
template <class Backend>
const Options& Cache<Backend>::options() const {
    return core().options();
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
