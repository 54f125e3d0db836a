// Encodes rows on the device. A warp takes one group where groups lie along a token, and 32 groups, one for each lane,
// where they lie along a channel.
//
// The bytes are those of scalar code: the smallest and the largest value of a group do not depend on the order in which
// they are found, and codes come from a form that no compiler can fuse (quantizer/group.hpp). It serves quantizers
// whose scale follows a ScaleRule; streams with levels or outliers have to be encoded by the processor. Rows that are
// rounded for a metric are encode_feedback.cuh's.
// Limit   memory: x is read twice, the second time from cache. MinMse: f64 arithmetic, the same eleven sums by every
//         lane.
#pragma once

#include <cstddef>
#include <cstdint>

#include <xquant/backend/cuda/machine/machine.cuh>
#include <xquant/quantizer/group.hpp>
#include <xquant/storage/stream.hpp>

namespace xquant::backend::gpu {
inline namespace XQUANT_ABI_NS {

/// Whether encode_part, or FeedbackEncoder where the codec feeds back, serves a stream.
constexpr bool encodes(const StreamCodec& codec) noexcept {
    const StreamFormat& format = codec.format;
    const bool along_one = format.group_tokens == 1 || format.group_channels == 1;
    return !format.quantized() || (codec.rule != ScaleRule::other && format.outliers == 0 && along_one);
}

namespace detail {

/// The bytes 4 j .. + 4 (or as many as there are) of a plane of a group of n values; code(i) gives one.
template <class Code>
XQUANT_DEVICE void pack_word(std::byte* plane_bytes, std::size_t bytes, std::size_t n, unsigned plane, unsigned shift,
                             std::size_t j, Code&& code) noexcept {
    const unsigned mask = (1U << plane) - 1;
    std::uint32_t word = 0;
    const std::size_t end = 4 * j + 4 < bytes ? 4 : bytes - 4 * j;
    for (std::size_t b = 0; b < end; ++b) {
        for (unsigned k = 0; k < 8 / plane; ++k) {
            const std::size_t i = 4 * j + b + k * bytes;
            if (i < n) word |= ((static_cast<unsigned>(code(i)) >> shift) & mask) << (8 * b + k * plane);
        }
    }
    if (bytes % 4 == 0 && reinterpret_cast<std::uintptr_t>(plane_bytes) % 4 == 0) {
        reinterpret_cast<std::uint32_t*>(plane_bytes)[j] = word;
        return;
    }
    for (std::size_t b = 0; b < end; ++b) plane_bytes[4 * j + b] = static_cast<std::byte>(word >> (8 * b));
}

/// Calls f(plane bits, shift of the plane in a code, where its bytes begin, how many) for a group with room for n
/// values.
template <class F>
XQUANT_DEVICE void each_plane(std::byte* group, std::size_t n, unsigned bits, F&& f) noexcept {
    for_each_plane(bits, [&](unsigned plane, unsigned shift) {
        const std::size_t bytes = (n + 7) / 8 * plane;
        f(plane, shift, group, bytes);
        group += bytes;
    });
}

XQUANT_DEVICE inline void store_scale(const MutableStreamView& out, std::size_t index, GroupScale scale) noexcept {
    out.scales[index] = to_f16(scale.scale);
    if (out.format.stores_zero) out.zeros[index] = to_f16(scale.zero);
}

/// The groups of one token's row: channel block `block`.
template <class M, class ScaleOf>
XQUANT_DEVICE void encode_token(const typename M::Warp& warp, const float* row, std::size_t token, std::size_t block,
                                const MutableStreamView& out, ScaleOf&& scale_of) noexcept {
    const StreamFormat& format = out.format;
    const std::size_t n = format.channels_of(block);
    const float* x = row + block * format.group_channels;
    typename M::template Lanes<float> low, high;
    warp.each([&](unsigned lane) {
        low[lane] = high[lane] = x[lane < n ? lane : 0];
        for (std::size_t i = lane; i < n; i += lanes) {
            low[lane] = x[i] < low[lane] ? x[i] : low[lane];
            high[lane] = x[i] > high[lane] ? x[i] : high[lane];
        }
    });
    for (unsigned mask = 1; mask < lanes; mask *= 2) {
        const auto other_low = warp.exchange(low, mask), other_high = warp.exchange(high, mask);
        warp.each([&](unsigned lane) {
            low[lane] = other_low[lane] < low[lane] ? other_low[lane] : low[lane];
            high[lane] = other_high[lane] > high[lane] ? other_high[lane] : high[lane];
        });
    }
    const float top = static_cast<float>((1U << format.bits) - 1);
    warp.each([&](unsigned lane) {
        const GroupScale scale = scale_of(Range{low[lane], high[lane]}, n, [&](std::size_t i) { return x[i]; });
        const float inverse = inverse_scale(scale);
        each_plane(out.codes + format.code_offset(token, block), n, format.bits,
                   [&](unsigned plane, unsigned shift, std::byte* to, std::size_t bytes) {
                       for (std::size_t j = lane; 4 * j < bytes; j += lanes) {
                           pack_word(to, bytes, n, plane, shift, j,
                                     [&](std::size_t i) { return code_of(x[i], scale, inverse, top); });
                       }
                   });
        if (lane == 0) store_scale(out, format.group_index(token, block), scale);
    });
}

/// 32 channels from `channel` on, `tokens` rows of one token block.
template <class M, class ScaleOf>
XQUANT_DEVICE void encode_channels(const typename M::Warp& warp, const float* rows, std::size_t stride,
                                   std::size_t tokens, std::size_t token_block, std::size_t channel,
                                   const MutableStreamView& out, ScaleOf&& scale_of) noexcept {
    const StreamFormat& format = out.format;
    const float top = static_cast<float>((1U << format.bits) - 1);
    warp.each([&](unsigned lane) {
        const std::size_t c = channel + lane;
        if (c >= format.width) return;
        const float* x = rows + c;
        Range range{x[0], x[0]};
        for (std::size_t t = 1; t < tokens; ++t) {
            const float value = x[t * stride];
            range.low = value < range.low ? value : range.low;
            range.high = value > range.high ? value : range.high;
        }
        const GroupScale scale = scale_of(range, tokens, [&](std::size_t t) { return x[t * stride]; });
        const float inverse = inverse_scale(scale);
        each_plane(out.codes + format.code_offset(token_block, c), format.group_tokens, format.bits,
                   [&](unsigned plane, unsigned shift, std::byte* to, std::size_t bytes) {
                       for (std::size_t j = 0; 4 * j < bytes; ++j) {
                           pack_word(to, bytes, tokens, plane, shift, j,
                                     [&](std::size_t t) { return code_of(x[t * stride], scale, inverse, top); });
                       }
                   });
        store_scale(out, format.group_index(token_block, c), scale);
    });
}

/// One value as it is stored where nothing is quantized.
XQUANT_DEVICE inline void store_value(const MutableStreamView& out, std::size_t slot, std::size_t channel,
                                      float value) noexcept {
    const StreamFormat& format = out.format;
    const std::size_t b = channel / format.group_channels, in_group = channel % format.group_channels;
    std::byte* group = out.codes + format.code_offset(slot, b);
    if (format.kind == CodeKind::f32) reinterpret_cast<float*>(group)[in_group] = value;
    if (format.kind == CodeKind::f16) reinterpret_cast<f16*>(group)[in_group] = to_f16(value);
    if (format.kind == CodeKind::bf16) reinterpret_cast<bf16*>(group)[in_group] = to_bf16(value);
}

}  // namespace detail

/// Warps that encode_part can use for `count` rows.
XQUANT_DEVICE constexpr std::size_t encode_parts(const StreamFormat& format, std::size_t count) noexcept {
    if (!format.quantized() || format.group_tokens == 1)
        return count * (format.quantized() ? format.channel_blocks() : 1);
    return format.token_blocks(count) * ((format.width + lanes - 1) / lanes);
}

/// Part `part` of encoding rows [count, width] (f32, `stride` apart) into slots first .. first + count, as encode_rows
/// of the processor does it. scale_of(range, n, x) is the scale of n values x(i) between those of the range.
template <class M, class ScaleOf>
XQUANT_DEVICE void encode_part(const typename M::Warp& warp, std::size_t part, const float* rows, std::size_t stride,
                               std::size_t first, std::size_t count, const MutableStreamView& out,
                               ScaleOf&& scale_of) noexcept {
    const StreamFormat& format = out.format;
    if (!format.quantized()) {
        warp.each([&](unsigned lane) {
            for (std::size_t c = lane; c < format.width; c += lanes) {
                detail::store_value(out, first + part, c, rows[part * stride + c]);
            }
        });
    } else if (format.group_tokens == 1) {
        const std::size_t row = part / format.channel_blocks(), block = part % format.channel_blocks();
        detail::encode_token<M>(warp, rows + row * stride, first + row, block, out, scale_of);
    } else {
        const std::size_t columns = (format.width + lanes - 1) / lanes;
        const std::size_t block = part / columns, t = block * format.group_tokens;
        const std::size_t tokens = count - t < format.group_tokens ? count - t : format.group_tokens;
        detail::encode_channels<M>(warp, rows + t * stride, stride, tokens, first / format.group_tokens + block,
                                   part % columns * lanes, out, scale_of);
    }
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend::gpu
