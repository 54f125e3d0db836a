// RoPE on the device. A key at base + offset, for a page that begins at position base, meets a query as
//
//     q . R(base) R(offset) k = (R(-base) q) . (R(offset) k)
//
// so one table turns the keys of all pages, and a few queries are turned back once for each page. Where there are many
// queries, keys are turned by the page's position as well.
// Limit   keys: one load from the table (cosine and sine as halves, from L1) and 6 operations for each pair of channels
//         and token.
// Error   the table's halves: 2^-12 of a key's length.
#pragma once

#include <xquant/attention/task.hpp>
#include <xquant/backend/cuda/machine/machine.cuh>

namespace xquant::backend::gpu {
inline namespace XQUANT_ABI_NS {

namespace detail {

/// One of a pair of halves, low or high.
template <class M>
XQUANT_DEVICE_INLINE float half_of(std::uint32_t pair, unsigned h) noexcept {
    return M::to_float(f16{static_cast<std::uint16_t>(pair >> (16 * h))});
}

}  // namespace detail

/// The table of the 128 slots of a page.
struct PackedRope {
    const std::uint32_t* table = nullptr;  ///< cosine (low) and sine of [tokens][pairs], halves
    std::uint32_t pairs = 0;
    bool interleaved = false;
    const float *cosines = nullptr,
                *sines = nullptr;  ///< [pairs] of a page's first slot, where keys are turned by it as well

    /// Cosines and sines of one slot, [pairs].
    [[nodiscard]] XQUANT_DEVICE const std::uint32_t* row(unsigned offset) const noexcept {
        return table + std::size_t{offset} * pairs;
    }
    /// Applies an angle of the table to the two channels of a pair.
    template <class M>
    XQUANT_DEVICE void apply(float& a, float& b, unsigned pair, std::uint32_t angle) const noexcept {
        apply_angle(a, b, detail::half_of<M>(angle, 0), detail::half_of<M>(angle, 1));
        if (cosines != nullptr) apply_angle(a, b, cosines[pair], sines[pair]);
    }

private:
    XQUANT_DEVICE static void apply_angle(float& a, float& b, float cosine, float sine) noexcept {
        const float x = a, y = b;
        a = x * cosine - y * sine;
        b = x * sine + y * cosine;
    }
};

constexpr PackedRope packed_rope_of(const RopeView& rope, const std::uint32_t* table) noexcept {
    return {table, static_cast<std::uint32_t>(rope.pairs), rope.pairing == RopePairing::interleaved};
}

/// Cosine and sine of pair j at a position, without the factor.
template <class M>
XQUANT_DEVICE void find_angle(const RopeView& rope, std::size_t j, std::int64_t position, float& cosine,
                              float& sine) noexcept {
    constexpr double circle = 6.283185307179586;
    M::angle(static_cast<double>(position) * rope.inverse_frequencies[j] / circle, cosine, sine);
}

/// Cosines and sines [pairs] of a position, computed by all threads of the block; to be read after the next barrier.
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
