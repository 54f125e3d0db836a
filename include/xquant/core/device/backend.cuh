// Caches whose pages lie on a device: the tag, and what it brings to a cache.
#pragma once

#include <xquant/backend/backend.hpp>
#include <xquant/core/backend_parts.hpp>
#include <xquant/core/device/step.cuh>

namespace xquant {

namespace backend {

/// Pages lie on a device, which reads and writes their rows. Weights are prepared by the processor.
/// int8<on_device<Device>> multiplies codes that lie along a token with 8-bit weights; without int8, codes become
/// halves first.
/// @tparam Device  CudaDevice (launch.cuh) or one that behaves like it: the tests have one in plain C++
template <class Device>
struct on_device : scalar {
    static constexpr const char* name = Device::name;
    static constexpr const char* int8_name = Device::int8_name;
};

}  // namespace backend

inline namespace XQUANT_ABI_NS {
namespace detail {

/// @tparam Coded  codes meet 8-bit weights where they can
template <class Device, bool Coded>
struct DeviceParts {
    using Step = DeviceStep<Device>;
    static constexpr bool on_device = true;

    struct State : DeviceState<Device> {
        State(Core& core, const Options& options) : DeviceState<Device>(core, options.stream) {}
        void prepare(const Core& core) { DeviceState<Device>::prepare(core, Coded); }
    };
    static Step begin(Core& core, State& state, std::span<const StepPart> parts) { return Step(core, state, parts); }
    static void seal(Core& core, State& state, Slot& slot) { Step::seal(core, state, slot); }
};

template <class Device>
struct BackendParts<backend::on_device<Device>> : DeviceParts<Device, false> {};
template <class Device>
struct BackendParts<backend::int8<backend::on_device<Device>>> : DeviceParts<Device, true> {};

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
