/// The tensor types of ggml: their names, and how to expand those that this engine reads to f32.
///
///   type   block                                   value i of a block
///   F32    1 value,  4 bytes                       as stored
///   F16    1 value,  2 bytes                       as stored
///   Q4_0   32 values, 18 bytes: d f16, 16 x 2 codes        d * (code - 8)
///   Q4_1   32 values, 20 bytes: d f16, m f16, 16 x 2 codes d * code + m
///   Q8_0   32 values, 34 bytes: d f16, 32 x i8             d * code
///
/// Byte j of the 16 holds code j in its low half and code j + 16 in its high half.
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

/// Its name, for types that can't be read too; "number 99" for those nobody knows.
std::string ggml_type_name(std::uint32_t number);

/// f16 bits -> f32, exact.
float half_to_float(std::uint16_t bits);

}  // namespace llm
