// What each translation unit tells main() about itself.
#pragma once

#include <cstdint>
#include <vector>

namespace odr {

struct Probe {
    const char* abi_name;               ///< the inline namespace its code lives in
    const void* encode;                 ///< where its copy of the encoder lies
    const void* cache_count;            ///< what numbers its caches
    std::vector<std::uint8_t> codes;    ///< what the encoder wrote
    std::vector<float> scale_and_zero;  ///< of each group
};

Probe probe_base();
Probe probe_avx2();

}  // namespace odr
