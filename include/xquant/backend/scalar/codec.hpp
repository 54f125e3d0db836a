// Scalar codec: rows <-> codes, scales and zeros in the format of storage/format.hpp.
//
//     encode_rows   x [n, width] f32  -> a stream's slots       decode_tile  a stream's slots -> [tokens, channels] f32
//
// Outliers overwrite their values in the decoded tile at the end; a format without them pays one comparison for a tile.
//
// Limit   decoding 4 bits is bound by the stores of its f32 output; encoding by the two passes over x.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>

#include <xquant/backend/backend.hpp>
#include <xquant/backend/scalar/outliers.hpp>
#include <xquant/backend/views.hpp>
#include <xquant/storage/stream.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {

/// codes [n] -> planes; the values that pad n to a multiple of 8 are 0.
inline void pack_group(scalar, const std::uint8_t* codes, std::size_t n, unsigned bits, std::byte* out) noexcept {
    const std::size_t padded = (n + 7) / 8 * 8;
    for_each_plane(bits, [&](unsigned plane, unsigned shift) {
        const std::size_t stride = padded * plane / 8;
        const unsigned mask = (1U << plane) - 1;
        for (std::size_t j = 0; j < stride; ++j) {
            unsigned value = 0;
            for (std::size_t k = 0, i = j; k < 8 / plane; ++k, i += stride) {
                const unsigned code = i < n ? codes[i] : 0U;
                value |= ((code >> shift) & mask) << (k * plane);
            }
            out[j] = static_cast<std::byte>(value);
        }
        out += stride;
    });
}

/// Some codes of a group of n -> out [codes.count].
inline void unpack_group(scalar, const std::byte* in, std::size_t n, unsigned bits, Slots codes,
                         std::uint8_t* XQUANT_RESTRICT out) noexcept {
    const std::size_t padded = (n + 7) / 8 * 8, first = codes.first, count = codes.count;
    std::memset(out, 0, count);
    for_each_plane(bits, [&](unsigned plane, unsigned shift) {
        const std::size_t stride = padded * plane / 8;
        const unsigned mask = (1U << plane) - 1;
        const auto* XQUANT_RESTRICT bytes = reinterpret_cast<const std::uint8_t*>(in);
        for (std::size_t k = first / stride; k * stride < first + count; ++k) {
            const std::size_t begin = (std::max)(first, k * stride), end = (std::min)(first + count, (k + 1) * stride);
            const auto down = static_cast<unsigned>(k * plane);
            for (std::size_t i = begin; i < end; ++i) {
                const unsigned bitfield = (bytes[i - k * stride] >> down) & mask;
                out[i - first] = static_cast<std::uint8_t>(out[i - first] | (bitfield << shift));
            }
        }
        in += stride;
    });
}

namespace detail {

inline void store_row(CodeKind kind, const float* XQUANT_RESTRICT row, std::size_t n, std::byte* out) noexcept {
    if (kind == CodeKind::f32) std::memcpy(out, row, n * sizeof(float));
    if (kind == CodeKind::f16) {
        auto* XQUANT_RESTRICT half = reinterpret_cast<f16*>(out);
        for (std::size_t c = 0; c < n; ++c) half[c] = to_f16(row[c]);
    }
    if (kind == CodeKind::bf16) {
        auto* XQUANT_RESTRICT half = reinterpret_cast<bf16*>(out);
        for (std::size_t c = 0; c < n; ++c) half[c] = to_bf16(row[c]);
    }
}

}  // namespace detail

/// Writes rows [count, width] into the slots first .. first + count of a stream.
///
/// `first` is a multiple of group_tokens. `count` is one, too, unless these are the last rows: then the rest of the
/// last group counts as absent (codes 0) and may not be added later.
inline void encode_rows(scalar tag, const StreamCodec& codec, Matrix rows, std::size_t first,
                        MutableStreamView out) noexcept {
    const std::size_t count = rows.rows, stride = rows.stride;
    const StreamFormat& format = out.format;
    if (!format.quantized()) {
        for (std::size_t t = 0; t < count; ++t) {
            for (std::size_t b = 0; b < format.channel_blocks(); ++b) {
                detail::store_row(format.kind, rows.data + t * stride + b * format.group_channels,
                                  format.channels_of(b), out.codes + format.code_offset(first + t, b));
            }
        }
        return;
    }
    std::array<float, max_group> values;
    std::array<std::uint8_t, max_group> codes;
    for (std::size_t t = 0; t < count; t += format.group_tokens) {
        const std::size_t tokens = std::min<std::size_t>(format.group_tokens, count - t);
        const std::size_t token_block = (first + t) / format.group_tokens;
        for (std::size_t b = 0; b < format.channel_blocks(); ++b) {
            const std::size_t channels = format.channels_of(b), n = tokens * channels;
            const std::size_t whole = format.group_tokens * channels;
            const float* source = rows.data + t * stride + b * format.group_channels;
            const float* group = source;
            if (tokens > 1 || format.outliers > 0) {
                group = values.data();
                for (std::size_t i = 0; i < tokens; ++i) {
                    std::copy_n(source + i * stride, channels, values.data() + i * channels);
                }
            }
            const std::size_t index = format.group_index(token_block, b);
            if (format.outliers > 0) {
                const std::size_t at = index * format.outliers;
                take_outliers(codec, {values.data(), n}, out.outliers + at, out.indices + at);
            }
            const GroupScale scale = codec.encode({group, n}, {codes.data(), n}, format.levels);
            std::fill(codes.begin() + static_cast<std::ptrdiff_t>(n),
                      codes.begin() + static_cast<std::ptrdiff_t>(whole), std::uint8_t{0});
            pack_group(tag, codes.data(), whole, format.bits, out.codes + format.code_offset(token_block, b));
            out.scales[index] = to_f16(scale.scale);
            if (format.stores_zero) out.zeros[index] = to_f16(scale.zero);
        }
    }
}

