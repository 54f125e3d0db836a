// Scalar RoPE: turn a tile of keys by the table of its positions, a query back by the tile's start.
//
//     pair (a, b) by angle t:   a' = a cos t - b sin t,   b' = a sin t + b cos t
//
// Limit   loads and stores of the tile; 3 of 100 operations of an attention tile with Dh = 64.
#pragma once

#include <array>

#include <xquant/backend/backend.hpp>
#include <xquant/position/rope.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {

/// The most pairs a head may have (head_dim 256).
inline constexpr std::size_t max_pairs = 128;

/// Keys [Dh, tokens] (channel-major, `stride` floats a channel) of consecutive positions are turned by their place in the
/// tile, 0 .. tokens - 1.
inline void turn_tile(scalar, const RopeView& rope, float* keys, std::size_t stride, std::size_t tokens) noexcept {
    for (std::size_t j = 0; j < rope.pairs; ++j) {
        float* XQUANT_RESTRICT a = keys + rope.first(j) * stride;
        float* XQUANT_RESTRICT b = keys + rope.second(j) * stride;
        const float* XQUANT_RESTRICT cosines = rope.cosines + j * rope.tokens;
        const float* XQUANT_RESTRICT sines = rope.sines + j * rope.tokens;
        for (std::size_t t = 0; t < tokens; ++t) {
            const float x = a[t], y = b[t];
            a[t] = x * cosines[t] - y * sines[t];
            b[t] = x * sines[t] + y * cosines[t];
        }
    }
}

/// Turns one head [Dh] by the angles given; `direction` -1 turns back.
inline void turn_head(scalar, const RopeView& rope, const float* cosines, const float* sines, float direction,
                      float* head) noexcept {
    for (std::size_t j = 0; j < rope.pairs; ++j) {
        float &a = head[rope.first(j)], &b = head[rope.second(j)];
        const float x = a, y = b, sine = direction * sines[j];
        a = x * cosines[j] - y * sine;
        b = x * sine + y * cosines[j];
    }
}

/// Turns every head of a row [width] by its position.
inline void turn_row(scalar tag, float* row, std::size_t width, std::size_t head_dim, std::int64_t position,
                     const RopeView& rope) noexcept {
    std::array<float, max_pairs> cosines, sines;
    rope_angles(rope, position, cosines.data(), sines.data());
    for (std::size_t first = 0; first < width; first += head_dim) {
        turn_head(tag, rope, cosines.data(), sines.data(), 1.0F, row + first);
    }
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
