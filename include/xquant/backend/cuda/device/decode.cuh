// Decodes stored rows for the tensor cores. Each warp takes a strip, some of the 128 slots of a page, into shared
// memory: as halves, or as codes where these meet 8-bit weights.
//
//     warp w of 4, row r of its strip   ->   slot 64 (r / 16 + round) + 16 w + r % 16
//
// 16 bytes of a channel's 4-bit codes hold 16 tokens in their low halves and the tokens 64 slots later in their high
// halves: exactly what one warp needs.
// Shape   out: [rows][stride] halves, channels from `channels` up to the next multiple of 16 are 0, and so are rows
//         whose slot is not among those wanted.
// Limit   4 bits: 3.5 instructions for each pair of codes (a byte permutation for two pairs, a mask that also sets the
//         exponent, a subtraction that takes the exponent's offset away, a multiply-add), and a store. As codes: 1 for
//         each, and a store for 4.
#pragma once

#include <cstddef>
#include <cstdint>

#include <xquant/backend/cuda/device/slots.cuh>

namespace xquant::backend::gpu {
inline namespace XQUANT_ABI_NS {

/// How a strip is decoded. `any` serves every stream; the other forms are faster and serve some.
enum class StripForm : unsigned char { any, halves, channel, channel4, token, token4, token8 };

/// The form for the channels channel .. + channels of a stream.
XQUANT_DEVICE constexpr StripForm strip_form(const StreamFormat& format, std::size_t channel,
                                             unsigned channels) noexcept {
    if (format.quantized() && (format.levels != nullptr || format.outliers > 0)) return StripForm::any;
    if (format.quantized() && format.group_channels == 1 && format.group_tokens % 32 == 0) {
        if (page_slots % format.group_tokens != 0 || channels % 2 != 0) return StripForm::any;
        return format.bits == 4 && format.group_tokens == page_slots ? StripForm::channel4 : StripForm::channel;
    }
    const auto first = static_cast<unsigned>(channel), last = first + channels, group = format.group_channels;
    if (format.group_tokens != 1 || channels % 8 != 0) return StripForm::any;
    if (format.kind == CodeKind::f16) {
        // Copies take 16 bytes, which must be aligned and lie in one group.
        const unsigned block = first / group, left = format.width - block * group;
        const bool whole = (left < group ? left : group) % 8 == 0 && (block == 0 || group % 8 == 0);
        return whole && (first - block * group) % 8 == 0 && last <= (block + 1) * group ? StripForm::halves
                                                                                        : StripForm::any;
    }
    if (!format.quantized()) return StripForm::any;
    const bool groups = first % group == 0 && group % 8 == 0 && (last % group == 0 || last == format.width);
    const bool words = has_words(group, format.bits) && has_words(format.width % group, format.bits);
    if (!groups || !words) return StripForm::any;
    return format.bits == 4 ? StripForm::token4 : format.bits == 8 ? StripForm::token8 : StripForm::token;
}

namespace detail {

inline constexpr std::uint32_t two(std::uint16_t half) noexcept {
    return half | static_cast<std::uint32_t>(half) << 16U;
}

/// Exponents of halves, two in a word. With a code in its lowest bits, such a half is 1024 + code (low_codes); with a
/// code in bits 4 to 7, it is 64 + code (high_codes).
inline constexpr std::uint32_t low_codes = 0x64006400U, high_codes = 0x54005400U;

/// Two halves that are offset + code -> scale * code + zero.
template <class M>
XQUANT_DEVICE std::uint32_t decode_pair(std::uint32_t codes, std::uint32_t offset, std::uint32_t scales,
                                        std::uint32_t zeros) noexcept {
    return M::scale_halves(M::subtract_halves(codes, offset), scales, zeros);
}
/// Pair k of 4 codes, a byte each.
template <class M>
XQUANT_DEVICE std::uint32_t decode_bytes(std::uint32_t word, unsigned k, std::uint32_t scales,
                                         std::uint32_t zeros) noexcept {
    return decode_pair<M>(M::select_bytes(word, low_codes, k == 0 ? 0x7150U : 0x7352U), low_codes, scales, zeros);
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

/// Lanes that share a row of n pieces: a power of two, so that rows are dealt out without a division.
XQUANT_DEVICE constexpr unsigned lanes_of_row(unsigned n) noexcept {
    unsigned side = 1;
    while (side < n && side < lanes) side *= 2;
    return side;
}

/// Calls f(row, piece) for the pieces of rows, spread over the lanes; neighbours take neighbouring pieces.
template <class Warp, class F>
XQUANT_DEVICE_INLINE void each_piece(const Warp& warp, unsigned rows, unsigned pieces, F&& f) noexcept {
    const unsigned side = lanes_of_row(pieces);
    warp.each([&](unsigned lane) {
        for (unsigned piece = lane % side; piece < pieces; piece += side) {
            for (unsigned row = lane / side; row < rows; row += lanes / side) f(row, piece);
        }
    });
}

/// Rows of halves, copied in the background.
template <class M>
XQUANT_DEVICE_INLINE void copy_halves(typename M::Warp& warp, const StreamView& in, const Strip& strip,
                                      std::size_t channel, unsigned channels, f16* out, unsigned stride) noexcept {
    const auto first = static_cast<unsigned>(channel), block = first / in.format.group_channels;
    const TokenGroups groups(in.format, block);
    const unsigned pieces = (channels + 15) / 16 * 2, row_bytes = groups.row_bytes;
    const std::byte* from = in.codes + groups.first_code + (first - block * in.format.group_channels) * sizeof(f16);
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
template <class M, unsigned Tiles, bool Whole>
XQUANT_DEVICE_INLINE void decode_channel4(const typename M::Warp& warp, const StreamView& in, const Strip& strip,
                                          std::size_t channel, unsigned channels, f16* out, unsigned stride) noexcept {
    const StreamFormat& format = in.format;
    // Groups of a channel, one after another: their number is that of their scale.
    const unsigned groups = (format.tokens + page_slots - 1) / page_slots;
    const auto first = static_cast<unsigned>(channel * groups + strip.base / page_slots);
    const unsigned pairs = (channels + 15) / 16 * 8;
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
                const unsigned index = first + (2 * p + h) * groups;
                words[h] =
                    *reinterpret_cast<const Words*>(in.codes + std::size_t{index} * (page_slots / 2) + 16 * strip.warp);
                scales |= static_cast<std::uint32_t>(in.scales[index].bits) << (16 * h);
                zeros |= static_cast<std::uint32_t>(zero_of<M>(in, index).bits) << (16 * h);
            }
            XQUANT_UNROLL
            for (unsigned i = 0; i < 4; ++i) {
                XQUANT_UNROLL
                for (unsigned b = 0; b < 4; ++b) {
                    // Byte b of both channels, twice: a token in the low halves of the bytes, the one 64 later in the
                    // high ones.
                    const std::uint32_t both = M::select_bytes(words[0].at[i], words[1].at[i], 0x4400U + 0x1111U * b);
                    XQUANT_UNROLL
                    for (unsigned tile = 0; tile < Tiles; ++tile) {
                        const unsigned row = 16 * tile + 4 * i + b;
                        const std::uint32_t pair =
                            tile + strip.round == 0
                                ? decode_pair<M>(M::mask(both, 0x000F000FU, low_codes), low_codes, scales, zeros)
                                : decode_pair<M>(M::mask(both, 0x00F000F0U, high_codes), high_codes, scales, zeros);
                        put(out, stride, row, 2 * p, Whole || strip.wants(row) ? pair : 0);
                    }
                }
            }
        }
    });
}

/// Codes of any bits of groups of 32 or more tokens of a channel: a lane takes two channels, 4 tokens at a time.
template <class M>
XQUANT_DEVICE_COLD void decode_channel(const typename M::Warp& warp, const StreamView& in, const Strip& strip,
                                       std::size_t channel, unsigned channels, f16* out, unsigned stride) noexcept {
    const StreamFormat& format = in.format;
    const auto n = static_cast<unsigned>(format.group_tokens);
    const unsigned pairs = (channels + 15) / 16 * 8;
    warp.each([&](unsigned lane) {
        for (unsigned p = lane; p < pairs; p += lanes) {
            std::uint32_t scales = 0, zeros = 0;
            std::size_t before = static_cast<std::size_t>(-1);
            for (unsigned row = 0; row < strip.rows; row += 4) {
                const unsigned offset = strip.offset(row);
                const std::size_t block = strip.base / n + offset / n;
                std::uint32_t words[2] = {0, 0};
                for (unsigned h = 0; h < 2 && 2 * p < channels; ++h) {
                    const std::size_t c = channel + 2 * p + h, index = format.group_index(block, c);
                    if (block >= (strip.end + n - 1) / n) break;  // there may be no such group
                    words[h] = code_word(in.codes + format.code_offset(block, c), n, format.bits, offset % n);
                    if (block == before) continue;
                    const std::uint32_t rest = h == 0 ? 0U : 0xFFFFU;
                    scales = (scales & rest) | static_cast<std::uint32_t>(in.scales[index].bits) << (16 * h);
                    zeros = (zeros & rest) | static_cast<std::uint32_t>(zero_of<M>(in, index).bits) << (16 * h);
                }
                before = block;
                for (unsigned b = 0; b < 4; ++b) {
                    const std::uint32_t both = M::select_bytes(words[0], words[1], 0x4400U + 0x1111U * b) & 0x00FF00FFU;
                    const bool there = 2 * p < channels && strip.wants(row + b);
                    put(out, stride, row + b, 2 * p,
                        there ? decode_pair<M>(both | low_codes, low_codes, scales, zeros) : 0);
                }
            }
        }
    });
}

/// Calls f(row, place in the strip's row, group, n, index) for every word of codes of a token's groups of channels that
/// are whole: code `index` of n is the first. A lane takes the same words of some rows.
template <class Warp, class F>
XQUANT_DEVICE_INLINE void each_word(const Warp& warp, const StreamFormat& format, const Strip& strip,
                                    std::size_t channel, unsigned words, unsigned codes_each, F&& f) noexcept {
    const unsigned group_words = format.group_channels / codes_each;
    const unsigned first_block = static_cast<unsigned>(channel) / format.group_channels;
    const unsigned side = lanes_of_row(words);
    warp.each([&](unsigned lane) {
        for (unsigned w = lane % side; w < words; w += side) {
            const unsigned group = w / group_words, place = w - group * group_words;
            const TokenGroups at(format, first_block + group);
            for (unsigned row = lane / side; row < strip.rows; row += lanes / side) {
                const std::size_t slot = strip.slot(row);
                f(row, group * format.group_channels, at.channels, place, at.first_code + slot * at.row_bytes,
                  at.first_index + slot);
            }
        }
    });
}

/// Codes of groups of a token's channels: a lane takes 4 of each of some rows, or, of 4 bits, a word with 8.
template <class M, unsigned Bits>
XQUANT_DEVICE_INLINE void decode_token(const typename M::Warp& warp, const StreamView& in, const Strip& strip,
                                       std::size_t channel, unsigned channels, f16* out, unsigned stride) noexcept {
    constexpr unsigned each = Bits == 4 ? 8 : 4;
    each_word(warp, in.format, strip, channel, channels / each, each,
              [&](unsigned row, unsigned start, unsigned n, unsigned place, std::size_t at, std::size_t index) {
                  std::uint32_t word = 0, scales = 0, zeros = 0;
                  if (strip.wants(row)) {
                      word = Bits == 0 ? code_word(in.codes + at, n, in.format.bits, 4 * place)
                                       : *reinterpret_cast<const std::uint32_t*>(in.codes + at + 4 * place);
                      scales = two(in.scales[index].bits);
                      zeros = two(zero_of<M>(in, index).bits);
                  }
                  f16* to = out + start + 4 * place;
                  XQUANT_UNROLL
                  for (unsigned k = 0; k < 2; ++k) {
                      if constexpr (Bits == 4) {
                          const std::uint32_t both = M::select_bytes(word, word, k == 0 ? 0x1100U : 0x3322U);
                          put(to, stride, row, 2 * k,
                              decode_pair<M>(M::mask(both, 0x000F000FU, low_codes), low_codes, scales, zeros));
                          put(to, stride, row, n / 2 + 2 * k,
                              decode_pair<M>(M::mask(both, 0x00F000F0U, high_codes), high_codes, scales, zeros));
                      } else {
                          put(to, stride, row, 2 * k, decode_bytes<M>(word, k, scales, zeros));
                      }
                  }
              });
    const unsigned padded = (channels + 15) / 16 * 16;
    warp.each([&](unsigned lane) {
        for (unsigned c = channels + 2 * lane; c < padded; c += 2 * lanes) {
            for (unsigned row = 0; row < strip.rows; ++row) put(out, stride, row, c, 0);
        }
    });
}

/// Decodes groups of a token's channels whose codes have any number of bits.
template <class M>
XQUANT_DEVICE_COLD void decode_words(const typename M::Warp& warp, const StreamView& in, const Strip& strip,
                                     std::size_t channel, unsigned channels, f16* out, unsigned stride) noexcept {
    decode_token<M, 0>(warp, in, strip, channel, channels, out, stride);
}

}  // namespace detail

