// Rematerialization: keys or values of one head from the codes of a tile. Drives every backend that has `decode_tile`,
// `load_weights` and `multiply`.
//
//     y [tokens, Dh] = z A + c;   with the tag int8<...> by 8-bit products where the codes allow it (scalar/int8.hpp)
//
// Limit   the product, by FMA throughput: 2 * width * Dh operations a token and head.
#pragma once

#include <algorithm>
#include <cstddef>

#include <xquant/backend/scalar/int8.hpp>
#include <xquant/backend/scalar/product.hpp>
#include <xquant/backend/scalar/weights.hpp>
#include <xquant/projection/plan.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {

/// Where in its scratch rematerialize has room for a part of A in f32, [width_step, Dh].
constexpr std::size_t rematerialize_room(std::size_t dh) noexcept {
    return width_step * tile_tokens + tile_tokens * dh;
}

/// Floats of scratch that rematerialize needs.
constexpr std::size_t rematerialize_scratch(std::size_t dh) noexcept {
    return rematerialize_room(dh) + width_step * dh;
}

/// The first out.channels channels of y = z A + c of one head, for a tile of at most 128 tokens from `token` on.
/// Scratch: rematerialize_scratch(Dh) floats.
template <class Backend>
void rematerialize(Backend tag, const StreamView& in, const HeadDecoder& head, std::size_t token, Tile out,
                   float* scratch) noexcept {
    const std::size_t dh = head.head_dim;
    float* const room = scratch + rematerialize_room(dh);
    if (head.matrix == nullptr) {
        decode_tile(tag, in, token, head.first, out);
    } else if (Backend::int8_products && out.by_channel() && fits_int8(in.format, head, Backend::dot_bits)) {
        rematerialize_int8(tag, in, head, token, out, scratch);
    } else if (out.by_channel() && in.format.group_tokens > 1) {
        // The codes of a channel lie together: y^T = A^T z^T, and no value has to change places.
        for (std::size_t c = 0; c < head.width; c += width_step) {
            const std::size_t channels = (std::min)(width_step, head.width - c);
            decode_tile(tag, in, token, head.first + c, {scratch, out.tokens, channels, tile_tokens, out.order});
            multiply(tag, {weights_as_floats(tag, head.matrix, {c * dh, channels * dh}, room), 1, dh},
                     {scratch, channels, out.tokens, tile_tokens}, {out.data, out.channels, out.tokens, out.stride},
                     c > 0);
        }
    } else {
        float* rows = out.by_channel() ? scratch + width_step * tile_tokens : out.data;
        const std::size_t row_stride = out.by_channel() ? out.channels : out.stride;
        for (std::size_t c = 0; c < head.width; c += width_step) {
            const std::size_t channels = (std::min)(width_step, head.width - c);
            decode_tile(tag, in, token, head.first + c,
                        {scratch, out.tokens, channels, width_step, TileOrder::token_major});
            const float* const a = weights_as_floats(tag, head.matrix, {c * dh, channels * dh}, room);
            multiply(tag, {scratch, width_step, 1}, {a, channels, out.channels, dh},
                     {rows, out.tokens, out.channels, row_stride}, c > 0);
        }
        if (out.by_channel()) transpose(tag, {rows, out.tokens, out.channels, row_stride}, out.data, out.stride);
    }
    if (head.constant == nullptr) return;
    for (std::size_t i = 0; i < (out.by_channel() ? out.channels : out.tokens); ++i) {
        float* XQUANT_RESTRICT row = out.data + i * out.stride;
        for (std::size_t j = 0; j < (out.by_channel() ? out.tokens : out.channels); ++j) {
            row[j] += head.constant[out.by_channel() ? i : j];
        }
    }
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
