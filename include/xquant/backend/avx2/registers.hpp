// Registers of AVX2 with FMA and F16C. What each operation means: backend/simd/registers.hpp.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include <xquant/config.hpp>
#include <xquant/types.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {

struct avx2_registers {
    using f32 = __m256;
    using i32 = __m256i;
    static constexpr std::size_t lanes = 8, count = 16;
    static constexpr const char* name = "avx2";
    static constexpr const char* int8_name = "avx2_int8";
    static constexpr bool matrix_unit = false;
    struct MatrixScope {};

    static f32 zero() noexcept { return _mm256_setzero_ps(); }
    static f32 splat(float value) noexcept { return _mm256_set1_ps(value); }
    static f32 load(const float* from) noexcept { return _mm256_loadu_ps(from); }
    static f32 load_first(const float* from, std::size_t n) noexcept { return _mm256_maskload_ps(from, first(n)); }
    static f32 load_f16(const f16* from) noexcept {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    }
    static f32 load_bf16(const bf16* from) noexcept {
        const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
        return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
    }
    static void store(float* to, f32 value) noexcept { _mm256_storeu_ps(to, value); }
    static void store_first(float* to, f32 value, std::size_t n) noexcept { _mm256_maskstore_ps(to, first(n), value); }
    static void store_f16(f16* to, f32 value) noexcept {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                         _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }

    static f32 add(f32 a, f32 b) noexcept { return _mm256_add_ps(a, b); }
    static f32 sub(f32 a, f32 b) noexcept { return _mm256_sub_ps(a, b); }
    static f32 mul(f32 a, f32 b) noexcept { return _mm256_mul_ps(a, b); }
    static f32 fma(f32 a, f32 b, f32 c) noexcept { return _mm256_fmadd_ps(a, b, c); }
    static f32 minimum(f32 a, f32 b) noexcept { return _mm256_min_ps(a, b); }
    static f32 maximum(f32 a, f32 b) noexcept { return _mm256_max_ps(a, b); }
    static float reduce_min(f32 a) noexcept {
        __m128 x = _mm_min_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        x = _mm_min_ps(x, _mm_movehl_ps(x, x));
        return _mm_cvtss_f32(_mm_min_ss(x, _mm_movehdup_ps(x)));
    }
    static float reduce_max(f32 a) noexcept {
        __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        x = _mm_max_ps(x, _mm_movehl_ps(x, x));
        return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
    }
    static float reduce_add(f32 a) noexcept {
        __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        x = _mm_add_ps(x, _mm_movehl_ps(x, x));
        return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
    }
    static f32 sum_four(const f32* rows) noexcept {
        return _mm256_hadd_ps(_mm256_hadd_ps(rows[0], rows[1]), _mm256_hadd_ps(rows[2], rows[3]));
    }
    static f32 sum_fours(const f32* fours) noexcept {
        return _mm256_add_ps(_mm256_permute2f128_ps(fours[0], fours[1], 0x20),
                             _mm256_permute2f128_ps(fours[0], fours[1], 0x31));
    }

