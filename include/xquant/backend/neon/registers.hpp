// Registers of Arm's Advanced SIMD (NEON) in 64-bit mode: 128 bits, 32 of them. What each operation means:
// backend/simd/registers.hpp.
//
// Every such processor has all of it but the dot instructions. Three forms of these, by the flags:
//
//     i8mm      usdot: unsigned by signed bytes, four products into each word. Codes of up to 8 bits
//     dotprod   sdot: signed by signed bytes. Codes of up to 7 bits are signed bytes as they are; those of 8 bits run
//               in f32, since taking 128 off and adding it again would triple the instructions
//     neither   widening products, in 16 bits, as on AVX2
//
// Other processors' compilers have no arm_neon.h: for them this header is empty.
#pragma once

#include <xquant/config.hpp>

#if defined(XQUANT_HAS_NEON)
#include <arm_neon.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <xquant/types.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {

struct neon_registers {
    using f32 = float32x4_t;
    using i32 = uint32x4_t;
    static constexpr std::size_t lanes = 4, count = 32;
    static constexpr const char* name = "neon";
    static constexpr const char* int8_name = "neon_int8";
    static constexpr bool matrix_unit = false;
    struct MatrixScope {};

    static f32 zero() noexcept { return vdupq_n_f32(0.0F); }
    static f32 splat(float value) noexcept { return vdupq_n_f32(value); }
    static f32 load(const float* from) noexcept { return vld1q_f32(from); }
    static f32 load_first(const float* from, std::size_t n) noexcept {
        if (n >= lanes) return load(from);
        f32 out = zero();
        if ((n & 2U) != 0) out = vcombine_f32(vld1_f32(from), vdup_n_f32(0.0F));
        if (n == 1) out = vld1q_lane_f32(from, out, 0);
        if (n == 3) out = vld1q_lane_f32(from + 2, out, 2);
        return out;
    }
    static f32 load_f16(const f16* from) noexcept {
        return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const std::uint16_t*>(from))));
    }
    static f32 load_bf16(const bf16* from) noexcept {
        return as_f32(vshll_n_u16(vld1_u16(reinterpret_cast<const std::uint16_t*>(from)), 16));
    }
    static void store(float* to, f32 value) noexcept { vst1q_f32(to, value); }
    static void store_first(float* to, f32 value, std::size_t n) noexcept {
        if (n >= lanes) return store(to, value);
        if ((n & 2U) != 0) vst1_f32(to, vget_low_f32(value));
        if (n == 1) vst1q_lane_f32(to, value, 0);
        if (n == 3) vst1q_lane_f32(to + 2, value, 2);
    }
    static void store_f16(f16* to, f32 value) noexcept {
        vst1_u16(reinterpret_cast<std::uint16_t*>(to), vreinterpret_u16_f16(vcvt_f16_f32(value)));
    }

    static f32 add(f32 a, f32 b) noexcept { return vaddq_f32(a, b); }
    static f32 sub(f32 a, f32 b) noexcept { return vsubq_f32(a, b); }
    static f32 mul(f32 a, f32 b) noexcept { return vmulq_f32(a, b); }
    static f32 fma(f32 a, f32 b, f32 c) noexcept { return vfmaq_f32(c, a, b); }
    // fmin and fmax give NaN wherever one is.
    static f32 minimum(f32 a, f32 b) noexcept { return vbslq_f32(vcltq_f32(a, b), a, b); }
    static f32 maximum(f32 a, f32 b) noexcept { return vbslq_f32(vcgtq_f32(a, b), a, b); }
    static float reduce_min(f32 a) noexcept { return vminvq_f32(a); }
    static float reduce_max(f32 a) noexcept { return vmaxvq_f32(a); }
    static float reduce_add(f32 a) noexcept {
        const float32x2_t halves = vadd_f32(vget_low_f32(a), vget_high_f32(a));
        return vget_lane_f32(vpadd_f32(halves, halves), 0);
    }
    static f32 sum_four(const f32* rows) noexcept {
        return vpaddq_f32(vpaddq_f32(rows[0], rows[1]), vpaddq_f32(rows[2], rows[3]));
    }
    static f32 sum_fours(const f32* fours) noexcept { return fours[0]; }

    static i32 zero_i32() noexcept { return vdupq_n_u32(0); }
    static i32 splat_i32(std::int32_t value) noexcept { return vdupq_n_u32(static_cast<std::uint32_t>(value)); }
    static i32 load_i32(const void* from) noexcept {
        return vreinterpretq_u32_u8(vld1q_u8(static_cast<const std::uint8_t*>(from)));
    }
    static void store_i32(void* to, i32 value) noexcept {
        vst1q_u8(static_cast<std::uint8_t*>(to), vreinterpretq_u8_u32(value));
    }
    static i32 add_i32(i32 a, i32 b) noexcept { return vaddq_u32(a, b); }
    static i32 bits_and(i32 a, i32 b) noexcept { return vandq_u32(a, b); }
    static i32 bits_or(i32 a, i32 b) noexcept { return vorrq_u32(a, b); }
    // Operators, of which compilers make one instruction where the number is a constant.
    static i32 shift_left(i32 a, unsigned by) noexcept { return a << vdupq_n_u32(by); }
    static i32 shift_right(i32 a, unsigned by) noexcept { return a >> vdupq_n_u32(by); }
    static i32 shift_right_each(i32 a, i32 by) noexcept { return vshlq_u32(a, vnegq_s32(vreinterpretq_s32_u32(by))); }
    static f32 to_f32(i32 a) noexcept { return vcvtq_f32_s32(vreinterpretq_s32_u32(a)); }
    static i32 round(f32 a) noexcept { return vreinterpretq_u32_s32(vcvtnq_s32_f32(a)); }
    static f32 as_f32(i32 a) noexcept { return vreinterpretq_f32_u32(a); }
    static i32 as_i32(f32 a) noexcept { return vreinterpretq_u32_f32(a); }

    template <std::size_t Bytes>
    static i32 repeat(const void* from) noexcept {
        static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
        if constexpr (Bytes == 4) {
            return vdupq_n_u32(word_at<std::uint32_t>(from));
        } else if constexpr (Bytes == 8) {
            return vreinterpretq_u32_u64(vdupq_n_u64(word_at<std::uint64_t>(from)));
        } else {
            return load_i32(from);
        }
    }

    static i32 load_u8(const std::uint8_t* from) noexcept {
        const uint8x8_t bytes = vreinterpret_u8_u32(vdup_n_u32(word_at<std::uint32_t>(from)));
        return vmovl_u16(vget_low_u16(vmovl_u8(bytes)));
    }
    static void store_u8(std::uint8_t* to, i32 value) noexcept {
        const uint16x8_t halves = vuzp1q_u16(vreinterpretq_u16_u32(value), vreinterpretq_u16_u32(value));
        const std::uint32_t bytes = vget_lane_u32(vreinterpret_u32_u8(vmovn_u16(halves)), 0);
        std::memcpy(to, &bytes, sizeof bytes);
    }

    static void store_bytes(std::uint8_t* to, const i32* words) noexcept {
        vst1q_u8(to, vuzp1q_u8(bytes(low_halves(words[0], words[1])), bytes(low_halves(words[2], words[3]))));
    }
    static void store_two_bytes(std::uint8_t* high, std::uint8_t* low, const i32* words) noexcept {
        const uint16x8_t a = low_halves(words[0], words[1]), b = low_halves(words[2], words[3]);
        const uint16x8_t half = vdupq_n_u16(128);
        vst1q_u8(high, vuzp2q_u8(bytes(vaddq_u16(a, half)), bytes(vaddq_u16(b, half))));
        vst1q_u8(low, vuzp1q_u8(bytes(a), bytes(b)));
    }
    static i32 load_halves(const void* first, const void* second) noexcept {
        return vreinterpretq_u32_u8(vcombine_u8(vld1_u8(static_cast<const std::uint8_t*>(first)),
                                                vld1_u8(static_cast<const std::uint8_t*>(second))));
    }

    static void interleave_bytes(i32 a, i32 b, i32 c, i32 d, i32* out) noexcept {
        interleave_pairs(zip_low(a, b), zip_low(c, d), out);
        interleave_pairs(zip_high(a, b), zip_high(c, d), out + 2);
    }
    static void interleave_halves(i32 a, i32 b, i32* out) noexcept {
        interleave_pairs(zip_low(a, swap_halves(a)), zip_low(b, swap_halves(b)), out);
    }

    static void transpose_fours(i32* rows) noexcept { transpose(rows); }
    static void transpose(i32* rows) noexcept {
        const uint64x2_t even01 = vreinterpretq_u64_u32(vtrn1q_u32(rows[0], rows[1])),
                         odd01 = vreinterpretq_u64_u32(vtrn2q_u32(rows[0], rows[1])),
                         even23 = vreinterpretq_u64_u32(vtrn1q_u32(rows[2], rows[3])),
                         odd23 = vreinterpretq_u64_u32(vtrn2q_u32(rows[2], rows[3]));
        rows[0] = vreinterpretq_u32_u64(vtrn1q_u64(even01, even23));
        rows[1] = vreinterpretq_u32_u64(vtrn1q_u64(odd01, odd23));
        rows[2] = vreinterpretq_u32_u64(vtrn2q_u64(even01, even23));
        rows[3] = vreinterpretq_u32_u64(vtrn2q_u64(odd01, odd23));
    }

