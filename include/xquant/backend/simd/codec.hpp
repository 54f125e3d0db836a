// Vector codec. It writes the bytes of the scalar codec, and decodes to its values but for f32 rounding.
//
//     code_bytes    4 * lanes consecutive codes of a group, a byte each: for each plane a load, a shift and a mask
//     decode_tile   decodes along groups; a tile that lies across them is transposed in registers, block by block
//     encode_rows   min/max scales along a token; everything else is the scalar encoder's
//
// Groups of 32, 64 and 128 values have vector forms; others go through the scalar unpacking.
// Limit   decoding to f32: the stores (4 bytes a value). Encoding: two passes over x, 8 operations for each `lanes`
//         values.
#pragma once

#include <type_traits>

#include <xquant/backend/scalar/codec.hpp>
#include <xquant/backend/simd/registers.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// By how many bits word i of block r is shifted right to bring its 4 codes down, in a plane of `Plane` bits that
/// repeats every `Stride` bytes.
template <std::size_t Lanes, unsigned Plane, std::size_t Stride>
struct PlaneShifts {
    static constexpr std::size_t blocks = 8 / Plane * Stride / (4 * Lanes) + 1;
    std::array<std::array<std::uint32_t, Lanes>, blocks> by{};

    constexpr PlaneShifts() {
        for (std::size_t r = 0; r < blocks; ++r) {
            for (std::size_t i = 0; i < Lanes; ++i) {
                by[r][i] = static_cast<std::uint32_t>((4 * (r * Lanes + i)) / Stride % (8 / Plane) * Plane);
            }
        }
    }
};
template <std::size_t Lanes, unsigned Plane, std::size_t Stride>
inline constexpr PlaneShifts<Lanes, Plane, Stride> plane_shifts{};

/// Codes r * 4 lanes .. of one plane of a group of N codes, moved to their place in the code.
template <class R, unsigned Plane, unsigned Shift, std::size_t N>
typename R::i32 plane_bytes(const std::uint8_t* in, std::size_t r) noexcept {
    constexpr std::size_t stride = N * Plane / 8, bytes = 4 * R::lanes;
    typename R::i32 codes;
    if constexpr (stride >= bytes) {
        codes = R::load_i32(in + r * bytes % stride);
        if constexpr (Plane < 8) codes = R::shift_right(codes, static_cast<unsigned>(r * bytes / stride * Plane));
    } else {
        codes = R::template repeat<stride>(in);
        if constexpr (Plane < 8) {
            codes = R::shift_right_each(codes, R::load_i32(plane_shifts<R::lanes, Plane, stride>.by[r].data()));
        }
    }
    if constexpr (Plane < 8) {
        codes = R::bits_and(codes, R::splat_i32(static_cast<std::int32_t>(((1U << Plane) - 1U) * 0x01010101U)));
    }
    if constexpr (Shift > 0) codes = R::shift_left(codes, Shift);
    return codes;
}

/// Codes r * 4 lanes .. of a group of N, a byte each. Where N < 4 lanes, bytes from N on mean nothing.
template <class R, unsigned Bits, std::size_t N>
typename R::i32 code_bytes(const std::byte* group, std::size_t r) noexcept {
    const auto* in = reinterpret_cast<const std::uint8_t*>(group);
    if constexpr (Bits == 2) {
        return plane_bytes<R, 2, 0, N>(in, r);
    } else if constexpr (Bits == 3) {
        return R::bits_or(plane_bytes<R, 2, 1, N>(in, r), plane_bytes<R, 1, 0, N>(in + N / 4, r));
    } else if constexpr (Bits == 4) {
        return plane_bytes<R, 4, 0, N>(in, r);
    } else if constexpr (Bits == 5) {
        return R::bits_or(plane_bytes<R, 4, 1, N>(in, r), plane_bytes<R, 1, 0, N>(in + N / 2, r));
    } else if constexpr (Bits == 6) {
        return R::bits_or(plane_bytes<R, 4, 2, N>(in, r), plane_bytes<R, 2, 0, N>(in + N / 2, r));
    } else {
        static_assert(Bits == 8);
        return plane_bytes<R, 8, 0, N>(in, r);
    }
}

