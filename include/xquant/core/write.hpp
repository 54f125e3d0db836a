// Writes rows into pages: copied or encoded, from the step's rows or from other pages.
#pragma once

#include <algorithm>

#include <xquant/backend/feedback.hpp>
#include <xquant/core/step_base.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// A write of a plan, for one stream of one layer.
struct StreamWrite {
    const StepPlan& plan;
    const Write& write;
    std::size_t layer, stream;
};

/// Encodes coded rows of a stream, rounded for its metric where the codec asks for it.
template <class Backend>
void encode_coded(Backend tag, Core& core, const StreamCodec& codec, const StreamEncoder& encoder, backend::Matrix rows,
                  std::size_t first, MutableStreamView out) {
    if (!codec.feeds_back) return encode_rows(tag, codec, rows, first, out);
    ScratchPool::Loan scratch(core.scratch(), backend::feedback_scratch(out.format, encoder.feedback));
    encode_with_feedback(tag, codec, encoder.feedback, rows, first, out, scratch.data());
}

/// Encodes the rows of a write into its page. `step_rows` [n, width] are the step's own rows.
template <class Backend>
XQUANT_NOINLINE void run_write(Backend tag, Core& core, const Accumulators& sums, const StreamWrite& of,
                               const float* step_rows) {
    const Write& write = of.write;
    const std::size_t layer = of.layer, stream = of.stream;
    const PreparedLayer& prepared = core.layers()[layer];
    const MutableStreamView target = write.page->stream(prepared.place, stream);
    const StreamEncoder& encoder = prepared.encoders[stream];
    const std::size_t width = encoder.width;
    const bool coded = write.page->format().is_coded();
    if (write.page->companions() != nullptr) core.ledger().companions()->forget(*write.page);
    const StreamCodec codec = coded ? core.codec(layer, stream) : StreamCodec{target.format, nullptr};
    const bool difference = coded && prepared.role == CrossRole::difference;
    const Piece* pieces = of.plan.pieces.data() + write.first_piece;
    if (write.pieces == 1 && pieces->page == nullptr && !difference) {
        encode_coded(tag, core, codec, encoder,
                     backend::Matrix{step_rows + pieces->begin * width, write.count, width, width}, write.slot, target);
        return;
    }
    ScratchPool::Loan scratch(core.scratch(), write.count * width * (difference ? 2 : 1));
    float* rows = scratch.data();
    for (std::size_t i = 0; i < write.pieces; ++i) {
        const Piece& piece = pieces[i];
        if (piece.page == nullptr) {
            std::copy_n(step_rows + piece.begin * width, piece.count * width, rows);
        } else {
            decode_rows(tag, read_only(piece.page->stream(prepared.place, stream)), piece.begin, piece.count, rows);
            // 65504 is 65536 in bf16.
            if (core.options().rows == DType::bf16) clamp_to_f16(rows, piece.count * width);
        }
        rows += piece.count * width;
    }
    rows = scratch.data();
    if (difference) {
        float* coded_rows = rows + write.count * width;
        take_difference(tag, encoder, read_only(sums.view(write.page)), write.slot, write.count, rows, coded_rows);
        encode_coded(tag, core, codec, encoder,
                     backend::Matrix{coded_rows, write.count, encoder.coded_width, encoder.coded_width}, write.slot,
                     target);
    } else {
        encode_coded(tag, core, codec, encoder, backend::Matrix{rows, write.count, width, width}, write.slot, target);
    }
}

/// Encodes all rows of a sequence outside its window, unfinished groups included.
/// Throws std::bad_alloc; nothing has changed then.
template <class Backend>
void seal_sequence(Backend tag, Core& core, Slot& slot) {
    const Undo trim([&core] { core.scratch().trim(); });
    LedgerVector<StepPlan, Purpose::workspace> plans(LedgerAllocator<StepPlan, Purpose::workspace>(core.ledger()));
    plans.reserve(core.page_groups());
    for (std::size_t page_group = 0; page_group < core.page_groups(); ++page_group)
        plans.push_back(core.plan(slot, page_group, 0, true));
    Accumulators sums(core);
    sums.open(core, plans, false);
    for (std::size_t layer = 0; layer < core.layers().size(); ++layer) {
        const PreparedLayer& prepared = core.layers()[layer];
        const StepPlan& plan = plans[prepared.page_group];
        for (const Write& write : plan.writes) {
            for (std::size_t stream = 0; stream < prepared.encoders.size(); ++stream) {
                run_write(tag, core, sums, {plan, write, layer, stream}, nullptr);
            }
        }
        sums.advance(tag, core, layer, Serial{});
    }
    for (std::size_t page_group = 0; page_group < core.page_groups(); ++page_group)
        commit_plan(slot.states[page_group], plans[page_group]);
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
