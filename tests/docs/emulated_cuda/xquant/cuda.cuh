// In place of <xquant/cuda.cuh> where a page's code for CUDA is compiled without CUDA: the backend's names stand for the GPU in plain C++.
#pragma once

#include <xquant/core/device/backend.cuh>
#include <xquant/xquant.hpp>

#include "support/gpu/device.hpp"

namespace xquant::backend {

using cuda = int8<on_device<EmulatedDevice>>;
using cuda_exact = on_device<EmulatedDevice>;

}  // namespace xquant::backend
