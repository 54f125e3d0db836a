/// The body of make_*_cache for one device. Included once for each.
#pragma once

#include <xquant/core/device/backend.cuh>
#include <xquant/registry_svd.hpp>

#include "device_cache.hpp"
#include "sequence_cache.hpp"

namespace llm {

template <class Device>
using DeviceTag = xquant::backend::int8<xquant::backend::on_device<Device>>;
template <class Device>
using DeviceBase = xquant::Cache<DeviceTag<Device>>;

template <class Device>
class DeviceCache final : public SequenceCache<DeviceBase<Device>> {
    using Common = SequenceCache<DeviceBase<Device>>;
    using Common::cache_;
    using Common::step_;

public:
    DeviceCache(std::unique_ptr<DeviceBase<Device>> cache, const DeviceShape& shape)
        : Common(std::move(cache)), shape_(shape), device_(nullptr) {}
    ~DeviceCache() override {
        for (Buffer* buffer : {&x_, &q_, &out_}) {
            if (buffer->data != nullptr) device_.release(buffer->data, buffer->bytes);
        }
    }

    void append(std::size_t layer, const float* x) override {
        const std::size_t n = step_->size();
        const float* on_device = upload(x_, x, n * shape_.width);
        step_->append(layer, xquant::MatrixView(on_device, n, shape_.width));
    }
    void attend(std::size_t layer, const float* q, float* out) override {
        const std::size_t n = step_->size(), count = n * shape_.q_width;
        const float* on_device = upload(q_, q, count);
        float* result = room(out_, count);
        step_->attend(layer, xquant::MatrixView(on_device, n, shape_.q_width), result);
        device_.to_host(out, result, count * sizeof(float));
    }
    void commit() override {
        Common::commit();
        if (cache_->take_bad_rows()) throw Error("a row of X is not finite, or beyond f16 once projected");
    }

private:
    struct Buffer {
        void* data = nullptr;
        std::size_t bytes = 0;
    };

    float* room(Buffer& buffer, std::size_t floats) {
        const std::size_t bytes = floats * sizeof(float);
        if (bytes > buffer.bytes) {
            if (buffer.data != nullptr) device_.release(buffer.data, buffer.bytes);
            buffer = {};
            buffer = {device_.allocate(bytes), bytes};
        }
        return static_cast<float*>(buffer.data);
    }
    const float* upload(Buffer& buffer, const float* from, std::size_t floats) {
        float* to = room(buffer, floats);
        device_.to_device(to, from, floats * sizeof(float));
        return to;
    }

    DeviceShape shape_;
    Device device_;
    Buffer x_, q_, out_;
};

template <class Device>
std::unique_ptr<AttentionCache> make_device_cache(std::string_view scheme, const xquant::Model& model,
                                                  const xquant::Options& options, const DeviceShape& shape) {
    return std::make_unique<DeviceCache<Device>>(xquant::make_cache<DeviceTag<Device>>(scheme, model, options), shape);
}

}  // namespace llm
