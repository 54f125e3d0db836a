#include "support/compiled/emulated.hpp"

// One file: both backends launch the same kernels.
XQUANT_COMPILE_CACHE(xquant::backend::emulated_device);
XQUANT_COMPILE_CACHE(xquant::backend::emulated_device_int8);
