// Where values lie: which slots of a page a warp reads, single codes and words of four codes, stored values, and the
// rows that an engine hands over.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include <xquant/backend/cuda/machine/machine.cuh>
#include <xquant/storage/stream.hpp>

namespace xquant::backend::gpu {
inline namespace XQUANT_ABI_NS {

inline constexpr unsigned block_warps = 4;
inline constexpr unsigned page_slots = 128;

/// The slots of one warp: `rows` of them, of which those from `begin` to `end` are wanted.
struct Strip {
    std::size_t base = 0;  ///< the first of 128 slots
    std::size_t begin = 0, end = 0;
    unsigned rows = 0, round = 0, warp = 0;

    /// The slot of a row, counted from `base`.
    [[nodiscard]] XQUANT_DEVICE constexpr unsigned offset(unsigned row) const noexcept {
        return 64 * (row / 16 + round) + 16 * warp + row % 16;
    }
    [[nodiscard]] XQUANT_DEVICE constexpr std::size_t slot(unsigned row) const noexcept { return base + offset(row); }
    [[nodiscard]] XQUANT_DEVICE constexpr bool wants(unsigned row) const noexcept {
        return slot(row) >= begin && slot(row) < end;
    }
    /// Whether all slots of the page are wanted.
    [[nodiscard]] XQUANT_DEVICE constexpr bool whole() const noexcept {
        return begin <= base && end >= base + page_slots;
    }
};

/// Code `index` of a group of n codes, wherever its planes are.
XQUANT_DEVICE constexpr unsigned code_at(const std::byte* group, std::size_t n, unsigned bits,
                                         std::size_t index) noexcept {
    const std::size_t padded = (n + 7) / 8 * 8;
    unsigned code = 0;
    for_each_plane(bits, [&](unsigned plane, unsigned shift) {
        const std::size_t bytes = padded * plane / 8;
        const unsigned part = static_cast<unsigned>(group[index % bytes]) >> (index / bytes * plane);
        code |= (part & ((1U << plane) - 1)) << shift;
        group += bytes;
    });
    return code;
}

/// Whether all planes of a group of n codes are whole words, so that code_word can read them.
XQUANT_DEVICE constexpr bool has_words(std::size_t n, unsigned bits) noexcept {
    return n % (bits % 2 != 0 ? 32U : bits % 4 != 0 ? 16U : 8U) == 0;
}

/// Where the rows of a block of channels are, in a stream whose groups lie along a token. Kernels ask for it again and
/// again, so it has 32-bit numbers and does without the divisions of StreamFormat.
struct TokenGroups {
    std::uint32_t channels;                 ///< of a group
    std::uint32_t row_bytes;                ///< of a group's codes
    std::uint64_t first_code, first_index;  ///< of token 0: its codes, and its scale

    XQUANT_DEVICE constexpr TokenGroups(const StreamFormat& format, std::uint32_t block) noexcept
        : channels(0), row_bytes(0), first_code(0), first_index(std::uint64_t{block} * format.tokens) {
        const std::uint32_t left = format.width - block * format.group_channels;
        channels = left < format.group_channels ? left : format.group_channels;
        row_bytes = bytes_of(format, channels);
        first_code = first_index * bytes_of(format, format.group_channels);
    }

private:
    XQUANT_DEVICE static constexpr std::uint32_t bytes_of(const StreamFormat& format, std::uint32_t n) noexcept {
        return format.quantized() ? (n + 7) / 8 * format.bits : n * format.bits / 8;
    }
};

/// Codes index .. index + 4 of a group of n codes, a byte each; index is a multiple of 4.
XQUANT_DEVICE inline std::uint32_t code_word(const std::byte* group, unsigned n, unsigned bits,
                                             unsigned index) noexcept {
    std::uint32_t word = 0;
    for_each_plane(bits, [&](unsigned plane, unsigned shift) {
        const unsigned bytes = n / 8 * plane;
        unsigned in_plane = index, part = 0;
        for (; in_plane >= bytes; in_plane -= bytes) part += plane;
        const std::uint32_t stored = *reinterpret_cast<const std::uint32_t*>(group + in_plane);
        word |= ((stored >> part) & (0x01010101U * ((1U << plane) - 1))) << shift;
        group += bytes;
    });
    return word;
}

/// The scale and zero of a group, as read back: stored_scale of backend/scalar/codec.hpp.
template <class M>
XQUANT_DEVICE GroupScale scale_of(const StreamView& in, std::size_t index) noexcept {
    const float scale = M::to_float(in.scales[index]);
    return {scale, in.format.stores_zero ? M::to_float(in.zeros[index]) : -in.format.zero_code * scale};
}

/// One stored value, in any format.
template <class M>
XQUANT_DEVICE float stored_value(const StreamView& in, std::size_t slot, std::size_t channel) noexcept {
    const StreamFormat& format = in.format;
    const std::size_t b = channel / format.group_channels, in_group = channel % format.group_channels;
    const std::byte* group = in.codes + format.code_offset(slot / format.group_tokens, b);
    if (format.kind == CodeKind::f32) return reinterpret_cast<const float*>(group)[in_group];
    if (format.kind == CodeKind::f16) return M::to_float(reinterpret_cast<const f16*>(group)[in_group]);
    if (format.kind == CodeKind::bf16) {
        const std::uint32_t upper = reinterpret_cast<const bf16*>(group)[in_group].bits;
        return std::bit_cast<float>(upper << 16U);
    }
    const std::size_t channels = format.channels_of(b), n = format.group_tokens * channels;
    const std::size_t place = slot % format.group_tokens * channels + in_group;
    const std::size_t index = format.group_index(slot / format.group_tokens, b);
    for (std::size_t i = 0; i < format.outliers; ++i) {
        const std::size_t at = index * format.outliers + i;
        if (static_cast<std::size_t>(in.indices[at]) == place) return M::to_float(in.outliers[at]);
    }
    const unsigned code = code_at(group, n, format.bits, place);
    const GroupScale scale = scale_of<M>(in, index);
    return scale.zero + scale.scale * (format.levels != nullptr ? format.levels[code] : static_cast<float>(code));
}

/// Rows of an engine, x [n, D] or q [n, H * Dh], of any element type, `stride` elements apart.
struct DeviceRows {
    const void* data = nullptr;
    std::size_t stride = 0;
    DType type = DType::f32;

    [[nodiscard]] XQUANT_DEVICE float at(std::size_t row, std::size_t channel) const noexcept {
        const std::size_t i = row * stride + channel;
        if (type == DType::f32) return static_cast<const float*>(data)[i];
        if (type == DType::f16) return to_float(static_cast<const f16*>(data)[i]);
        return to_float(static_cast<const bf16*>(data)[i]);
    }
    /// Without the first rows.
    [[nodiscard]] XQUANT_DEVICE DeviceRows from(std::size_t row) const noexcept {
        const auto* bytes = static_cast<const std::byte*>(data);
        return {bytes + row * stride * (type == DType::f32 ? sizeof(float) : sizeof(f16)), stride, type};
    }
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend::gpu
