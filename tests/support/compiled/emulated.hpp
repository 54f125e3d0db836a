/// Caches on a device in plain C++, compiled once. Link xquant_compiled_emulated.
#pragma once

#include <xquant/core/device/backend.cuh>
#include <xquant/instantiate.hpp>

#include "support/gpu/device.hpp"

namespace xquant::backend {

using emulated_device = on_device<EmulatedDevice>;
using emulated_device_int8 = int8<emulated_device>;

}  // namespace xquant::backend

XQUANT_EXTERN_CACHE(xquant::backend::emulated_device);
XQUANT_EXTERN_CACHE(xquant::backend::emulated_device_int8);
