// What a step hands to its kernels: its plans as tables in device memory, entered once for all layers, and workspace for the largest
// of them.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include <xquant/core/device/state.cuh>
#include <xquant/core/step_base.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// The tables of one stack's layers.
struct StackTables {
    backend::gpu::StepTable step;
    unsigned writes = 0, gathered = 0, sums = 0, most_rows = 0;
    unsigned few = 0, many = 0;  ///< blocks for AttendBlock, then those for AttendMany
    unsigned many_queries = 0;   ///< of one of the latter
    bool serves_many = true;     ///< all layers can: LayerForm
    std::size_t group = 0, kv_heads = 0;

    /// Floats of partial results of a layer with kernels for heads of `size` channels.
    [[nodiscard]] std::size_t partial_floats(bool of_many, std::size_t layer_kv_heads, unsigned size) const noexcept {
        const std::size_t queries = of_many ? std::size_t{many} * many_queries : few * backend::gpu::warp_queries;
        return queries * layer_kv_heads * (size + 2);
    }
    /// The step for one of the two kernels.
    [[nodiscard]] backend::gpu::StepTable step_of(bool of_many, std::size_t layer_kv_heads,
                                                  unsigned size) const noexcept {
        backend::gpu::StepTable out = step;
        out.queries = of_many ? many_queries : backend::gpu::warp_queries;
        if (of_many) out.blocks += few;
        if (of_many) out.partials += partial_floats(false, layer_kv_heads, size);
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
        widest.given = std::max(widest.given, encoder.width);
        widest.coded = std::max(widest.coded, encoder.coded_width);
    }
    return widest;
}

/// @tparam Plans  StepPlan [parts][stacks]
template <class Device, class Plans>
class StepTables {
public:
    StepTables(const Core& core, DeviceState<Device>& state, std::span<const StepSequence> parts, const Plans& plans,
               const Accumulators& sums)
        : core_(&core), state_(&state), parts_(parts), plans_(&plans), sums_(&sums) {}

    /// The tables of every stack. Throws std::bad_alloc, and what the device throws; nothing runs then.
    [[nodiscard]] std::vector<StackTables> make(std::size_t tokens) {
        enter(tokens);
        reserve();
        return std::move(stacks_);
    }

private:
    static backend::gpu::PageKind kind_of(const Page& page) noexcept {
        switch (page.format().purpose) {
            case Purpose::tail:
                return backend::gpu::PageKind::rows;
            case Purpose::sinks:
                return backend::gpu::PageKind::sinks;
            default:
                return backend::gpu::PageKind::coded;
        }
    }

