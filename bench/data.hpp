// Seeded data that is the same on every machine.
#pragma once

#include <cstdint>
#include <vector>

namespace bench {

/// Values in (-1, 1), roughly bell-shaped: the mean of four uniform numbers.
inline std::vector<float> rows(std::size_t count, std::uint64_t seed) {
    std::vector<float> values(count);
    for (float& value : values) {
        float sum = 0;
        for (int i = 0; i < 4; ++i) {
            seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
            sum += static_cast<float>(seed >> 40U) / static_cast<float>(1U << 23U) - 1.0F;
        }
        value = sum / 4;
    }
    return values;
}

}  // namespace bench
