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

void expand_q8_0(const std::byte* in, float* out, std::size_t n) {
    for (std::size_t b = 0; b < n; ++b, in += 34, out += block) {
        const float d = load_half(in);
        for (std::size_t j = 0; j < block; ++j) out[j] = d * static_cast<float>(load<std::int8_t>(in + 2 + j));
    }
}

constexpr GgmlType f32{"F32", 1, 4, expand_f32};
constexpr GgmlType f16{"F16", 1, 2, expand_f16};
constexpr GgmlType q4_0{"Q4_0", block, 18, expand_q4_0};
constexpr GgmlType q4_1{"Q4_1", block, 20, expand_q4_1};
constexpr GgmlType q8_0{"Q8_0", block, 34, expand_q8_0};

// ggml's numbering; nullptr where a number was given up.
constexpr std::array<const char*, 40> names{
    "F32",    "F16",      "Q4_0",     "Q4_1",     "Q4_2",  "Q4_3",  "Q5_0",       "Q5_1",       "Q8_0",       "Q8_1",
    "Q2_K",   "Q3_K",     "Q4_K",     "Q5_K",     "Q6_K",  "Q8_K",  "IQ2_XXS",    "IQ2_XS",     "IQ3_XXS",    "IQ1_S",
    "IQ4_NL", "IQ3_S",    "IQ2_S",    "IQ4_XS",   "I8",    "I16",   "I32",        "I64",        "F64",        "IQ1_M",
    "BF16",   "Q4_0_4_4", "Q4_0_4_8", "Q4_0_8_8", "TQ1_0", "TQ2_0", "IQ4_NL_4_4", "IQ4_NL_4_8", "IQ4_NL_8_8", "MXFP4"};

}  // namespace

const GgmlType* ggml_type(std::uint32_t number) {
    switch (number) {
        case 0:
            return &f32;
        case 1:
            return &f16;
        case 2:
            return &q4_0;
        case 3:
            return &q4_1;
        case 8:
            return &q8_0;
        default:
            return nullptr;
    }
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