    /// Enters what the kernels of all layers read, and says where it is.
    void enter(std::size_t total) {
        total_ = total;
        using namespace backend::gpu;
        Packing& all = state_->packing;
        all.clear();
        std::vector<std::int64_t> positions;
        for (const StepSequence& part : parts_) {
            const std::int64_t first = part.first_position - part.slot->states.front().moved;
            for (std::size_t i = 0; i < part.rows; ++i) positions.push_back(first + static_cast<std::int64_t>(i));
        }
        const std::size_t positions_at = all.add(positions);
        stacks_.resize(core_->stacks());
        // The widest layer decides into how many blocks a stack's queries are cut.
        for (std::size_t i = 0; i < core_->layers().size(); ++i) {
            const PreparedLayer& layer = core_->layers()[i];
            StackTables& stack = stacks_[layer.stack];
            stack.group = std::max(stack.group, layer.shape.heads / layer.shape.kv_heads);
            stack.kv_heads = std::max(stack.kv_heads, layer.shape.kv_heads);
            const unsigned most = many_queries(size_of_head(layer.shape.head_dim));
            stack.many_queries = stack.many_queries == 0 ? most : std::min(stack.many_queries, most);
            stack.serves_many &= state_->form(i).serves_many;
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
        for (std::size_t i = 0; i < stacks_.size(); ++i) {
            StackTables& stack = stacks_[i];
            std::vector<SpanTable> spans;
            std::vector<WriteTable> writes;
            std::vector<PieceTable> pieces;
            std::vector<Cut> few, many;
            for (std::size_t p = 0; p < parts_.size(); ++p) {
                const Cut cut = add_part(stack, (*plans_)[p * stacks_.size() + i], parts_[p], spans, writes, pieces);
                // Sealed parts read nothing.
                const bool is_many = stack.serves_many && cut.queries > warp_queries;
                if (cut.queries > 0) (is_many ? many : few).push_back(cut);
            }
            std::vector<BlockTable> blocks;
            stack.few = cut_into_blocks(few, warp_queries, stack.kv_heads, blocks);
            stack.many = cut_into_blocks(many, stack.many_queries, stack.kv_heads, blocks);
            stack.writes = static_cast<unsigned>(writes.size());
            stack.sums = static_cast<unsigned>(sums.size());
            places.push_back({all.add(spans), all.add(writes), all.add(pieces), all.add(blocks)});
        }
        std::byte* base = state_->step_tables.reserve(all.bytes().size());
        for (std::size_t i = 0; i < stacks_.size(); ++i) {
            StepTable& step = stacks_[i].step;
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

    Cut add_part(StackTables& stack, const StepPlan& plan, const StepSequence& part,
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
            span.moved = segment.moved;
            if (segment.page) {
                span.page = segment.page->base();
                span.kind = kind_of(*segment.page.get());
                if (span.kind == PageKind::coded) span.sum = sums_->base(segment.page.get());
            }
            spans.push_back(span);
        }
        for (const Piece& piece : plan.pieces) {
            PieceTable entry{nullptr, PageKind::step, number(piece.begin), number(piece.count)};
            if (piece.page != nullptr) {
                entry.page = piece.page->base();
                entry.kind = kind_of(*piece.page);
            } else {
                entry.begin += number(part.first_row);
            }
            pieces.push_back(entry);
        }
        for (const Write& write : plan.writes) {
            WriteTable entry;
            entry.page = write.page->base();
            entry.kind = kind_of(*write.page);
            entry.slot = number(write.slot);
            entry.count = number(write.count);
            entry.first_piece = first_piece + number(write.first_piece);
            entry.gathered = stack.gathered;
            if (entry.kind == PageKind::coded) entry.sum = sums_->base(write.page);
            // What a layer adds to others is taken from copies: attention reads the step's rows as they are.
            entry.direct = write.pieces == 1 && plan.pieces[write.first_piece].page == nullptr && entry.sum == nullptr;
            if (!entry.direct) ++stack.gathered;
            stack.most_rows = std::max(stack.most_rows, entry.count);
            writes.push_back(entry);
        }
        return {first_span, number(spans.size()) - first_span, number(part.rows * stack.group), &part};
    }

    /// Blocks of up to `most` queries against all spans of their parts, or shares of them, as many as keep the device busy.
    /// @return  how many were added
    unsigned cut_into_blocks(const std::vector<Cut>& cuts, std::uint32_t most, std::size_t kv_heads,
                             std::vector<backend::gpu::BlockTable>& blocks) {
        const std::size_t before = blocks.size();
        const std::uint32_t each = spans_each(cuts, most, kv_heads);
        for (const Cut& cut : cuts) {
            const std::uint32_t splits = std::max(1U, (cut.spans + each - 1) / each);
            for (std::uint32_t query = 0; query < cut.queries; query += most) {
                for (std::uint32_t s = 0; s < splits; ++s) {
                    backend::gpu::BlockTable block;
                    block.first_span = cut.first_span + s * each;
                    block.spans = std::min(each, cut.spans - s * each);
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

    /// Spans for a block to read, so that the device is done soonest: rounds of as many blocks as it runs at once, each as long as its
    /// spans and two more, for the start and for the merging of what was split.
    [[nodiscard]] std::uint32_t spans_each(const std::vector<Cut>& cuts, std::uint32_t most,
                                           std::size_t kv_heads) const noexcept {
        std::uint32_t longest = 1;
        for (const Cut& cut : cuts) longest = std::max(longest, cut.spans);
        std::uint32_t best = longest;
        std::size_t least = static_cast<std::size_t>(-1);
        for (std::uint32_t each = 1;; each = std::min(longest, each + 1 + each / 8)) {
            std::size_t count = 0;
            for (const Cut& cut : cuts) {
                count += std::size_t{(cut.queries + most - 1) / most} * ((cut.spans + each - 1) / each) * kv_heads;
            }
            const std::size_t at_once = state_->device().blocks_at_once();
            const std::size_t cost = (count + at_once - 1) / at_once * (each + 2);
            if (cost <= least) best = each;
            least = std::min(least, cost);
            if (each == longest) return best;
        }
    }

    /// Workspace for all layers.
    void reserve() {
        std::size_t rows = 0, gathered = 0, differences = 0, partials = 0, queries = 0;
        for (const PreparedLayer& layer : core_->layers()) {
            const StackTables& stack = stacks_[layer.stack];
            std::size_t widths = 0;
            for (const StreamEncoder& encoder : layer.encoders) widths += encoder.width;
            rows = std::max(rows, total_ * widths);
            gathered = std::max(gathered,
                                stack.gathered * layer.encoders.size() * coded_page_tokens * widest_rows(layer).given);
            if (layer.role == CrossRole::difference) {
                differences = std::max(differences, stack.gathered * coded_page_tokens * widest_rows(layer).coded);
            }
            const std::size_t kv_heads = layer.shape.kv_heads;
            const unsigned size = backend::gpu::size_of_head(layer.shape.head_dim);
            partials = std::max(
                partials, stack.partial_floats(false, kv_heads, size) + stack.partial_floats(true, kv_heads, size));
            const std::size_t channels = std::max(layer.shape.head_dim, layer.keys.front().width);
            queries = std::max(queries, total_ * layer.shape.heads * channels);
        }
        const auto floats = [](DeviceBuffer<Device>& buffer, std::size_t count) {
            return reinterpret_cast<float*>(buffer.reserve(count * sizeof(float)));
        };
        for (StackTables& stack : stacks_) {
            stack.step.rows = floats(state_->rows, rows);
            stack.step.gathered = floats(state_->gathered, gathered);
            stack.step.differences = floats(state_->differences, differences);
            stack.step.partials = floats(state_->partials, partials);
        }
        floats(state_->queries, queries);
    }

    const Core* core_;
    DeviceState<Device>* state_;
    std::span<const StepSequence> parts_;
    const Plans* plans_;
    const Accumulators* sums_;
    std::vector<StackTables> stacks_;
    std::size_t total_ = 0;
};

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