/// The scale and zero of a group, as read back.
inline GroupScale stored_scale(const StreamView& in, std::size_t index) noexcept {
    const float scale = to_float(in.scales[index]);
    return {scale, in.format.stores_zero ? to_float(in.zeros[index]) : -in.format.zero_code * scale};
}

namespace detail {

/// Which group of a stream: its token block and its channel block.
struct GroupPlace {
    std::size_t token_block, channel_block;
};

/// out[i * step] = zero + scale * level(code i), for some codes of a group.
inline void decode_group(scalar tag, const StreamView& in, GroupPlace at, Slots codes_of, float* out,
                         std::size_t step) noexcept {
    const StreamFormat& format = in.format;
    const std::size_t n = format.group_tokens * format.channels_of(at.channel_block), count = codes_of.count;
    const GroupScale scale = stored_scale(in, format.group_index(at.token_block, at.channel_block));
    std::array<std::uint8_t, max_group> codes;
    unpack_group(tag, in.codes + format.code_offset(at.token_block, at.channel_block), n, format.bits, codes_of,
                 codes.data());
    if (format.levels != nullptr) {
        for (std::size_t i = 0; i < count; ++i) out[i * step] = scale.zero + scale.scale * format.levels[codes[i]];
    } else if (step == 1) {
        for (std::size_t i = 0; i < count; ++i) out[i] = scale.zero + scale.scale * static_cast<float>(codes[i]);
    } else {
        for (std::size_t i = 0; i < count; ++i) out[i * step] = scale.zero + scale.scale * static_cast<float>(codes[i]);
    }
}

/// One token's channels of a stream that is not quantized.
inline void load_channels(const StreamView& in, std::size_t token, Slots channels, float* out) noexcept {
    const StreamFormat& format = in.format;
    const DType type = dtype_of_kind(format.kind);
    for (std::size_t c = channels.first; c < channels.end();) {
        const std::size_t b = c / format.group_channels, in_group = c % format.group_channels;
        const std::size_t columns = (std::min)(format.channels_of(b) - in_group, channels.end() - c);
        load_row(in.codes + format.code_offset(token, b) + in_group * size_of(type), type, columns,
                 out + (c - channels.first));
        c += columns;
    }
}

/// A tile of a stream that is not quantized, from a token and a channel on.
inline void load_tile(const StreamView& in, std::size_t token, std::size_t channel, Tile out) noexcept {
    std::array<float, max_group> row;
    for (std::size_t t = 0; t < out.tokens; ++t) {
        if (!out.by_channel()) {
            load_channels(in, token + t, {channel, out.channels}, out.at(t, 0));
            continue;
        }
        load_channels(in, token + t, {channel, out.channels}, row.data());
        for (std::size_t c = 0; c < out.channels; ++c) *out.at(t, c) = row[c];
    }
}

}  // namespace detail

/// Decodes a tile of a stream to f32, from `token` and `channel` on. At most 4096 channels at a time.
inline void decode_tile(scalar tag, const StreamView& in, std::size_t token, std::size_t channel, Tile out) noexcept {
    const StreamFormat& format = in.format;
    if (!format.quantized()) {
        detail::load_tile(in, token, channel, out);
        return;
    }
    for (std::size_t t = 0; t < out.tokens;) {
        const std::size_t token_block = (token + t) / format.group_tokens, in_block = (token + t) % format.group_tokens;
        const std::size_t rows = std::min<std::size_t>(format.group_tokens - in_block, out.tokens - t);
        for (std::size_t c = 0; c < out.channels;) {
            const std::size_t b = (channel + c) / format.group_channels,
                              in_group = (channel + c) % format.group_channels;
            const std::size_t columns = (std::min)(format.channels_of(b) - in_group, out.channels - c);
            if (format.group_channels == 1) {
                detail::decode_group(tag, in, {token_block, b}, {in_block, rows}, out.at(t, c), out.token_step());
            } else {
                // Values of a group lie token by token.
                for (std::size_t i = 0; i < rows; ++i) {
                    const std::size_t first = (in_block + i) * format.channels_of(b) + in_group;
                    detail::decode_group(tag, in, {token_block, b}, {first, columns}, out.at(t + i, c),
                                         out.channel_step());
                }
            }
            c += columns;
        }
        t += rows;
    }
    if (format.outliers > 0) put_outliers(in, token, channel, out);
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
