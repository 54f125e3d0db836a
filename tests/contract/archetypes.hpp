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

/// The mean distance of the values above and below the group's mean, learnt: two levels.
struct LearnsTwo {
    static constexpr unsigned bits = 1, group = 16;
    static constexpr bool stores_zero = true;

    static xquant::GroupScale encode(std::span<const float> x, std::span<std::uint8_t> codes,
                                     const float* levels) noexcept {
        const auto [low, high] = xquant::range_of(x);
        const float zero = xquant::round_to_f16(low);
        const float scale = std::min(xquant::f16_max, xquant::round_to_f16(std::max(0.0F, high - zero)));
        const float middle = (levels[0] + levels[1]) / 2;
        for (std::size_t i = 0; i < x.size(); ++i) codes[i] = x[i] - zero > scale * middle ? 1 : 0;
        return {scale, zero};
    }
    static void learn(std::span<const std::span<const float>> groups, std::span<float> levels) {
        double sum = 0, count = 0;
        for (const auto x : groups) {
            const auto [low, high] = xquant::range_of(x);
            for (const float value : x) {
                if (high > low) sum += std::abs((static_cast<double>(value) - low) / (high - low) - 0.5), ++count;
            }
        }
        const double spread = count > 0 ? sum / count : 0.5;
        levels[0] = static_cast<float>(0.5 - spread);
        levels[1] = static_cast<float>(0.5 + spread);
    }
};

/// MXFP4 of the Open Compute Project: levels of 4 bits (e2m1) times a power of two. What lies between 6 and 8 times the
/// scale becomes 6 times.
struct Mxfp4 {
    static constexpr unsigned bits = 4, group = 32;
    static constexpr bool stores_zero = false, exact_constant = false;
    static constexpr float zero_code = 0, constant_error = 0.25F;
    static constexpr std::array<float, 16> levels{0,     0.5F,  1,  1.5F,  2,  3,  4,  6,
                                                  -0.0F, -0.5F, -1, -1.5F, -2, -3, -4, -6};

    static xquant::GroupScale encode(std::span<const float> x, std::span<std::uint8_t> codes) noexcept {
        const float largest = std::abs(xquant::extreme_of(x));
        const int exponent = largest > 0 ? std::max(std::ilogb(largest) - 2, -24) : -24;  // f16 has 2^-24 and more
        const float scale = std::ldexp(1.0F, exponent);
        for (std::size_t i = 0; i < x.size(); ++i) {
            const float size = std::abs(x[i]) / scale;
            unsigned code = 0;
            for (unsigned k = 1; k < 8; ++k) {
                if (std::abs(size - levels[k]) < std::abs(size - levels[code])) code = k;
            }
            codes[i] = static_cast<std::uint8_t>(x[i] < 0 ? code + 8 : code);
        }
        return {scale, -zero_code * scale};
    }
};

/// The first and the last value of each group are kept as they are.
struct EndsExact : xquant::Uniform<3, 24> {
    static constexpr unsigned outliers = 2;
    static void choose(std::span<const float> x, std::span<std::uint8_t> places) noexcept {
        places.front() = 0;
        places.back() = static_cast<std::uint8_t>(x.size() - 1);
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
