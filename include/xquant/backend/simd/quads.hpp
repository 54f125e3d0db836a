// What integer products read: codes as words of 4 channels of one token, and the scales beside them.
//
// Shapes  code quads [channels / 4][128 tokens]; scales and zeros [tokens] or [channels].
// Limit   shuffles: 64 for 16 tokens of 64 channels (AVX-512) where the codes lie token by token, 8 for 64 tokens of 4
//         channels where they lie channel by channel.
#pragma once

#include <xquant/backend/scalar/int8.hpp>
#include <xquant/backend/simd/products.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// Stores the first n of 4 registers, or all, `step` words apart. No loop: compilers make a call of memmove of one.
template <class R>
XQUANT_INLINE void store_words(const typename R::i32* words, std::size_t n, std::uint32_t* to,
                               std::size_t step) noexcept {
    R::store_i32(to, words[0]);
    if (n > 1) R::store_i32(to + step, words[1]);
    if (n > 2) R::store_i32(to + 2 * step, words[2]);
    if (n > 3) R::store_i32(to + 3 * step, words[3]);
}

/// Channels of a stream: consecutive ones, or a list of them. Their number goes up to a multiple of 4, by the last one.
struct ChannelList {
    std::size_t first;             ///< the first, or what is added to those of the list
    const std::uint16_t* numbers;  ///< [count], or null
    std::size_t count;

    [[nodiscard]] std::size_t operator[](std::size_t i) const noexcept {
        return first + (numbers != nullptr ? numbers[(std::min)(i, count - 1)] : i);
    }
    [[nodiscard]] std::size_t quads() const noexcept { return (count + 3) / 4; }
};

/// Codes of some tokens (of a token block) and channels, a channel's tokens side by side -> quads [channels / 4][128].
/// Word t is token t; words behind the last token, up to the next multiple of `lanes`, mean nothing.
template <class R>
void load_quads_by_channel(simd<R> tag, const StreamView& in, Slots of_tokens, const ChannelList& channels,
                           std::size_t ahead, std::uint32_t* quads) noexcept {
    constexpr std::size_t lanes = R::lanes, bytes = 4 * lanes;
    const StreamFormat& format = in.format;
    const std::size_t block = of_tokens.first / format.group_tokens, tokens = of_tokens.count;
    const bool done =
        of_tokens.first % format.group_tokens == 0 &&
        with_group(format.bits, format.group_tokens, [&](auto bits, auto n) {
            const std::size_t size = format.code_offset(0, 1), next = ahead;  // from a channel to the next
            const std::byte* const codes = in.codes + format.code_offset(block, 0);
            const ChannelList list = channels;
            const std::size_t count_q = list.quads(), runs = ((std::min)(tokens, n()) + bytes - 1) / bytes;
            std::uint32_t* to = quads;
            for (std::size_t q = 0; q < count_q; ++q, to += quad_tokens) {
                const std::byte* from[4];
                XQUANT_UNROLL
                for (std::size_t k = 0; k < 4; ++k) {
                    from[k] = codes + list[4 * q + k] * size;
                    for (std::size_t line = 0; line < size; line += 64) prefetch(from[k] + line, next);
                }
                const auto put = [&](std::size_t r, const typename R::i32* words) {
                    store_words<R>(words, n() / lanes, to + r * bytes, lanes);
                };
                constexpr std::size_t half = n() / 2;  // bytes of a channel in 4 bits: tokens t and t + n / 2
                if constexpr (bits() == 4 && half % bytes == 0) {
                    const auto nibble = R::splat_i32(0x0F0F0F0F);
                    for (std::size_t r = 0; r < (std::min)(runs, half / bytes); ++r) {
                        typename R::i32 both[4], low[4], high[4];
                        const std::size_t at = r * bytes;
                        R::interleave_bytes(R::load_i32(from[0] + at), R::load_i32(from[1] + at),
                                            R::load_i32(from[2] + at), R::load_i32(from[3] + at), both);
                        XQUANT_UNROLL
                        for (std::size_t i = 0; i < 4; ++i) {
                            low[i] = R::bits_and(both[i], nibble);
                            high[i] = R::bits_and(R::shift_right(both[i], 4), nibble);
                        }
                        put(r, low);
                        if (r + half / bytes < runs) put(r + half / bytes, high);
                    }
                    continue;
                }
                for (std::size_t r = 0; r < runs; ++r) {
                    typename R::i32 words[4];
                    R::interleave_bytes(code_bytes<R, bits(), n()>(from[0], r), code_bytes<R, bits(), n()>(from[1], r),
                                        code_bytes<R, bits(), n()>(from[2], r), code_bytes<R, bits(), n()>(from[3], r),
                                        words);
                    put(r, words);
                }
            }
        });
    if (done) return;
    std::array<std::uint8_t, max_group + 64> codes;
    auto* const to = reinterpret_cast<std::uint8_t*>(quads);
    for (std::size_t c = 0; c < 4 * channels.quads(); ++c) {
        unpack_group(tag, in.codes + format.code_offset(block, channels[c]), format.group_tokens, format.bits,
                     {of_tokens.first % format.group_tokens, tokens}, codes.data());
        for (std::size_t t = 0; t < tokens; ++t) to[(c / 4 * quad_tokens + t) * 4 + c % 4] = codes[t];
    }
}

