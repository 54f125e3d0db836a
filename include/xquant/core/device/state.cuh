// What a cache keeps on its device beside its pages: the tables of its layers, and workspace that grows to what steps
// need.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include <xquant/core/device/layer_tables.cuh>

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

    /// Makes room for `bytes` bytes or more. What was there is lost where the buffer grows.
    std::byte* reserve(std::size_t bytes) {
        if (bytes <= bytes_) return data_;
        reset();
        data_ = static_cast<std::byte*>(
            ledger_->within_budget(purpose_, bytes, true, [&] { return device_->allocate(bytes); }));
        bytes_ = bytes;
        ledger_->add(purpose_, bytes);
        return data_;
    }
    [[nodiscard]] std::byte* data() const noexcept { return data_; }

private:
    void reset() noexcept {
        if (data_ == nullptr) return;
        device_->release(data_, bytes_);
        ledger_->leave(purpose_, bytes_);
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
          feedback(device_, core.ledger(), Purpose::workspace),
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
    /// @param coded  whether codes meet 8-bit weights where they can
    void prepare(const Core& core, bool coded) {
        Packing all;
        std::uint32_t bad = 0;
        bad_ = all.add(&bad, 1);
        std::vector<LayerEntry> layers;
        for (std::size_t i = 0; i < core.layers().size(); ++i) {
            expects<state_error>(!core.layers()[i].borrows(), "layer ", i, ": rows_of is ", core.layers()[i].rows_of,
                                 ", and a layer of a cache on a device stores rows of its own");
            expects<state_error>(
                !core.layers()[i].takes_keys_and_values(), "layer ", i,
                ": Layer::input says that the engine hands over K and V; caches on a device take X alone");
            layers.emplace_back(core, i, coded, all);
            LayerForm form = layers.back().form();
            constexpr std::size_t largest = Device::machine::largest_head;
            expects<state_error>(core.layers()[i].shape.head_dim <= largest, "layer ", i, ": heads of ",
                                 core.layers()[i].shape.head_dim, " channels, and kernels were compiled for ", largest,
                                 " at most");
            const auto fits = [&](bool prefill) {
                return shared_bytes_of<typename Device::machine>(form, core.layers()[i].shape.head_dim, prefill) <=
                       device_.shared_limit();
            };
            expects<state_error>(fits(false), "layer ", i, ": heads of ", core.layers()[i].shape.head_dim,
                                 " channels need more shared memory than the ", device_.shared_limit(),
                                 " bytes of this device");
            form.serves_prefill = fits(true);
            layers_.push_back({0, form});
        }
        std::byte* base = tables_.reserve(all.bytes().size());
        for (std::size_t i = 0; i < layers.size(); ++i) layers_[i].at = layers[i].relocate(base, all);
        device_.to_device(base, all.bytes().data(), all.bytes().size());
    }

    [[nodiscard]] Device& device() noexcept { return device_; }
    /// A layer's table, on the device.
    [[nodiscard]] const backend::gpu::LayerTable* layer(std::size_t i) const noexcept {
        return reinterpret_cast<const backend::gpu::LayerTable*>(tables_.data() + layers_[i].at);
    }
    [[nodiscard]] LayerForm form(std::size_t i) const noexcept { return layers_[i].form; }
    [[nodiscard]] std::uint32_t* bad_rows() const noexcept {
        return reinterpret_cast<std::uint32_t*>(tables_.data() + bad_);
    }
    /// Whether a row was not finite, or beyond what f16 holds, since the last call. Waits for the device.
    [[nodiscard]] bool take_bad_rows() {
        std::uint32_t bad = 0;
        device_.to_host(&bad, bad_rows(), sizeof bad);
        device_.zero(bad_rows(), sizeof bad);
        return bad != 0;
    }

private:
    Core* core_;
    Device device_;
    DevicePages<Device> pages_;
    DeviceBuffer<Device> tables_;
    struct Place {
        std::size_t at;  ///< of its table
        LayerForm form;
    };
    std::vector<Place> layers_;
    std::size_t bad_ = 0;

public:
    Packing packing;  ///< of the step that runs
    DeviceBuffer<Device> step_tables, rows, gathered, differences, feedback, partials, queries;
    bool busy = false;  ///< a step has the workspace
};

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
