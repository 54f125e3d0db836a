#include "ggml_types.hpp"

#include <array>
#include <bit>
#include <cstring>

namespace llm {
namespace {

template <class T>
T load(const std::byte* from) {
    T value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

float load_half(const std::byte* from) { return half_to_float(load<std::uint16_t>(from)); }

constexpr std::size_t block = 32;

void expand_f32(const std::byte* in, float* out, std::size_t n) { std::memcpy(out, in, n * sizeof(float)); }

void expand_f16(const std::byte* in, float* out, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) out[i] = load_half(in + 2 * i);
}

void expand_bf16(const std::byte* in, float* out, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i)
        out[i] = std::bit_cast<float>(std::uint32_t{load<std::uint16_t>(in + 2 * i)} << 16);
}

void expand_q4_0(const std::byte* in, float* out, std::size_t n) {
    for (std::size_t b = 0; b < n; ++b, in += 18, out += block) {
        const float d = load_half(in);
        for (std::size_t j = 0; j < block / 2; ++j) {
            const int pair = std::to_integer<int>(in[2 + j]);
            out[j] = d * static_cast<float>((pair & 15) - 8);
            out[j + block / 2] = d * static_cast<float>((pair >> 4) - 8);
        }
    }
}

void expand_q4_1(const std::byte* in, float* out, std::size_t n) {
    for (std::size_t b = 0; b < n; ++b, in += 20, out += block) {
        const float d = load_half(in), m = load_half(in + 2);
        for (std::size_t j = 0; j < block / 2; ++j) {
            const int pair = std::to_integer<int>(in[4 + j]);
            out[j] = d * static_cast<float>(pair & 15) + m;
            out[j + block / 2] = d * static_cast<float>(pair >> 4) + m;
        }
    }
}

void expand_q5_0(const std::byte* in, float* out, std::size_t n) {
    for (std::size_t b = 0; b < n; ++b, in += 22, out += block) {
        const float d = load_half(in);
        const auto fifth = load<std::uint32_t>(in + 2);
        for (std::size_t j = 0; j < block / 2; ++j) {
            const unsigned pair = std::to_integer<unsigned>(in[6 + j]);
            const unsigned low = (pair & 15) | (fifth >> j & 1) << 4;
            const unsigned high = pair >> 4 | (fifth >> (j + block / 2) & 1) << 4;
            out[j] = d * static_cast<float>(static_cast<int>(low) - 16);
            out[j + block / 2] = d * static_cast<float>(static_cast<int>(high) - 16);
        }
    }
}

void expand_q5_1(const std::byte* in, float* out, std::size_t n) {
    for (std::size_t b = 0; b < n; ++b, in += 24, out += block) {
        const float d = load_half(in), m = load_half(in + 2);
        const auto fifth = load<std::uint32_t>(in + 4);
        for (std::size_t j = 0; j < block / 2; ++j) {
            const unsigned pair = std::to_integer<unsigned>(in[8 + j]);
            out[j] = d * static_cast<float>((pair & 15) | (fifth >> j & 1) << 4) + m;
            out[j + block / 2] = d * static_cast<float>(pair >> 4 | (fifth >> (j + block / 2) & 1) << 4) + m;
        }
    }
}

void expand_q8_0(const std::byte* in, float* out, std::size_t n) {
    for (std::size_t b = 0; b < n; ++b, in += 34, out += block) {
        const float d = load_half(in);
        for (std::size_t j = 0; j < block; ++j) out[j] = d * static_cast<float>(load<std::int8_t>(in + 2 + j));
    }
}

constexpr std::size_t super_block = 256;

/// Scales and mins of the 8 groups of a Q4_K or Q5_K block. Those of groups 0 to 3 are the low 6 bits of bytes 0 to 3
/// and 4 to 7; of the others, 4 bits stand in bytes 8 to 11 and 2 in the top of bytes 0 to 7.
struct SixBits {
    unsigned scale, min;

