// What a call of attend has to do with rebuilt keys: it reads those that are there, counts which pages it reads, and in
// the end makes keys for a few pages that have none.
#pragma once

#include <array>
#include <span>
#include <utility>

#include <xquant/attention/task.hpp>
#include <xquant/backend/feedback.hpp>
#include <xquant/backend/tile_loop.hpp>
#include <xquant/core/accumulate.hpp>
#include <xquant/core/core.hpp>
#include <xquant/core/out_of_memory.hpp>
#include <xquant/core/run_tasks.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// Rebuilds the keys of one kv head of a full page, after its norm and RoPE, and stores them in 8 bits.
template <class Backend>
XQUANT_NOINLINE void rebuild_head(Backend tag, Core& core, std::size_t layer, std::size_t head, Page& page,
                                  Page& keys) {
    constexpr std::size_t tokens = backend::tile_tokens;
    const PreparedLayer& prepared = core.layers()[layer];
    const std::size_t dh = prepared.shape.head_dim;
    AttendTask task;
    task.key = prepared.keys[head];
    task.rope = core.rope(prepared);
    task.head_dim = dh;
    task.rules = prepared.rules;
    ScratchPool::Loan scratch(core.scratch(), 2 * tokens * dh + backend::rematerialize_scratch(dh));
    backend::AttendScratch at{};
    at.keys = scratch.data();
    at.values = at.keys + tokens * dh;
    at.inner = at.values + tokens * dh;
    const TokenSpan span{
        read_only(page.stream(prepared.place, task.key.stream)), {}, 0, tokens, RebuiltPages::position_of(keys), {}, 0};
    backend::TileAngles angles;
    angles.move_to(task.rope, span.first_position);
    backend::detail::rebuild_keys(tag, task, span, {{0, tokens}, dh, nullptr, nullptr, false}, angles, at);
    transpose(tag, backend::Matrix{at.keys, dh, tokens, tokens}, at.values, dh);
    clamp_to_f16(at.values, tokens * dh);
    encode_rows(tag, core.rebuilt()->codec(layer), backend::Matrix{at.values, tokens, dh, dh}, 0,
                backend::detail::some_channels(keys.stream(0, 0), {head * dh, dh}));
}

/// The rebuilt keys that a call of attend reads, and those that it makes.
class RebuiltReads {
public:
    explicit RebuiltReads(Core& core)
        : core_(&core), pins_(LedgerAllocator<PageRef, Purpose::workspace>(core.ledger())) {}

    /// A layer is read, by so many spans at most. Throws std::bad_alloc, budget_error.
    void start(std::size_t layer, std::size_t spans) {
        end();
        pages_ = core_->rebuilt() != nullptr && core_->rebuilt()->serves(layer) ? core_->rebuilt() : nullptr;
        if (pages_ == nullptr) return;
        pins_.reserve(spans);
        layer_ = layer;
        epoch_ = pages_->start_read();
    }
    /// Whether the layer may have rebuilt keys.
    [[nodiscard]] bool is_active() const noexcept { return pages_ != nullptr; }

    /// The segments of another sequence follow.
    void start_sequence() noexcept { page_ = nullptr; }
    /// The next segment: the span reads rebuilt keys if there are some. Notes the page as one that may get them.
    void meet(const Segment& segment, TokenSpan& span) noexcept {
        if (pages_ == nullptr || !segment.page || !segment.page->format().is_coded()) return;
        Page& page = *segment.page.get();
        if (std::exchange(page_, &page) != &page) {
            slots_ = 0;
            ++met_;
            page.note_read(epoch_);
        }
        slots_ += segment.size();
        const std::int64_t position = segment.first_position - static_cast<std::int64_t>(segment.begin);
        if (PageRef keys = pages_->find(page, layer_)) {
            span.keys = read_only(keys->stream(0, 0));
            span.rope_lag = position - RebuiltPages::position_of(*keys.get());
            span.rebuilt = true;
            pins_.push_back(std::move(keys));  // there is room
        } else if (slots_ == page.format().tokens && pages_->is_read(page, layer_, epoch_)) {
            consider({&page, position, page.reads(epoch_)});
        }
    }

    /// Makes keys for pages that were met, and lets go of those that were read. Throws what the executor throws. Where
    /// memory runs out, fewer pages get keys.
    template <class Backend>
    void build(Backend tag, ExecutorRef threads) {
        if (pages_ == nullptr) return;
        std::array<std::pair<Page*, PageRef>, most> made;  // pages, and their keys
        std::size_t count = 0;
        Undo give_up([&] {
            for (std::size_t i = 0; i < count; ++i) pages_->give_up(*made[i].second.get());
        });
        pins_.clear();
        // A page that has no room leaves none to those that are read less.
        fits_into_memory([&] {
            const std::size_t some = (std::min)(candidates_, (std::max)(least, met_ / share));
            for (std::size_t i = 0; i < some; ++i) {
                const Candidate& candidate = list_[i];
                PageRef keys = pages_->make(*candidate.page, layer_, candidate.position, epoch_);
                if (keys) made[count++] = {candidate.page, std::move(keys)};
            }
        });
        const std::size_t heads = core_->layers()[layer_].shape.kv_heads;
        if (count > 0 && fits_into_memory([&] {
                run_tasks(threads, count * heads, [&](std::size_t i) {
                    const auto& [page, keys] = made[i / heads];
                    rebuild_head(tag, *core_, layer_, i % heads, *page, *keys.get());
                });
            })) {
            for (std::size_t i = 0; i < count; ++i) pages_->set_ready(*made[i].second.get());
            give_up.release();
        }
        end();
    }

    /// Lets go of everything.
    void end() noexcept {
        pins_.clear();
        candidates_ = met_ = 0;
    }
    void free() noexcept {
        end();
        free_list(pins_);
    }

private:
    /// Pages that get keys in a call: 4, or an eighth of those that it reads, up to 32. It rebuilds no more on top.
    static constexpr std::size_t least = 4, share = 8, most = 32;

    struct Candidate {
        Page* page;
        std::int64_t position;  ///< of slot 0
        std::uint32_t reads;
    };

    /// Keeps the pages that are read most, of equals those that come first.
    void consider(const Candidate& next) noexcept {
        std::size_t at = candidates_;
        for (std::size_t i = 0; i < candidates_; ++i) {
            if (list_[i].page == next.page) return;
        }
        while (at > 0 && list_[at - 1].reads < next.reads) --at;
        if (at == most) return;
        candidates_ = (std::min)(candidates_ + 1, most);
        for (std::size_t i = candidates_ - 1; i > at; --i) list_[i] = list_[i - 1];
        list_[at] = next;
    }

    Core* core_;
    RebuiltPages* pages_ = nullptr;  ///< null: the layer has none
    LedgerVector<PageRef, Purpose::workspace> pins_;
    std::array<Candidate, most> list_{};
    std::size_t layer_ = 0, candidates_ = 0;
    std::size_t met_ = 0;    ///< coded pages, once for each sequence
    Page* page_ = nullptr;   ///< of the segment before
    std::size_t slots_ = 0;  ///< of it that were met
    std::uint32_t epoch_ = 0;
};

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