/// Likewise of consecutive channels (of one channel block), whichever way codes lie.
template <class R>
void load_quads(simd<R> tag, const StreamView& in, Slots of_tokens, Slots of_channels, std::size_t ahead,
                std::uint32_t* quads) noexcept {
    constexpr std::size_t lanes = R::lanes, bytes = 4 * lanes;
    const std::size_t token = of_tokens.first, tokens = of_tokens.count;
    const std::size_t channel = of_channels.first, channels = of_channels.count;
    const StreamFormat& format = in.format;
    if (format.group_channels == 1) {
        return load_quads_by_channel(tag, in, of_tokens, {channel, nullptr, channels}, ahead, quads);
    }
    const std::size_t block = channel / format.group_channels, first = channel % format.group_channels;
    const std::size_t group_size = format.group_bytes(format.channels_of(block));
    const std::byte* group = in.codes + format.code_offset(token, block);
    // A token's channels lie side by side: words of 4 channels are transposed.
    const bool done =
        format.group_tokens == 1 && first % bytes == 0 &&
        with_group(format.bits, format.channels_of(block), [&](auto bits, auto n) {
            const std::size_t size = group_size, last = tokens - 1, wide = channels, skip = first / bytes, next = ahead;
            const std::byte* from = group;
            std::uint32_t* to = quads;
            for (std::size_t t = 0; t <= last; t += lanes) {
                for (std::size_t c = 0; c < wide; c += bytes) {
                    typename R::i32 words[lanes];
                    for (std::size_t i = 0; i < lanes; ++i) {
                        prefetch(from + (t + i) * size, next);
                        words[i] = code_bytes<R, bits(), n()>(from + (std::min)(t + i, last) * size, skip + c / bytes);
                    }
                    R::transpose(words);
                    const std::size_t rows = (std::min)(lanes, (wide - c) / 4);
                    for (std::size_t i = 0; i < rows; ++i) R::store_i32(to + (c / 4 + i) * quad_tokens + t, words[i]);
                }
            }
        });
    if (done) return;
    std::array<std::uint8_t, max_group + 64> codes;
    auto* to = reinterpret_cast<std::uint8_t*>(quads);
    for (std::size_t i = 0; i < tokens; ++i) {
        unpack_group(tag, in.codes + format.code_offset(token + i, block), format.channels_of(block), format.bits,
                     {first, channels}, codes.data());
        for (std::size_t c = 0; c < channels; ++c) to[(c / 4 * quad_tokens + i) * 4 + c % 4] = codes[c];
    }
}

/// Scales, or zeros, that lie one behind the other -> f32; and asks for those that lie so many bytes ahead, if any.
template <class R>
void load_scales(const f16* from, std::size_t n, std::size_t ahead, float* to) noexcept {
    for (std::size_t i = 0; i < n && ahead != 0; i += 64 / sizeof(f16)) prefetch(from + i, ahead);
    load_halves<R>(CodeKind::f16, reinterpret_cast<const std::byte*>(from), n, to);
}

/// Scales and zeros of one channel block for some tokens -> scales [128], zeros [128].
template <class R>
void load_token_scales(const StreamView& in, Slots of_tokens, std::size_t channel_block, std::size_t ahead,
                       float* scales, float* zeros) noexcept {
    const std::size_t first = in.format.group_index(of_tokens.first, channel_block), tokens = of_tokens.count;
    const auto load = [&](const f16* from, float* to) {
        load_scales<R>(from + first, tokens, ahead, to);
        for (std::size_t t = tokens; t % R::lanes != 0; ++t) to[t] = 0;
    };
    load(in.scales, scales);
    if (in.format.stores_zero) return load(in.zeros, zeros);
    for (std::size_t t = 0; t < tokens; ++t) zeros[t] = -in.format.zero_code * scales[t];
    for (std::size_t t = tokens; t % R::lanes != 0; ++t) zeros[t] = 0;
}

/// Scales and zeros of some channels (at most 128) in one token block.
template <class R>
void load_channel_scales(const StreamView& in, std::size_t token_block, Slots channels, std::size_t ahead,
                         float* scales, float* zeros) noexcept {
    const std::size_t first = in.format.group_index(token_block, channels.first), step = in.format.group_index(0, 1);
    if (step == 1 && in.format.stores_zero) {
        load_scales<R>(in.scales + first, channels.count, ahead, scales);
        load_scales<R>(in.zeros + first, channels.count, ahead, zeros);
        return;
    }
    for (std::size_t c = 0; c < channels.count; ++c) {
        const GroupScale scale = stored_scale(in, first + c * step);
        scales[c] = scale.scale;
        zeros[c] = scale.zero;
    }
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
