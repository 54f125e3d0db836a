// Pages: one allocation (two, where rows lie on a device) with some tokens of all layers. What a page holds is fixed by
// its format; a slot that a committed sequence uses never changes, so pages are shared freely and counted.
//
//     Page header | layer 0, stream 0: codes, scales, zeros, outliers | layer 0, stream 1: ... | layer 1 ...
//
// Sections begin at multiples of 64 bytes.
//
// PageKind lists what there is: each kind has a format of its own in each group of layers that share pages.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <span>
#include <utility>
#include <vector>

#include <xquant/storage/ledger.hpp>
#include <xquant/storage/stream.hpp>

namespace xquant {

/// Tokens that a page of newest rows has room for.
inline constexpr std::size_t row_page_tokens = 32;

/// What a page holds. Saved caches have these numbers.
enum class PageKind : std::uint32_t {
    coded,        ///< 128 tokens in codes
    requantized,  ///< 128 tokens, rewritten with fewer bits
    rows,         ///< 32 newest tokens, or tokens that wait for their group to fill, as they are
    sinks,        ///< the first tokens, as they are
    accumulator,  ///< what a cross-layer cache has added up for a coded page, for the length of a step
    rebuilt       ///< the keys of one layer of a coded page in 8 bits, for speed
};

/// What the bytes of a page are counted as.
constexpr Purpose purpose_of(PageKind kind) noexcept {
    return kind == PageKind::rows          ? Purpose::tail
           : kind == PageKind::sinks       ? Purpose::sinks
           : kind == PageKind::accumulator ? Purpose::accumulator
           : kind == PageKind::rebuilt     ? Purpose::rebuilt
                                           : Purpose::codes;
}

/// A page as it is stored, and the slots of it that a sequence uses.
struct PageView {
    PageKind kind = PageKind::coded;  ///< what the page holds
    std::size_t begin = 0,            ///< the first slot that the sequence uses
        end = 0;                      ///< the slot behind the last
    std::int64_t first_position = 0;  ///< of slot `begin`
    std::int64_t rope_lag =
        0;  ///< positions by which the tokens moved since they were stored; stored RoPE lags by as many
    std::span<const std::byte> bytes;  ///< all sections: codes, scales, zeros and outliers, layer by layer
};

inline namespace XQUANT_ABI_NS {
namespace detail {

template <class T, Purpose For>
using LedgerVector = std::vector<T, LedgerAllocator<T, For>>;

/// Empties a list and gives back its memory.
template <class List>
void free_list(List& list) noexcept {
    List(list.get_allocator()).swap(list);
}

constexpr std::size_t round_up(std::size_t n, std::size_t step) noexcept { return (n + step - 1) / step * step; }

/// Where a stream of a layer lies in a page, counted from the page's first byte.
struct PageSection {
    StreamFormat format;
    std::size_t codes = 0, scales = 0, zeros = 0, outliers = 0, indices = 0;
};

/// A section of the page whose offsets are counted from `base`.
XQUANT_DEVICE inline MutableStreamView view_section(const PageSection& section, std::byte* base) noexcept {
    const auto half = [base](std::size_t offset) {
        return offset == 0 ? nullptr : reinterpret_cast<f16*>(base + offset);
    };
    return {section.format,      base + section.codes,   half(section.scales),
            half(section.zeros), half(section.outliers), section.indices == 0 ? nullptr : base + section.indices};
}

/// Bytes of a page, header included.
struct PageSizes {
    std::size_t codes = 0, scales = 0, total = 0;

    /// Enter one more stream; returns where it lies.
    PageSection place(const StreamFormat& format, std::size_t tokens) noexcept {
        const std::size_t code_bytes = format.code_bytes(tokens), scale_bytes = format.scale_bytes(tokens);
        const std::size_t outliers = format.outlier_count(tokens), outlier_bytes = outliers * (sizeof(f16) + 1);
        PageSection section{format.with_room(tokens), total};
        total = round_up(total + code_bytes, 64);
        if (format.quantized()) {
            section.scales = total;
            section.zeros = total + scale_bytes / 2;
            if (!format.stores_zero) section.zeros = 0;
            total = round_up(total + scale_bytes, 64);
        }
        if (outliers > 0) {
            section.outliers = total;
            section.indices = total + outliers * sizeof(f16);
            total = round_up(total + outlier_bytes, 64);
        }
        codes += code_bytes + outlier_bytes;
        scales += scale_bytes;
        return section;
    }
};

/// The layout of every page of one kind.
struct PageFormat {
    PageFormat(Ledger& ledger, PageKind of, std::size_t slots, std::size_t stream_count)
        : kind(of),
          tokens(slots),
          streams(stream_count),
          sections(LedgerAllocator<PageSection, Purpose::index>(ledger)) {}

    /// Whether its tokens are in codes, requantized or not.
    [[nodiscard]] bool is_coded() const noexcept { return kind == PageKind::coded || kind == PageKind::requantized; }
    [[nodiscard]] Purpose purpose() const noexcept { return purpose_of(kind); }

    PageKind kind;
    std::size_t tokens, streams;
    PageSizes sizes;
    LedgerVector<PageSection, Purpose::index> sections;  ///< [layers][streams]
};

class Page {
public:
    /// Throws std::bad_alloc, and budget_error if it is to be `limited`.
    static Page* create(Ledger& ledger, const PageFormat& format, bool limited = true) {
        if (ledger.page_memory() != nullptr) return create_on_device(ledger, format, limited);
        void* memory = ledger.allocate(format.purpose(), format.sizes.total, 64, limited);
        auto* page = ::new (memory) Page(ledger, format, nullptr, static_cast<std::byte*>(memory));
        std::memset(static_cast<std::byte*>(memory) + sizeof(Page), 0, format.sizes.total - sizeof(Page));
        page->enter(&Ledger::add);
        return page;
    }

    /// A page whose bytes lie in memory of someone else, which `owner` keeps. The first page_header_bytes are
    /// overwritten.
    static Page* adopt(Ledger& ledger, const PageFormat& format, std::byte* memory, std::shared_ptr<void> owner) {
        auto* page = ::new (static_cast<void*>(memory)) Page(ledger, format, std::move(owner), memory);
        page->enter(&Ledger::add);
        return page;
    }

    void retain() noexcept { references_.fetch_add(1, std::memory_order_relaxed); }
    void release() noexcept {
        if (references_.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
        if (companions() != nullptr) ledger_->companions()->forget(*this);
        Ledger& ledger = *ledger_;
        const std::size_t bytes = format_->sizes.total;
        const Purpose purpose = format_->purpose();
        enter(&Ledger::subtract);
        const std::shared_ptr<void> owner = std::move(owner_);  // the page lies in what it keeps
        std::byte* rows = on_device() ? base_ + header_bytes() : nullptr;
        this->~Page();
        if (owner != nullptr) return;
        if (rows != nullptr) ledger.release_rows(rows, bytes - header_bytes());
        ledger.release(purpose, this, rows != nullptr ? header_bytes() : bytes, 64);
    }
    [[nodiscard]] std::size_t references() const noexcept { return references_.load(std::memory_order_acquire); }
    [[nodiscard]] const PageFormat& format() const noexcept { return *format_; }

    [[nodiscard]] MutableStreamView stream(std::size_t layer, std::size_t index) noexcept {
        return view_section(format_->sections[layer * format_->streams + index], base_);
    }

    /// What the offsets of sections are counted from. Device memory, if the ledger has memory for pages there.
    [[nodiscard]] std::byte* base() const noexcept { return base_; }

    /// What is kept beside the page, if anything: [layers], null where a layer has nothing. Written by
    /// Ledger::companions alone.
    [[nodiscard]] Page** companions() const noexcept { return companions_.load(std::memory_order_acquire); }
    void set_companions(Page** companions) noexcept { companions_.store(companions, std::memory_order_release); }

    /// How often the page was read lately: what was counted before an epoch counts half, and so on.
    [[nodiscard]] std::uint32_t reads(std::uint32_t epoch) const noexcept {
        return reads_of(reads_.load(std::memory_order_relaxed), epoch);
    }
    /// Counts a read; of two threads' at the same time one may be lost.
    void note_read(std::uint32_t epoch) noexcept {
        const std::uint64_t reads = reads_of(reads_.load(std::memory_order_relaxed), epoch) + std::uint64_t{1};
        reads_.store(std::uint64_t{epoch} << 32U | reads, std::memory_order_relaxed);
    }

    /// Everything after the header.
    [[nodiscard]] std::span<const std::byte> data() const noexcept;
    [[nodiscard]] std::span<std::byte> data() noexcept;

private:
    Page(Ledger& ledger, const PageFormat& format, std::shared_ptr<void> owner, std::byte* base) noexcept
        : ledger_(&ledger), format_(&format), owner_(std::move(owner)), base_(base) {}
    ~Page() = default;

    void enter(void (Ledger::*change)(Purpose, std::size_t) noexcept) noexcept {
        const PageSizes& sizes = format_->sizes;
        if (owner_ != nullptr || format_->kind == PageKind::accumulator || format_->kind == PageKind::rebuilt) {
            (ledger_->*change)(owner_ != nullptr ? Purpose::mapped : format_->purpose(), sizes.total);
            return;
        }
        (ledger_->*change)(format_->purpose(), sizes.codes);
        (ledger_->*change)(Purpose::scales, sizes.scales);
        (ledger_->*change)(Purpose::index, sizes.total - sizes.codes - sizes.scales);
    }

    /// `counted`: reads, and above them the epoch of the last one.
    static constexpr std::uint32_t reads_of(std::uint64_t counted, std::uint32_t epoch) noexcept {
        const std::uint32_t epochs = epoch - static_cast<std::uint32_t>(counted >> 32U);
        return epochs < 32 ? static_cast<std::uint32_t>(counted) >> epochs : 0;
    }

    static Page* create_on_device(Ledger& ledger, const PageFormat& format, bool limited);
    static constexpr std::size_t header_bytes() noexcept;
    [[nodiscard]] bool on_device() const noexcept { return base_ != reinterpret_cast<const std::byte*>(this); }

    Ledger* ledger_;
    const PageFormat* format_;
    std::shared_ptr<void> owner_;
    std::byte* base_;
    std::atomic<std::size_t> references_{1};
    std::atomic<Page**> companions_{nullptr};
    std::atomic<std::uint64_t> reads_{0};  ///< below 32 bits: reads; above: the epoch of the last one
};

/// Bytes before the first section.
inline constexpr std::size_t page_header_bytes = round_up(sizeof(Page), 64);

constexpr std::size_t Page::header_bytes() noexcept { return page_header_bytes; }

inline Page* Page::create_on_device(Ledger& ledger, const PageFormat& format, bool limited) {
    void* memory = ledger.allocate(format.purpose(), page_header_bytes, 64, limited);
    Undo undo([&] { ledger.release(format.purpose(), memory, page_header_bytes, 64); });
    auto* rows = static_cast<std::byte*>(ledger.allocate_rows(format.sizes.total - page_header_bytes, limited));
    undo.release();
    auto* page = ::new (memory) Page(ledger, format, nullptr, rows - page_header_bytes);
    page->enter(&Ledger::add);
    return page;
}

inline std::span<const std::byte> Page::data() const noexcept {
    return {base_ + page_header_bytes, format_->sizes.total - page_header_bytes};
}
inline std::span<std::byte> Page::data() noexcept {
    return {base_ + page_header_bytes, format_->sizes.total - page_header_bytes};
}

/// A counted reference to a page, or none.
class PageRef {
public:
    PageRef() = default;
    explicit PageRef(Page* adopted) noexcept : page_(adopted) {}
    PageRef(const PageRef& other) noexcept : page_(other.page_) {
        if (page_ != nullptr) page_->retain();
    }
    PageRef(PageRef&& other) noexcept : page_(std::exchange(other.page_, nullptr)) {}
    PageRef& operator=(PageRef other) noexcept {
        std::swap(page_, other.page_);
        return *this;
    }
    ~PageRef() {
        if (page_ != nullptr) page_->release();
    }

    [[nodiscard]] Page* get() const noexcept { return page_; }
    Page* operator->() const noexcept { return page_; }
    explicit operator bool() const noexcept { return page_ != nullptr; }

private:
    Page* page_ = nullptr;
};

/// Slots begin .. end of a page, which hold consecutive tokens.
struct Segment {
    PageRef page;
    std::size_t begin = 0, end = 0;
    std::int64_t first_position = 0;
    std::int64_t rope_lag = 0;  ///< positions by which RoPE that is stored lags behind, since the rows moved afterwards

    [[nodiscard]] std::size_t size() const noexcept { return end - begin; }
};

using Segments = LedgerVector<Segment, Purpose::index>;

/// Segments of a list that lie in this page.
inline std::size_t references_in(const Segments& list, const Page& page) noexcept {
    std::size_t count = 0;
    for (const Segment& segment : list) count += segment.page.get() == &page ? 1U : 0U;
    return count;
}

/// Segment lists have room for a multiple of this many, so that what they take follows from their length.
inline constexpr std::size_t segment_step = 16;

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
