// Rebuilt keys: K of coded pages as queries meet it, kept in 8 bits beside them, layer by layer, while there is room
// (Options::rebuilt). Which pages have them follows from how often each was read lately.
//
//     rebuilt page   Page header | RebuiltNote | codes, scales, zeros [128 tokens][Hkv groups of Dh]
//
// A coded page points to a table of its rebuilt pages, one entry for each layer; those of one layer form a ring. All of
// it belongs to the table's page: it is freed when that page is, or when its rows change. What attention is reading
// stays until it has ended, but is no longer part of the budget.
// Threads  Everything under one lock. It is never held when something else than rebuilt keys is allocated.
#pragma once

#include <algorithm>
#include <atomic>
#include <mutex>
#include <new>
#include <utility>

#include <xquant/core/make_codec.hpp>
#include <xquant/layout.hpp>
#include <xquant/quantizer/uniform.hpp>
#include <xquant/storage/page.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// How keys are kept: K of a head and token is a group.
inline StreamCodec rebuilt_codec(std::size_t heads, std::size_t head_dim) {
    StreamCodec codec = make_codec<Uniform<8, 128>, PerToken>(heads * head_dim);
    codec.format.group_channels = static_cast<std::uint32_t>(head_dim);
    return codec;
}

/// What a rebuilt page is, behind its header.
struct RebuiltNote {
    Page* of;               ///< the page whose keys these are; null: they gave way, and a reader has them still
    Page *previous, *next;  ///< rebuilt pages of the same layer, in a ring
    std::size_t layer;      ///< whose keys they are
    std::int64_t position;  ///< that slot 0 stood at when they were turned
    bool ready;             ///< they are there
};

class RebuiltPages final : public PageCompanions {
public:
    explicit RebuiltPages(Ledger& ledger)
        : ledger_(&ledger), layers_(LedgerAllocator<LayerPages, Purpose::index>(ledger)) {}

    /// At construction of the cache: makes room for so many layers, which are added in order.
    void reserve(std::size_t layers) {
        layers_.reserve(layers);
        ledger_->set_companions(this);
    }
    /// A layer; `readers`: layers that read its pages and have rebuilt keys, 0: it has none.
    void add_layer(std::size_t heads, std::size_t head_dim, std::size_t readers) {
        LayerPages& layer = layers_.emplace_back(*ledger_, rebuilt_codec(heads, head_dim), readers);
        served_ += readers > 0 ? 1U : 0U;
        if (readers == 0) return;
        layer.format.sections.reserve(1);
        layer.format.sizes.total = page_header_bytes + round_up(sizeof(RebuiltNote), 64);
        layer.format.sections.push_back(layer.format.sizes.place(layer.codec.format, layer.format.tokens));
    }
    /// Bytes of the first keys that a page gets, for the layer where they are fewest; 0: no layer has any. Once all
    /// layers were added.
    [[nodiscard]] std::size_t least_bytes() const noexcept {
        std::size_t least = 0;
        for (const LayerPages& layer : layers_) {
            if (layer.readers > 0 && (least == 0 || layer.format.sizes.total < least)) least = layer.format.sizes.total;
        }
        return least == 0 ? 0 : least + table_bytes();
    }

    /// Whether the layer may have rebuilt keys.
    [[nodiscard]] bool serves(std::size_t layer) const noexcept {
        return layer < layers_.size() && layers_[layer].readers > 0;
    }
    [[nodiscard]] const StreamCodec& codec(std::size_t layer) const noexcept { return layers_[layer].codec; }

    /// A layer is read: the epoch in which that is. An epoch is 64 reads of each layer.
    [[nodiscard]] std::uint32_t start_read() noexcept {
        return epoch_of(clock_.fetch_add(1, std::memory_order_relaxed));
    }
    /// Whether a page is read often enough that keys are kept for it at all: that a third read is under way. Rows that
    /// are read while a prompt comes in, and never again, are not worth it.
    [[nodiscard]] bool is_read(const Page& page, std::size_t layer, std::uint32_t epoch) const noexcept {
        return page.reads(epoch) > 2 * layers_[layer].readers;
    }

