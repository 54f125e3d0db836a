// A register of 512 bits in plain C++: the AVX-512 form of every kernel runs on any machine, for tests. Slow.
// What each operation means: backend/simd/registers.hpp, of which this is the specification.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include <xquant/config.hpp>
#include <xquant/types.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {

struct emulated_registers {
    static constexpr std::size_t lanes = 16, count = 32;
    static constexpr const char* name = "emulated";
    static constexpr const char* int8_name = "emulated_int8";
    static constexpr bool matrix_unit = false;
    struct MatrixScope {};

    struct f32 {
        std::array<float, lanes> at;
    };
    struct i32 {
        std::array<std::uint32_t, lanes> at;
    };

    static f32 zero() noexcept { return {}; }
    static f32 splat(float value) noexcept {
        return fill([&](std::size_t) { return value; });
    }
    static f32 load(const float* from) noexcept { return load_first(from, lanes); }
    static f32 load_first(const float* from, std::size_t n) noexcept {
        return fill([&](std::size_t i) { return i < n ? from[i] : 0.0F; });
    }
    static f32 load_f16(const f16* from) noexcept {
        return fill([&](std::size_t i) { return to_float(from[i]); });
    }
    static f32 load_bf16(const bf16* from) noexcept {
        return fill([&](std::size_t i) { return to_float(from[i]); });
    }
    static void store(float* to, f32 value) noexcept { store_first(to, value, lanes); }
    static void store_first(float* to, f32 value, std::size_t n) noexcept { std::copy_n(value.at.begin(), n, to); }
    static void store_f16(f16* to, f32 value) noexcept {
        for (std::size_t i = 0; i < lanes; ++i) to[i] = to_f16(value.at[i]);
    }

    static f32 add(f32 a, f32 b) noexcept {
        return fill([&](std::size_t i) { return a.at[i] + b.at[i]; });
    }
    static f32 sub(f32 a, f32 b) noexcept {
        return fill([&](std::size_t i) { return a.at[i] - b.at[i]; });
    }
    static f32 mul(f32 a, f32 b) noexcept {
        return fill([&](std::size_t i) { return a.at[i] * b.at[i]; });
    }
    static f32 fma(f32 a, f32 b, f32 c) noexcept {
        return fill([&](std::size_t i) { return std::fma(a.at[i], b.at[i], c.at[i]); });
    }
    static f32 minimum(f32 a, f32 b) noexcept {
        return fill([&](std::size_t i) { return a.at[i] < b.at[i] ? a.at[i] : b.at[i]; });
    }
    static f32 maximum(f32 a, f32 b) noexcept {
        return fill([&](std::size_t i) { return a.at[i] > b.at[i] ? a.at[i] : b.at[i]; });
    }
    static float reduce_min(f32 a) noexcept { return *std::min_element(a.at.begin(), a.at.end()); }
    static float reduce_max(f32 a) noexcept { return *std::max_element(a.at.begin(), a.at.end()); }
    static float reduce_add(f32 a) noexcept {
        for (std::size_t step = lanes / 2; step > 0; step /= 2) {
            for (std::size_t i = 0; i < step; ++i) a.at[i] += a.at[i + step];
        }
        return a.at[0];
    }
    static f32 sum_four(const f32* rows) noexcept {
        return fill([&](std::size_t i) {
            const auto& row = rows[i % 4].at;
            const std::size_t block = i / 4 * 4;
            return (row[block] + row[block + 1]) + (row[block + 2] + row[block + 3]);
        });
    }
    static f32 sum_fours(const f32* fours) noexcept {
        return fill([&](std::size_t i) {
            float sum = 0;
            for (std::size_t block = 0; block < lanes; block += 4) sum += fours[i / 4].at[block + i % 4];
            return sum;
        });
    }

    static f32 sum_halves(const f32* fours) noexcept {
        return fill([&](std::size_t i) {
            const std::size_t row = i / 2 % 4, half = i % 2 * (lanes / 2);
            float sum = 0;
            for (std::size_t block = 0; block < lanes / 2; block += 4) sum += fours[i / 8].at[half + block + row];
            return sum;
        });
    }