#if defined(__ARM_FEATURE_MATMUL_INT8) || defined(__ARM_FEATURE_DOTPROD)
    // Four products go straight into 32 bits: a run never ends.
    static constexpr std::size_t dot_run(unsigned) noexcept { return static_cast<std::size_t>(-1); }
    static i32 dot_end(i32 run) noexcept { return run; }
#endif
#if defined(__ARM_FEATURE_MATMUL_INT8)
    static constexpr unsigned dot_bits = 8;
    static i32 dot(i32 sum, i32 codes, i32 weights) noexcept {
        return vreinterpretq_u32_s32(
            vusdotq_s32(vreinterpretq_s32_u32(sum), vreinterpretq_u8_u32(codes), signed_bytes(weights)));
    }
#elif defined(__ARM_FEATURE_DOTPROD)
    static constexpr unsigned dot_bits = 7;
    static i32 dot(i32 sum, i32 codes, i32 weights) noexcept {
        return vreinterpretq_u32_s32(vdotq_s32(vreinterpretq_s32_u32(sum), signed_bytes(codes), signed_bytes(weights)));
    }
#else
    // Sums of products stay in 16 bits as long as none can leave them: run * 2 * (2^bits - 1) * 128 <= 32767.
    static constexpr unsigned dot_bits = 5;
    static constexpr std::size_t dot_run(unsigned bits) noexcept { return bits <= 4 ? 8 : 4; }
    static i32 dot(i32 sum, i32 codes, i32 weights) noexcept {
        const int8x16_t a = signed_bytes(codes), b = signed_bytes(weights);
        const int16x8_t pairs = vpaddq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)), vmull_high_s8(a, b));
        return vreinterpretq_u32_s16(vaddq_s16(vreinterpretq_s16_u32(sum), pairs));
    }
    static i32 dot_end(i32 run) noexcept { return vreinterpretq_u32_s32(vpaddlq_s16(vreinterpretq_s16_u32(run))); }