    static f32 sum_halves(const f32* fours) noexcept {
        return _mm256_permutevar8x32_ps(fours[0], _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    }

    static i32 zero_i32() noexcept { return _mm256_setzero_si256(); }
    static i32 splat_i32(std::int32_t value) noexcept { return _mm256_set1_epi32(value); }
    static i32 load_i32(const void* from) noexcept { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
    static void store_i32(void* to, i32 value) noexcept { _mm256_storeu_si256(static_cast<__m256i*>(to), value); }
    static i32 add_i32(i32 a, i32 b) noexcept { return _mm256_add_epi32(a, b); }
    static i32 bits_and(i32 a, i32 b) noexcept { return _mm256_and_si256(a, b); }
    static i32 bits_or(i32 a, i32 b) noexcept { return _mm256_or_si256(a, b); }
    static i32 shift_left(i32 a, unsigned by) noexcept { return _mm256_slli_epi32(a, static_cast<int>(by)); }
    static i32 shift_right(i32 a, unsigned by) noexcept { return _mm256_srli_epi32(a, static_cast<int>(by)); }
    static i32 shift_right_each(i32 a, i32 by) noexcept { return _mm256_srlv_epi32(a, by); }
    static f32 to_f32(i32 a) noexcept { return _mm256_cvtepi32_ps(a); }
    static i32 round(f32 a) noexcept { return _mm256_cvtps_epi32(a); }
    static f32 as_f32(i32 a) noexcept { return _mm256_castsi256_ps(a); }
    static i32 as_i32(f32 a) noexcept { return _mm256_castps_si256(a); }

    template <std::size_t Bytes>
    static i32 repeat(const void* from) noexcept {
        static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16 || Bytes == 32);
        if constexpr (Bytes == 4) {
            return _mm256_broadcastd_epi32(_mm_loadu_si32(from));
        } else if constexpr (Bytes == 8) {
            return _mm256_broadcastq_epi64(_mm_loadu_si64(from));
        } else if constexpr (Bytes == 16) {
            return _mm256_broadcastsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(from)));
        } else {
            return load_i32(from);
        }
    }

    static i32 load_u8(const std::uint8_t* from) noexcept { return _mm256_cvtepu8_epi32(_mm_loadu_si64(from)); }
    static void store_u8(std::uint8_t* to, i32 value) noexcept {
        const __m128i half = _mm_packus_epi32(_mm256_castsi256_si128(value), _mm256_extracti128_si256(value, 1));
        _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packus_epi16(half, half));
    }

    static void store_bytes(std::uint8_t* to, const i32* words) noexcept {
        // Packing works inside 128-bit blocks.
        const i32 packed =
            _mm256_packs_epi16(_mm256_packs_epi32(words[0], words[1]), _mm256_packs_epi32(words[2], words[3]));
        store_i32(to, _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
    }
    static void store_two_bytes(std::uint8_t* high, std::uint8_t* low, const i32* words) noexcept {
        const i32 a = _mm256_packs_epi32(words[0], words[1]), b = _mm256_packs_epi32(words[2], words[3]);
        const i32 order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7), half = _mm256_set1_epi16(128);
        const auto upper = [half](i32 x) { return _mm256_srai_epi16(_mm256_add_epi16(x, half), 8); };
        const auto lower = [](i32 x) { return _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8); };
        store_i32(high, _mm256_permutevar8x32_epi32(_mm256_packs_epi16(upper(a), upper(b)), order));
        store_i32(low, _mm256_permutevar8x32_epi32(_mm256_packs_epi16(lower(a), lower(b)), order));
    }
    static i32 load_halves(const void* first, const void* second) noexcept {
        return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(first))),
                                       _mm_loadu_si128(static_cast<const __m128i*>(second)), 1);
    }

    static void interleave_bytes(i32 a, i32 b, i32 c, i32 d, i32* out) noexcept {
        // Unpacking works inside 128-bit blocks: with 4-byte words dealt out to the two first, its results come in
        // order.
        const i32 order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
        a = _mm256_permutevar8x32_epi32(a, order);
        b = _mm256_permutevar8x32_epi32(b, order);
        c = _mm256_permutevar8x32_epi32(c, order);
        d = _mm256_permutevar8x32_epi32(d, order);
        const i32 ab_low = _mm256_unpacklo_epi8(a, b), ab_high = _mm256_unpackhi_epi8(a, b);
        const i32 cd_low = _mm256_unpacklo_epi8(c, d), cd_high = _mm256_unpackhi_epi8(c, d);
        out[0] = _mm256_unpacklo_epi16(ab_low, cd_low);
        out[1] = _mm256_unpackhi_epi16(ab_low, cd_low);
        out[2] = _mm256_unpacklo_epi16(ab_high, cd_high);
        out[3] = _mm256_unpackhi_epi16(ab_high, cd_high);
    }

    static void interleave_halves(i32 a, i32 b, i32* out) noexcept {
        const i32 even = _mm256_permute2x128_si256(a, b, 0x20), odd = _mm256_permute2x128_si256(a, b, 0x31);
        // Bytes of rows 0 and 1 side by side in the lower halves, of rows 2 and 3 in the upper ones.
        const i32 low = _mm256_unpacklo_epi8(even, odd), high = _mm256_unpackhi_epi8(even, odd);
        const i32 first = _mm256_permute2x128_si256(low, high, 0x20),
                  second = _mm256_permute2x128_si256(low, high, 0x31);
        const i32 x = _mm256_unpacklo_epi16(first, second), y = _mm256_unpackhi_epi16(first, second);
        out[0] = _mm256_permute2x128_si256(x, y, 0x20);
        out[1] = _mm256_permute2x128_si256(x, y, 0x31);
    }

    static void transpose_fours(i32* rows) noexcept {
        const i32 t0 = _mm256_unpacklo_epi32(rows[0], rows[1]), t1 = _mm256_unpackhi_epi32(rows[0], rows[1]);
        const i32 t2 = _mm256_unpacklo_epi32(rows[2], rows[3]), t3 = _mm256_unpackhi_epi32(rows[2], rows[3]);
        rows[0] = _mm256_unpacklo_epi64(t0, t2);
        rows[1] = _mm256_unpackhi_epi64(t0, t2);
        rows[2] = _mm256_unpacklo_epi64(t1, t3);
        rows[3] = _mm256_unpackhi_epi64(t1, t3);
    }
    static void transpose(i32* rows) noexcept {
        transpose_fours(rows);
        transpose_fours(rows + 4);
        for (int c = 0; c < 4; ++c) {
            const i32 low = rows[c];
            rows[c] = _mm256_permute2x128_si256(low, rows[4 + c], 0x20);
            rows[4 + c] = _mm256_permute2x128_si256(low, rows[4 + c], 0x31);
        }
    }

    // Sums of products stay in 16 bits as long as none can leave them: run * 2 * (2^bits - 1) * 128 <= 32767.
    static constexpr unsigned dot_bits = 5;
    static constexpr std::size_t dot_run(unsigned bits) noexcept { return bits <= 4 ? 8 : 4; }
    static i32 dot(i32 sum, i32 codes, i32 weights) noexcept {
        return _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, weights));
    }
    static i32 dot_end(i32 run) noexcept { return _mm256_madd_epi16(run, _mm256_set1_epi16(1)); }

private:
    static i32 first(std::size_t n) noexcept {
        const i32 place = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), place);
    }
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
