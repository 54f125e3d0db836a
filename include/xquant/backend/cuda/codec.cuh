// Stored rows on their way to tensor cores: a strip of the 128 slots of a page, one for each warp, as halves in shared memory.
//
//     warp w of 4, row r of its strip   ->   slot 64 (r / 16 + round) + 16 w + r % 16
//
// So 16 bytes of a channel's 4-bit codes, which hold tokens 64 apart in their two halves, are exactly what one warp needs.
// Shape   out: [rows][stride] halves, channels from `channels` up to the next multiple of 16 are 0, and so are rows whose slot is
//         not among those wanted.
// Limit   4 bits: 3 instructions for each pair of codes (a byte permutation and a mask give two halves, one subtraction takes the
//         exponent's offset away, one multiply-add scales them).
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include <xquant/backend/cuda/machine.cuh>
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

    /// Of a row, from `base` on.
    [[nodiscard]] XQUANT_DEVICE constexpr unsigned offset(unsigned row) const noexcept {
        return 64 * (row / 16 + round) + 16 * warp + row % 16;
    }
    [[nodiscard]] XQUANT_DEVICE constexpr std::size_t slot(unsigned row) const noexcept { return base + offset(row); }
    [[nodiscard]] XQUANT_DEVICE constexpr bool wants(unsigned row) const noexcept {
        return slot(row) >= begin && slot(row) < end;
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

/// One stored value, whatever the format.
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
        if (static_cast<std::size_t>(in.places[at]) == place) return M::to_float(in.outliers[at]);
    }
    const unsigned code = code_at(group, n, format.bits, place);
    const float scale = M::to_float(in.scales[index]);
    const float zero = format.stores_zero ? M::to_float(in.zeros[index]) : -format.zero_code * scale;
    return zero + scale * (format.levels != nullptr ? format.levels[code] : static_cast<float>(code));
}

/// How a strip is decoded. The others are special cases of `any`.
enum class StripForm : unsigned char { any, halves, channel4, token4, token8 };

/// Channels channel .. + channels of a stream.
XQUANT_DEVICE constexpr StripForm strip_form(const StreamFormat& format, std::size_t channel,
                                             unsigned channels) noexcept {
    const bool in_one = channel / format.group_channels == (channel + channels - 1) / format.group_channels;
    if (format.kind == CodeKind::f16) {
        // 16 bytes at a time, from where 16 bytes are aligned.
        const std::size_t b = channel / format.group_channels;
        const bool whole = format.channels_of(b) % 8 == 0 && (b == 0 || format.group_channels % 8 == 0);
        const bool aligned = whole && channels % 8 == 0 && channel % format.group_channels % 8 == 0;
        return in_one && aligned ? StripForm::halves : StripForm::any;
    }
    if (!format.quantized() || format.levels != nullptr || format.outliers > 0) return StripForm::any;
    if (format.group_channels == 1 && format.group_tokens == page_slots && format.bits == 4 && channels % 2 == 0) {
        return StripForm::channel4;
    }
    const std::size_t last = channel + channels;
    const bool groups = channel % format.group_channels == 0 && format.group_channels % 8 == 0 && channels % 8 == 0 &&
                        (last % format.group_channels == 0 || last == format.width);
    if (format.group_tokens != 1 || !groups || (format.bits != 4 && format.bits != 8)) return StripForm::any;
    return format.bits == 4 ? StripForm::token4 : StripForm::token8;
}

