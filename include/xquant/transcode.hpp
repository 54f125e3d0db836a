// transcode: a sequence of one cache, in another cache of another scheme. xquant.hpp does not include it.
//
//     xquant::Sequence hot = xquant::transcode(cold, sequence, fast);      // both of one model
//
// Small rows and fast rows are not the same ones: CrossLayer<Delta> keeps half of what a latent of a head takes, and
// costs many times its time when it is read. Sequences that rest (beginnings of prompts that are kept, conversations
// that wait) are kept small, and become fast when they are used: K and V are rebuilt, layer by layer, and handed to the
// second cache as an engine would.
//
// Limit   what one step of the first cache takes to rebuild K, and what the second takes to encode: a fraction of the
//         model's own work for a prompt of as many tokens.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include <xquant/cache.hpp>
#include <xquant/core/accumulate.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// A backend without 8-bit products: what is encoded anew is rebuilt in f32.
template <class Backend>
struct InFloats {
    using type = Backend;
};
template <class Base>
struct InFloats<backend::int8<Base>> {
    using type = Base;
};

/// K and V of layers, for tokens of a sequence, as their queries meet them: [n, Hkv Dh] each.
template <class Backend>
class RebuiltRows {
    using Plain = typename InFloats<Backend>::type;

public:
    static constexpr std::size_t most = backend::tile_tokens;  ///< tokens at a time

    RebuiltRows(Core& core, const Slot& slot)
        : core_(&core), slot_(&slot), sums_(core), rows_(LedgerAllocator<float, Purpose::workspace>(core.ledger())) {
        std::size_t width = 0, dh = 0;
        for (const PreparedLayer& layer : core.layers()) {
            width = (std::max)(width, layer.shape.kv_width());
            dh = (std::max)(dh, layer.shape.head_dim);
        }
        rows_.resize(2 * most * width + most * dh + backend::rematerialize_scratch(dh));
    }

    /// Tokens first .. first + n of the sequence, n <= most, which lie in one page of layers that add up: their sums
    /// begin anew.
    void start(std::size_t first, std::size_t n) {
        first_ = first;
        n_ = n;
        sums_.close();
        std::size_t before = 0;
        for (const Segment& segment : slot_->states.front().segments) {
            if (first < before + segment.size()) {
                if (segment.page->format().is_coded()) {
                    sums_.hold(*core_, segment.page.get(), segment.begin + (first - before) + n);
                }
                return;
            }
            before += segment.size();
        }
    }

    /// Rebuilds layer `index`; layers come in order. `turned`: K comes after RoPE.
    void rebuild(std::size_t index, bool turned, ExecutorRef threads) {
        const PreparedLayer& layer = core_->layers()[index];
        sums_.advance(Backend{}, *core_, index, threads);
        const std::size_t dh = layer.shape.head_dim, width = layer.shape.kv_width();
        keys_ = rows_.data();
        values_ = keys_ + most * width;
        float* const tile = values_ + most * width;
        std::size_t before = 0;
        for (const Segment& segment : slot_->states[layer.page_group].segments) {
            const std::size_t begin = (std::max)(first_, before), behind = before + segment.size();
            const std::size_t end = (std::min)(first_ + n_, behind);
            if (begin < end) {
                rebuild_part(layer, segment, segment.begin + (begin - before), end - begin, begin - first_, tile);
                for (std::size_t t = begin; t < end; ++t) {
                    const std::int64_t position = segment.first_position + static_cast<std::int64_t>(t - before);
                    turn(layer, segment, position, turned, keys_ + (t - first_) * width, dh, width);
                }
            }
            before = behind;
        }
    }

    /// What was rebuilt last.
    [[nodiscard]] MatrixView keys(std::size_t width) const noexcept { return {keys_, n_, width}; }
    [[nodiscard]] MatrixView values(std::size_t width) const noexcept { return {values_, n_, width}; }

private:
    /// Some slots of a segment, as rows from `row` on: K as it is stored, but normed, and V.
    void rebuild_part(const PreparedLayer& layer, const Segment& segment, std::size_t slot, std::size_t n,
                      std::size_t row, float* tile) noexcept {
        const bool summed = layer.role != CrossRole::none && segment.page->format().is_coded();
        const auto view = [&](std::size_t stream) {
            return read_only(summed ? sums_.view(segment.page.get()) : segment.page->stream(layer.place, stream));
        };
        const std::size_t dh = layer.shape.head_dim, width = layer.shape.kv_width();
        float* const scratch = tile + most * dh;
        for (std::size_t h = 0; h < layer.shape.kv_heads; ++h) {
            const backend::Tile keys{tile, n, dh, most, backend::TileOrder::channel_major};
            rematerialize(Plain{}, view(layer.keys[h].stream), layer.keys[h], slot, keys, scratch);
            if (layer.rules.key_norm != nullptr) {
                normalize_keys(Plain{}, layer.rules.key_norm, layer.rules.key_norm_epsilon, keys);
            }
            transpose(Plain{}, {tile, dh, n, most}, keys_ + row * width + h * dh, width);
            rematerialize(Plain{}, view(layer.values[h].stream), layer.values[h], slot,
                          backend::Tile{values_ + row * width + h * dh, n, dh, width, backend::TileOrder::token_major},
                          scratch);
        }
        // What a scale and a zero of f16 make of a code may lie beyond the largest f16.
        clamp_to_f16(keys_ + row * width, n * width);
        clamp_to_f16(values_ + row * width, n * width);
    }

