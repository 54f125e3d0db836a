// The handle of a sequence.
#pragma once

#include <cstdint>

namespace xquant {

/// A sequence of a cache. A plain handle; using it after drop(), or with another cache, is an error that is caught.
struct Sequence {
    std::uint64_t id = 0;     ///< of the sequence in its cache
    std::uint32_t cache = 0;  ///< number of its cache in this process, from 1 on
    friend bool operator==(Sequence, Sequence) = default;
};

}  // namespace xquant
