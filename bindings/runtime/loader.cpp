// The front library of the runtime; cmake/XquantRuntime.cmake names the levels beside it.
#include <xquant/runtime/loader.hpp>
