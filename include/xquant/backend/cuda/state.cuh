// What a cache keeps on its device beside its pages: the tables of its layers, and workspace that grows to what steps need.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include <xquant/backend/cuda/kernels.cuh>
#include <xquant/detail/core.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// Memory of a device, counted in a cache's ledger.
template <class Device>
class DeviceBuffer {
public:
    DeviceBuffer(Device& device, Ledger& ledger, Purpose purpose) noexcept
        : device_(&device), ledger_(&ledger), purpose_(purpose) {}
    DeviceBuffer(const DeviceBuffer&) = delete;
    DeviceBuffer& operator=(const DeviceBuffer&) = delete;
    ~DeviceBuffer() { reset(); }

    /// At least so many bytes; what was there is lost where they are more than before.
    std::byte* reserve(std::size_t bytes) {
        if (bytes <= bytes_) return data_;
        reset();
        data_ = static_cast<std::byte*>(device_->allocate(bytes));
        bytes_ = bytes;
        ledger_->add(purpose_, bytes);
        return data_;
    }
    [[nodiscard]] std::byte* data() const noexcept { return data_; }

private:
    void reset() noexcept {
        if (data_ == nullptr) return;
        device_->release(data_, bytes_);
        ledger_->subtract(purpose_, bytes_);
        data_ = nullptr;
        bytes_ = 0;
    }

    Device* device_;
    Ledger* ledger_;
    Purpose purpose_;
    std::byte* data_ = nullptr;
    std::size_t bytes_ = 0;
};

/// Tables on their way to a device: entered one after another, they are copied at once.
class Packing {
public:
    /// Where it will lie, from the beginning.
    template <class T>
    std::size_t add(const T* values, std::size_t count) {
        const std::size_t at = round_up(bytes_.size(), 16);
        bytes_.resize(at + count * sizeof(T));
        if (count > 0) std::memcpy(bytes_.data() + at, values, count * sizeof(T));
        return at;
    }
    template <class Vector>
    std::size_t add(const Vector& values) {
        return add(values.data(), values.size());
    }
    /// Overwrites what was added.
    template <class Vector>
    void put(std::size_t at, const Vector& values) noexcept {
        std::memcpy(bytes_.data() + at, values.data(), values.size() * sizeof(values[0]));
    }
    void clear() noexcept { bytes_.clear(); }
    [[nodiscard]] const std::vector<std::byte>& bytes() const noexcept { return bytes_; }

private:
    std::vector<std::byte> bytes_;
};

/// Pages of a cache in memory of a device.
template <class Device>
class DevicePages final : public PageMemory {
public:
    explicit DevicePages(Device& device) noexcept : device_(&device) {}
    void* allocate(std::size_t bytes) override {
        void* memory = device_->allocate(bytes);
        device_->zero(memory, bytes);
        return memory;
    }
    void release(void* memory, std::size_t bytes) noexcept override { device_->release(memory, bytes); }
    void read(void* to, const void* from, std::size_t bytes) override { device_->to_host(to, from, bytes); }
    void write(void* to, const void* from, std::size_t bytes) override { device_->to_device(to, from, bytes); }

private:
    Device* device_;
};

/// The device's side of a cache.
template <class Device>
class DeviceState {
public:
    DeviceState(Core& core, void* stream)
        : core_(&core),
          device_(stream),
          pages_(device_),
          tables_(device_, core.ledger(), Purpose::weights),
          step_tables(device_, core.ledger(), Purpose::workspace),
          rows(device_, core.ledger(), Purpose::workspace),
          gathered(device_, core.ledger(), Purpose::workspace),
          differences(device_, core.ledger(), Purpose::workspace),
          partials(device_, core.ledger(), Purpose::workspace),
          queries(device_, core.ledger(), Purpose::workspace) {
        core.ledger().set_page_memory(&pages_);
    }

    DeviceState(const DeviceState&) = delete;
    DeviceState& operator=(const DeviceState&) = delete;
    /// Pages go first: they lie in memory of this device.
    ~DeviceState() {
        core_->forget_pages();
        core_->ledger().set_page_memory(nullptr);
    }

    /// Copies the layers' weights and tables. Throws state_error for layers that the device cannot serve.
    void prepare(const Core& core) {
        Packing all;
        std::uint32_t bad = 0;
        bad_ = all.add(&bad, 1);
        std::vector<LayerEntry> layers;
        for (const PreparedLayer& layer : core.layers()) layers.push_back(enter(core, layer, layers.size(), all));
        std::byte* base = tables_.reserve(all.bytes().size());
        for (LayerEntry& layer : layers) {
            relocate(base, layer, all);
            layers_.push_back(layer.at);
        }
        device_.to_device(base, all.bytes().data(), all.bytes().size());
    }

    [[nodiscard]] Device& device() noexcept { return device_; }
    /// A layer's table, on the device.
    [[nodiscard]] const backend::gpu::LayerTable* layer(std::size_t i) const noexcept {
        return reinterpret_cast<const backend::gpu::LayerTable*>(tables_.data() + layers_[i]);
    }
    [[nodiscard]] std::uint32_t* bad_rows() const noexcept {
        return reinterpret_cast<std::uint32_t*>(tables_.data() + bad_);
    }
    /// Whether a row was not finite, or beyond what f16 holds, since this was last asked. Waits for the device.
    [[nodiscard]] bool take_bad_rows() {
        std::uint32_t bad = 0;
        device_.to_host(&bad, bad_rows(), sizeof bad);
        device_.zero(bad_rows(), sizeof bad);
        return bad != 0;
    }

private:
    /// A layer's tables, and where they will lie. Their pointers are the processor's until the tables have a place.
    struct LayerEntry {
        const PreparedLayer* prepared = nullptr;
        backend::gpu::LayerTable table;
        std::vector<backend::gpu::StreamTable> streams;
        std::vector<HeadDecoder> keys, values;
        std::size_t at = 0, floats = 0, streams_at = 0, keys_at = 0, values_at = 0;
        std::size_t cosines = 0, sines = 0, frequencies = 0;
    };