    SixBits(const std::byte* packed, std::size_t group) {
        const auto at = [&](std::size_t i) { return std::to_integer<unsigned>(packed[i]); };
        scale = group < 4 ? at(group) & 63 : (at(group + 4) & 15) | (at(group - 4) >> 6) << 4;
        min = group < 4 ? at(group + 4) & 63 : at(group + 4) >> 4 | (at(group) >> 6) << 4;
    }
};

/// Q4_K, and Q5_K with 32 bytes of fifth bits.
template <bool Fifth>
void expand_q45_k(const std::byte* in, float* out, std::size_t n) {
    constexpr std::size_t codes_at = Fifth ? 48 : 16, bytes = codes_at + super_block / 2;
    for (std::size_t b = 0; b < n; ++b, in += bytes, out += super_block) {
        const float d = load_half(in), m = load_half(in + 2);
        for (std::size_t group = 0; group < super_block / block; ++group) {
            const SixBits six(in + 4, group);
            const float scale = d * static_cast<float>(six.scale), min = m * static_cast<float>(six.min);
            const std::byte* codes = in + codes_at + group / 2 * block;
            for (std::size_t j = 0; j < block; ++j) {
                const unsigned pair = std::to_integer<unsigned>(codes[j]);
                unsigned code = group % 2 == 0 ? pair & 15 : pair >> 4;
                if constexpr (Fifth) code |= (std::to_integer<unsigned>(in[16 + j]) >> group & 1) << 4;
                out[group * block + j] = scale * static_cast<float>(code) - min;
            }
        }
    }
}

void expand_q6_k(const std::byte* in, float* out, std::size_t n) {
    for (std::size_t b = 0; b < n; ++b, in += 210, out += super_block) {
        const float d = load_half(in + 208);
        for (std::size_t i = 0; i < super_block; ++i) {
            const std::size_t half = i / 128, quarter = i % 128 / 32, j = i % 32;
            const unsigned pair = std::to_integer<unsigned>(in[half * 64 + quarter % 2 * 32 + j]);
            const unsigned low = quarter < 2 ? pair & 15 : pair >> 4;
            const unsigned high = std::to_integer<unsigned>(in[128 + half * 32 + j]) >> (2 * quarter) & 3;
            const float scale = d * static_cast<float>(load<std::int8_t>(in + 192 + i / 16));
            out[i] = scale * static_cast<float>(static_cast<int>(low | high << 4) - 32);
        }
    }
}

struct Numbered {
    std::uint32_t number;
    GgmlType type;
};

constexpr Numbered readable[] = {
    {0, {"F32", 1, 4, expand_f32}},
    {1, {"F16", 1, 2, expand_f16}},
    {30, {"BF16", 1, 2, expand_bf16}},
    {2, {"Q4_0", block, 18, expand_q4_0}},
    {3, {"Q4_1", block, 20, expand_q4_1}},
    {6, {"Q5_0", block, 22, expand_q5_0}},
    {7, {"Q5_1", block, 24, expand_q5_1}},
    {8, {"Q8_0", block, 34, expand_q8_0}},
    {12, {"Q4_K", super_block, 144, expand_q45_k<false>}},
    {13, {"Q5_K", super_block, 176, expand_q45_k<true>}},
    {14, {"Q6_K", super_block, 210, expand_q6_k}},
};

// By ggml's numbers, those that were given up included.
constexpr std::array<const char*, 40> names{
    "F32",    "F16",      "Q4_0",     "Q4_1",     "Q4_2",  "Q4_3",  "Q5_0",       "Q5_1",       "Q8_0",       "Q8_1",
    "Q2_K",   "Q3_K",     "Q4_K",     "Q5_K",     "Q6_K",  "Q8_K",  "IQ2_XXS",    "IQ2_XS",     "IQ3_XXS",    "IQ1_S",
    "IQ4_NL", "IQ3_S",    "IQ2_S",    "IQ4_XS",   "I8",    "I16",   "I32",        "I64",        "F64",        "IQ1_M",
    "BF16",   "Q4_0_4_4", "Q4_0_4_8", "Q4_0_8_8", "TQ1_0", "TQ2_0", "IQ4_NL_4_4", "IQ4_NL_4_8", "IQ4_NL_8_8", "MXFP4"};

}  // namespace

const GgmlType* ggml_type(std::uint32_t number) {
    for (const Numbered& known : readable)
        if (known.number == number) return &known.type;
    return nullptr;
}

std::string readable_ggml_types() {
    std::string list;
    for (const Numbered& known : readable) list += (list.empty() ? "" : ", ") + std::string(known.type.name);
    return list;
}

std::string ggml_type_name(std::uint32_t number) {
    return number < names.size() ? names[number] : "number " + std::to_string(number);
}

float half_to_float(std::uint16_t bits) {
    const std::uint32_t sign = (bits & 0x8000u) << 16, exponent = (bits >> 10) & 31u, mantissa = bits & 0x3ffu;
    if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | mantissa << 13);
    if (exponent > 0) return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
    const float tiny = static_cast<float>(mantissa) * 0x1p-24f;  // subnormal
    return sign ? -tiny : tiny;
}

}  // namespace llm
