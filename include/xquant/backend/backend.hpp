// Backends: one tag for each machine. A kernel is an overload that takes the tag first; a tag that derives from another
// inherits its kernels where it has none of its own.
#pragma once

#include <xquant/config.hpp>

namespace xquant::backend {

/// Plain C++: the specification every other backend is compared with.
struct scalar {
    static constexpr const char* name = "scalar";
};

/// The fastest backend of this build.
using best = scalar;

}  // namespace xquant::backend
