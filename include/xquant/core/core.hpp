// What a Cache holds: prepared layers, page formats, sequences. Policies have become data by now, so it is no template:
// it is compiled once, whatever the schemes and backends.
#pragma once

#include <algorithm>
#include <atomic>
#include <vector>

#include <xquant/backend/backend.hpp>
#include <xquant/cache_types.hpp>
#include <xquant/core/arithmetic.hpp>
#include <xquant/core/rebuilt.hpp>
#include <xquant/core/recipe.hpp>
#include <xquant/core/scratch.hpp>
#include <xquant/error.hpp>
#include <xquant/sequence/slots.hpp>

namespace xquant {

inline namespace XQUANT_ABI_NS {
namespace detail {

/// Throws shape_error for settings that cannot be served.
inline void check_options(const Options& options) {
    expects(options.sinks <= 4096, "Options::sinks is ", options.sinks, "; at most 4096 tokens are kept");
    expects(options.recent <= (std::size_t{1} << 20U), "Options::recent is ", options.recent,
            "; at most 1048576 tokens are kept");
    expects(options.rows <= DType::bf16, "Options::rows is ", static_cast<int>(options.rows),
            "; expected DType::f32, f16 or bf16");
    expects(options.weights <= WeightType::q8, "Options::weights is ", static_cast<int>(options.weights),
            "; expected WeightType::f32, f16, bf16 or q8");
}

/// How the tail and the sinks keep rows of a stream.
constexpr StreamFormat exact_rows(std::uint32_t width, DType type) noexcept {
    return {width, 1, width, kind_of(type), static_cast<std::uint8_t>(8 * size_of(type)), false, 0, nullptr};
}

/// Channels of a stream that each of its heads reads, where they are parts of equal width side by side; else all of
/// them.
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

/// Layers that share pages: those with the same window, or chunks of as many tokens. Their pages are freed once they
/// lie outside that window, whatever other layers still see.
struct PageGroup {
    PageGroup(Ledger& ledger, const Options& options, std::size_t streams)
        : coded(ledger, PageKind::coded, coded_page_tokens, streams),
          requantized(ledger, PageKind::requantized, coded_page_tokens, streams),
          rows(ledger, PageKind::rows, row_page_tokens, streams),
          sinks(ledger, PageKind::sinks, options.sinks, streams) {}

    PageFormat coded, requantized, rows, sinks;
    std::size_t layers = 0, granularity = 1, window = 0;
};

class Core {
public:
    /// Streams are counted per layer; stream_count is the most that a layer has. page_group_of [layers] from
    /// page_groups_of.
    Core(const Options& options, std::vector<std::size_t> page_group_of, std::size_t stream_count, bool requantizes)
        : options_(options),
          ledger_(options.memory, options.budget, options.workspace_budget, options.rebuilt),
          rebuilt_(ledger_),
          layers_(LedgerAllocator<PreparedLayer, Purpose::weights>(ledger_)),
          ropes_(LedgerAllocator<RopeTable, Purpose::weights>(ledger_)),
          codecs_(LedgerAllocator<StreamCodec, Purpose::index>(ledger_)),
          requantized_codecs_(LedgerAllocator<StreamCodec, Purpose::index>(ledger_)),
          page_groups_(LedgerAllocator<PageGroup, Purpose::index>(ledger_)),
          accumulators_(ledger_, PageKind::accumulator, coded_page_tokens, 1),
          slots_(ledger_),
          scratch_(ledger_),
          page_group_of_(std::move(page_group_of)),
          streams_(stream_count) {
        const std::size_t layer_count = page_group_of_.size();
        check_arithmetic();
        expects(layer_count > 0, "Model::layers is empty; a model has one layer or more");
        check_options(options);
        layers_.reserve(layer_count);
        ropes_.reserve(layer_count);
        codecs_.reserve(layer_count * stream_count);
        if (requantizes) requantized_codecs_.reserve(layer_count * stream_count);
        const std::size_t page_groups = *std::max_element(page_group_of_.begin(), page_group_of_.end()) + 1;
        page_groups_.reserve(page_groups);
        for (std::size_t i = 0; i < page_groups; ++i) {
            const auto in_stack = static_cast<std::size_t>(std::count(page_group_of_.begin(), page_group_of_.end(), i));
            PageGroup& page_group = page_groups_.emplace_back(ledger_, options_, streams_);
            for (PageFormat* format :
                 {&page_group.coded, &page_group.requantized, &page_group.rows, &page_group.sinks}) {
                if (format != &page_group.requantized || requantizes) format->sections.reserve(in_stack * streams_);
                format->sizes.total = page_header_bytes;
            }
        }
    }

    /// Says what accumulators are kept in. At construction only.
    void set_accumulator(const StreamCodec& codec) {
        expects(codec.format.group_tokens == 1, "CrossLayer: the accumulator's quantizer makes groups of ",
                codec.format.group_tokens,
                " tokens; it must group along a token, since it is read and written by ranges of tokens");
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
        const std::size_t at = page_group_of_[layers_.size()];
        PageGroup& page_group = page_groups_[at];
        const std::size_t levels = learnt_levels(parts.codecs) + learnt_levels(parts.requantized_codecs);
        layers_.emplace_back(ledger_, layer, std::move(parts.plan), role, ropes_.size() - 1, options_.weights,
                             layer.borrows() ? 0 : levels);
        PreparedLayer& prepared = layers_.back();
        const bool limited = layer.reach() > 0 && (page_group.layers == 0 || page_group.window > 0);
        // Cross-layer caches have one page group for all windows: nothing is freed before the widest window is past it.
        page_group.window = limited ? (std::max)(page_group.window, layer.reach()) : 0;
        if (layer.borrows()) {
            prepared.borrow(layers_[layer.rows_of], layer.rows_of, layers_.size() - 1);
            codecs_.resize(codecs_.size() + streams_);
            if (requantized_codecs_.capacity() > 0) requantized_codecs_.resize(requantized_codecs_.size() + streams_);
            return;
        }
        prepared.page_group = at;
        prepared.place = page_group.layers++;
        expects(parts.codecs.size() == prepared.encoders.size(), "layer ", layers_.size() - 1, ": ",
                parts.codecs.size(), " codecs for ", prepared.encoders.size(), " streams; expected one for each");
        expects(role == CrossRole::none ||
                    (prepared.encoders.size() == 1 && prepared.encoders[0].width == accumulator_.format.width),
                "CrossLayer: the rows of layer ", layers_.size() - 1, " have ", prepared.encoders[0].width,
                " channels in ", prepared.encoders.size(), " streams; expected one stream of ",
                accumulator_.format.width, ", as wide as the rows of layer 0");
        const bool requantizes = requantized_codecs_.capacity() > 0;
        for (std::size_t stream = 0; stream < streams_; ++stream) {
            if (stream >= parts.codecs.size()) {
                codecs_.emplace_back();
                for (PageFormat* format : {&page_group.coded, &page_group.rows, &page_group.sinks})
                    format->sections.emplace_back();
                if (!requantizes) continue;
                requantized_codecs_.emplace_back();
                page_group.requantized.sections.emplace_back();
                continue;
            }
            const auto place = [](PageFormat& format, const StreamFormat& section) {
                format.sections.push_back(format.sizes.place(section, format.tokens));
            };
            const auto complete = [&](StreamCodec codec) {
                expects(codec.format.width == prepared.encoders[stream].coded_width, "layer ", layers_.size() - 1,
                        ", stream ", stream, ": the codec is ", codec.format.width,
                        " channels wide, the stream's coded rows ", prepared.encoders[stream].coded_width);
                if (codec.learn != nullptr) {
                    codec.format.levels =
                        prepared.keep_levels(learn(prepared, layer, layers_.size() - 1, stream, rope(prepared), codec));
                }
                // Rows that are not quantized have no groups: what each head reads is one.
                if (!codec.format.quantized()) {
                    codec.format.group_channels = head_channels(prepared, stream, codec.format.width);
                }
                if (codec.format.group_tokens > 1) page_group.granularity = coded_page_tokens;
                return codec;
            };
            const std::size_t width = prepared.encoders[stream].width;
            const StreamFormat exact = exact_rows(static_cast<std::uint32_t>(width), options_.rows);
            codecs_.push_back(complete(parts.codecs[stream]));
            place(page_group.coded, codecs_.back().format);
            place(page_group.rows, exact);
            place(page_group.sinks, exact);
            if (!requantizes) continue;
            requantized_codecs_.push_back(
                parts.requantized_codecs.empty() ? codecs_.back() : complete(parts.requantized_codecs[stream]));
            place(page_group.requantized, requantized_codecs_.back().format);
        }
    }

    /// All layers are there: those whose keys are rebuilt for every step may have them kept, if Options::rebuilt asks
    /// for that. Throws shape_error where it cannot help.
    void keep_rebuilt() {
        if (options_.rebuilt == 0) return;
        expects(accumulators_.sections.empty(), "Options::rebuilt is ", options_.rebuilt,
                " bytes, and this cache is cross-layer: K of ", layers_.size(),
                " layers comes from sums over them that a step alone has; expected 0");
        std::vector<std::size_t> readers(page_groups_.size());
        for (const PreparedLayer& layer : layers_) readers[layer.page_group] += rebuilds_keys(layer) ? 1U : 0U;
        rebuilt_.reserve(layers_.size());
        for (const PreparedLayer& layer : layers_) {
            rebuilt_.add_layer(layer.shape.kv_heads, layer.shape.head_dim,
                               rebuilds_keys(layer) ? readers[layer.page_group] : 0);
        }
        const std::size_t least = rebuilt_.least_bytes();
        expects(least > 0, "Options::rebuilt is ", options_.rebuilt, " bytes, and none of the ", layers_.size(),
                " layers rebuilds K when it is read: K itself is stored, or what is stored meets the queries as it is; "
                "expected 0");
        expects(least <= options_.rebuilt, "Options::rebuilt is ", options_.rebuilt,
                " bytes, and the keys of one page of ", coded_page_tokens, " tokens and one layer take ", least,
                "; expected as many, or 0");
    }
    /// Null where no layer has rebuilt keys.
    [[nodiscard]] RebuiltPages* rebuilt() noexcept { return options_.rebuilt > 0 ? &rebuilt_ : nullptr; }

    /// The cache is gone; steps that are alive say so from here on.
    void abandon() noexcept { abandoned_.store(true, std::memory_order_relaxed); }
    [[nodiscard]] bool abandoned() const noexcept { return abandoned_.load(std::memory_order_relaxed); }

    [[nodiscard]] Sequence create() { return slots_.create(page_groups_.size()); }

    void drop(Sequence sequence) {
        Slot& slot = find_idle(sequence);
        for (SequenceState& state : slot.states) {
            free_list(state.segments);
            state.tokens = 0;
            state.next_position = state.rope_lag = 0;
        }
        slots_.release(slot);
    }

    /// Lets go of every page. No step may be under way, and no sequence is used after this.
    void forget_pages() noexcept {
        slots_.for_each([](Slot& slot) {
            for (SequenceState& state : slot.states) free_list(state.segments);
        });
    }

    /// A sequence that is not part of a step.
    [[nodiscard]] Slot& find_idle(Sequence sequence) {
        Slot& slot = find(sequence);
        expects<sequence_error>(!slot.busy, "the sequence is part of a step; commit or destroy the step first");
        return slot;
    }

    [[nodiscard]] Slot& find(Sequence sequence) { return slots_.find(sequence); }
    [[nodiscard]] const Slot& find(Sequence sequence) const { return const_cast<Core*>(this)->find(sequence); }

    [[nodiscard]] std::size_t page_groups() const noexcept { return page_groups_.size(); }
    /// The most tokens that a query of a page group's layers sees, 0 where some layer sees everything.
    [[nodiscard]] std::size_t window(std::size_t page_group) const noexcept { return page_groups_[page_group].window; }
    /// What n new tokens (or sealing) do to a sequence in one page group.
    [[nodiscard]] StepPlan plan(const Slot& slot, std::size_t page_group, std::size_t n, bool everything = false,
                                std::span<const TreeRow> tree = {}) {
        const PageGroup& in = page_groups_[page_group];
        const Retention keep{options_.sinks, options_.recent, in.granularity, options_.strict, in.window};
        return {ledger_, slot.states[page_group], n, keep, {&in.coded, &in.rows, &in.sinks}, everything, tree};
    }
    [[nodiscard]] const PageFormat& accumulators() const noexcept { return accumulators_; }
    [[nodiscard]] const StreamCodec& accumulator() const noexcept { return accumulator_; }
    /// Most bytes that accumulators took at one time.
    [[nodiscard]] std::size_t peak_accumulator() const noexcept { return peak_accumulator_; }
    void note_accumulators() noexcept {
        const std::size_t now = ledger_.bytes().accumulator;
        std::size_t peak = peak_accumulator_;
        while (now > peak && !peak_accumulator_.compare_exchange_weak(peak, now)) {
        }
    }
    [[nodiscard]] SlotTable& slots() noexcept { return slots_; }
    /// Whether some layer stores keys after RoPE. If such keys move to other positions, the reader makes up for it.
    [[nodiscard]] bool keys_after_rope() const noexcept {
        return std::any_of(layers_.begin(), layers_.end(), [this](const PreparedLayer& layer) {
            return layer.keys_after_rope && rope(layer).pairs > 0;
        });
    }
    /// Whether some layer's keys cannot move to other positions.
    [[nodiscard]] bool keys_in_place() const noexcept {
        return std::any_of(layers_.begin(), layers_.end(),
                           [](const PreparedLayer& layer) { return layer.keys_in_place; });
    }
    /// The most streams that a layer has; [layers][streams] tables have that many for each.
    [[nodiscard]] std::size_t streams() const noexcept { return streams_; }
    [[nodiscard]] const StreamCodec& codec(std::size_t layer, std::size_t stream) const noexcept {
        return codecs_[layer * streams() + stream];
    }
    /// Of pages that were requantized; only where requantizes() holds.
    [[nodiscard]] const StreamCodec& requantized_codec(std::size_t layer, std::size_t stream) const noexcept {
        return requantized_codecs_[layer * streams() + stream];
    }
    [[nodiscard]] bool requantizes() const noexcept { return !requantized_codecs_.empty(); }
    [[nodiscard]] const PageGroup& page_group(std::size_t at) const noexcept { return page_groups_[at]; }
    [[nodiscard]] RopeView rope(const PreparedLayer& layer) const noexcept { return ropes_[layer.rope].view(); }
    [[nodiscard]] const auto& layers() const noexcept { return layers_; }
    [[nodiscard]] const Options& options() const noexcept { return options_; }
    [[nodiscard]] Ledger& ledger() noexcept { return ledger_; }
    [[nodiscard]] const Ledger& ledger() const noexcept { return ledger_; }
    [[nodiscard]] ScratchPool& scratch() noexcept { return scratch_; }

    static constexpr std::size_t tile_tokens = coded_page_tokens;

private:
    /// Whether K of a layer comes from something else, with a norm or RoPE that keeps queries from meeting that.
    [[nodiscard]] bool rebuilds_keys(const PreparedLayer& layer) const noexcept {
        const bool turned = !layer.keys_after_rope && rope(layer).pairs > 0;
        return layer.keys.front().matrix != nullptr && layer.shared.width == 0 &&
               (turned || layer.rules.key_norm != nullptr);
    }

    Options options_;
    Ledger ledger_;
    RebuiltPages rebuilt_;  // before all pages, which refer to it
    LedgerVector<PreparedLayer, Purpose::weights> layers_;
    LedgerVector<RopeTable, Purpose::weights> ropes_;
    LedgerVector<StreamCodec, Purpose::index> codecs_,
        requantized_codecs_;  ///< [layers][streams]; requantized ones may be empty
    LedgerVector<PageGroup, Purpose::index> page_groups_;
    PageFormat accumulators_;
    StreamCodec accumulator_;
    SlotTable slots_;
    ScratchPool scratch_;
    std::vector<std::size_t> page_group_of_;  ///< read at construction
    std::size_t streams_;
    std::atomic<std::size_t> peak_accumulator_{0};
    std::atomic<bool> abandoned_{false};
};

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
