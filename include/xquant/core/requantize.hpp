// Coded pages, rewritten in another format: with fewer bits when memory is short, or as another cache has them.
#pragma once

#include <functional>
#include <new>
#include <span>

#include <xquant/core/function_ref.hpp>
#include <xquant/core/operations.hpp>
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
            encode_rows(tag, codec_of(i, stream),
                        backend::Matrix{rows, tokens, encoder.coded_width, encoder.coded_width}, 0, target);
        }
        new_sums.advance(tag, core, i, Serial{});
    }
    to->filled = tokens;
}

/// Replaces a page by another one wherever these sequences have it.
inline void replace_page(Core& core, std::span<const Sequence> sequences, std::size_t page_group, const Page* from,
                         const PageRef& to) {
    for (const Sequence sequence : sequences) {
        for (Segment& segment : core.find(sequence).states[page_group].segments) {
            if (segment.page.get() == from) segment.page = to;
        }
    }
}

/// Whether the work was done; false where memory ran out.
template <class F>
bool fits_into_memory(F&& work) {
#if XQUANT_HAS_EXCEPTIONS
    try {
        work();
        return true;
    } catch (const std::bad_alloc&) {
        return false;
    } catch (const budget_error&) {  // of an accumulator
        return false;
    }
#else
    work();
    return true;
#endif
}

template <class Backend>
Requantized requantize_pages(Backend tag, Core& core, std::span<const Sequence> sequences,
                             FunctionRef<bool(const PageChoice&)> choose) {
    expects<state_error>(core.requantizes(),
                         "requantize: the cache has one quantizer; it needs two: Requantizable<Fresh, Old>");
    for (const Sequence sequence : sequences) static_cast<void>(core.find_idle(sequence));
    Requantized report;
    for (std::size_t page_group = 0; page_group < core.page_groups(); ++page_group) {
        const PageFormat &fresh = core.page_group(page_group).coded, &fewer = core.page_group(page_group).requantized;
        for (std::size_t s = 0; s < sequences.size(); ++s) {
            SequenceState& state = core.find(sequences[s]).states[page_group];
            std::size_t behind = rows_in(state.segments);
            const Page* asked = nullptr;
            for (std::size_t i = 0; i < state.segments.size(); ++i) {
                const Segment& segment = state.segments[i];
                behind -= segment.size();
                const PageRef page = segment.page;
                if (&page->format() != &fresh || page.get() == asked) continue;
                asked = page.get();
                bool earlier = false;  // asked about for an earlier sequence
                for (std::size_t before = 0; before < s; ++before) {
                    earlier |= references_in(core.find(sequences[before]).states[page_group].segments, *asked) > 0;
                }
                const PageChoice about{
                    s, segment.first_position, behind, page->filled, fresh.sizes.total, fewer.sizes.total};
                if (earlier || !choose(about)) continue;
                const bool fits = fits_into_memory([&] {
                    const PageRef made(Page::create(core.ledger(), fewer, false));
                    recode_page(tag, core, page_group, page.get(), made.get(), page->filled,
                                [&](std::size_t layer, std::size_t stream) -> const StreamCodec& {
                                    return core.requantized_codec(layer, stream);
                                });
                    replace_page(core, sequences, page_group, page.get(), made);
                });
                if (!fits) {
                    report.out_of_memory = true;
                    return report;
                }
                ++report.pages;
                report.tokens += about.filled;
                report.bytes_before += fresh.sizes.total;
                report.bytes_after += fewer.sizes.total;
            }
        }
    }
    return report;
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