    /// The keys of a page for a layer, if they are there. Whoever has them may read them until he lets go.
    [[nodiscard]] PageRef find(const Page& page, std::size_t layer) noexcept {
        if (page.companions() == nullptr) return {};
        const std::lock_guard lock(mutex_);
        Page* const keys = keys_of(page, layer);
        if (keys == nullptr || !note_of(*keys).ready) return {};
        return retained(keys);
    }
    /// Where slot 0 of their page stood when keys were turned.
    [[nodiscard]] static std::int64_t position_of(const Page& keys) noexcept { return note_of(keys).position; }

    /// Room for the keys of a page, or none: where it has some, where there is no room, and no page of the layer that
    /// is read clearly less. Whoever gets it fills it, and says that they are ready or drops them.
    /// Throws std::bad_alloc. Cost: a look at 32 pages.
    [[nodiscard]] PageRef make(Page& of, std::size_t layer, std::int64_t position, std::uint32_t epoch) {
        const std::lock_guard lock(mutex_);
        if (keys_of(of, layer) != nullptr) return {};
        LayerPages& in = layers_[layer];
        const std::size_t more = of.companions() == nullptr ? table_bytes() : 0;
        const std::size_t bytes = in.format.sizes.total + more;
        if (!ledger_->try_enter_rebuilt(bytes)) {
            Page* const least = least_read(in, epoch);
            if (least == nullptr) return {};
            const std::size_t other = note_of(*least).of->reads(epoch);
            if (of.reads(epoch) <= 2 * other + clearly * in.readers) return {};
            drop(*least);
            if (!ledger_->try_enter_rebuilt(bytes)) return {};
        }
        Undo leave([&] { ledger_->leave_rebuilt(bytes); });
        void* const table = more == 0 ? nullptr : ledger_->allocate(Purpose::rebuilt, more, 64);
        Undo free_table([&] {
            if (table != nullptr) ledger_->release(Purpose::rebuilt, table, more, 64);
        });
        Page* const keys = Page::create(*ledger_, in.format);
        free_table.release();
        leave.release();
        if (table != nullptr) {
            ledger_->add(Purpose::rebuilt, more);
            auto** const entries = static_cast<Page**>(table);
            std::fill_n(entries, layers_.size(), nullptr);
            of.set_companions(entries);
        }
        of.companions()[layer] = keys;
        Page* const next = in.hand == nullptr ? keys : in.hand;
        Page* const previous = in.hand == nullptr ? keys : note_of(*next).previous;
        ::new (static_cast<void*>(keys->data().data())) RebuiltNote{&of, previous, next, layer, position, false};
        note_of(*previous).next = keys;
        note_of(*next).previous = keys;
        in.hand = next;
        return retained(keys);
    }
    /// Keys can be read from here on, unless they gave way meanwhile.
    void set_ready(Page& keys) noexcept {
        const std::lock_guard lock(mutex_);
        note_of(keys).ready = true;
    }
    /// Keys that could not be made.
    void give_up(Page& keys) noexcept {
        const std::lock_guard lock(mutex_);
        if (note_of(keys).of != nullptr) drop(keys);
    }

    void forget(Page& page) noexcept override {
        const std::lock_guard lock(mutex_);
        for (std::size_t layer = 0; layer < layers_.size() && page.companions() != nullptr; ++layer) {
            if (Page* const keys = keys_of(page, layer)) drop(*keys);
        }
    }