/// Channels channel .. + channels of a strip's slots -> out. They are there after wait_for_copies and sync.
/// @tparam Tiles  of 16 rows
template <class M, unsigned Tiles>
XQUANT_DEVICE_INLINE void decode_strip(typename M::Warp& warp, const StreamView& in, const Strip& strip,
                                       std::size_t channel, unsigned channels, f16* out, unsigned stride) noexcept {
    switch (strip_form(in.format, channel, channels)) {
        case StripForm::any:
            return detail::decode_any<M>(warp, in, strip, channel, channels, out, stride);
        case StripForm::halves:
            return detail::copy_halves<M>(warp, in, strip, channel, channels, out, stride);
        case StripForm::channel:
            return detail::decode_channel<M>(warp, in, strip, channel, channels, out, stride);
        case StripForm::channel4:
            if (strip.whole()) {
                return detail::decode_channel4<M, Tiles, true>(warp, in, strip, channel, channels, out, stride);
            }
            return detail::decode_channel4<M, Tiles, false>(warp, in, strip, channel, channels, out, stride);
        case StripForm::token:
            return detail::decode_words<M>(warp, in, strip, channel, channels, out, stride);
        case StripForm::token4:
            return detail::decode_token<M, 4>(warp, in, strip, channel, channels, out, stride);
        case StripForm::token8:
            return detail::decode_token<M, 8>(warp, in, strip, channel, channels, out, stride);
    }
}