    static LayerEntry enter(const Core& core, const PreparedLayer& layer, std::size_t number, Packing& all) {
        using namespace backend::gpu;
        expects<state_error>(layer.role == CrossRole::none || encodes(core.accumulator()),
                             "a device cannot encode the accumulator's quantizer");
        expects<state_error>(layer.encoders.size() > 0 && layer.shape.head_dim <= 256, "head_dim: at most 256");
        LayerEntry entry;
        entry.prepared = &layer;
        entry.floats = all.add(layer.floats());
        LayerTable& table = entry.table;
        table.shape = layer.shape;
        table.rope = core.rope(layer);
        table.rules = layer.rules;
        table.keys_turned = layer.keys_turned;
        table.key_stream = static_cast<std::uint32_t>(layer.keys.front().stream);
        table.value_stream = static_cast<std::uint32_t>(layer.values.front().stream);
        table.shared_stream = static_cast<std::uint32_t>(layer.shared.stream);
        table.shared_channels = static_cast<std::uint32_t>(layer.shared.width);
        table.streams = static_cast<std::uint32_t>(layer.encoders.size());
        table.role = layer.role;
        if (layer.role != CrossRole::none) {
            table.sum = core.accumulators().sections.front();
            table.sum_rule = core.accumulator().rule;
        }
        const RopeView& rope = table.rope;
        entry.frequencies = all.add(rope.inverse_frequencies, rope.pairs);
        entry.cosines = all.add(rope.cosines, rope.pairs * rope.tokens);
        entry.sines = all.add(rope.sines, rope.pairs * rope.tokens);
        const Stack& stack = core.stack(layer.stack);
        std::size_t floats = 0;
        for (std::size_t s = 0; s < layer.encoders.size(); ++s) {
            StreamTable stream;
            const StreamCodec& codec = core.codec(number, s);
            expects<state_error>(
                encodes(codec),
                "a device encodes uniform quantizers: no levels, no outliers, no scale rule of your own");
            stream.encoder = layer.encoders[s];
            stream.rule = codec.rule;
            stream.first_float = floats;
            floats += stream.encoder.width;
            const PageFormat* formats[] = {&stack.coded, &stack.rows, &stack.sinks};
            for (std::size_t kind = 0; kind < 3; ++kind) {
                stream.sections[kind] = formats[kind]->sections[layer.place * core.streams() + s];
            }
            entry.streams.push_back(stream);
        }
        entry.keys.assign(layer.keys.begin(), layer.keys.end());
        entry.values.assign(layer.values.begin(), layer.values.end());
        entry.streams_at = all.add(entry.streams);
        entry.keys_at = all.add(entry.keys);
        entry.values_at = all.add(entry.values);
        entry.at = all.add(&table, 1);
        return entry;
    }

    /// Pointers into a layer's floats, and offsets, become pointers to the device.
    static void relocate(std::byte* base, LayerEntry& entry, Packing& all) noexcept {
        const float* host = entry.prepared->floats().data();
        const auto* device = reinterpret_cast<const float*>(base + entry.floats);
        const auto move = [&](const float*& pointer) {
            if (pointer != nullptr) pointer = device + (pointer - host);
        };
        for (auto& stream : entry.streams) {
            for (const float** pointer :
                 {&stream.encoder.mean, &stream.encoder.matrix, &stream.encoder.bias, &stream.encoder.norm,
                  &stream.encoder.dct, &stream.encoder.latent, &stream.encoder.spread}) {
                move(*pointer);
            }
        }
        for (auto* heads : {&entry.keys, &entry.values}) {
            for (HeadDecoder& head : *heads) {
                move(head.matrix);
                move(head.constant);
            }
        }
        for (const float** pointer :
             {&entry.table.rules.key_norm, &entry.table.rules.slopes, &entry.table.rules.sink_logits}) {
            move(*pointer);
        }
        entry.table.rope.inverse_frequencies = reinterpret_cast<const double*>(base + entry.frequencies);
        entry.table.rope.cosines = reinterpret_cast<const float*>(base + entry.cosines);
        entry.table.rope.sines = reinterpret_cast<const float*>(base + entry.sines);
        entry.table.keys = reinterpret_cast<const HeadDecoder*>(base + entry.keys_at);
        entry.table.values = reinterpret_cast<const HeadDecoder*>(base + entry.values_at);
        entry.table.tables = reinterpret_cast<const backend::gpu::StreamTable*>(base + entry.streams_at);
        all.put(entry.streams_at, entry.streams);
        all.put(entry.keys_at, entry.keys);
        all.put(entry.values_at, entry.values);
        all.put(entry.at, std::span(&entry.table, 1));
    }

    Core* core_;
    Device device_;
    DevicePages<Device> pages_;
    DeviceBuffer<Device> tables_;
    std::vector<std::size_t> layers_;  ///< where each one's table lies
    std::size_t bad_ = 0;

public:
    Packing packing;  ///< of the step that runs
    DeviceBuffer<Device> step_tables, rows, gathered, differences, partials, queries;
    bool busy = false;  ///< a step has the workspace
};

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