    static i32 zero_i32() noexcept { return {}; }
    static i32 splat_i32(std::int32_t value) noexcept {
        return fill_i32([&](std::size_t) { return static_cast<std::uint32_t>(value); });
    }
    static i32 load_i32(const void* from) noexcept {
        i32 out;
        std::memcpy(out.at.data(), from, sizeof(out.at));
        return out;
    }
    static void store_i32(void* to, i32 value) noexcept { std::memcpy(to, value.at.data(), sizeof(value.at)); }
    static i32 add_i32(i32 a, i32 b) noexcept {
        return fill_i32([&](std::size_t i) { return a.at[i] + b.at[i]; });
    }
    static i32 bits_and(i32 a, i32 b) noexcept {
        return fill_i32([&](std::size_t i) { return a.at[i] & b.at[i]; });
    }
    static i32 bits_or(i32 a, i32 b) noexcept {
        return fill_i32([&](std::size_t i) { return a.at[i] | b.at[i]; });
    }
    static i32 shift_left(i32 a, unsigned by) noexcept {
        return fill_i32([&](std::size_t i) { return a.at[i] << by; });
    }
    static i32 shift_right(i32 a, unsigned by) noexcept {
        return fill_i32([&](std::size_t i) { return a.at[i] >> by; });
    }
    static i32 shift_right_each(i32 a, i32 by) noexcept {
        return fill_i32([&](std::size_t i) { return by.at[i] < 32 ? a.at[i] >> by.at[i] : 0U; });
    }
    static f32 to_f32(i32 a) noexcept {
        return fill([&](std::size_t i) { return static_cast<float>(static_cast<std::int32_t>(a.at[i])); });
    }
    static i32 round(f32 a) noexcept {
        return fill_i32([&](std::size_t i) {
            const float rounded = std::nearbyint(a.at[i]);
            return std::abs(rounded) < 0x1p31F ? static_cast<std::uint32_t>(static_cast<std::int32_t>(rounded))
                                               : 1U << 31U;
        });
    }
    static f32 as_f32(i32 a) noexcept {
        return fill([&](std::size_t i) { return std::bit_cast<float>(a.at[i]); });
    }
    static i32 as_i32(f32 a) noexcept {
        return fill_i32([&](std::size_t i) { return std::bit_cast<std::uint32_t>(a.at[i]); });
    }

    template <std::size_t Bytes>
    static i32 repeat(const void* from) noexcept {
        i32 out;
        for (std::size_t i = 0; i < sizeof(out.at); i += Bytes) {
            std::memcpy(reinterpret_cast<std::byte*>(out.at.data()) + i, from, Bytes);
        }
        return out;
    }

    static i32 load_u8(const std::uint8_t* from) noexcept {
        return fill_i32([&](std::size_t i) { return std::uint32_t{from[i]}; });
    }
    static void store_u8(std::uint8_t* to, i32 value) noexcept {
        for (std::size_t i = 0; i < lanes; ++i) to[i] = static_cast<std::uint8_t>(value.at[i]);
    }

    static void store_bytes(std::uint8_t* to, const i32* words) noexcept {
        for (std::size_t r = 0; r < 4; ++r) store_u8(to + r * lanes, words[r]);
    }
    static void store_two_bytes(std::uint8_t* high, std::uint8_t* low, const i32* words) noexcept {
        for (std::size_t r = 0; r < 4; ++r) {
            store_u8(high + r * lanes, shift_right(add_i32(words[r], splat_i32(128)), 8));
            store_u8(low + r * lanes, words[r]);
        }
    }
    static i32 load_halves(const void* first, const void* second) noexcept {
        i32 out;
        std::memcpy(out.at.data(), first, sizeof(out.at) / 2);
        std::memcpy(out.at.data() + lanes / 2, second, sizeof(out.at) / 2);
        return out;
    }

    static void interleave_bytes(i32 a, i32 b, i32 c, i32 d, i32* out) noexcept {
        for (std::size_t t = 0; t < 4 * lanes; ++t) {
            out[t / lanes].at[t % lanes] = byte(a, t) | byte(b, t) << 8U | byte(c, t) << 16U | byte(d, t) << 24U;
        }
    }

    static void interleave_halves(i32 a, i32 b, i32* out) noexcept {
        constexpr std::size_t half = 2 * lanes;
        for (std::size_t t = 0; t < half; ++t) {
            out[t / lanes].at[t % lanes] =
                byte(a, t) | byte(a, half + t) << 8U | byte(b, t) << 16U | byte(b, half + t) << 24U;
        }
    }

    static void transpose_fours(i32* rows) noexcept {
        for (std::size_t b = 0; b < lanes; b += 4) {
            for (std::size_t i = 0; i < 4; ++i) {
                for (std::size_t j = 0; j < i; ++j) std::swap(rows[i].at[b + j], rows[j].at[b + i]);
            }
        }
    }
    static void transpose(i32* rows) noexcept {
        for (std::size_t i = 0; i < lanes; ++i) {
            for (std::size_t j = 0; j < i; ++j) std::swap(rows[i].at[j], rows[j].at[i]);
        }
    }

    static constexpr unsigned dot_bits = 8;
    static constexpr std::size_t dot_run(unsigned) noexcept { return static_cast<std::size_t>(-1); }
    static i32 dot(i32 sum, i32 codes, i32 weights) noexcept {
        return fill_i32([&](std::size_t i) {
            std::uint32_t total = sum.at[i];
            for (unsigned b = 0; b < 32; b += 8) {
                const auto weight = static_cast<std::int8_t>(static_cast<std::uint8_t>(weights.at[i] >> b));
                total += static_cast<std::uint32_t>(static_cast<std::int32_t>((codes.at[i] >> b) & 0xFFU) * weight);
            }
            return total;
        });
    }
    static i32 dot_end(i32 run) noexcept { return run; }

private:
    template <class F>
    static f32 fill(F&& f) noexcept {
        f32 out;
        for (std::size_t i = 0; i < lanes; ++i) out.at[i] = f(i);
        return out;
    }
    template <class F>
    static i32 fill_i32(F&& f) noexcept {
        i32 out;
        for (std::size_t i = 0; i < lanes; ++i) out.at[i] = f(i);
        return out;
    }
    static std::uint32_t byte(const i32& a, std::size_t i) noexcept { return a.at[i / 4] >> (8 * (i % 4)) & 0xFFU; }
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
