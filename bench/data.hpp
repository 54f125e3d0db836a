// Seeded data that is the same on every machine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace bench {

/// Values of mean 0 and variance 1, roughly bell-shaped: the sum of four uniform numbers, from one 64-bit draw.
class Random {
public:
    explicit Random(std::uint64_t seed) noexcept : state_(seed) {}

    float operator()() noexcept {
        // splitmix64
        std::uint64_t z = (state_ += 0x9E3779B97F4A7C15U);
        z = (z ^ (z >> 30U)) * 0xBF58476D1CE4E5B9U;
        z = (z ^ (z >> 27U)) * 0x94D049BB133111EBU;
        z ^= z >> 31U;
        const std::uint64_t sum = (z & 0xFFFFU) + (z >> 16U & 0xFFFFU) + (z >> 32U & 0xFFFFU) + (z >> 48U);
        return (static_cast<float>(sum) / 65536.0F - 2.0F) * 1.7320508F;
    }

private:
    std::uint64_t state_;
};

/// count values times `scale`.
inline std::vector<float> random_values(std::size_t count, std::uint64_t seed, float scale = 1) {
    std::vector<float> values(count);
    Random random(seed);
    for (float& value : values) value = scale * random();
    return values;
}

/// Rows first .. first + n of an endless matrix [, width]. A row's channels do not depend on the width asked for: a
/// narrower row is the beginning of a wider one.
inline std::vector<float> random_rows(std::size_t first, std::size_t n, std::size_t width) {
    std::vector<float> values(n * width);
    for (std::size_t i = 0; i < n; ++i) {
        Random random((first + i + 1) * 0xD1342543DE82EF95U);
        for (std::size_t c = 0; c < width; ++c) values[i * width + c] = random();
    }
    return values;
}

}  // namespace bench
