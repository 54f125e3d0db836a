// Coded pages, rewritten in another format: with fewer bits when memory is short, or as another cache has them.
#pragma once

#include <algorithm>
#include <functional>
#include <span>

#include <xquant/core/function_ref.hpp>
#include <xquant/core/operations.hpp>
#include <xquant/core/out_of_memory.hpp>
#include <xquant/core/write.hpp>

namespace xquant {

inline namespace XQUANT_ABI_NS {
namespace detail {

/// Decodes the first `tokens` slots of a coded page and encodes them into another one, by
/// codec_of(layer, stream) -> const StreamCodec&. Layers that store differences are added up, and new differences are
/// taken against the new sums, so that errors do not pile up.
/// Throws std::bad_alloc.
template <class Backend, class CodecOf>
void recode_page(Backend tag, Core& core, std::size_t page_group, Page* from, Page* to, std::size_t tokens,
                 CodecOf&& codec_of) {
    Accumulators old_sums(core), new_sums(core);
    old_sums.hold(core, from, tokens);
    new_sums.hold(core, to, tokens);
    for (std::size_t i = 0; i < core.layers().size(); ++i) {
        const PreparedLayer& layer = core.layers()[i];
        if (layer.page_group != page_group) continue;
        old_sums.advance(tag, core, i, Serial{});
        for (std::size_t stream = 0; stream < layer.encoders.size(); ++stream) {
            const StreamEncoder& encoder = layer.encoders[stream];
            const MutableStreamView target = to->stream(layer.place, stream);
            const std::size_t width = (std::max)(encoder.width, encoder.coded_width);
            ScratchPool::Loan scratch(core.scratch(), 2 * tokens * width);
            float* rows = scratch.data();
            const bool difference = layer.role == CrossRole::difference;
            const StreamView source =
                difference ? read_only(old_sums.view(from)) : read_only(from->stream(layer.place, stream));
            decode_rows(tag, source, 0, tokens, rows);
            if (difference) {
                float* coded = rows + tokens * width;
                take_difference(tag, encoder, read_only(new_sums.view(to)), 0, tokens, rows, coded);
                rows = coded;
            } else {
                // What a scale and a zero of f16 make of a code may lie beyond the largest f16.
                clamp_to_f16(rows, tokens * encoder.coded_width);
            }
            encode_coded(tag, core, codec_of(i, stream), encoder,
                         backend::Matrix{rows, tokens, encoder.coded_width, encoder.coded_width}, 0, target);
        }
        new_sums.advance(tag, core, i, Serial{});
    }
}

/// A segment in a page that may be requantized.
struct PageUse {
    const Page* page = nullptr;
    Segment* segment = nullptr;
    std::size_t sequence = 0;  ///< its number in the list
    std::size_t behind = 0;    ///< tokens of the sequence behind the segment

    /// In the order in which pages are asked about.
    [[nodiscard]] bool comes_before(const PageUse& other) const noexcept {
        return sequence != other.sequence ? sequence < other.sequence : std::less<>()(segment, other.segment);
    }
};

/// The pages of some sequences that may be requantized, each once, with all segments in it. Made in one pass over the
/// sequences, and by sorting.
class PageUses {
    template <class T>
    using Work = LedgerVector<T, Purpose::workspace>;

    /// Uses begin .. end are those of one page, the first one in front.
    struct Group {
        std::size_t begin = 0, end = 0;
    };

public:
    explicit PageUses(Core& core)
        : core_(&core),
          uses_(LedgerAllocator<PageUse, Purpose::workspace>(core.ledger())),
          pages_(LedgerAllocator<Group, Purpose::workspace>(core.ledger())) {}

    /// Throws std::bad_alloc, budget_error.
    void find(std::span<const Sequence> sequences, std::size_t page_group) {
        const PageFormat& fresh = core_->page_group(page_group).coded;
        for (std::size_t s = 0; s < sequences.size(); ++s) {
            Segments& segments = core_->find(sequences[s]).states[page_group].segments;
            std::size_t behind = rows_in(segments);
            for (Segment& segment : segments) {
                behind -= segment.size();
                if (&segment.page->format() == &fresh) uses_.push_back({segment.page.get(), &segment, s, behind});
            }
        }
        std::sort(uses_.begin(), uses_.end(), [](const PageUse& a, const PageUse& b) {
            return a.page != b.page ? std::less<>()(a.page, b.page) : a.comes_before(b);
        });
        for (std::size_t i = 0; i < uses_.size(); ++i) {
            if (i == 0 || uses_[i].page != uses_[i - 1].page) pages_.push_back({i, i});
            pages_.back().end = i + 1;
        }
        std::sort(pages_.begin(), pages_.end(),
                  [this](const Group& a, const Group& b) { return uses_[a.begin].comes_before(uses_[b.begin]); });
    }

    [[nodiscard]] std::size_t size() const noexcept { return pages_.size(); }
    /// The segments in page i, that of the earliest sequence first.
    [[nodiscard]] std::span<const PageUse> operator[](std::size_t i) const noexcept {
        return std::span<const PageUse>(uses_).subspan(pages_[i].begin, pages_[i].end - pages_[i].begin);
    }

private:
    Core* core_;
    Work<PageUse> uses_;
    Work<Group> pages_;
};

template <class Backend>
Requantized requantize_pages(Backend tag, Core& core, std::span<const Sequence> sequences,
                             FunctionRef<bool(const PageChoice&)> choose) {
    expects<state_error>(core.requantizes(),
                         "requantize: the cache has one quantizer; it needs two: Requantizable<Fresh, Old>");
    for (const Sequence sequence : sequences) static_cast<void>(core.find_idle(sequence));
    const Undo trim([&core] { core.scratch().trim(); });
    Requantized report;
    for (std::size_t page_group = 0; page_group < core.page_groups(); ++page_group) {
        const PageFormat &fresh = core.page_group(page_group).coded, &fewer = core.page_group(page_group).requantized;
        PageUses pages(core);
        report.out_of_memory = !fits_into_memory([&] { pages.find(sequences, page_group); });
        if (report.out_of_memory) return report;
        for (std::size_t i = 0; i < pages.size(); ++i) {
            const PageUse& first = pages[i].front();
            std::size_t filled = 0;
            for (const PageUse& use : pages[i]) filled = (std::max)(filled, use.segment->end);
            const PageChoice about{first.sequence,    first.segment->first_position,
                                   first.behind,      filled,
                                   fresh.sizes.total, fewer.sizes.total};
            if (!choose(about)) continue;
            report.out_of_memory = !fits_into_memory([&] {
                const PageRef made(Page::create(core.ledger(), fewer, false));
                recode_page(tag, core, page_group, first.segment->page.get(), made.get(), filled,
                            [&](std::size_t layer, std::size_t stream) -> const StreamCodec& {
                                return core.requantized_codec(layer, stream);
                            });
                for (const PageUse& use : pages[i]) use.segment->page = made;
            });
            if (report.out_of_memory) return report;
            ++report.pages;
            report.tokens += filled;
            report.bytes_before += fresh.sizes.total;
            report.bytes_after += fewer.sizes.total;
        }
    }
    return report;
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
