// What a step hands to its kernels: its plans as tables in device memory, entered once for all layers, and workspace
// for the largest of them.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include <xquant/core/device/state.cuh>
#include <xquant/core/step_base.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// The tables of one page group's layers.
struct PageGroupTables {
    backend::gpu::StepTable step;
    unsigned writes = 0, gathered = 0, sums = 0, most_rows = 0;
    unsigned decode = 0, prefill = 0;  ///< blocks for DecodeAttention, then those for PrefillAttention
    unsigned prefill_queries = 0;      ///< queries of a block of PrefillAttention
    bool serves_prefill = true;        ///< all layers can: LayerForm
    std::size_t queries_per_kv = 0, kv_heads = 0;

    /// The blocks of EncodeWithFeedback for a layer.
    struct Feedback {
        unsigned shares = 1;     ///< blocks for each write and stream
        std::size_t floats = 0;  ///< scratch of each
    };
    /// As many as keep the device busy, and no more: each has scratch of its own.
    [[nodiscard]] Feedback feedback_of(const Core& core, std::size_t layer, std::size_t at_once) const noexcept {
        using namespace backend::gpu;
        const PreparedLayer& prepared = core.layers()[layer];
        const std::size_t streams = prepared.encoders.size(), blocks = writes * streams;
        Feedback out;
        if (blocks == 0) return out;
        std::size_t parts = 1;
        for (std::size_t s = 0; s < streams; ++s) {
            const StreamCodec& codec = core.codec(layer, s);
            if (!codec.feeds_back) continue;
            const FeedbackView& feedback = prepared.encoders[s].feedback;
            out.floats = (std::max)(out.floats, feedback_workspace(codec.format, feedback, most_rows));
            // A write of fewer rows has fewer parts.
            parts = (std::max)(parts, feedback_parts(codec.format, feedback, most_rows));
        }
        out.shares = static_cast<unsigned>((std::min)(parts, (at_once + blocks - 1) / blocks));
        return out;
    }

    /// Floats of partial results of a layer with kernels for heads of `size` channels.
    [[nodiscard]] std::size_t partial_floats(bool of_prefill, std::size_t layer_kv_heads,
                                             unsigned size) const noexcept {
        const std::size_t queries =
            of_prefill ? std::size_t{prefill} * prefill_queries : decode * backend::gpu::warp_queries;
        return queries * layer_kv_heads * (size + 2);
    }
    /// The step for one of the two kernels.
    [[nodiscard]] backend::gpu::StepTable step_of(bool of_prefill, std::size_t layer_kv_heads,
                                                  unsigned size) const noexcept {
        backend::gpu::StepTable out = step;
        out.queries = of_prefill ? prefill_queries : backend::gpu::warp_queries;
        if (of_prefill) out.blocks += decode;
        if (of_prefill) out.partials += partial_floats(false, layer_kv_heads, size);
        return out;
    }
};

/// Queries of a part that are to be cut into blocks.
struct Cut {
    std::uint32_t first_span, spans, queries;
    const StepSequence* part;
};

/// The most channels that a row of a layer has, as it is given and as it is coded.
struct WidestRows {
    std::size_t given = 0, coded = 0;
};
inline WidestRows widest_rows(const PreparedLayer& layer) noexcept {
    WidestRows widest;
    for (const StreamEncoder& encoder : layer.encoders) {
        widest.given = (std::max)(widest.given, encoder.width);
        widest.coded = (std::max)(widest.coded, encoder.coded_width);
    }
    return widest;
}

/// @tparam Plans  StepPlan [parts][page_groups]
template <class Device, class Plans>
class StepTables {
public:
    StepTables(const Core& core, DeviceState<Device>& state, std::span<const StepSequence> parts, const Plans& plans,
               const Accumulators& sums)
        : core_(&core), state_(&state), parts_(parts), plans_(&plans), sums_(&sums) {}

