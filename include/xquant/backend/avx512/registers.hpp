// Registers of AVX-512 (F, BW, VL, DQ; VNNI where the flags have it). What each operation means:
// backend/simd/registers.hpp.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include <xquant/config.hpp>
#include <xquant/types.hpp>

XQUANT_UNDEFINED_REGISTERS_BEGIN

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {

struct avx512_registers {
    using f32 = __m512;
    using i32 = __m512i;
    static constexpr std::size_t lanes = 16, count = 32;
    static constexpr const char* name = "avx512";
    static constexpr const char* int8_name = "avx512_int8";
    static constexpr bool matrix_unit = false;
    struct MatrixScope {};

    static f32 zero() noexcept { return _mm512_setzero_ps(); }
    static f32 splat(float value) noexcept { return _mm512_set1_ps(value); }
    static f32 load(const float* from) noexcept { return _mm512_loadu_ps(from); }
    static f32 load_first(const float* from, std::size_t n) noexcept { return _mm512_maskz_loadu_ps(first(n), from); }
    static f32 load_f16(const f16* from) noexcept {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    }
    static f32 load_bf16(const bf16* from) noexcept {
        const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
        return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
    }
    static void store(float* to, f32 value) noexcept { _mm512_storeu_ps(to, value); }
    static void store_first(float* to, f32 value, std::size_t n) noexcept {
        _mm512_mask_storeu_ps(to, first(n), value);
    }
    static void store_f16(f16* to, f32 value) noexcept {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                            _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }

    static f32 add(f32 a, f32 b) noexcept { return _mm512_add_ps(a, b); }
    static f32 sub(f32 a, f32 b) noexcept { return _mm512_sub_ps(a, b); }
    static f32 mul(f32 a, f32 b) noexcept { return _mm512_mul_ps(a, b); }
    static f32 fma(f32 a, f32 b, f32 c) noexcept { return _mm512_fmadd_ps(a, b, c); }
    static f32 minimum(f32 a, f32 b) noexcept { return _mm512_min_ps(a, b); }
    static f32 maximum(f32 a, f32 b) noexcept { return _mm512_max_ps(a, b); }
    static float reduce_min(f32 a) noexcept { return _mm512_reduce_min_ps(a); }
    static float reduce_max(f32 a) noexcept { return _mm512_reduce_max_ps(a); }
    static float reduce_add(f32 a) noexcept { return _mm512_reduce_add_ps(a); }
    static f32 sum_four(const f32* rows) noexcept {
        const f32 a = _mm512_add_ps(_mm512_unpacklo_ps(rows[0], rows[1]), _mm512_unpackhi_ps(rows[0], rows[1]));
        const f32 b = _mm512_add_ps(_mm512_unpacklo_ps(rows[2], rows[3]), _mm512_unpackhi_ps(rows[2], rows[3]));
        const __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
        return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
    }
    static f32 sum_fours(const f32* fours) noexcept {
        const f32 low = _mm512_add_ps(_mm512_shuffle_f32x4(fours[0], fours[1], 0x88),
                                      _mm512_shuffle_f32x4(fours[0], fours[1], 0xDD));
        const f32 high = _mm512_add_ps(_mm512_shuffle_f32x4(fours[2], fours[3], 0x88),
                                       _mm512_shuffle_f32x4(fours[2], fours[3], 0xDD));
        return _mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xDD));
    }

    static f32 sum_halves(const f32* fours) noexcept {
        const f32 halves = _mm512_add_ps(_mm512_shuffle_f32x4(fours[0], fours[1], 0x88),
                                         _mm512_shuffle_f32x4(fours[0], fours[1], 0xDD));
        return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15), halves);
    }

    static i32 zero_i32() noexcept { return _mm512_setzero_si512(); }
    static i32 splat_i32(std::int32_t value) noexcept { return _mm512_set1_epi32(value); }
    static i32 load_i32(const void* from) noexcept { return _mm512_loadu_si512(from); }
    static void store_i32(void* to, i32 value) noexcept { _mm512_storeu_si512(to, value); }
    static i32 add_i32(i32 a, i32 b) noexcept { return _mm512_add_epi32(a, b); }
    static i32 bits_and(i32 a, i32 b) noexcept { return _mm512_and_si512(a, b); }
    static i32 bits_or(i32 a, i32 b) noexcept { return _mm512_or_si512(a, b); }
    static i32 shift_left(i32 a, unsigned by) noexcept { return _mm512_slli_epi32(a, by); }
    static i32 shift_right(i32 a, unsigned by) noexcept { return _mm512_srli_epi32(a, by); }
    static i32 shift_right_each(i32 a, i32 by) noexcept { return _mm512_srlv_epi32(a, by); }
    static f32 to_f32(i32 a) noexcept { return _mm512_cvtepi32_ps(a); }
    static i32 round(f32 a) noexcept { return _mm512_cvtps_epi32(a); }
    static f32 as_f32(i32 a) noexcept { return _mm512_castsi512_ps(a); }
    static i32 as_i32(f32 a) noexcept { return _mm512_castps_si512(a); }

    template <std::size_t Bytes>
    static i32 repeat(const void* from) noexcept {
        static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16 || Bytes == 32 || Bytes == 64);
        if constexpr (Bytes == 4) {
            return _mm512_broadcastd_epi32(_mm_loadu_si32(from));
        } else if constexpr (Bytes == 8) {
            return _mm512_broadcastq_epi64(_mm_loadu_si64(from));
        } else if constexpr (Bytes == 16) {
            return _mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i*>(from)));
        } else if constexpr (Bytes == 32) {
            return _mm512_broadcast_i64x4(_mm256_loadu_si256(static_cast<const __m256i*>(from)));
        } else {
            return _mm512_loadu_si512(from);
        }
    }

    static i32 load_u8(const std::uint8_t* from) noexcept {
        return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    }
    static void store_u8(std::uint8_t* to, i32 value) noexcept {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(value));
    }

    static void store_bytes(std::uint8_t* to, const i32* words) noexcept {
        // Packing works inside 128-bit blocks.
        const i32 order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        const i32 packed =
            _mm512_packs_epi16(_mm512_packs_epi32(words[0], words[1]), _mm512_packs_epi32(words[2], words[3]));
        _mm512_storeu_si512(to, _mm512_permutexvar_epi32(order, packed));
    }
    static void store_two_bytes(std::uint8_t* high, std::uint8_t* low, const i32* words) noexcept {
        const i32 a = _mm512_packs_epi32(words[0], words[1]), b = _mm512_packs_epi32(words[2], words[3]);
        const i32 order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        const i32 half = _mm512_set1_epi16(128);
        const i32 upper = _mm512_packs_epi16(_mm512_srai_epi16(_mm512_add_epi16(a, half), 8),
                                             _mm512_srai_epi16(_mm512_add_epi16(b, half), 8));
        const i32 lower = _mm512_packs_epi16(_mm512_srai_epi16(_mm512_slli_epi16(a, 8), 8),
                                             _mm512_srai_epi16(_mm512_slli_epi16(b, 8), 8));
        _mm512_storeu_si512(high, _mm512_permutexvar_epi32(order, upper));
        _mm512_storeu_si512(low, _mm512_permutexvar_epi32(order, lower));
    }
    static i32 load_halves(const void* first, const void* second) noexcept {
        return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256(static_cast<const __m256i*>(first))),
                                  _mm256_loadu_si256(static_cast<const __m256i*>(second)), 1);
    }

    static void interleave_bytes(i32 a, i32 b, i32 c, i32 d, i32* out) noexcept {
        // Unpacking works inside 128-bit blocks: with their 4-byte words transposed first, its results come in order.
        const i32 order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        a = _mm512_permutexvar_epi32(order, a);
        b = _mm512_permutexvar_epi32(order, b);
        c = _mm512_permutexvar_epi32(order, c);
        d = _mm512_permutexvar_epi32(order, d);
        const i32 ab_low = _mm512_unpacklo_epi8(a, b), ab_high = _mm512_unpackhi_epi8(a, b);
        const i32 cd_low = _mm512_unpacklo_epi8(c, d), cd_high = _mm512_unpackhi_epi8(c, d);
        out[0] = _mm512_unpacklo_epi16(ab_low, cd_low);
        out[1] = _mm512_unpackhi_epi16(ab_low, cd_low);
        out[2] = _mm512_unpacklo_epi16(ab_high, cd_high);
        out[3] = _mm512_unpackhi_epi16(ab_high, cd_high);
    }

    static void interleave_halves(i32 a, i32 b, i32* out) noexcept {
#if defined(__AVX512VBMI__)
        // Row k lies at byte 32 k of a, b.
        const i32 first = _mm512_setr_epi32(0x60402000, 0x61412101, 0x62422202, 0x63432303, 0x64442404, 0x65452505,
                                            0x66462606, 0x67472707, 0x68482808, 0x69492909, 0x6A4A2A0A, 0x6B4B2B0B,
                                            0x6C4C2C0C, 0x6D4D2D0D, 0x6E4E2E0E, 0x6F4F2F0F);
        out[0] = _mm512_permutex2var_epi8(a, first, b);
        out[1] = _mm512_permutex2var_epi8(a, _mm512_or_si512(first, _mm512_set1_epi32(0x10101010)), b);
#else
        const i32 even = _mm512_shuffle_i64x2(a, b, 0x44), odd = _mm512_shuffle_i64x2(a, b, 0xEE);
        // Bytes of rows 0 and 1 side by side in the lower halves, of rows 2 and 3 in the upper ones.
        const i32 low = _mm512_unpacklo_epi8(even, odd), high = _mm512_unpackhi_epi8(even, odd);
        const i32 order = _mm512_setr_epi32(0x00100000, 0x00110001, 0x00120002, 0x00130003, 0x00140004, 0x00150005,
                                            0x00160006, 0x00170007, 0x00300020, 0x00310021, 0x00320022, 0x00330023,
                                            0x00340024, 0x00350025, 0x00360026, 0x00370027);
        out[0] = _mm512_permutex2var_epi16(low, order, high);
        out[1] = _mm512_permutex2var_epi16(low, _mm512_or_si512(order, _mm512_set1_epi32(0x00080008)), high);
#endif
    }

    static void transpose_fours(i32* rows) noexcept {
        const i32 t0 = _mm512_unpacklo_epi32(rows[0], rows[1]), t1 = _mm512_unpackhi_epi32(rows[0], rows[1]);
        const i32 t2 = _mm512_unpacklo_epi32(rows[2], rows[3]), t3 = _mm512_unpackhi_epi32(rows[2], rows[3]);
        rows[0] = _mm512_unpacklo_epi64(t0, t2);
        rows[1] = _mm512_unpackhi_epi64(t0, t2);
        rows[2] = _mm512_unpacklo_epi64(t1, t3);
        rows[3] = _mm512_unpackhi_epi64(t1, t3);
    }
    static void transpose(i32* rows) noexcept {
        for (int i = 0; i < 16; i += 4) transpose_fours(rows + i);
        // Row 4 r + c, block k: column 4 k + c of rows 4 r .. 4 r + 3.
        for (int c = 0; c < 4; ++c) {
            const i32 low = _mm512_shuffle_i32x4(rows[c], rows[4 + c], 0x88);
            const i32 low_odd = _mm512_shuffle_i32x4(rows[c], rows[4 + c], 0xDD);
            const i32 high = _mm512_shuffle_i32x4(rows[8 + c], rows[12 + c], 0x88);
            const i32 high_odd = _mm512_shuffle_i32x4(rows[8 + c], rows[12 + c], 0xDD);
            rows[c] = _mm512_shuffle_i32x4(low, high, 0x88);
            rows[8 + c] = _mm512_shuffle_i32x4(low, high, 0xDD);
            rows[4 + c] = _mm512_shuffle_i32x4(low_odd, high_odd, 0x88);
            rows[12 + c] = _mm512_shuffle_i32x4(low_odd, high_odd, 0xDD);
        }
    }

