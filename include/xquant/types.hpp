// Plain types that cross the library's interface: 16-bit floats and views of rows.
//
// Data types here do not depend on compiler flags and may cross translation units. The conversions are code and live in
// the ABI namespace.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string_view>
#include <type_traits>

#include <xquant/config.hpp>

namespace xquant {

/// IEEE 754 binary16, stored.
struct f16 {
    std::uint16_t bits = 0;  ///< sign, 5 bits of exponent, 10 of fraction
    friend bool operator==(f16, f16) = default;
};

/// The upper half of a binary32, stored.
struct bf16 {
    std::uint16_t bits = 0;  ///< sign, 8 bits of exponent, 7 of fraction
    friend bool operator==(bf16, bf16) = default;
};

static_assert(sizeof(f16) == 2 && sizeof(bf16) == 2);
static_assert(std::is_trivially_copyable_v<f16> && std::is_trivially_copyable_v<bf16>);

/// Tokens that a page of codes has room for.
inline constexpr std::size_t coded_page_tokens = 128;

/// Positions lie below this, and above its negative: their sums do not overflow, and f64 represents them exactly.
inline constexpr std::int64_t largest_position = std::int64_t{1} << 48U;

/// The largest finite f16.
inline constexpr float f16_max = 65504.0F;

/// What elements of rows and weights are.
enum class DType : std::uint8_t { f32, f16, bf16 };

/// Bytes of an element.
constexpr std::size_t size_of(DType type) noexcept { return type == DType::f32 ? 4 : 2; }

/// What prepared matrices are kept in. q8: 8 bits, and an f32 scale for every 64 of them.
enum class WeightType : std::uint8_t { f32, f16, bf16, q8 };

/// Bytes of an entry, its share of a scale apart.
constexpr std::size_t size_of(WeightType type) noexcept {
    return type == WeightType::f32 ? 4 : type == WeightType::q8 ? 1 : 2;
}

/// Whether rows and weights may be made of T: float, f16 or bf16.
template <class T>
inline constexpr bool is_element = std::is_same_v<T, float> || std::is_same_v<T, f16> || std::is_same_v<T, bf16>;

// clang-format off
/// What rows and weights may be made of.
template <class T>
concept element = is_element<T>;
// clang-format on

/// The DType of an element type.
template <element T>
inline constexpr DType dtype_of = std::is_same_v<T, float> ? DType::f32
                                  : std::is_same_v<T, f16> ? DType::f16
                                                           : DType::bf16;

/// A read-only view of a row-major matrix [rows, cols]; `stride` counts elements from one row to the next.
struct MatrixView {
    const void* data = nullptr;  ///< the first element, aligned as an element
    std::size_t rows = 0,        ///< rows of the matrix
        cols = 0,                ///< elements of a row
        stride = 0;              ///< elements from a row to the next; `cols` or more
    DType type = DType::f32;     ///< what an element is

    MatrixView() = default;

    /// Of rows at `values`, `row_stride` elements apart; 0: row after row.
    template <element T>
    MatrixView(const T* values, std::size_t row_count, std::size_t col_count, std::size_t row_stride = 0) noexcept
        : data(values),
          rows(row_count),
          cols(col_count),
          stride(row_stride ? row_stride : col_count),
          type(dtype_of<T>) {}

    /// Whether there is no matrix.
    [[nodiscard]] bool empty() const noexcept { return data == nullptr; }

