// Vector products of codes with a wide matrix in 8 bits: what layers of a cross-layer cache add to the sums.
//
// Shapes  for each 128 columns of S: their weights in 8 bits, block by block of channels; a channel-major tile of the
//         rows.
// Limit   the dot instruction, coded channels / 4 for each column and register of tokens. A block's scale and offset
//         are a tenth of its products, parting codes for each 128 columns a twentieth.
// Tried   S in f32, by FMA: 2.6 times the time of all that a step does in a cache of 576 channels. S rounded by every
//         task of four pages: a sixth of the time.
#pragma once

#include <xquant/backend/scalar/spread.hpp>
#include <xquant/backend/simd/int8.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {

template <class R>
void round_spread(simd<R> tag, const SpreadMatrix& matrix, std::size_t panel, float* scratch) noexcept {
    const Slots columns = matrix.columns_of(panel);
    matrix.for_each_block(panel, [&](std::size_t c, std::size_t channels, float* block) {
        load_spread_block(tag, matrix, c, channels, columns, scratch);
        detail::fold_weights(tag, {scratch, channels, columns.count, columns.count}, nullptr, nullptr,
                             middle_code(matrix.format), block);
    });
}

/// Like the scalar spread_codes: integer sums are equal, floats differ by rounding.
template <class R>
void spread_codes(simd<R> tag, const StreamView& in, std::size_t token, const SpreadMatrix& matrix, std::size_t panel,
                  Tile out, float* scratch) noexcept {
    const StreamFormat& format = in.format;
    const std::size_t columns = out.channels;
    auto* const quads = reinterpret_cast<std::uint32_t*>(scratch);
    float* const tile = scratch + int8_channels / 4 * detail::quad_tokens;  // [columns][128]
    alignas(64) std::array<float, detail::quad_tokens + R::lanes> scales{}, centers{};
    matrix.for_each_block(panel, [&](std::size_t c, std::size_t channels, float* weights) {
        const std::size_t channel = matrix.head.first + c;
        detail::load_quads(tag, in, {token, out.tokens}, {channel, channels}, 0, quads);
        detail::load_token_scales<R>(in, {token, out.tokens}, channel / format.group_channels, 0, scales.data(),
                                     centers.data());
        detail::center_codes<R>(scales.data(), middle_code(format), out.tokens, centers.data());
        detail::add_int8_block<R>(quads, channels, R::dot_run(format.bits),
                                  detail::Int8Block::in<R>(weights, channels, columns), {scales.data(), centers.data()},
                                  {tile, out.tokens, columns, tile_tokens, TileOrder::channel_major}, c == 0);
    });
    transpose(tag, {tile, columns, out.tokens, tile_tokens}, out.data, out.stride);
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
