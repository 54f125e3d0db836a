// Caches whose pages lie on a device: the tag, and what it brings to a cache.
#pragma once

#include <xquant/backend/backend.hpp>
#include <xquant/backend/cuda/step.cuh>
#include <xquant/detail/cache_base.hpp>

namespace xquant {

namespace backend {

/// Pages, and everything that reads or writes their rows, on a device. Weights are prepared by the processor.
/// @tparam Device  CudaDevice (launch.cuh) or EmulatedDevice (backend/emulated/device.hpp)
template <class Device>
struct on_device : scalar {
    static constexpr const char* name = Device::name;
};

}  // namespace backend

inline namespace XQUANT_ABI_NS {
namespace detail {

template <class Device>
struct BackendParts<backend::on_device<Device>> {
    using Step = DeviceStep<Device>;
    static constexpr bool on_device = true;

    struct State : DeviceState<Device> {
        State(Core& core, const Options& options) : DeviceState<Device>(core, options.stream) {}
    };
    static Step begin(Core& core, State& state, std::span<const StepPart> parts) { return Step(core, state, parts); }
    static void seal(Core& core, State& state, Slot& slot) { Step::seal(core, state, slot); }
};

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
