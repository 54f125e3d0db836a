// Policies as users write them.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>

#include <xquant/xquant.hpp>

/// -1, 0, 1 times the group's largest magnitude. The fourth code is never used.
struct Ternary {
    static constexpr unsigned bits = 2, group = 32;
    static constexpr bool stores_zero = false;
    static constexpr float zero_code = 0;
    static constexpr std::array<float, 4> levels{-1, 0, 1, 0};

    static xquant::GroupScale encode(std::span<const float> x, std::span<std::uint8_t> codes) noexcept {
        const float scale = xquant::round_to_f16(std::abs(xquant::extreme_of(x)));
        for (std::size_t i = 0; i < x.size(); ++i) {
            codes[i] = static_cast<std::uint8_t>(x[i] > scale / 2 ? 2 : x[i] < -scale / 2 ? 0 : 1);
        }
        return {scale, -zero_code * scale};
    }
};

/// QLoRA's levels (arXiv 2305.14314).
struct Nf4 {
    static constexpr unsigned bits = 4, group = 64;
    static constexpr bool stores_zero = false;
    static constexpr float zero_code = 0;
    static constexpr std::array<float, 16> levels{
        -1.0F,      -0.6961928F, -0.5250731F, -0.3949175F, -0.2844414F, -0.1847734F, -0.0910500F, 0.0F,
        0.0795803F, 0.1609302F,  0.2461123F,  0.3379152F,  0.4407098F,  0.5626170F,  0.7229568F,  1.0F};

    static xquant::GroupScale encode(std::span<const float> x, std::span<std::uint8_t> codes) noexcept {
        const float scale = xquant::round_to_f16(std::abs(xquant::extreme_of(x)));
        for (std::size_t i = 0; i < x.size(); ++i) {
            const auto distance = [&](float level) { return std::abs(scale * level - x[i]); };
            const auto best = std::min_element(levels.begin(), levels.end(),
                                               [&](float a, float b) { return distance(a) < distance(b); });
            codes[i] = static_cast<std::uint8_t>(best - levels.begin());
        }
        return {scale, -zero_code * scale};
    }
};

/// The least one can write: one bit, the group's smallest or largest value.
struct Minimal {
    static constexpr unsigned bits = 1, group = 8;
    static constexpr bool stores_zero = true;

    static xquant::GroupScale encode(std::span<const float> x, std::span<std::uint8_t> codes) noexcept {
        const auto [low, high] = xquant::range_of(x);
        const float zero = xquant::round_to_f16(low);
        // The whole range may be twice what f16 holds.
        const float scale = std::min(xquant::f16_max, xquant::round_to_f16(std::max(0.0F, high - zero)));
        for (std::size_t i = 0; i < x.size(); ++i) codes[i] = x[i] - zero > scale / 2 ? 1 : 0;
        return {scale, zero};
    }
};

/// A group of 4 tokens, and as many channels as it takes.
struct FourTokens {
    static constexpr xquant::GroupShape group_shape(unsigned group) noexcept { return {4, group / 4}; }
};
