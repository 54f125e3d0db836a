// Views of stored streams, and the pair (format, encoder) that fills them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <xquant/quantizer/group.hpp>
#include <xquant/storage/format.hpp>
#include <xquant/types.hpp>

namespace xquant {

/// How a stream keeps rows of a type that are not quantized.
constexpr CodeKind kind_of(DType type) noexcept {
    return type == DType::f32 ? CodeKind::f32 : type == DType::f16 ? CodeKind::f16 : CodeKind::bf16;
}
/// The type of rows that are stored as they are; `kind` is not CodeKind::planes.
constexpr DType dtype_of_kind(CodeKind kind) noexcept {
    return kind == CodeKind::f32 ? DType::f32 : kind == CodeKind::f16 ? DType::f16 : DType::bf16;
}

/// Turns the values of one group [n] into codes [n], a scale and a zero. `levels` are the format's.
using EncodeGroup = GroupScale (*)(std::span<const float> x, std::span<std::uint8_t> codes,
                                   const float* levels) noexcept;

/// The scale and zero of a group whose smallest and largest value are these.
using ScaleOfRange = GroupScale (*)(Range) noexcept;

/// Finds the levels [2^bits] of a stream from groups of calibration rows, each as encode will see it.
using LearnLevels = void (*)(std::span<const std::span<const float>> groups, std::span<float> levels);

/// Chooses the values of one group [n] that are kept in f16: fills `indices` with indices below n.
using ChooseOutliers = void (*)(std::span<const float> x, std::span<std::uint8_t> indices) noexcept;

/// A stream's format together with the code that writes it.
struct StreamCodec {
    StreamFormat format;              ///< where values lie, and how they are coded
    EncodeGroup encode = nullptr;     ///< null where rows are stored as they are
    LearnLevels learn = nullptr;      ///< null where levels are fixed, or a code stands for itself
    ChooseOutliers choose = nullptr;  ///< null where the format has no outliers
    ScaleOfRange scale_of =
        nullptr;  ///< not null: encode is encode_affine with this scale, so backends may do it themselves
    ScaleRule rule = ScaleRule::other;  ///< for backends that cannot call `encode`
    bool feeds_back = false;            ///< whether rows are rounded for their stream's metric

    /// Floats of levels that have to be learnt.
    [[nodiscard]] constexpr std::size_t learnt_levels() const noexcept {
        return learn != nullptr ? std::size_t{1} << format.bits : 0;
    }
};

/// Where the codes, scales, zeros and outliers of one stream of one page lie. Passed by value to kernels.
template <class Byte, class Half>
struct BasicStreamView {
    StreamFormat format;       ///< how it is laid out
    Byte* codes = nullptr;     ///< [channel blocks][token blocks][bytes of a group]
    Half* scales = nullptr;    ///< [channel blocks][token blocks], or null
    Half* zeros = nullptr;     ///< [channel blocks][token blocks], or null
    Half* outliers = nullptr;  ///< [channel blocks][token blocks][outliers], or null
    Byte* indices = nullptr;   ///< an outlier's index in its group: [channel blocks][token blocks][outliers], or null
};

using StreamView = BasicStreamView<const std::byte, const f16>;
using MutableStreamView = BasicStreamView<std::byte, f16>;

constexpr StreamView read_only(const MutableStreamView& view) noexcept {
    return {view.format, view.codes, view.scales, view.zeros, view.outliers, view.indices};
}

/// A view of f32 rows [n, width] with one row after another, as if they were a stored stream.
XQUANT_DEVICE inline StreamView view_rows(const float* rows, std::uint32_t width) noexcept {
    return {StreamFormat{width, 1, width, CodeKind::f32, 32, false, 0, nullptr},
            reinterpret_cast<const std::byte*>(rows), nullptr, nullptr};
}

}  // namespace xquant
