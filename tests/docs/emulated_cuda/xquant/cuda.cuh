// In place of <xquant/cuda.cuh> where pages are compiled without CUDA: the GPU in plain C++ stands for its backends.
#pragma once

#include <xquant/core/device/backend.cuh>
#include <xquant/xquant.hpp>

#include "support/gpu/device.hpp"

namespace xquant::backend {

using cuda = int8<on_device<EmulatedDevice>>;
using cuda_exact = on_device<EmulatedDevice>;

}  // namespace xquant::backend
