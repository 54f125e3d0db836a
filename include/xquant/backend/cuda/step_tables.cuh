// What a step hands to its kernels: its plans as tables in device memory, entered once for all layers, and workspace for the largest
// of them.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include <xquant/backend/cuda/state.cuh>
#include <xquant/detail/accumulate.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// The rows of one sequence in a step.
struct DevicePart {
    Slot* slot;
    std::size_t first_row, rows;
    std::int64_t first_position;
};

/// The tables of one stack's layers.
struct StackTables {
    backend::gpu::StepTable step;
    unsigned writes = 0, gathered = 0, blocks = 0, sums = 0, most_rows = 0;
    std::size_t group = 0, kv_heads = 0;
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
    StepTables(const Core& core, DeviceState<Device>& state, std::span<const DevicePart> parts, const Plans& plans,
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
        for (const DevicePart& part : parts_) {
            const std::int64_t first = part.first_position - part.slot->states.front().moved;
            for (std::size_t i = 0; i < part.rows; ++i) positions.push_back(first + static_cast<std::int64_t>(i));
        }
        const std::size_t positions_at = all.add(positions);
        stacks_.resize(core_->stacks());
        // The widest layer decides into how many blocks a stack's queries are cut.
        for (const PreparedLayer& layer : core_->layers()) {
            StackTables& stack = stacks_[layer.stack];
            stack.group = std::max(stack.group, layer.shape.heads / layer.shape.kv_heads);
            stack.kv_heads = std::max(stack.kv_heads, layer.shape.kv_heads);
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
            std::vector<BlockTable> blocks;
            for (std::size_t p = 0; p < parts_.size(); ++p)
                add_part(stack, (*plans_)[p * stacks_.size() + i], parts_[p], spans, writes, pieces, blocks);
            stack.writes = static_cast<unsigned>(writes.size());
            stack.blocks = static_cast<unsigned>(blocks.size());
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

    void add_part(StackTables& stack, const StepPlan& plan, const DevicePart& part,
                  std::vector<backend::gpu::SpanTable>& spans, std::vector<backend::gpu::WriteTable>& writes,
                  std::vector<backend::gpu::PieceTable>& pieces, std::vector<backend::gpu::BlockTable>& blocks) {
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
        const std::uint32_t count = number(spans.size()) - first_span, queries = number(part.rows * stack.group);
        if (queries == 0) return;  // sealed: nothing is read
        const std::uint32_t groups = (queries + block_queries - 1) / block_queries;
        const std::size_t alone = parts_.size() * groups * stack.kv_heads;
        const auto wanted = number((state_->device().wanted_blocks() + alone - 1) / alone);
        // A split reads 4 spans or more: less, and merging takes longer than reading.
        const std::uint32_t splits = std::clamp<std::uint32_t>(wanted, 1, std::max(1U, count / 4));
        const std::uint32_t each = (count + splits - 1) / splits, some = each == 0 ? 1 : (count + each - 1) / each;
        for (std::uint32_t g = 0; g < groups; ++g) {
            for (std::uint32_t s = 0; s < some; ++s) {
                BlockTable block{first_span + s * each,  std::min(each, count - s * each),
                                 number(part.first_row), number(part.rows),
                                 g * block_queries,      s == 0 ? some : 0,
                                 part.first_position};
                blocks.push_back(block);
            }
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
            backend::gpu::with_size(layer.shape.head_dim, [&](auto size) {
                partials = std::max<std::size_t>(
                    partials, stack.blocks * layer.shape.kv_heads * backend::gpu::block_queries * (size() + 2));
            });
            queries = std::max(queries, total_ * layer.shape.heads * layer.shape.head_dim);
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
    std::span<const DevicePart> parts_;
    const Plans* plans_;
    const Accumulators* sums_;
    std::vector<StackTables> stacks_;
    std::size_t total_ = 0;
};

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
