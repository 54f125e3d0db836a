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
        /// Throws std::bad_alloc; the buffer goes back to the pool then, since the loan itself is complete.
        Loan(ScratchPool& pool, std::size_t floats) : Loan(pool) {
            if (buffer_.size() >= floats) return;
            buffer_.clear();
            buffer_.shrink_to_fit();
            buffer_.resize(floats);
        }
        Loan(const Loan&) = delete;
        Loan& operator=(const Loan&) = delete;
        ~Loan() { pool_->put(std::move(buffer_)); }
        [[nodiscard]] float* data() noexcept { return buffer_.data(); }

    private:
        explicit Loan(ScratchPool& pool) : pool_(&pool), buffer_(pool.take()) {}

        ScratchPool* pool_;
        Buffer buffer_;
    };

private:
    Buffer take() {
        const std::lock_guard lock(mutex_);
        // Room to give every buffer back without allocating.
        free_.reserve(lent_ + std::max<std::size_t>(1, free_.size()));
        Buffer buffer(LedgerAllocator<float, Purpose::workspace>{*ledger_});
        if (!free_.empty()) {
            buffer = std::move(free_.back());
            free_.pop_back();
        }
        ++lent_;
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

/// Channels of a stream that each of its heads reads, where they are parts of equal width side by side; else all of them.
inline std::uint32_t head_channels(const PreparedLayer& layer, std::size_t stream, std::size_t width) noexcept {
    std::size_t each = 0;
    bool equal = true;
    for (const auto* heads : {&layer.keys, &layer.values}) {
        for (const HeadDecoder& head : *heads) {
            if (head.stream != stream) continue;
            if (each == 0) each = head.width;
            equal &= head.width == each && head.first % each == 0;
        }
    }
    return static_cast<std::uint32_t>(equal && each > 0 && width % each == 0 ? each : width);
}

struct Slot {
    LedgerVector<SequenceState, Purpose::index> states;  ///< one for each stack
    std::uint32_t generation = 0;
    bool used = false, busy = false;
};

inline constexpr std::size_t slot_step = 16;

/// What one layer is made of, after its policies had their say.
struct LayerParts {
    LayerPlan plan;
    std::vector<StreamCodec> codecs;  ///< widths are those of coded rows
};

/// Finds the levels of a stream whose quantizer learns them.
using LearnStream = std::vector<float> (*)(const PreparedLayer&, const Layer&, std::size_t stream, const RopeView&,
                                           const StreamCodec&);

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

/// Layers whose rows live and die together, in pages of their own: those with the same window. Pages that lie outside the
/// window are freed, whatever other layers still see.
struct Stack {
    Stack(Ledger& ledger, const Options& options, std::size_t streams)
        : coded(ledger, Purpose::codes, coded_page_tokens, streams),
          rows(ledger, Purpose::tail, row_page_tokens, streams),
          sinks(ledger, Purpose::sinks, options.sinks, streams) {}

    PageFormat coded, rows, sinks;
    std::size_t layers = 0, granularity = 1, window = 0;
};

/// The stack of each layer: 0 for all of them where a layer's rows depend on other layers'.
inline std::vector<std::size_t> stacks_of(const Model& model, bool together) {
    std::vector<std::size_t> out, windows;
    for (const Layer& layer : model.layers) {
        const std::size_t window = together ? 0 : layer.window;
        const auto at = std::find(windows.begin(), windows.end(), window);
        out.push_back(static_cast<std::size_t>(at - windows.begin()));
        if (at == windows.end()) windows.push_back(window);
    }
    return out;
}

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
    /// Streams are counted per layer; stream_count is the most that a layer has. stack_of [layers] from stacks_of.
    Core(const Options& options, std::vector<std::size_t> stack_of, std::size_t stream_count)
        : options_(options),
          ledger_(options.memory),
          layers_(LedgerAllocator<PreparedLayer, Purpose::weights>(ledger_)),
          ropes_(LedgerAllocator<RopeTable, Purpose::weights>(ledger_)),
          codecs_(LedgerAllocator<StreamCodec, Purpose::index>(ledger_)),
          stacks_(LedgerAllocator<Stack, Purpose::index>(ledger_)),
          accumulators_(ledger_, Purpose::accumulator, coded_page_tokens, 1),
          slots_(LedgerAllocator<Slot, Purpose::index>(ledger_)),
          scratch_(ledger_),
          stack_of_(std::move(stack_of)),
          streams_(stream_count) {
        const std::size_t layer_count = stack_of_.size();
        expects(layer_count > 0, "a model needs at least one layer");
        expects(options.sinks <= 4096, "sinks: at most 4096 tokens");
        expects(options.recent <= (std::size_t{1} << 20U), "recent: at most 1048576 tokens");
        layers_.reserve(layer_count);
        ropes_.reserve(layer_count);
        codecs_.reserve(layer_count * stream_count);
        const std::size_t stacks = *std::max_element(stack_of_.begin(), stack_of_.end()) + 1;
        stacks_.reserve(stacks);
        for (std::size_t i = 0; i < stacks; ++i) {
            const auto in_stack = static_cast<std::size_t>(std::count(stack_of_.begin(), stack_of_.end(), i));
            Stack& stack = stacks_.emplace_back(ledger_, options_, streams_);
            for (PageFormat* format : {&stack.coded, &stack.rows, &stack.sinks}) {
                format->sections.reserve(in_stack * streams_);
                format->sizes.total = page_header_bytes;
            }
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
    void add_layer(const Layer& layer, CrossRole role, LayerParts parts, const Rope* previous, LearnStream learn) {
        if (ropes_.empty() || previous == nullptr || !(*previous == layer.rope)) {
            ropes_.emplace_back(ledger_, layer.rope, tile_tokens);
        }
        const std::size_t at = stack_of_[layers_.size()];
        Stack& stack = stacks_[at];
        std::size_t levels = 0;
        for (const StreamCodec& codec : parts.codecs) levels += codec.learnt_levels();
        layers_.emplace_back(ledger_, layer, std::move(parts.plan), role, ropes_.size() - 1, levels);
        PreparedLayer& prepared = layers_.back();
        prepared.stack = at;
        prepared.place = stack.layers++;
        expects(parts.codecs.size() == prepared.encoders.size(), "a layer needs one codec for each of its streams");
        expects(role == CrossRole::none ||
                    (prepared.encoders.size() == 1 && prepared.encoders[0].width == accumulator_.format.width),
                "cross-layer: a layer's rows do not have the accumulator's width; all layers need the same");
        for (std::size_t stream = 0; stream < streams_; ++stream) {
            if (stream >= parts.codecs.size()) {
                codecs_.emplace_back();
                for (PageFormat* format : {&stack.coded, &stack.rows, &stack.sinks}) format->sections.emplace_back();
                continue;
            }
            StreamCodec& codec = parts.codecs[stream];
            const StreamEncoder& encoder = prepared.encoders[stream];
            expects(codec.format.width == encoder.coded_width,
                    "a codec's width is not that of its stream's coded rows");
            if (codec.learn != nullptr) {
                codec.format.levels = prepared.keep_levels(learn(prepared, layer, stream, rope(prepared), codec));
            }
            // Rows that are not quantized have no groups: what each head reads is one.
            if (!codec.format.quantized()) {
                codec.format.group_channels = head_channels(prepared, stream, codec.format.width);
            }
            codecs_.push_back(codec);
            const StreamFormat exact = exact_rows(static_cast<std::uint32_t>(encoder.width), options_.rows);
            const auto place = [](PageFormat& format, const StreamFormat& section) {
                format.sections.push_back(format.sizes.place(section, format.tokens));
            };
            place(stack.coded, codec.format);
            place(stack.rows, exact);
            place(stack.sinks, exact);
            if (codec.format.group_tokens > 1) stack.granularity = coded_page_tokens;
        }
        // Layers that share a stack in spite of different windows: nothing may be freed before the widest is past it.
        if (stack.layers == 1) stack.window = layer.window;
        stack.window = stack.window > 0 && layer.window > 0 ? std::max(stack.window, layer.window) : 0;
    }

    [[nodiscard]] Sequence create() {
        std::size_t at = 0;
        while (at < slots_.size() && slots_[at].used) ++at;
        if (at == slots_.size()) {
            slots_.reserve(round_up(slots_.size() + 1, slot_step));
            Slot slot{
                LedgerVector<SequenceState, Purpose::index>(LedgerAllocator<SequenceState, Purpose::index>(ledger_))};
            slot.states.reserve(stacks_.size());
            for (std::size_t i = 0; i < stacks_.size(); ++i) {
                slot.states.push_back({Segments(LedgerAllocator<Segment, Purpose::index>(ledger_)), 0, 0});
            }
            slots_.push_back(std::move(slot));
        }
        Slot& slot = slots_[at];
        slot.used = true;
        ++slot.generation;
        return {static_cast<std::uint64_t>(slot.generation) << 32U | at};
    }

    void drop(Sequence sequence) {
        Slot& slot = find_idle(sequence);
        for (SequenceState& state : slot.states) {
            Segments(state.segments.get_allocator()).swap(state.segments);
            state.tokens = 0;
            state.next_position = 0;
        }
        slot.used = false;
    }

    /// A sequence that is not part of a step.
    [[nodiscard]] Slot& find_idle(Sequence sequence) {
        Slot& slot = find(sequence);
        expects<sequence_error>(!slot.busy, "the sequence is part of a step; commit or destroy the step first");
        return slot;
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

    [[nodiscard]] std::size_t stacks() const noexcept { return stacks_.size(); }
    /// The window of a stack's layers, 0 where some layer sees everything.
    [[nodiscard]] std::size_t window(std::size_t stack) const noexcept { return stacks_[stack].window; }
    /// What n new tokens (or sealing) do to a sequence in one stack.
    [[nodiscard]] StepPlan plan(const Slot& slot, std::size_t stack, std::size_t n, bool everything = false) {
        const Stack& in = stacks_[stack];
        const Retention keep{options_.sinks, options_.recent, in.granularity, options_.strict, in.window};
        return {ledger_, slot.states[stack], n, keep, {&in.coded, &in.rows, &in.sinks}, everything};
    }
    [[nodiscard]] const PageFormat& accumulators() const noexcept { return accumulators_; }
    [[nodiscard]] const StreamCodec& accumulator() const noexcept { return accumulator_; }
    /// Most bytes that accumulators took at one time.
    [[nodiscard]] std::size_t peak_accumulator() const noexcept { return peak_accumulator_; }
    void note_accumulators() noexcept { peak_accumulator_ = std::max(peak_accumulator_, ledger_.bytes().accumulator); }
    /// The most streams that a layer has; [layers][streams] tables have that many for each.
    [[nodiscard]] std::size_t streams() const noexcept { return streams_; }
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
    LedgerVector<Stack, Purpose::index> stacks_;
    PageFormat accumulators_;
    StreamCodec accumulator_;
    LedgerVector<Slot, Purpose::index> slots_;
    ScratchPool scratch_;
    std::vector<std::size_t> stack_of_;  ///< read at construction
    std::size_t streams_, peak_accumulator_ = 0;
};

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