    /// Layers give way in turn.
    bool give_way() noexcept override {
        const std::lock_guard lock(mutex_);
        const std::uint32_t epoch = epoch_of(clock_.load(std::memory_order_relaxed));
        for (std::size_t i = 0; i < layers_.size(); ++i) {
            LayerPages& layer = layers_[yielding_];
            yielding_ = (yielding_ + 1) % layers_.size();
            if (Page* const least = least_read(layer, epoch)) {
                drop(*least);
                return true;
            }
        }
        return false;
    }

private:
    struct LayerPages {
        LayerPages(Ledger& ledger, const StreamCodec& keys, std::size_t reading)
            : format(ledger, PageKind::rebuilt, coded_page_tokens, 1), codec(keys), readers(reading) {}

        PageFormat format;
        StreamCodec codec;
        std::size_t readers;   ///< a page counts a read for each of so many layers
        Page* hand = nullptr;  ///< of the ring, where the next search begins; null: it is empty
    };

    static constexpr std::size_t looks = 32;          ///< pages that a search looks at
    static constexpr std::size_t clearly = 8;         ///< reads beyond twice those of another page
    static constexpr std::uint64_t epoch_reads = 64;  ///< of each layer

    static RebuiltNote& note_of(Page& keys) noexcept {
        return *std::launder(reinterpret_cast<RebuiltNote*>(keys.data().data()));
    }
    static const RebuiltNote& note_of(const Page& keys) noexcept {
        return *std::launder(reinterpret_cast<const RebuiltNote*>(keys.data().data()));
    }
    static PageRef retained(Page* page) noexcept {
        page->retain();
        return PageRef(page);
    }
    static Page* keys_of(const Page& page, std::size_t layer) noexcept {
        Page** const table = page.companions();
        return table == nullptr ? nullptr : table[layer];
    }
    /// Of the table of a page.
    [[nodiscard]] std::size_t table_bytes() const noexcept { return layers_.size() * sizeof(Page*); }
    [[nodiscard]] std::uint32_t epoch_of(std::uint64_t clock) const noexcept {
        return static_cast<std::uint32_t>(clock / (epoch_reads * (std::max<std::size_t>)(served_, 1)));
    }

    /// The page that is read least of the next ones in a layer's ring, or null.
    static Page* least_read(LayerPages& layer, std::uint32_t epoch) noexcept {
        Page *const first = layer.hand, *least = first;
        if (first == nullptr) return nullptr;
        Page* at = first;
        for (std::size_t i = 0; i < looks; ++i) {
            if (note_of(*at).of->reads(epoch) < note_of(*least).of->reads(epoch)) least = at;
            at = note_of(*at).next;
            if (at == first) break;
        }
        layer.hand = at;
        return least;
    }

    /// Takes keys from their page. They are freed, now or by the last one who reads them.
    void drop(Page& keys) noexcept {
        RebuiltNote& note = note_of(keys);
        LayerPages& layer = layers_[note.layer];
        note_of(*note.previous).next = note.next;
        note_of(*note.next).previous = note.previous;
        if (layer.hand == &keys) layer.hand = note.next == &keys ? nullptr : note.next;
        Page& of = *std::exchange(note.of, nullptr);
        Page** const table = of.companions();
        table[note.layer] = nullptr;
        ledger_->leave_rebuilt(layer.format.sizes.total);
        keys.release();
        const std::size_t bytes = table_bytes();
        if (std::any_of(table, table + layers_.size(), [](const Page* entry) { return entry != nullptr; })) return;
        of.set_companions(nullptr);
        ledger_->subtract(Purpose::rebuilt, bytes);
        ledger_->release(Purpose::rebuilt, table, bytes, 64);
        ledger_->leave_rebuilt(bytes);
    }

    Ledger* ledger_;
    std::mutex mutex_;
    LedgerVector<LayerPages, Purpose::index> layers_;
    std::size_t served_ = 0;    ///< layers that may have rebuilt keys
    std::size_t yielding_ = 0;  ///< the layer whose turn it is to give way
    std::atomic<std::uint64_t> clock_{0};
};

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