/// Calls f(bits, n) with both as compile-time constants where groups of n codes have a vector form; else returns false.
template <class F>
bool with_group(unsigned bits, std::size_t n, F&& f) {
    const auto with_size = [&]<unsigned Bits>(std::integral_constant<unsigned, Bits> b) {
        if (n == 128) return f(b, std::integral_constant<std::size_t, 128>{}), true;
        if (n == 64) return f(b, std::integral_constant<std::size_t, 64>{}), true;
        if (n == 32) return f(b, std::integral_constant<std::size_t, 32>{}), true;
        return false;
    };
    switch (bits) {
        case 2:
            return with_size(std::integral_constant<unsigned, 2>{});
        case 3:
            return with_size(std::integral_constant<unsigned, 3>{});
        case 4:
            return with_size(std::integral_constant<unsigned, 4>{});
        case 5:
            return with_size(std::integral_constant<unsigned, 5>{});
        case 6:
            return with_size(std::integral_constant<unsigned, 6>{});
        case 8:
            return with_size(std::integral_constant<unsigned, 8>{});
        default:
            return false;
    }
}

/// Rows of a block that is transposed at a time, and how many values each has at most.
inline constexpr std::size_t strip_values = 128;

/// in [rows, columns] -> out [columns, rows], rows of out `out_stride` floats apart.
template <class R>
void transpose_floats(Matrix in, float* out, std::size_t out_stride) noexcept {
    constexpr std::size_t n = R::lanes;
    const std::size_t rows = in.rows, columns = in.columns;
    typename R::i32 block[n];
    for (std::size_t i = 0; i < rows; i += n) {
        const std::size_t some = (std::min)(n, rows - i);
        for (std::size_t j = 0; j < columns; j += n) {
            const std::size_t wide = (std::min)(n, columns - j);
            for (std::size_t k = 0; k < n; ++k) {
                block[k] = k < some ? R::as_i32(R::load_first(in.data + (i + k) * in.stride + j, wide)) : R::zero_i32();
            }
            R::transpose(block);
            for (std::size_t k = 0; k < wide; ++k) {
                R::store_first(out + (j + k) * out_stride + i, R::as_f32(block[k]), some);
            }
        }
    }
}

/// codes [count] of one group -> out = zero + scale * code.
template <class R>
void scale_codes(const std::uint8_t* codes, std::size_t count, GroupScale scale, float* out) noexcept {
    const auto zero = R::splat(scale.zero), factor = R::splat(scale.scale);
    std::size_t i = 0;
    for (; i + R::lanes <= count; i += R::lanes) {
        R::store(out + i, R::fma(R::to_f32(R::load_u8(codes + i)), factor, zero));
    }
    if (i < count) R::store_first(out + i, R::fma(R::to_f32(R::load_u8(codes + i)), factor, zero), count - i);
}

}  // namespace detail

/// Some codes of a group of n -> out, which has room for 64 codes more.
template <class R>
void unpack_group(simd<R>, const std::byte* in, std::size_t n, unsigned bits, Slots codes, std::uint8_t* out) noexcept {
    constexpr std::size_t bytes = 4 * R::lanes;
    const std::size_t first = codes.first, count = codes.count;
    const bool done = first % bytes == 0 && detail::with_group(bits, n, [&](auto b, auto size) {
                          for (std::size_t i = 0; i < count; i += bytes) {
                              R::store_i32(out + i, detail::code_bytes<R, b(), size()>(in, (first + i) / bytes));
                          }
                      });
    if (!done) unpack_group(scalar{}, in, n, bits, codes, out);
}

namespace detail {

/// Like decode_group with step 1: values lie side by side.
template <class R>
void decode_run(simd<R> tag, const StreamView& in, GroupPlace at, Slots codes_of, float* out) noexcept {
    const StreamFormat& format = in.format;
    if (format.levels != nullptr) {
        decode_group(scalar{}, in, at, codes_of, out, 1);
        return;
    }
    const std::size_t n = format.group_tokens * format.channels_of(at.channel_block);
    std::array<std::uint8_t, max_group + 64> codes;
    unpack_group(tag, in.codes + format.code_offset(at.token_block, at.channel_block), n, format.bits, codes_of,
                 codes.data());
    scale_codes<R>(codes.data(), codes_of.count, stored_scale(in, format.group_index(at.token_block, at.channel_block)),
                   out);
}

/// Fetches the cache line `ahead` bytes behind an address into L2; nothing happens where no memory is.
inline void prefetch(const void* at, std::size_t ahead = 0) noexcept {
    __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(at) + ahead), 0, 2);
}

