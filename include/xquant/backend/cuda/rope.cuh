// RoPE on the device: the table of a tile of 128 slots, and the angles of its first slot, which a block computes once for each tile.
//
//     angle of slot base + offset = angle of base + offset * frequency      cosines and sines of sums are products
//
// Limit   two loads from the table (L1) and 10 operations for each pair of channels and token.
#pragma once

#include <xquant/attention/task.hpp>
#include <xquant/backend/cuda/machine.cuh>

namespace xquant::backend::gpu {
inline namespace XQUANT_ABI_NS {

/// RoPE of the 128 slots of a page: the tables of a tile, and the angles of its first slot.
struct Angles {
    const RopeView& rope;
    const float *cosines, *sines;  ///< [pairs], of the first slot

    /// Turns the two channels of a pair by the position of a slot, `offset` slots behind the first.
    XQUANT_DEVICE void turn(float& a, float& b, unsigned pair, unsigned offset) const noexcept {
        const std::size_t at = pair * rope.tokens + offset;
        const float c = rope.cosines[at], s = rope.sines[at];
        const float cosine = c * cosines[pair] - s * sines[pair], sine = c * sines[pair] + s * cosines[pair];
        const float x = a, y = b;
        a = x * cosine - y * sine;
        b = x * sine + y * cosine;
    }
};

/// Cosine and sine of pair j at a position, without the factor.
template <class M>
XQUANT_DEVICE void find_angle(const RopeView& rope, std::size_t j, std::int64_t position, float& cosine,
                              float& sine) noexcept {
    constexpr double circle = 6.283185307179586;
    M::angle(static_cast<double>(position) * rope.inverse_frequencies[j] / circle, cosine, sine);
}

/// Those of all pairs -> cosines, sines [pairs], by all threads of the block. They are there after the next barrier.
template <class M>
XQUANT_DEVICE void find_angles(typename M::Block& block, const RopeView& rope, std::int64_t position, float* cosines,
                               float* sines) noexcept {
    block.each_thread([&](unsigned thread) {
        for (unsigned j = thread; j < rope.pairs; j += block.warps() * lanes) {
            find_angle<M>(rope, j, position, cosines[j], sines[j]);
        }
    });
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend::gpu
