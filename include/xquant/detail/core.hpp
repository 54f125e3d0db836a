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

/// Settings of a cache. Sizes are in tokens unless they say layers.
struct Options {
    std::size_t sinks = 4;     ///< first tokens of a sequence, kept in f16: they decide quality out of proportion
    std::size_t recent = 128;  ///< newest tokens kept in f16
    DType rows = DType::f16;   ///< what sinks and newest tokens are kept in; f32 and bf16 are possible
    /// Queries read every row outside the sinks and the window from codes, those of their own step included.
    bool strict = false;
    std::size_t base_layer = 2;   ///< CrossLayer<Delta>: the layer whose rows become the accumulator
    std::size_t last_layers = 0;  ///< CrossLayer<Delta>: this many layers at the end keep the first quantizer's bits
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

/// What one layer is made of, after its policies had their say.
struct LayerParts {
    LayerPlan plan;
    std::vector<StreamCodec> codecs;  ///< widths are those of coded rows
};

/// The sizes of that, known without preparing anything.
struct LayerSizes {
    std::vector<StreamCodec> codecs;
    std::vector<std::size_t> row_widths;  ///< channels of rows as the tail keeps them
    std::size_t weight_floats = 0;
};

/// How one layer is to be stored: its policies as functions.
struct LayerRecipe {
    LayerSizes (*sizes)(const Layer&);
    LayerParts (*prepare)(const Layer&);
    std::size_t streams;
    CrossRole role = CrossRole::none;
};

/// A cache's layers, and (cross-layer) what the accumulator is kept in.
struct Recipe {
    std::vector<LayerRecipe> layers;
    StreamCodec (*accumulator)(std::size_t width) = nullptr;

    [[nodiscard]] std::size_t streams() const noexcept {
        std::size_t most = 1;
        for (const LayerRecipe& layer : layers) most = std::max(most, layer.streams);
        return most;
    }
};

class Core {
public:
    /// Streams are counted per layer; stream_count is the most that a layer has.
    Core(const Options& options, std::size_t layer_count, std::size_t stream_count)
        : options_(options),
          ledger_(options.memory),
          layers_(LedgerAllocator<PreparedLayer, Purpose::weights>(ledger_)),
          ropes_(LedgerAllocator<RopeTable, Purpose::weights>(ledger_)),
          codecs_(LedgerAllocator<StreamCodec, Purpose::index>(ledger_)),
          coded_(ledger_, Purpose::codes, coded_page_tokens, stream_count),
          rows_(ledger_, Purpose::tail, row_page_tokens, stream_count),
          sinks_(ledger_, Purpose::sinks, options.sinks, stream_count),
          accumulators_(ledger_, Purpose::accumulator, coded_page_tokens, 1),
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

    /// Says what accumulators are kept in. At construction only.
    void set_accumulator(const StreamCodec& codec) {
        expects(codec.format.group_tokens == 1,
                "the accumulator is grouped per token: it is read and written by ranges");
        accumulator_ = codec;
        accumulators_.sections.reserve(1);
        accumulators_.sizes.total = page_header_bytes;
        accumulators_.sections.push_back(accumulators_.sizes.place(codec.format, accumulators_.tokens));
    }

    /// Layers are added in order, at construction only.
    void add_layer(const Layer& layer, CrossRole role, LayerParts parts, const Rope* previous) {
        if (ropes_.empty() || previous == nullptr || !(*previous == layer.rope)) {
            ropes_.emplace_back(ledger_, layer.rope, tile_tokens);
        }
        layers_.emplace_back(ledger_, layer, std::move(parts.plan), role, ropes_.size() - 1);
        const PreparedLayer& prepared = layers_.back();
        expects(parts.codecs.size() == prepared.encoders.size(), "a layer needs one codec for each of its streams");
        expects(role == CrossRole::none ||
                    (prepared.encoders.size() == 1 && prepared.encoders[0].width == accumulator_.format.width),
                "cross-layer: a layer's rows do not have the accumulator's width; all layers need the same");
        for (std::size_t stream = 0; stream < coded_.streams; ++stream) {
            if (stream >= parts.codecs.size()) {
                codecs_.emplace_back();
                for (PageFormat* format : {&coded_, &rows_, &sinks_}) format->sections.emplace_back();
                continue;
            }
            const StreamCodec& codec = parts.codecs[stream];
            const StreamEncoder& encoder = prepared.encoders[stream];
            expects(codec.format.width == encoder.coded_width,
                    "a codec's width is not that of its stream's coded rows");
            codecs_.push_back(codec);
            const StreamFormat exact = exact_rows(static_cast<std::uint32_t>(encoder.width), options_.rows);
            coded_.sections.push_back(coded_.sizes.place(codec.format, coded_.tokens));
            rows_.sections.push_back(rows_.sizes.place(exact, rows_.tokens));
            sinks_.sections.push_back(sinks_.sizes.place(exact, sinks_.tokens));
            if (codec.format.group_tokens > 1) granularity_ = coded_page_tokens;
        }
        everywhere_windowed_ = everywhere_windowed_ && layer.window > 0;
        window_ = std::max(window_, layer.window);
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
        return {options_.sinks, options_.recent, granularity_, options_.strict, everywhere_windowed_ ? window_ : 0};
    }
    [[nodiscard]] PageFormats formats() const noexcept { return {&coded_, &rows_, &sinks_}; }
    [[nodiscard]] const PageFormat& accumulators() const noexcept { return accumulators_; }
    [[nodiscard]] const StreamCodec& accumulator() const noexcept { return accumulator_; }
    /// Most bytes that accumulators took at one time.
    [[nodiscard]] std::size_t peak_accumulator() const noexcept { return peak_accumulator_; }
    void note_accumulators() noexcept { peak_accumulator_ = std::max(peak_accumulator_, ledger_.bytes().accumulator); }
    /// The most streams that a layer has; [layers][streams] tables have that many for each.
    [[nodiscard]] std::size_t streams() const noexcept { return coded_.streams; }
    [[nodiscard]] const StreamCodec& codec(std::size_t layer, std::size_t stream) const noexcept {
        return codecs_[layer * streams() + stream];
    }
    [[nodiscard]] RopeView rope(const PreparedLayer& layer) const noexcept { return ropes_[layer.rope].view(); }
    [[nodiscard]] const auto& layers() const noexcept { return layers_; }
    [[nodiscard]] const Options& options() const noexcept { return options_; }
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
    PageFormat coded_, rows_, sinks_, accumulators_;
    StreamCodec accumulator_;
    LedgerVector<Slot, Purpose::index> slots_;
    ScratchPool scratch_;
    std::size_t granularity_ = 1, window_ = 0, peak_accumulator_ = 0;
    bool everywhere_windowed_ = true;
};

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
