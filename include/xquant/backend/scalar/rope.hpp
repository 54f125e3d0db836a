// Scalar RoPE: over a tile of keys by the table of its positions, over a head by given angles.
//
//     pair (a, b) by angle t:   a' = a cos t - b sin t,   b' = a sin t + b cos t
//
// Limit   loads and stores of the tile; 3 of 100 operations of an attention tile with Dh = 64.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

#include <xquant/backend/backend.hpp>
#include <xquant/backend/views.hpp>
#include <xquant/position/rope.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {

/// RoPE's angles at the start of tile after tile. The angles of a tile that follows the last one are a product of known
/// ones, in f64; others are computed anew. Sines and cosines in f64 would cost as much as the attention of a tile.
class TileAngles {
public:
    std::array<float, max_pairs> cosines, sines;

    /// The position whose angles cosines and sines are.
    [[nodiscard]] std::int64_t start() const noexcept { return start_; }

    void move_to(const RopeView& rope, std::int64_t start) noexcept {
        if (rope.pairs == 0 || (known_ && start == start_)) return;
        const auto tile = static_cast<std::int64_t>(rope.tokens);
        const bool follows = known_ && start == start_ + tile;
        for (std::size_t j = 0; j < rope.pairs; ++j) {
            if (follows) {
                if (!has_step_) {
                    step_[j] = angle(static_cast<double>(tile) * rope.inverse_frequencies[j]);
                }
                at_[j] = {at_[j].cosine * step_[j].cosine - at_[j].sine * step_[j].sine,
                          at_[j].sine * step_[j].cosine + at_[j].cosine * step_[j].sine};
            } else {
                at_[j] = angle(static_cast<double>(start) * rope.inverse_frequencies[j]);
            }
            cosines[j] = static_cast<float>(at_[j].cosine);
            sines[j] = static_cast<float>(at_[j].sine);
        }
        has_step_ = has_step_ || follows;
        known_ = true;
        start_ = start;
    }

private:
    struct Angle {
        double cosine, sine;
    };
    static Angle angle(double radians) noexcept { return {std::cos(radians), std::sin(radians)}; }

    std::array<Angle, max_pairs> at_, step_;
    std::int64_t start_ = 0;
    bool known_ = false, has_step_ = false;
};

/// Applies RoPE to a channel-major tile of keys at consecutive positions: token t is turned by t (the table), and where
/// the angles of the tile's start are given, by the start as well.
inline void apply_rope_to_tile(scalar, const RopeView& rope, const TileAngles* start, Tile keys) noexcept {
    for (std::size_t j = 0; j < rope.pairs; ++j) {
        float* XQUANT_RESTRICT a = keys.data + rope.first(j) * keys.stride;
        float* XQUANT_RESTRICT b = keys.data + rope.second(j) * keys.stride;
        const float* XQUANT_RESTRICT cosines = rope.cosines + j * rope.tokens;
        const float* XQUANT_RESTRICT sines = rope.sines + j * rope.tokens;
        const float c = start != nullptr ? start->cosines[j] : 1.0F;
        const float s = start != nullptr ? start->sines[j] : 0.0F;
        for (std::size_t t = 0; t < keys.tokens; ++t) {
            const float x = a[t], y = b[t];
            const float cosine = cosines[t] * c - sines[t] * s, sine = cosines[t] * s + sines[t] * c;
            a[t] = x * cosine - y * sine;
            b[t] = x * sine + y * cosine;
        }
    }
}

/// Applies RoPE to one head [Dh] by the angles [pairs] given; `direction` -1 undoes it.
inline void apply_rope(scalar, const RopeView& rope, const float* cosines, const float* sines, float direction,
                       float* head) noexcept {
    for (std::size_t j = 0; j < rope.pairs; ++j) {
        float &a = head[rope.first(j)], &b = head[rope.second(j)];
        const float x = a, y = b, sine = direction * sines[j];
        a = x * cosines[j] - y * sine;
        b = x * sine + y * cosines[j];
    }
}

/// Applies RoPE to every head of a row [width] at its position, and multiplies the channels of pairs by
/// RopeView::factor.
inline void apply_rope_to_row(scalar tag, const RopeView& rope, std::int64_t position, std::size_t head_dim, float* row,
                              std::size_t width) noexcept {
    std::array<float, max_pairs> cosines, sines;
    rope_angles(rope, position, cosines.data(), sines.data());
    for (std::size_t j = 0; j < rope.pairs; ++j) {
        cosines[j] *= rope.factor;
        sines[j] *= rope.factor;
    }
    for (std::size_t first = 0; first < width; first += head_dim) {
        apply_rope(tag, rope, cosines.data(), sines.data(), 1.0F, row + first);
    }
}

/// Turns every head of a row [width], which has RoPE already, by some more positions.
inline void turn_row(scalar tag, const RopeView& rope, std::int64_t positions, std::size_t head_dim, float* row,
                     std::size_t width) noexcept {
    std::array<float, max_pairs> cosines, sines;
    rope_angles(rope, positions, cosines.data(), sines.data());
    for (std::size_t first = 0; first < width; first += head_dim) {
        apply_rope(tag, rope, cosines.data(), sines.data(), 1.0F, row + first);
    }
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
