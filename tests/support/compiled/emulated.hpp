/// Caches on a device in plain C++, whose codes meet weights of 8 bits: compiled once. Link xquant_compiled_emulated.
#pragma once

#include <xquant/core/device/backend.cuh>
#include <xquant/instantiate.hpp>

#include "support/gpu/device.hpp"

XQUANT_EXTERN_CACHE(xquant::backend::int8<xquant::backend::on_device<xquant::backend::EmulatedDevice>>);
