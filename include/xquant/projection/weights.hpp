// Prepared matrices as kernels read them: in f32, in 16 bits, or in 8 bits with a scale for every 64 entries.
//
// Error   beside the largest entry of a matrix: f16 2^-12, bf16 2^-9; of 64 entries: q8 1/254.
#pragma once

#include <cstddef>
#include <cstdint>

#include <xquant/config.hpp>
#include <xquant/types.hpp>

namespace xquant {

/// Entries of a matrix in 8 bits that share a scale.
inline constexpr std::size_t weight_group = 64;

/// A matrix, row after row; its shape stands elsewhere. It owns nothing.
///
///     f32  entry         f16  factor * entry         bf16  entry         q8  scale * (byte - 128)
struct WeightMatrix {
    const void* entries = nullptr;      ///< entry 0; null: there is no matrix
    const float* scales = nullptr;      ///< q8: [groups] of everything that entry 0 is entry `first` of
    std::size_t first = 0;              ///< q8: entries before entry 0 from where groups are counted
    float factor = 1;                   ///< f16: a power of two, by which tiny and huge matrices keep their precision
    WeightType type = WeightType::f32;  ///< what an entry is

    constexpr WeightMatrix() = default;
    /// No matrix.
    constexpr WeightMatrix(std::nullptr_t) noexcept {}
    /// Of floats, or null: no matrix.
    constexpr WeightMatrix(const float* values) noexcept : entries(values) {}

    /// Whether there is no matrix.
    friend constexpr bool operator==(const WeightMatrix& matrix, std::nullptr_t) noexcept {
        return matrix.entries == nullptr;
    }

    /// The entries of a matrix in f32, and of no other.
    [[nodiscard]] constexpr const float* floats() const noexcept { return static_cast<const float*>(entries); }
};

inline namespace XQUANT_ABI_NS {

/// What begins at entry n of a matrix.
[[nodiscard]] inline WeightMatrix weights_from(const WeightMatrix& matrix, std::size_t n) noexcept {
    WeightMatrix out = matrix;
    out.entries = static_cast<const std::byte*>(matrix.entries) + n * size_of(matrix.type);
    out.first += n;
    return out;
}

/// Entry i.
[[nodiscard]] XQUANT_DEVICE inline float weight_at(const WeightMatrix& matrix, std::size_t i) noexcept {
    if (matrix.type == WeightType::f32) return matrix.floats()[i];
    if (matrix.type == WeightType::f16) return matrix.factor * to_float(static_cast<const f16*>(matrix.entries)[i]);
    if (matrix.type == WeightType::bf16) return to_float(static_cast<const bf16*>(matrix.entries)[i]);
    const int byte = static_cast<const std::uint8_t*>(matrix.entries)[i];
    return matrix.scales[(matrix.first + i) / weight_group] * static_cast<float>(byte - 128);
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