    /// The tables of every page group. Throws std::bad_alloc, and what the device throws; nothing runs then.
    [[nodiscard]] std::vector<PageGroupTables> make(std::size_t tokens) {
        enter(tokens);
        reserve();
        return std::move(page_groups_);
    }

private:
    /// Enters what the kernels of all layers read, and says where it is.
    void enter(std::size_t total) {
        total_ = total;
        using namespace backend::gpu;
        Packing& all = state_->packing;
        all.clear();
        std::vector<std::int64_t> positions;
        for (const StepSequence& part : parts_) {
            const std::int64_t first = part.first_position - part.slot->states.front().rope_lag;
            for (std::size_t i = 0; i < part.rows; ++i) positions.push_back(first + static_cast<std::int64_t>(i));
        }
        const std::size_t positions_at = all.add(positions);
        page_groups_.resize(core_->page_groups());
        // The widest layer decides into how many blocks a page group's queries are cut.
        for (std::size_t i = 0; i < core_->layers().size(); ++i) {
            const PreparedLayer& layer = core_->layers()[i];
            PageGroupTables& page_group = page_groups_[layer.page_group];
            page_group.queries_per_kv = (std::max)(page_group.queries_per_kv, layer.shape.heads / layer.shape.kv_heads);
            page_group.kv_heads = (std::max)(page_group.kv_heads, layer.shape.kv_heads);
            const unsigned most = prefill_queries(size_of_head(layer.shape.head_dim));
            page_group.prefill_queries =
                page_group.prefill_queries == 0 ? most : (std::min)(page_group.prefill_queries, most);
            page_group.serves_prefill &= state_->form(i).serves_prefill;
        }
        std::vector<SumTable> sums;
        sums_->for_each([&](const Page& page, const Page& sum, std::size_t begin, std::size_t end) {
            sums.push_back(
                {page.base(), sum.base(), static_cast<std::uint32_t>(begin), static_cast<std::uint32_t>(end)});
        });
        const std::size_t sums_at = all.add(sums);
        struct Places {
            std::size_t spans, writes, pieces, blocks;
        };
        std::vector<Places> places;
        for (std::size_t i = 0; i < page_groups_.size(); ++i) {
            PageGroupTables& page_group = page_groups_[i];
            std::vector<SpanTable> spans;
            std::vector<WriteTable> writes;
            std::vector<PieceTable> pieces;
            std::vector<Cut> decode, prefill;
            for (std::size_t p = 0; p < parts_.size(); ++p) {
                const Cut cut =
                    add_part(page_group, (*plans_)[p * page_groups_.size() + i], parts_[p], spans, writes, pieces);
                // Sealed parts read nothing.
                const bool is_prefill = page_group.serves_prefill && cut.queries > warp_queries;
                if (cut.queries > 0) (is_prefill ? prefill : decode).push_back(cut);
            }
            std::vector<BlockTable> blocks;
            page_group.decode = cut_into_blocks(decode, warp_queries, page_group.kv_heads, blocks);
            page_group.prefill = cut_into_blocks(prefill, page_group.prefill_queries, page_group.kv_heads, blocks);
            page_group.writes = static_cast<unsigned>(writes.size());
            page_group.sums = static_cast<unsigned>(sums.size());
            places.push_back({all.add(spans), all.add(writes), all.add(pieces), all.add(blocks)});
        }
        std::byte* base = state_->step_tables.reserve(all.bytes().size());
        for (std::size_t i = 0; i < page_groups_.size(); ++i) {
            StepTable& step = page_groups_[i].step;
            step.spans = reinterpret_cast<const SpanTable*>(base + places[i].spans);
            step.writes = reinterpret_cast<const WriteTable*>(base + places[i].writes);
            step.pieces = reinterpret_cast<const PieceTable*>(base + places[i].pieces);
            step.blocks = reinterpret_cast<const BlockTable*>(base + places[i].blocks);
            step.sums = reinterpret_cast<const SumTable*>(base + sums_at);
            step.positions = reinterpret_cast<const std::int64_t*>(base + positions_at);
            step.bad = state_->bad_rows();
            step.tokens = total_;
        }
        state_->device().to_device(base, all.bytes().data(), all.bytes().size());
    }

    Cut add_part(PageGroupTables& page_group, const StepPlan& plan, const StepSequence& part,
                 std::vector<backend::gpu::SpanTable>& spans, std::vector<backend::gpu::WriteTable>& writes,
                 std::vector<backend::gpu::PieceTable>& pieces) {
        using namespace backend::gpu;
        const auto number = [](std::size_t n) { return static_cast<std::uint32_t>(n); };
        const std::uint32_t first_span = number(spans.size()), first_piece = number(pieces.size());
        for (const Segment& segment : plan.reads) {
            SpanTable span;
            span.begin = number(segment.begin);
            span.end = number(segment.end);
            span.first_position = segment.first_position;
            span.rope_lag = segment.rope_lag;
            if (segment.page) {
                span.page = segment.page->base();
                span.kind = segment.page->format().kind;
                if (span.kind == PageKind::coded) span.sum = sums_->base(segment.page.get());
            }
            spans.push_back(span);
        }
        for (const Piece& piece : plan.pieces) {
            PieceTable entry{nullptr, PageKind::coded, number(piece.begin), number(piece.count)};
            if (piece.page != nullptr) {
                entry.page = piece.page->base();
                entry.kind = piece.page->format().kind;
            } else {
                entry.begin += number(part.first_row);
            }
            pieces.push_back(entry);
        }
        for (const Write& write : plan.writes) {
            WriteTable entry;
            entry.page = write.page->base();
            entry.kind = write.page->format().kind;
            entry.slot = number(write.slot);
            entry.count = number(write.count);
            entry.first_piece = first_piece + number(write.first_piece);
            entry.gathered = page_group.gathered;
            if (entry.kind == PageKind::coded) entry.sum = sums_->base(write.page);
            // What a layer adds to others is taken from copies: attention reads the step's rows as they are.
            entry.direct = write.pieces == 1 && plan.pieces[write.first_piece].page == nullptr && entry.sum == nullptr;
            if (!entry.direct) ++page_group.gathered;
            page_group.most_rows = (std::max)(page_group.most_rows, entry.count);
            writes.push_back(entry);
        }
        return {first_span, number(spans.size()) - first_span, number(part.rows * page_group.queries_per_kv), &part};
    }