/// in [n] of f16 or bf16 -> f32.
template <class R>
void load_halves(CodeKind kind, const std::byte* in, std::size_t n, float* out) noexcept {
    std::size_t c = 0;
    for (; c + R::lanes <= n; c += R::lanes) {
        const std::byte* from = in + c * sizeof(f16);
        R::store(out + c, kind == CodeKind::f16 ? R::load_f16(reinterpret_cast<const f16*>(from))
                                                : R::load_bf16(reinterpret_cast<const bf16*>(from)));
    }
    if (c < n) load_row(in + c * sizeof(f16), dtype_of_kind(kind), n - c, out + c);
}

/// Decodes channels of one token, of a stream whose groups lie along a token or that is not quantized.
template <class R>
void decode_token(simd<R> tag, const StreamView& in, std::size_t token, Slots channels, float* out) noexcept {
    const StreamFormat& format = in.format;
    if (format.kind == CodeKind::f32) return load_channels(in, token, channels, out);
    for (std::size_t c = channels.first; c < channels.end();) {
        const std::size_t b = c / format.group_channels, in_group = c % format.group_channels;
        const std::size_t columns = (std::min)(format.channels_of(b) - in_group, channels.end() - c);
        float* to = out + (c - channels.first);
        if (format.quantized()) {
            decode_run(tag, in, {token, b}, {in_group, columns}, to);
        } else {
            load_halves<R>(format.kind, in.codes + format.code_offset(token, b) + in_group * sizeof(f16), columns, to);
        }
        c += columns;
    }
}

/// Decodes tokens of one channel, of a stream whose groups lie along a channel.
template <class R>
void decode_channel(simd<R> tag, const StreamView& in, Slots tokens, std::size_t channel, float* out) noexcept {
    const std::size_t group = in.format.group_tokens;
    for (std::size_t t = tokens.first; t < tokens.end();) {
        const std::size_t rows = (std::min)(group - t % group, tokens.end() - t);
        decode_run(tag, in, {t / group, channel}, {t % group, rows}, out + (t - tokens.first));
        t += rows;
    }
}

}  // namespace detail

template <class R>
void decode_tile(simd<R> tag, const StreamView& in, std::size_t token, std::size_t channel, Tile out) noexcept {
    const StreamFormat& format = in.format;
    // Rows of one channel that are stored as they are lie along both: they have no codes to unpack along a channel.
    const bool along_tokens = format.group_tokens == 1, along_channels = !along_tokens && format.group_channels == 1;
    std::array<float, R::lanes * detail::strip_values> strip;
    if (along_tokens && !out.by_channel()) {
        for (std::size_t t = 0; t < out.tokens; ++t) {
            detail::decode_token(tag, in, token + t, {channel, out.channels}, out.at(t, 0));
        }
    } else if (along_channels && out.by_channel()) {
        for (std::size_t c = 0; c < out.channels; ++c) {
            detail::decode_channel(tag, in, {token, out.tokens}, channel + c, out.at(0, c));
        }
    } else if (along_tokens) {
        for (std::size_t c = 0; c < out.channels; c += detail::strip_values) {
            const std::size_t some = (std::min)(detail::strip_values, out.channels - c);
            for (std::size_t t = 0; t < out.tokens; t += R::lanes) {
                const std::size_t rows = (std::min)(R::lanes, out.tokens - t);
                for (std::size_t i = 0; i < rows; ++i) {
                    detail::decode_token(tag, in, token + t + i, {channel + c, some},
                                         strip.data() + i * detail::strip_values);
                }
                detail::transpose_floats<R>({strip.data(), rows, some, detail::strip_values}, out.at(t, c), out.stride);
            }
        }
    } else if (along_channels) {
        for (std::size_t t = 0; t < out.tokens; t += detail::strip_values) {
            const std::size_t some = (std::min)(detail::strip_values, out.tokens - t);
            for (std::size_t c = 0; c < out.channels; c += R::lanes) {
                const std::size_t rows = (std::min)(R::lanes, out.channels - c);
                for (std::size_t i = 0; i < rows; ++i) {
                    detail::decode_channel(tag, in, {token + t, some}, channel + c + i,
                                           strip.data() + i * detail::strip_values);
                }
                detail::transpose_floats<R>({strip.data(), rows, some, detail::strip_values}, out.at(t, c), out.stride);
            }
        }
    } else {
        decode_tile(scalar{}, in, token, channel, out);  // a layout of a user's own
        return;
    }
    if (format.outliers > 0) put_outliers(in, token, channel, out);
}

