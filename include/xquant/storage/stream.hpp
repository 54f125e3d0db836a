// Views of stored streams, and the pair (format, encoder) that fills them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <xquant/quantizer/group.hpp>
#include <xquant/storage/format.hpp>
#include <xquant/types.hpp>

namespace xquant {

/// Turns the values of one group [n] into codes [n], a scale and a zero.
using EncodeGroup = GroupScale (*)(std::span<const float> x, std::span<std::uint8_t> codes) noexcept;

/// A stream's format together with the code that writes it. `encode` is null where rows are stored as they are.
struct StreamCodec {
    StreamFormat format;
    EncodeGroup encode = nullptr;
};

/// Where the codes, scales and zeros of one stream of one page lie. Passed by value to kernels.
template <class Byte, class Half>
struct BasicStreamView {
    StreamFormat format;
    Byte* codes = nullptr;   ///< [token blocks][channel blocks][bytes of a group]
    Half* scales = nullptr;  ///< [token blocks][channel blocks], or null
    Half* zeros = nullptr;   ///< the same, or null
};

using StreamView = BasicStreamView<const std::byte, const f16>;
using MutableStreamView = BasicStreamView<std::byte, f16>;

inline StreamView read_only(const MutableStreamView& view) noexcept {
    return {view.format, view.codes, view.scales, view.zeros};
}

/// A view of f32 rows [n, width] with one row after another, as if they were a stored stream.
inline StreamView view_rows(const float* rows, std::uint32_t width) noexcept {
    return {StreamFormat{width, 1, width, CodeKind::f32, 32, false, 0, nullptr},
            reinterpret_cast<const std::byte*>(rows), nullptr, nullptr};
}

}  // namespace xquant