    /// Row i.
    [[nodiscard]] const void* row(std::size_t i) const noexcept {
        return static_cast<const std::byte*>(data) + i * stride * size_of(type);
    }
};

inline namespace XQUANT_ABI_NS {

/// The name of a type, as an enumerator is written.
constexpr const char* to_string(WeightType type) noexcept {
    return type == WeightType::f32 ? "f32" : type == WeightType::f16 ? "f16" : type == WeightType::bf16 ? "bf16" : "q8";
}

/// The type of that name; none where there is none.
constexpr std::optional<WeightType> find_weight_type(std::string_view name) noexcept {
    for (const WeightType type : {WeightType::f32, WeightType::f16, WeightType::bf16, WeightType::q8}) {
        if (name == to_string(type)) return type;
    }
    return std::nullopt;
}

namespace detail {

/// Whether a number is neither infinite nor NaN. All of these look at bits: a comparison such as x == x is always true
/// under -ffinite-math-only.
constexpr bool is_finite(float value) noexcept {
    return (std::bit_cast<std::uint32_t>(value) & 0x7F800000U) != 0x7F800000U;
}
constexpr bool is_finite(double value) noexcept {
    return (std::bit_cast<std::uint64_t>(value) >> 52U & 0x7FFU) != 0x7FFU;
}
constexpr bool is_finite(f16 value) noexcept { return (value.bits & 0x7C00U) != 0x7C00U; }
constexpr bool is_finite(bf16 value) noexcept { return (value.bits & 0x7F80U) != 0x7F80U; }

/// Whether a number is finite and at most f16_max in magnitude.
constexpr bool fits_f16(float value) noexcept {
    constexpr auto largest = std::bit_cast<std::uint32_t>(f16_max);
    return (std::bit_cast<std::uint32_t>(value) & 0x7FFFFFFFU) <= largest;
}

/// Whether n numbers are finite.
inline bool all_finite(const float* values, std::size_t n) noexcept {
    std::uint32_t largest = 0;
    for (std::size_t i = 0; i < n; ++i) {
        const std::uint32_t magnitude = std::bit_cast<std::uint32_t>(values[i]) & 0x7FFFFFFFU;
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest < 0x7F800000U;
}

/// A quiet NaN, of which no flag makes something else on the way into memory.
inline constexpr float not_a_number = std::bit_cast<float>(0x7FC00000U);

}  // namespace detail

/// Exact. Written without branches so that loops over it vectorize. No number on the way is a subnormal f32, which a
/// processor may take for 0 (MXCSR: DAZ, FTZ).
constexpr float to_float(f16 half) noexcept {
    const std::uint32_t sign = (half.bits & 0x8000U) << 16U;
    const std::uint32_t rest = (half.bits & 0x7FFFU) << 13U;
    // The exponent's bias differs by 112. A subnormal f16 is 2^-14 (1 + fraction) less 2^-14.
    const std::uint32_t normal = rest + (112U << 23U);
    const auto subnormal =
        std::bit_cast<std::uint32_t>(std::bit_cast<float>(rest + (113U << 23U)) - 0x1p-14F) & 0x7FFFFFFFU;
    const std::uint32_t finite = rest < (1U << 23U) ? subnormal : normal;
    const std::uint32_t magnitude = rest >= (0x7C00U << 13U) ? (rest | 0x7F800000U) : finite;
    return std::bit_cast<float>(magnitude | sign);
}

/// Rounds to nearest, ties to even. Beyond 65520: infinity.
constexpr f16 to_f16(float value) noexcept {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
    // Below 2^-14 the result is subnormal: adding 0.5 leaves exactly the 10 bits that f16 keeps at the bottom.
    const auto subnormal =
        std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude < 0x38800000U ? magnitude : 0U) + 0.5F) -
        0x3F000000U;
    const std::uint32_t normal = (magnitude + 0xFFFU + ((magnitude >> 13U) & 1U) - (112U << 23U)) >> 13U;
    const std::uint32_t special = magnitude > 0x7F800000U ? 0x7E00U : 0x7C00U;
    std::uint32_t half = magnitude < 0x38800000U ? subnormal : normal;
    half = magnitude >= 0x47800000U ? special : half;
    return f16{static_cast<std::uint16_t>(half | ((bits >> 16U) & 0x8000U))};
}

constexpr float to_float(bf16 value) noexcept {
    return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16U);
}

/// Rounds to nearest, ties to even.
constexpr bf16 to_bf16(float value) noexcept {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return bf16{static_cast<std::uint16_t>((bits >> 16U) | 0x40U)};
    return bf16{static_cast<std::uint16_t>((bits + 0x7FFFU + ((bits >> 16U) & 1U)) >> 16U)};
}

constexpr float to_float(float value) noexcept { return value; }

/// The value a float has after it was stored as f16.
constexpr float round_to_f16(float value) noexcept { return to_float(to_f16(value)); }

/// Copy n elements of any type to f32.
inline void load_row(const void* source, DType type, std::size_t n, float* XQUANT_RESTRICT out) noexcept {
    const auto copy = [&](const auto* XQUANT_RESTRICT in) {
        for (std::size_t i = 0; i < n; ++i) out[i] = to_float(in[i]);
    };
    if (type == DType::f32) copy(static_cast<const float*>(source));
    if (type == DType::f16) copy(static_cast<const f16*>(source));
    if (type == DType::bf16) copy(static_cast<const bf16*>(source));
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