    /// A row of K is turned to its position, if the second cache wants that; stored keys may lag behind theirs.
    void turn(const PreparedLayer& layer, const Segment& segment, std::int64_t position, bool turned, float* row,
              std::size_t dh, std::size_t width) const noexcept {
        const RopeView rope = core_->rope(layer);
        if (!layer.keys_after_rope) {
            if (turned) apply_rope_to_row(Plain{}, rope, position, dh, row, width);
        } else if (segment.rope_lag != 0) {
            turn_row(Plain{}, rope, segment.rope_lag, dh, row, width);
        }
    }

    Core* core_;
    const Slot* slot_;
    Accumulators sums_;
    LedgerVector<float, Purpose::workspace> rows_;  ///< K, V, a tile of K, and scratch of rematerialize
    float *keys_ = nullptr, *values_ = nullptr;
    std::size_t first_ = 0, n_ = 0;
};

inline constexpr Serial one_by_one;

/// Whether a layer's K comes after RoPE when it is handed over.
inline bool takes_turned_keys(const PreparedLayer& layer) noexcept {
    return !layer.borrows() && layer.encoders.front().comes_with_rope;
}

/// Throws shape_error or state_error where transcode could not hand the layers of one cache to those of another.
inline void check_layers_fit(const Core& from, const Slot& slot, const Core& to) {
    expects(from.layers().size() == to.layers().size(), "transcode: the first cache has ", from.layers().size(),
            " layers, the second ", to.layers().size());
    for (std::size_t i = 0; i < to.layers().size(); ++i) {
        const PreparedLayer &a = from.layers()[i], &b = to.layers()[i];
        expects(a.shape.kv_heads == b.shape.kv_heads && a.shape.head_dim == b.shape.head_dim, "transcode: layer ", i,
                " of the first cache has ", a.shape.kv_heads, " kv heads of ", a.shape.head_dim,
                " channels, of the second ", b.shape.kv_heads, " of ", b.shape.head_dim);
        expects<state_error>(a.shared.width == 0 && b.shared.width == 0, "transcode: layer ", i,
                             " has latent attention, whose keys are no K of the usual kind");
        const std::size_t freed = freed_rows(slot.states[a.page_group]);
        expects<state_error>(freed == 0, "transcode: layer ", i, " has a window, or chunks, and has freed ", freed,
                             " rows of the sequence");
        if (b.borrows()) continue;
        expects<state_error>(b.takes_keys_and_values(), "transcode: layer ", i,
                             " of the second cache takes X, which the rows of the first do not give back; prepare its "
                             "model with LayerInput::keys_before_rope");
        expects<state_error>(a.keys_in_place == b.keys_in_place && (takes_turned_keys(b) || !a.keys_after_rope),
                             "transcode: layer ", i,
                             " of the first cache stores K after RoPE, and the second takes it ",
                             b.keys_in_place ? "in place" : "before RoPE");
    }
}

}  // namespace detail

/// Makes a sequence of `to` of what `from` has stored of a sequence: its tokens at their positions. Neither `from` nor
/// its sequence changes, and they may be dropped afterwards.
///
/// @param from      any scheme on a processor, cross-layer ones as well
/// @param sequence  of `from`; nobody writes to it meanwhile
/// @param to        another scheme for the same model, whose layers take K and V (Layer::input)
/// @param threads   runs the tasks; what is stored does not depend on it
///
/// Error   K and V come back as `from` reads them, in f32, and are encoded anew: errors of both schemes add up.
/// Throws sequence_error, shape_error (other layers or heads), state_error (what the first has freed or the second
/// cannot take), std::bad_alloc, budget_error; `to` has no new sequence then. A tree of drafts is none here.
/// Cost    for each token and layer: width Dh products for K and as many for V, for each kv head; sums over layers
///         where the scheme has them; and what append_kv takes. Workspace: 256 rows of K in f32, and a page's sums.
template <class From, class To>
Sequence transcode(const Cache<From>& from, Sequence sequence, Cache<To>& to,
                   ExecutorRef threads = detail::one_by_one) {
    static_assert(!detail::BackendParts<From>::on_device && !detail::BackendParts<To>::on_device,
                  "xquant: transcode reads and writes caches on a processor");
    detail::Core& core = detail::CacheAccess::core(from);
    const detail::Core& other = detail::CacheAccess::core(to);
    const detail::Slot& slot = core.find_idle(sequence);
    detail::check_layers_fit(core, slot, other);
    const detail::Undo trim([&core] { core.scratch().trim(); });
    detail::RebuiltRows<From> rows(core, slot);
    const Sequence made = to.create();
    detail::Undo drop([&] { to.drop(made); });
    std::size_t first = 0;
    for (const detail::Segment& segment : slot.states.front().segments) {
        for (std::size_t done = 0; done < segment.size();) {
            const std::size_t n = (std::min)(segment.size() - done, rows.most);
            const std::int64_t position = segment.first_position + static_cast<std::int64_t>(done);
            if (to.next_position(made) != position) to.set_next_position(made, position);
            auto step = to.begin({{made, n}});
            rows.start(first, n);
            for (std::size_t i = 0; i < other.layers().size(); ++i) {
                const detail::PreparedLayer& layer = other.layers()[i];
                rows.rebuild(i, detail::takes_turned_keys(layer), threads);
                if (layer.borrows()) continue;
                const std::size_t width = layer.shape.kv_width();
                step.append_kv(i, rows.keys(width), rows.values(width), threads);
            }
            step.commit();
            done += n;
            first += n;
        }
    }
    if (to.next_position(made) != slot.states.front().next_position) {
        to.set_next_position(made, slot.states.front().next_position);
    }
    drop.release();
    return made;
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