#endif

private:
    static uint16x8_t low_halves(i32 a, i32 b) noexcept {
        return vuzp1q_u16(vreinterpretq_u16_u32(a), vreinterpretq_u16_u32(b));
    }
    static uint8x16_t bytes(uint16x8_t a) noexcept { return vreinterpretq_u8_u16(a); }
    template <class Word>
    static Word word_at(const void* from) noexcept {
        Word out;
        std::memcpy(&out, from, sizeof out);
        return out;
    }
    static int8x16_t signed_bytes(i32 a) noexcept { return vreinterpretq_s8_u32(a); }
    static uint16x8_t zip_low(i32 a, i32 b) noexcept {
        return vreinterpretq_u16_u8(vzip1q_u8(vreinterpretq_u8_u32(a), vreinterpretq_u8_u32(b)));
    }
    static uint16x8_t zip_high(i32 a, i32 b) noexcept {
        return vreinterpretq_u16_u8(vzip2q_u8(vreinterpretq_u8_u32(a), vreinterpretq_u8_u32(b)));
    }
    static i32 swap_halves(i32 a) noexcept { return vextq_u32(a, a, 2); }
    static void interleave_pairs(uint16x8_t a, uint16x8_t b, i32* out) noexcept {
        out[0] = vreinterpretq_u32_u16(vzip1q_u16(a, b));
        out[1] = vreinterpretq_u32_u16(vzip2q_u16(a, b));
    }
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
#endif
