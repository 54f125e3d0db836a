// One level of the runtime; cmake/XquantRuntime.cmake defines which.
#include <xquant/runtime/level.hpp>
