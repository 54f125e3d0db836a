// The handle of a sequence.
#pragma once

#include <cstdint>

namespace xquant {

/// A sequence of a cache. A plain handle; using it after drop() is an error that is caught.
struct Sequence {
    std::uint64_t id = 0;
    friend bool operator==(Sequence, Sequence) = default;
};

}  // namespace xquant
