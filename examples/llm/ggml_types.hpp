/// The tensor types of ggml: their names, and how to expand those that this engine reads to f32.
///
///   type   block                                                    value i of a block
///   F32    1 value, 4 bytes                                         as stored
///   F16    1 value, 2 bytes                                         as stored
///   BF16   1 value, 2 bytes                                         as stored
///   Q4_0   32 values, 18 bytes: d f16, 16 x 2 codes                 d * (code - 8)
///   Q4_1   32 values, 20 bytes: d f16, m f16, 16 x 2 codes          d * code + m
///   Q5_0   32 values, 22 bytes: d f16, u32, 16 x 2 codes            d * (code - 16)
///   Q5_1   32 values, 24 bytes: d f16, m f16, u32, 16 x 2 codes     d * code + m
///   Q8_0   32 values, 34 bytes: d f16, 32 x i8                      d * code
///   Q4_K   256 values, 144 bytes: d f16, m f16, 12, 128 x 2 codes   d * scale * code - m * min
///   Q5_K   256 values, 176 bytes: d f16, m f16, 12, 32, 128 x 2     d * scale * code - m * min
///   Q6_K   256 values, 210 bytes: 128 x 2, 64 x 4, 16 x i8, d f16   d * scale * (code - 32)
///
/// Low 4 bits of a code: in a block of 32, byte j holds those of code j and, in its high half, of code j + 16; in a
/// block of 256, 32 bytes hold those of 64 codes (Q6_K: 64 bytes hold 128), the first half of the codes in the low
/// halves. The fifth and sixth bits stand apart: bit i of the u32 belongs to code i; bit i / 32 of byte i % 32 (Q5_K)
/// to code i. Scales: one for each 32 values (Q6_K: 16). Q4_K and Q5_K pack 8 scales and 8 mins of 6 bits into 12
/// bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace llm {

struct GgmlType {
    const char* name;
    std::size_t block_values;  // values in a block
    std::size_t block_bytes;
    void (*expand)(const std::byte* block, float* out, std::size_t blocks);  // [blocks] -> [blocks * block_values]
};

/// The type with ggml's number, or nullptr if this engine can't read it.
const GgmlType* ggml_type(std::uint32_t number);

/// Names of all types that it can read, for messages.
std::string readable_ggml_types();

/// Its name, for types that can't be read too; "number 99" for those nobody knows.
std::string ggml_type_name(std::uint32_t number);

/// f16 bits -> f32, exact.
float half_to_float(std::uint16_t bits);

}  // namespace llm