/// Like decode_strip, but not inlined: for calls that are rare and would only make kernels longer.
template <class M, unsigned Tiles>
XQUANT_DEVICE_COLD void decode_rarely(typename M::Warp& warp, const StreamView& in, const Strip& strip,
                                      std::size_t channel, unsigned channels, f16* out, unsigned stride) noexcept {
    decode_strip<M, Tiles>(warp, in, strip, channel, channels, out, stride);
}

/// The code that stands for 0 in signed bytes.
XQUANT_DEVICE constexpr unsigned centre_of(unsigned bits) noexcept { return 1U << (bits - 1); }

/// Like decode_strip, but gives the codes themselves, less centre_of, one byte each. For streams whose groups are whole
/// and lie along a token (fits_codes of packed_weights.cuh). The error that rounding A makes in a sum grows with the
/// sum of the codes, which is small when codes are counted from their centre.
/// Shape   out: [rows][2 stride] bytes, 0 from `channels` up to the next multiple of `multiple`, and where a slot is
///         not wanted.
template <class M>
XQUANT_DEVICE_INLINE void decode_codes(const typename M::Warp& warp, const StreamView& in, const Strip& strip,
                                       std::size_t channel, unsigned channels, unsigned multiple, f16* out,
                                       unsigned stride) noexcept {
    auto* bytes = reinterpret_cast<std::byte*>(out);
    const auto put_word = [&](unsigned row, unsigned c, std::uint32_t word) {
        *reinterpret_cast<std::uint32_t*>(bytes + row * 2 * stride + c) = word;
    };
    detail::each_word(warp, in.format, strip, channel, channels / 4, 4,
                      [&](unsigned row, unsigned start, unsigned n, unsigned place, std::size_t at, std::size_t) {
                          std::uint32_t word = 0;
                          if (strip.wants(row)) {
                              // Subtracts the centre from each byte: 128 is added and taken away, so that no byte
                              // borrows from the next.
                              word = code_word(in.codes + at, n, in.format.bits, 4 * place);
                              word = (word + (128 - centre_of(in.format.bits)) * 0x01010101U) ^ 0x80808080U;
                          }
                          put_word(row, start + 4 * place, word);
                      });
    const unsigned padded = (channels + multiple - 1) / multiple * multiple;
    warp.each([&](unsigned lane) {
        for (unsigned c = channels + 4 * lane; c < padded; c += 4 * lanes) {
            for (unsigned row = 0; row < strip.rows; ++row) put_word(row, c, 0);
        }
    });
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend::gpu
