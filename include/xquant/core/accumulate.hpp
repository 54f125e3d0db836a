// Accumulators: what the layers of a cross-layer cache have added up so far, for every coded token that a step touches.
//
//     base         accumulator  = z                          difference  z = (y - accumulator) U,  accumulator += z U^T
//
// The loop is closed: a difference is taken against the sum that the reader will see, rounded as the accumulator is
// kept, so layer i is off by its own rounding alone and errors do not pile up (XQuant, section 3.3).
// Cost    for each layer and coded token: reading and writing its accumulator row, and R D products where there is a U.
#pragma once

#include <algorithm>
#include <functional>

#include <xquant/backend/simd/backends.hpp>
#include <xquant/backend/weights.hpp>
#include <xquant/core/core.hpp>
#include <xquant/core/run_tasks.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// Rows token .. + tokens of a stream, all channels: [tokens, width].
template <class Backend>
void decode_rows(Backend tag, const StreamView& in, std::size_t token, std::size_t tokens, float* out) noexcept {
    const std::size_t width = in.format.width;
    const backend::Tile rows{out, tokens, width, width, backend::TileOrder::token_major};
    for (std::size_t c = 0; c < width; c += backend::max_group) {
        decode_tile(tag, in, token, c, rows.part({0, tokens}, {c, (std::min)(backend::max_group, width - c)}));
    }
}

/// What decoding and adding make of values within f16 may lie beyond, where encoders would find infinity.
inline void clamp_to_f16(float* values, std::size_t count) noexcept {
    for (std::size_t i = 0; i < count; ++i) values[i] = std::clamp(values[i], -f16_max, f16_max);
}

class Accumulators {
public:
    explicit Accumulators(Core& core) : entries_(LedgerAllocator<Entry, Purpose::workspace>(core.ledger())) {}

    /// Makes room for the coded tokens that these plans write and, if `read`, that they read. A page that several plans
    /// read is added up once. Throws std::bad_alloc.
    template <class Plans>
    void open(Core& core, const Plans& plans, bool read = true) {
        if (core.accumulators().sections.empty()) return;
        std::size_t most = 0;
        for (const StepPlan& plan : plans) most += plan.reads.size() + plan.writes.size();
        entries_.reserve(most);
        for (const StepPlan& plan : plans) {
            for (const Segment& segment : plan.reads) {
                if (read && segment.page) need(segment.page.get(), segment.begin, segment.end);
            }
            for (const Write& write : plan.writes) need(write.page, write.slot, write.slot + write.count);
        }
        std::sort(entries_.begin(), entries_.end(),
                  [](const Entry& a, const Entry& b) { return std::less<>()(a.page, b.page); });
        std::size_t last = 0;
        for (std::size_t i = 1; i < entries_.size(); ++i) {
            if (entries_[i].page != entries_[last].page) {
                ++last;
                entries_[last].page = entries_[i].page;
                entries_[last].begin = entries_[i].begin;
                entries_[last].end = entries_[i].end;
            }
            entries_[last].begin = (std::min)(entries_[last].begin, entries_[i].begin);
            entries_[last].end = (std::max)(entries_[last].end, entries_[i].end);
        }
        if (!entries_.empty()) entries_.erase(entries_.begin() + static_cast<std::ptrdiff_t>(last) + 1, entries_.end());
        for (Entry& entry : entries_) entry.sum = PageRef(Page::create(core.ledger(), core.accumulators()));
        core.note_accumulators();
    }

    /// Makes room for one coded page, all slots up to `end`. Throws std::bad_alloc.
    void hold(Core& core, Page* page, std::size_t end) {
        if (core.accumulators().sections.empty()) return;
        entries_.reserve(1);
        entries_.push_back({page, 0, end, PageRef(Page::create(core.ledger(), core.accumulators()))});
        core.note_accumulators();
    }

    /// Gives back all memory.
    void close() noexcept { free_list(entries_); }

    /// The accumulator of a coded page.
    [[nodiscard]] MutableStreamView view(const Page* page) const noexcept { return find(page)->sum->stream(0, 0); }