namespace detail {

inline constexpr std::uint32_t two(std::uint16_t half) noexcept {
    return half | static_cast<std::uint32_t>(half) << 16U;
}

/// Two codes in the low bits of each half, on top of 1024 (in f16, 1024 + n is 0x6400 + n) -> scale * code + zero.
template <class M>
XQUANT_DEVICE std::uint32_t decode_pair(std::uint32_t codes, std::uint32_t scales, std::uint32_t zeros) noexcept {
    return M::scale_halves(M::subtract_halves(codes | 0x64006400U, 0x64006400U), scales, zeros);
}

template <class M>
XQUANT_DEVICE f16 zero_of(const StreamView& in, std::size_t index) noexcept {
    return in.format.stores_zero ? in.zeros[index] : M::to_half(-in.format.zero_code * M::to_float(in.scales[index]));
}

XQUANT_DEVICE inline void put(f16* out, unsigned stride, unsigned row, unsigned channel, std::uint32_t pair) noexcept {
    *reinterpret_cast<std::uint32_t*>(out + row * stride + channel) = pair;
}

template <class M>
XQUANT_DEVICE_COLD void decode_any(const typename M::Warp& warp, const StreamView& in, const Strip& strip,
                                   std::size_t channel, unsigned channels, f16* out, unsigned stride) noexcept {
    const unsigned pairs = (channels + 15) / 16 * 8;
    warp.each([&](unsigned lane) {
        for (unsigned i = lane; i < strip.rows * pairs; i += lanes) {
            const unsigned row = i / pairs, c = 2 * (i % pairs);
            float value[2] = {0, 0};
            for (unsigned h = 0; h < 2; ++h) {
                if (strip.wants(row) && c + h < channels)
                    value[h] = stored_value<M>(in, strip.slot(row), channel + c + h);
            }
            put(out, stride, row, c, M::pack(value[0], value[1]));
        }
    });
}

/// Calls f(row, piece) for the pieces of rows, spread over the lanes; neighbours take neighbouring pieces. One division for each lane.
template <class Warp, class F>
XQUANT_DEVICE void each_piece(const Warp& warp, unsigned rows, unsigned pieces, F&& f) noexcept {
    unsigned side = 1;  // lanes for a row
    while (side < pieces && side < lanes) side *= 2;
    warp.each([&](unsigned lane) {
        for (unsigned piece = lane % side; piece < pieces; piece += side) {
            for (unsigned row = lane / side; row < rows; row += lanes / side) f(row, piece);
        }
    });
}

/// Rows of halves come in the background.
template <class M>
XQUANT_DEVICE void copy_halves(typename M::Warp& warp, const StreamView& in, const Strip& strip, std::size_t channel,
                               unsigned channels, f16* out, unsigned stride) noexcept {
    const StreamFormat& format = in.format;
    const std::size_t b = channel / format.group_channels, in_group = channel % format.group_channels;
    const unsigned pieces = (channels + 15) / 16 * 2,
                   row_bytes = static_cast<unsigned>(format.group_bytes(format.channels_of(b)));
    const std::byte* from = in.codes + format.code_offset(0, b) + in_group * sizeof(f16);
    each_piece(warp, strip.rows, pieces, [&](unsigned row, unsigned piece) {
        f16* to = out + row * stride + 8 * piece;
        if (strip.wants(row) && 8 * piece < channels) {
            warp.copy(to, from + strip.slot(row) * row_bytes + 16 * piece);
        } else {
            for (unsigned k = 0; k < 8; k += 2) put(to, 0, 0, k, 0);
        }
    });
}

/// 4-bit codes of groups of 128 tokens of a channel: a lane takes two channels, 16 bytes of each.
template <class M>
XQUANT_DEVICE void decode_channel4(const typename M::Warp& warp, const StreamView& in, const Strip& strip,
                                   std::size_t channel, unsigned channels, f16* out, unsigned stride) noexcept {
    const StreamFormat& format = in.format;
    const std::size_t block = strip.base / page_slots;
    const unsigned pairs = (channels + 15) / 16 * 8, tiles = strip.rows / 16;
    warp.each([&](unsigned lane) {
        for (unsigned p = lane; p < pairs; p += lanes) {
            if (2 * p >= channels) {
                for (unsigned row = 0; row < strip.rows; ++row) put(out, stride, row, 2 * p, 0);
                continue;
            }
            struct alignas(16) Words {
                std::uint32_t at[4];
            } words[2];
            std::uint32_t scales = 0, zeros = 0;
            for (unsigned h = 0; h < 2; ++h) {
                const std::size_t c = channel + 2 * p + h, index = format.group_index(block, c);
                words[h] = *reinterpret_cast<const Words*>(in.codes + format.code_offset(block, c) + 16 * strip.warp);
                scales |= static_cast<std::uint32_t>(in.scales[index].bits) << (16 * h);
                zeros |= static_cast<std::uint32_t>(zero_of<M>(in, index).bits) << (16 * h);
            }
            for (unsigned i = 0; i < 4; ++i) {
                for (unsigned b = 0; b < 4; ++b) {
                    // Byte b of both channels, twice: a token in the low halves of the bytes, the one 64 later in the high ones.
                    const std::uint32_t both = M::select_bytes(words[0].at[i], words[1].at[i], 0x4400U + 0x1111U * b);
                    for (unsigned tile = 0; tile < tiles; ++tile) {
                        const unsigned row = 16 * tile + 4 * i + b;
                        const std::uint32_t codes = (tile + strip.round == 0 ? both : both >> 4U) & 0x000F000FU;
                        put(out, stride, row, 2 * p, strip.wants(row) ? decode_pair<M>(codes, scales, zeros) : 0);
                    }
                }
            }
        }
    });
}

/// Codes of 4 or 8 bits of groups of a token's channels: a lane takes 4 bytes of each of some rows.
template <class M, unsigned Bits>
XQUANT_DEVICE void decode_token(const typename M::Warp& warp, const StreamView& in, const Strip& strip,
                                std::size_t channel, unsigned channels, f16* out, unsigned stride) noexcept {
    const StreamFormat& format = in.format;
    const unsigned words = channels * Bits / 32, padded = (channels + 15) / 16 * 16;
    const unsigned group_words = format.group_channels * Bits / 32;
    const std::size_t first_block = channel / format.group_channels;
    unsigned side = 1;  // lanes for a row
    while (side < words && side < lanes) side *= 2;
    warp.each([&](unsigned lane) {
        for (unsigned w = lane % side; w < words; w += side) {
            // Groups are whole: the word's group, and its place in it.
            const unsigned group = w / group_words, place = w % group_words;
            const std::size_t b = first_block + group;
            const auto n = static_cast<unsigned>(format.channels_of(b));
            const auto row_bytes = static_cast<unsigned>(format.group_bytes(n));
            const std::byte* from = in.codes + format.code_offset(0, b) + 4 * place;
            const std::size_t first_index = format.group_index(0, b);
            f16* to = out + group * format.group_channels + 4 * place;
            for (unsigned row = lane / side; row < strip.rows; row += lanes / side) {
                std::uint32_t word = 0, scales = 0, zeros = 0;
                if (strip.wants(row)) {
                    const std::size_t slot = strip.slot(row);
                    word = *reinterpret_cast<const std::uint32_t*>(from + slot * row_bytes);
                    scales = two(in.scales[first_index + slot].bits);
                    zeros = two(zero_of<M>(in, first_index + slot).bits);
                }
                XQUANT_UNROLL
                for (unsigned k = 0; k < 2; ++k) {
                    const std::uint32_t both = M::select_bytes(word, word, k == 0 ? 0x1100U : 0x3322U);
                    if constexpr (Bits == 8) {
                        put(to, stride, row, 2 * k, decode_pair<M>(both & 0x00FF00FFU, scales, zeros));
                    } else {
                        put(to, stride, row, 2 * k, decode_pair<M>(both & 0x000F000FU, scales, zeros));
                        put(to, stride, row, n / 2 + 2 * k, decode_pair<M>((both >> 4U) & 0x000F000FU, scales, zeros));
                    }
                }
            }
        }
        for (unsigned c = channels + 2 * lane; c < padded; c += 2 * lanes) {
            for (unsigned row = 0; row < strip.rows; ++row) put(out, stride, row, c, 0);
        }
    });
}

}  // namespace detail

/// Channels channel .. + channels of a strip's slots -> out. They are there after wait_for_copies and sync.
template <class M>
XQUANT_DEVICE void decode_strip(typename M::Warp& warp, const StreamView& in, const Strip& strip, std::size_t channel,
                                unsigned channels, f16* out, unsigned stride) noexcept {
    switch (strip_form(in.format, channel, channels)) {
        case StripForm::any:
            return detail::decode_any<M>(warp, in, strip, channel, channels, out, stride);
        case StripForm::halves:
            return detail::copy_halves<M>(warp, in, strip, channel, channels, out, stride);
        case StripForm::channel4:
            return detail::decode_channel4<M>(warp, in, strip, channel, channels, out, stride);
        case StripForm::token4:
            return detail::decode_token<M, 4>(warp, in, strip, channel, channels, out, stride);
        case StripForm::token8:
            return detail::decode_token<M, 8>(warp, in, strip, channel, channels, out, stride);
    }
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend::gpu
