// Accumulators: what the layers of a cross-layer cache have added up so far, for every coded token that a step touches.
//
//     base         accumulator  = z                          difference  z = (y - accumulator) U,  accumulator += z U^T
//
// The loop is closed: a difference is taken against the sum that the reader will see, rounded as the accumulator is
// kept, so layer i is off by its own rounding alone and errors do not pile up (XQuant, section 3.3).
// Cost    for each layer and coded token: reading and writing its accumulator row, and R D products where there is a U,
//         by backends with 8-bit products in 8 bits where codes have at most 5 (backend/simd/spread.hpp).
#pragma once

#include <algorithm>
#include <functional>

#include <xquant/backend/simd/backends.hpp>
#include <xquant/backend/simd/spread.hpp>
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
    explicit Accumulators(Core& core)
        : rough_(adds_coarse_codes(core)),
          entries_(LedgerAllocator<Entry, Purpose::workspace>(core.ledger())),
          rounded_(LedgerAllocator<float, Purpose::workspace>(core.ledger())) {}

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
    void close() noexcept {
        free_list(entries_);
        free_list(rounded_);
    }

    /// The accumulator of a coded page.
    [[nodiscard]] MutableStreamView view(const Page* page) const noexcept { return find(page)->sum->stream(0, 0); }

    /// Likewise, as attention reads it.
    [[nodiscard]] StreamView rows(const Page* page) const noexcept {
        StreamView out = read_only(view(page));
        out.format.rough = rough_;
        return out;
    }

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
        if (spreads_codes(tag, core, layer)) return spread(tag, core, layer, threads);
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

    /// How a layer's codes become what is added to sums: z S.
    static HeadDecoder spread_of(const StreamEncoder& encoder) noexcept {
        return {0, 0, encoder.coded_width, encoder.spread, nullptr, encoder.width};
    }

    /// Whether a layer's codes are multiplied as they are.
    template <class Backend>
    static bool spreads_codes(Backend, const Core& core, std::size_t layer) noexcept {
        const StreamFormat& format = core.codec(layer, 0).format;
        return Backend::int8_products && core.layers()[layer].role == CrossRole::difference &&
               format.group_tokens == 1 && backend::fits_int8(format, spread_of(core.layers()[layer].encoders[0]));
    }

    /// Adds a layer by 8-bit products: S is rounded once for all pages, 128 of its columns by a task.
    template <class Backend>
    void spread(Backend tag, Core& core, std::size_t layer, ExecutorRef threads) {
        const StreamEncoder& encoder = core.layers()[layer].encoders.front();
        backend::SpreadMatrix matrix{core.codec(layer, 0).format, spread_of(encoder), nullptr};
        const std::size_t floats = matrix.panels() * matrix.panel_floats();
        if (rounded_.size() < floats) rounded_.resize(floats);
        matrix.weights = rounded_.data();
        run_tasks(threads, matrix.panels(), [&](std::size_t panel) {
            ScratchPool::Loan scratch(core.scratch(), backend::spread_scratch());
            round_spread(tag, matrix, panel, scratch.data());
        });
        run_tasks(threads, entries_.size(), [&](std::size_t i) {
            const Entry& entry = entries_[i];
            const StreamFormat& format = entry.page->stream(core.layers()[layer].place, 0).format;
            if (format.with_room(0) == matrix.format.with_room(0)) {
                add_spread(tag, core, core.layers()[layer].place, matrix, entry);
                return;
            }
            // Requantized pages have other codes, which S was not rounded for.
            for (std::size_t first = entry.begin; first < entry.end; first += block) {
                add(tag, core, layer, entry, first, (std::min)(block, entry.end - first));
            }
        });
    }

    /// Adds what a layer stored of a page.
    template <class Backend>
    XQUANT_NOINLINE static void add_spread(Backend tag, Core& core, std::size_t place,
                                           const backend::SpreadMatrix& matrix, const Entry& entry) {
        const StreamView coded = read_only(entry.page->stream(place, 0));
        const MutableStreamView sum = entry.sum->stream(0, 0);
        const std::size_t first = entry.begin, n = entry.end - first, d = sum.format.width;
        ScratchPool::Loan scratch(core.scratch(), backend::spread_scratch() + (n + block) * d);
        float* const rows = scratch.data() + backend::spread_scratch();
        float* const before = rows + n * d;
        for (std::size_t panel = 0; panel < matrix.panels(); ++panel) {
            const backend::Slots columns = matrix.columns_of(panel);
            spread_codes(tag, coded, first, matrix, panel,
                         backend::Tile{rows + columns.first, n, columns.count, d, backend::TileOrder::token_major},
                         scratch.data());
        }
        for (std::size_t t = 0; t < n; t += block) {
            const std::size_t some = (std::min)(block, n - t);
            float* const of = rows + t * d;
            decode_rows(tag, read_only(sum), first + t, some, before);
            for (std::size_t i = 0; i < some * d; ++i) of[i] = std::clamp(of[i] + before[i], -f16_max, f16_max);
            encode_rows(tag, core.accumulator(), backend::Matrix{of, some, d, d}, first + t, sum);
        }
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

    /// Whether every layer that adds to sums has codes that are coarser than 8-bit products.
    static bool adds_coarse_codes(const Core& core) noexcept {
        for (std::size_t i = 0; i < core.layers().size(); ++i) {
            if (core.layers()[i].role == CrossRole::none) continue;
            if (core.codec(i, 0).format.bits > backend::int8_most_bits) return false;
        }
        return true;
    }

    bool rough_;
    LedgerVector<Entry, Purpose::workspace> entries_;
    LedgerVector<float, Purpose::workspace> rounded_;  ///< SpreadMatrix::weights of the layer that is added
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