    /// The address that offsets in a coded page's accumulator are counted from, on a device; null where there is none.
    [[nodiscard]] std::byte* base(const Page* page) const noexcept {
        return entries_.empty() ? nullptr : find(page)->sum->base();
    }

    /// Calls f(page, its accumulator's page, begin, end) for all coded pages that a step touches.
    template <class F>
    void for_each(F&& f) const {
        for (const Entry& entry : entries_) f(*entry.page, *entry.sum.get(), entry.begin, entry.end);
    }

    /// Adds a layer, after its new rows were stored.
    template <class Backend>
    void advance(Backend tag, Core& core, std::size_t layer, ExecutorRef threads) {
        if (core.layers()[layer].role == CrossRole::none) return;
        constexpr std::size_t blocks = coded_page_tokens / block;
        run_tasks(threads, entries_.size() * blocks, [&](std::size_t task) {
            const Entry& entry = entries_[task / blocks];
            const std::size_t first = (std::max)(entry.begin, task % blocks * block);
            const std::size_t last = (std::min)(entry.end, (task % blocks + 1) * block);
            if (first < last) add(tag, core, layer, entry, first, last - first);
        });
    }

private:
    struct Entry {
        Page* page = nullptr;
        std::size_t begin = 0, end = 0;
        PageRef sum;
    };

    static constexpr std::size_t block = 32;  ///< tokens of a task

    [[nodiscard]] const Entry* find(const Page* page) const noexcept {
        return &*std::lower_bound(entries_.begin(), entries_.end(), page, [](const Entry& entry, const Page* key) {
            return std::less<>()(static_cast<const Page*>(entry.page), key);
        });
    }

    void need(Page* page, std::size_t begin, std::size_t end) {
        if (page->format().is_coded()) entries_.push_back({page, begin, end, {}});
    }

    template <class Backend>
    XQUANT_NOINLINE static void add(Backend tag, Core& core, std::size_t layer, const Entry& entry, std::size_t first,
                                    std::size_t n) {
        const PreparedLayer& prepared = core.layers()[layer];
        const StreamEncoder& encoder = prepared.encoders.front();
        const std::size_t d = encoder.width, r = encoder.coded_width;
        const StreamView coded = read_only(entry.page->stream(prepared.place, 0));
        const MutableStreamView sum = entry.sum->stream(0, 0);
        ScratchPool::Loan scratch(core.scratch(), n * (d + r));
        float* rows = scratch.data();
        float* added = rows + n * d;
        if (prepared.role == CrossRole::base) {
            decode_rows(tag, coded, first, n, rows);
        } else {
            decode_rows(tag, read_only(sum), first, n, rows);
            decode_rows(tag, coded, first, n, added);
            if (encoder.spread != nullptr) {
                multiply_weights(tag, backend::Operand{added, r, 1}, encoder.spread, r,
                                 backend::MutableMatrix{rows, n, d, d}, true);
            } else {
                for (std::size_t i = 0; i < n * d; ++i) rows[i] += added[i];
            }
        }
        clamp_to_f16(rows, n * d);
        encode_rows(tag, core.accumulator(), backend::Matrix{rows, n, d, d}, first, sum);
    }

    LedgerVector<Entry, Purpose::workspace> entries_;
};

/// Rows y [n, D] of a layer that stores a difference -> what is coded, z [n, coded width] = (y - accumulator) U. Values
/// are clamped to f16, which they leave only where the accumulator is far off; the next layer makes up for the cut.
template <class Backend>
void take_difference(Backend tag, const StreamEncoder& encoder, const StreamView& accumulator, std::size_t token,
                     std::size_t n, float* rows, float* out) noexcept {
    const std::size_t d = encoder.width, r = encoder.coded_width;
    float* sum = out;  // at least [n, D]
    decode_rows(tag, accumulator, token, n, sum);
    for (std::size_t i = 0; i < n * d; ++i) rows[i] -= sum[i];
    if (encoder.latent != nullptr) {
        multiply_weights(tag, backend::Operand{rows, d, 1}, encoder.latent, d, backend::MutableMatrix{out, n, r, r},
                         false);
    } else {
        std::copy_n(rows, n * d, out);
    }
    clamp_to_f16(out, n * r);
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