namespace detail {

/// codes [n] -> planes, eight bytes at a time; n is a multiple of 64.
inline void pack_words(const std::uint8_t* codes, std::size_t n, unsigned bits, std::byte* out) noexcept {
    for_each_plane(bits, [&](unsigned plane, unsigned shift) {
        const std::size_t stride = n * plane / 8;
        const std::uint64_t mask = ((1U << plane) - 1U) * 0x0101010101010101U;
        for (std::size_t j = 0; j < stride; j += 8) {
            std::uint64_t word = 0;
            for (std::size_t k = 0; k < 8 / plane; ++k) {
                std::uint64_t some;
                std::memcpy(&some, codes + j + k * stride, 8);
                word |= ((some >> shift) & mask) << (k * plane);
            }
            std::memcpy(out + j, &word, 8);
        }
        out += stride;
    });
}

/// Encodes a whole group x [n], n a multiple of 64, by a scale rule that needs the group's range alone.
template <class R>
void encode_range(const StreamCodec& codec, const float* x, std::size_t n, GroupPlace at,
                  MutableStreamView out) noexcept {
    const StreamFormat& format = out.format;
    auto low = R::load(x), high = low;
    for (std::size_t i = R::lanes; i < n; i += R::lanes) {
        const auto value = R::load(x + i);
        low = R::minimum(low, value);
        high = R::maximum(high, value);
    }
    const GroupScale scale = codec.scale_of({R::reduce_min(low), R::reduce_max(high)});
    const auto zero = R::splat(scale.zero), inverse = R::splat(inverse_scale(scale));
    const auto bottom = R::zero(), top = R::splat(static_cast<float>((1U << format.bits) - 1U));
    alignas(64) std::array<std::uint8_t, max_group> codes;
    for (std::size_t i = 0; i < n; i += R::lanes) {
        const auto scaled = R::mul(R::sub(R::load(x + i), zero), inverse);
        R::store_u8(codes.data() + i, R::round(R::minimum(R::maximum(scaled, bottom), top)));
    }
    pack_words(codes.data(), n, format.bits, out.codes + format.code_offset(at.token_block, at.channel_block));
    const std::size_t index = format.group_index(at.token_block, at.channel_block);
    out.scales[index] = to_f16(scale.scale);
    if (format.stores_zero) out.zeros[index] = to_f16(scale.zero);
}

}  // namespace detail

template <class R>
void encode_rows(simd<R>, const StreamCodec& codec, Matrix rows, std::size_t first, MutableStreamView out) noexcept {
    const StreamFormat& format = out.format;
    const std::size_t count = rows.rows, stride = rows.stride;
    const std::size_t group = std::size_t{format.group_tokens} * format.group_channels;
    const bool by_range = format.quantized() && codec.scale_of != nullptr && format.outliers == 0 && group % 64 == 0;
    const bool last_whole = format.channels_of(format.channel_blocks() - 1) % 64 == 0;
    if (by_range && format.group_tokens == 1 && last_whole) {
        for (std::size_t t = 0; t < count; ++t) {
            for (std::size_t b = 0; b < format.channel_blocks(); ++b) {
                detail::encode_range<R>(codec, rows.data + t * stride + b * format.group_channels,
                                        format.channels_of(b), {first + t, b}, out);
            }
        }
        return;
    }
    if (by_range && format.group_channels == 1 && group <= detail::strip_values && count % group == 0) {
        std::array<float, R::lanes * detail::strip_values> strip;
        for (std::size_t t = 0; t < count; t += group) {
            for (std::size_t c = 0; c < format.width; c += R::lanes) {
                const std::size_t some = std::min<std::size_t>(R::lanes, format.width - c);
                detail::transpose_floats<R>({rows.data + t * stride + c, group, some, stride}, strip.data(), group);
                for (std::size_t i = 0; i < some; ++i) {
                    detail::encode_range<R>(codec, strip.data() + i * group, group, {(first + t) / group, c + i}, out);
                }
            }
        }
        return;
    }
    encode_rows(scalar{}, codec, rows, first, out);
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
