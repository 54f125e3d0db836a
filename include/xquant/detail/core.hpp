// The cache behind XCache's types: layers, page formats, sequences. Policies have become data by now, so this is compiled
// once for each backend, whatever the number of schemes.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include <xquant/backend/backend.hpp>
#include <xquant/detail/prepared.hpp>
#include <xquant/error.hpp>
#include <xquant/storage/step_plan.hpp>

namespace xquant {

/// Settings of a cache. Sizes are in tokens.
struct Options {
    std::size_t sinks = 4;     ///< first tokens of a sequence, kept in f16: they decide quality out of proportion
    std::size_t recent = 128;  ///< newest tokens kept in f16
    DType rows = DType::f16;   ///< what sinks and newest tokens are kept in; f32 and bf16 are possible
    /// Queries read every row outside the sinks and the window from codes, those of their own step included.
    bool strict = false;
    std::pmr::memory_resource* memory = nullptr;  ///< where everything is allocated; null: the default resource
};

/// A sequence of a cache. A plain handle; using it after drop() is an error that is caught.
struct Sequence {
    std::uint64_t id = 0;
    friend bool operator==(Sequence, Sequence) = default;
};

/// n new tokens of a sequence.
struct StepPart {
    Sequence sequence;
    std::size_t tokens = 0;
};

inline namespace XQUANT_ABI_NS {
namespace detail {

/// Scratch memory for tasks that run side by side: taken for the length of a task, kept for the next one.
class ScratchPool {
public:
    using Buffer = LedgerVector<float, Purpose::workspace>;

    explicit ScratchPool(Ledger& ledger)
        : free_(LedgerAllocator<Buffer, Purpose::workspace>(ledger)), ledger_(&ledger) {}

    class Loan {
    public:
        Loan(ScratchPool& pool, std::size_t floats) : pool_(&pool), buffer_(pool.take(floats)) {}
        Loan(const Loan&) = delete;
        Loan& operator=(const Loan&) = delete;
        ~Loan() { pool_->put(std::move(buffer_)); }
        [[nodiscard]] float* data() noexcept { return buffer_.data(); }

    private:
        ScratchPool* pool_;
        Buffer buffer_;
    };

private:
    Buffer take(std::size_t floats) {
        Buffer buffer(LedgerAllocator<float, Purpose::workspace>{*ledger_});
        {
            const std::lock_guard lock(mutex_);
            if (!free_.empty()) {
                buffer = std::move(free_.back());
                free_.pop_back();
            }
            // Room to give every buffer back without allocating.
            free_.reserve(++lent_ + free_.size());
        }
        if (buffer.size() < floats) {
            buffer.clear();
            buffer.shrink_to_fit();
            buffer.resize(floats);
        }
        return buffer;
    }
    void put(Buffer buffer) noexcept {
        const std::lock_guard lock(mutex_);
        --lent_;
        free_.push_back(std::move(buffer));
    }

    std::mutex mutex_;
    LedgerVector<Buffer, Purpose::workspace> free_;
    std::size_t lent_ = 0;
    Ledger* ledger_;
};

/// How the tail and the sinks keep rows of a stream.
constexpr StreamFormat exact_rows(std::uint32_t width, DType type) noexcept {
    const CodeKind kind = type == DType::f32 ? CodeKind::f32 : type == DType::f16 ? CodeKind::f16 : CodeKind::bf16;
    return {width, 1, width, kind, static_cast<std::uint8_t>(8 * size_of(type)), false, 0, nullptr};
}

struct Slot {
    SequenceState state;
    std::uint32_t generation = 0;
    bool used = false, busy = false;
};

inline constexpr std::size_t slot_step = 16;

class Core {
public:
    /// What one layer is made of, after its policies had their say.
    struct LayerParts {
        LayerPlan plan;
        std::vector<StreamCodec> codecs;
    };

    Core(const Options& options, std::size_t layer_count, std::size_t stream_count)
        : options_(options),
          ledger_(options.memory),
          layers_(LedgerAllocator<PreparedLayer, Purpose::weights>(ledger_)),
          ropes_(LedgerAllocator<RopeTable, Purpose::weights>(ledger_)),
          codecs_(LedgerAllocator<StreamCodec, Purpose::index>(ledger_)),
          coded_(ledger_, Purpose::codes, coded_page_tokens, stream_count),
          rows_(ledger_, Purpose::tail, row_page_tokens, stream_count),
          sinks_(ledger_, Purpose::sinks, options.sinks, stream_count),
          slots_(LedgerAllocator<Slot, Purpose::index>(ledger_)),
          scratch_(ledger_) {
        expects(layer_count > 0, "a model needs at least one layer");
        expects(options.sinks <= 4096, "sinks: at most 4096 tokens");
        expects(options.recent <= (std::size_t{1} << 20U), "recent: at most 1048576 tokens");
        layers_.reserve(layer_count);
        ropes_.reserve(layer_count);
        codecs_.reserve(layer_count * stream_count);
        for (PageFormat* format : {&coded_, &rows_, &sinks_}) {
            format->sections.reserve(layer_count * stream_count);
            format->sizes.total = page_header_bytes;
        }
    }

    /// Layers are added in order, at construction only.
    void add_layer(const Layer& layer, LayerParts parts, const Rope* previous) {
        if (ropes_.empty() || previous == nullptr || !(*previous == layer.rope)) {
            ropes_.emplace_back(ledger_, layer.rope, tile_tokens);
        }
        for (const StreamCodec& codec : parts.codecs) {
            codecs_.push_back(codec);
            const StreamFormat exact = exact_rows(codec.format.width, options_.rows);
            coded_.sections.push_back(coded_.sizes.place(codec.format, coded_.tokens));
            rows_.sections.push_back(rows_.sizes.place(exact, rows_.tokens));
            sinks_.sections.push_back(sinks_.sizes.place(exact, sinks_.tokens));
            if (codec.format.group_tokens > 1) granularity_ = coded_page_tokens;
            widest_ = std::max<std::size_t>(widest_, codec.format.width);
        }
        layers_.emplace_back(ledger_, layer, std::move(parts.plan), ropes_.size() - 1);
    }

    [[nodiscard]] Sequence create() {
        std::size_t at = 0;
        while (at < slots_.size() && slots_[at].used) ++at;
        if (at == slots_.size()) {
            slots_.reserve(round_up(slots_.size() + 1, slot_step));
            slots_.push_back({{Segments(LedgerAllocator<Segment, Purpose::index>(ledger_)), 0, 0}, 0, false, false});
        }
        Slot& slot = slots_[at];
        slot.used = true;
        ++slot.generation;
        return {static_cast<std::uint64_t>(slot.generation) << 32U | at};
    }

    void drop(Sequence sequence) {
        Slot& slot = find(sequence);
        expects<sequence_error>(!slot.busy, "the sequence is part of a step; commit or destroy the step first");
        Segments(slot.state.segments.get_allocator()).swap(slot.state.segments);
        slot.state.tokens = 0;
        slot.state.next_position = 0;
        slot.used = false;
    }

    [[nodiscard]] Slot& find(Sequence sequence) {
        const std::size_t at = sequence.id & 0xFFFFFFFFU;
        if (at >= slots_.size() || !slots_[at].used || slots_[at].generation != sequence.id >> 32U) {
            raise<sequence_error>("there is no such sequence: it was never created here, or it was dropped");
        }
        return slots_[at];
    }
    [[nodiscard]] Slot& slot(std::size_t at) noexcept { return slots_[at]; }
    [[nodiscard]] const Slot& find(Sequence sequence) const { return const_cast<Core*>(this)->find(sequence); }

    [[nodiscard]] Retention retention() const noexcept {
        return {options_.sinks, options_.recent, granularity_, options_.strict};
    }
    [[nodiscard]] PageFormats formats() const noexcept { return {&coded_, &rows_, &sinks_}; }
    [[nodiscard]] std::size_t streams() const noexcept { return coded_.streams; }
    [[nodiscard]] const StreamCodec& codec(std::size_t layer, std::size_t stream) const noexcept {
        return codecs_[layer * streams() + stream];
    }
    [[nodiscard]] RopeView rope(const PreparedLayer& layer) const noexcept { return ropes_[layer.rope].view(); }
    [[nodiscard]] const auto& layers() const noexcept { return layers_; }
    [[nodiscard]] const Options& options() const noexcept { return options_; }
    [[nodiscard]] std::size_t widest() const noexcept { return widest_; }
    [[nodiscard]] Ledger& ledger() noexcept { return ledger_; }
    [[nodiscard]] const Ledger& ledger() const noexcept { return ledger_; }
    [[nodiscard]] ScratchPool& scratch() noexcept { return scratch_; }

    static constexpr std::size_t tile_tokens = coded_page_tokens;

private:
    Options options_;
    Ledger ledger_;
    LedgerVector<PreparedLayer, Purpose::weights> layers_;
    LedgerVector<RopeTable, Purpose::weights> ropes_;
    LedgerVector<StreamCodec, Purpose::index> codecs_;  ///< [layers][streams]
    PageFormat coded_, rows_, sinks_;
    LedgerVector<Slot, Purpose::index> slots_;
    ScratchPool scratch_;
    std::size_t granularity_ = 1, widest_ = 0;
};

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