    /// Blocks of up to `most` queries against all spans of their parts, or shares of them, as many as keep the device
    /// busy.
    /// @return  how many were added
    unsigned cut_into_blocks(const std::vector<Cut>& cuts, std::uint32_t most, std::size_t kv_heads,
                             std::vector<backend::gpu::BlockTable>& blocks) {
        const std::size_t before = blocks.size();
        const std::uint32_t each = spans_each(cuts, most, kv_heads);
        for (const Cut& cut : cuts) {
            const std::uint32_t splits = (std::max)(1U, (cut.spans + each - 1) / each);
            for (std::uint32_t query = 0; query < cut.queries; query += most) {
                for (std::uint32_t s = 0; s < splits; ++s) {
                    backend::gpu::BlockTable block;
                    block.first_span = cut.first_span + s * each;
                    block.spans = (std::min)(each, cut.spans - s * each);
                    block.part_row = static_cast<std::uint32_t>(cut.part->first_row);
                    block.rows = static_cast<std::uint32_t>(cut.part->rows);
                    block.first_query = query;
                    block.splits = s == 0 ? splits : 0;
                    block.first_position = cut.part->first_position;
                    blocks.push_back(block);
                }
            }
        }
        return static_cast<unsigned>(blocks.size() - before);
    }

    /// How many spans a block should read for the device to be done soonest. Blocks run in rounds of as many as the
    /// device runs at once; a round takes as long as the spans of a block and two more, for its start and for merging.
    [[nodiscard]] std::uint32_t spans_each(const std::vector<Cut>& cuts, std::uint32_t most,
                                           std::size_t kv_heads) const noexcept {
        std::uint32_t longest = 1;
        for (const Cut& cut : cuts) longest = (std::max)(longest, cut.spans);
        std::uint32_t best = longest;
        std::size_t least = static_cast<std::size_t>(-1);
        for (std::uint32_t each = 1;; each = (std::min)(longest, each + 1 + each / 8)) {
            std::size_t count = 0;
            for (const Cut& cut : cuts) {
                count += std::size_t{(cut.queries + most - 1) / most} * ((cut.spans + each - 1) / each) * kv_heads;
            }
            const std::size_t at_once = state_->device().blocks_at_once();
            const std::size_t cost = (count + at_once - 1) / at_once * (each + 2);
            if (cost <= least) best = each;
            least = (std::min)(least, cost);
            if (each == longest) return best;
        }
    }

    /// Workspace for all layers.
    void reserve() {
        std::size_t rows = 0, gathered = 0, differences = 0, feedback = 0, partials = 0, queries = 0;
        for (std::size_t i = 0; i < core_->layers().size(); ++i) {
            const PreparedLayer& layer = core_->layers()[i];
            const PageGroupTables& page_group = page_groups_[layer.page_group];
            std::size_t widths = 0;
            // Rows that are mixed are there twice: as StreamTable::first_unmixed says.
            for (const StreamEncoder& encoder : layer.encoders) {
                widths += encoder.mix != nullptr ? 2 * encoder.width : encoder.width;
            }
            rows = (std::max)(rows, total_ * widths);
            gathered = (std::max)(
                gathered, page_group.gathered * layer.encoders.size() * coded_page_tokens * widest_rows(layer).given);
            if (layer.role == CrossRole::difference) {
                differences =
                    (std::max)(differences, page_group.gathered * coded_page_tokens * widest_rows(layer).coded);
            }
            const auto [shares, floats] = page_group.feedback_of(*core_, i, state_->device().blocks_at_once());
            feedback = (std::max)(feedback, page_group.writes * layer.encoders.size() * shares * floats);
            const std::size_t kv_heads = layer.shape.kv_heads;
            const unsigned size = backend::gpu::size_of_head(layer.shape.head_dim);
            partials = (std::max)(partials, page_group.partial_floats(false, kv_heads, size) +
                                                page_group.partial_floats(true, kv_heads, size));
            const std::size_t channels = (std::max)(layer.shape.head_dim, layer.keys.front().width);
            queries = (std::max)(queries, total_ * layer.shape.heads * channels);
        }
        const auto floats = [](DeviceBuffer<Device>& buffer, std::size_t count) {
            return reinterpret_cast<float*>(buffer.reserve(count * sizeof(float)));
        };
        for (PageGroupTables& page_group : page_groups_) {
            page_group.step.rows = floats(state_->rows, rows);
            page_group.step.gathered = floats(state_->gathered, gathered);
            page_group.step.differences = floats(state_->differences, differences);
            page_group.step.feedback = floats(state_->feedback, feedback);
            page_group.step.partials = floats(state_->partials, partials);
        }
        floats(state_->queries, queries);
    }

    const Core* core_;
    DeviceState<Device>* state_;
    std::span<const StepSequence> parts_;
    const Plans* plans_;
    const Accumulators* sums_;
    std::vector<PageGroupTables> page_groups_;
    std::size_t total_ = 0;
};

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