#if defined(__AVX512VNNI__)
    // Four products go straight into 32 bits: a run never ends.
    static constexpr unsigned dot_bits = 8;
    static constexpr std::size_t dot_run(unsigned) noexcept { return static_cast<std::size_t>(-1); }
    static i32 dot(i32 sum, i32 codes, i32 weights) noexcept {
#if defined(__GNUC__) && !defined(__clang__)
        // g++ 12 copies the sum before and after each intrinsic.
        asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(weights));
        return sum;
#else
        return _mm512_dpbusd_epi32(sum, codes, weights);
#endif
    }
    static i32 dot_end(i32 run) noexcept { return run; }
#else
    static constexpr unsigned dot_bits = 5;
    static constexpr std::size_t dot_run(unsigned bits) noexcept { return bits <= 4 ? 8 : 4; }
    static i32 dot(i32 sum, i32 codes, i32 weights) noexcept {
        return _mm512_add_epi16(sum, _mm512_maddubs_epi16(codes, weights));
    }
    static i32 dot_end(i32 run) noexcept { return _mm512_madd_epi16(run, _mm512_set1_epi16(1)); }
#endif

private:
    static __mmask16 first(std::size_t n) noexcept { return static_cast<__mmask16>((1U << n) - 1U); }
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend

XQUANT_UNDEFINED_REGISTERS_END
