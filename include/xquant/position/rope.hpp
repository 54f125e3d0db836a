// Tables for RoPE over a tile of consecutive positions.
//
// A key at position p0 + j is turned by R(p0 + j) = R(p0) R(j), and q . R(p0) R(j) k = (R(-p0) q) . (R(j) k): keys of a
// tile are turned by one table that serves every tile, and the query is turned back by the tile's start. Rope::factor
// is in the table: once for each key.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include <xquant/model.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {

/// Cosines and sines of positions 0 .. tokens - 1: [pairs][tokens].
struct RopeView {
    RopePairing pairing = RopePairing::interleaved;  ///< the channels of a pair
    std::size_t pairs = 0,                           ///< pairs of a head that are turned
        tokens = 0;                                  ///< positions of the tables
    const double* inverse_frequencies = nullptr;     ///< [pairs]
    const float* cosines = nullptr;                  ///< [pairs][tokens]
    const float* sines = nullptr;                    ///< [pairs][tokens]
    float factor = 1;                                ///< the tables have it, rope_angles does not

    /// The first channel of pair j in a head.
    [[nodiscard]] constexpr std::size_t first(std::size_t j) const noexcept {
        return pairing == RopePairing::interleaved ? 2 * j : j;
    }
    /// The second channel of pair j in a head.
    [[nodiscard]] constexpr std::size_t second(std::size_t j) const noexcept {
        return pairing == RopePairing::interleaved ? 2 * j + 1 : j + pairs;
    }
};

/// Fill out_cos, out_sin [pairs][tokens] for positions 0 .. tokens - 1, times Rope::factor. Angles are computed in f64.
inline void fill_rope_table(const Rope& rope, std::size_t tokens, float* out_cos, float* out_sin) noexcept {
    for (std::size_t j = 0; j < rope.inverse_frequencies.size(); ++j) {
        for (std::size_t t = 0; t < tokens; ++t) {
            const double angle = static_cast<double>(t) * rope.inverse_frequencies[j];
            out_cos[j * tokens + t] = static_cast<float>(rope.factor * std::cos(angle));
            out_sin[j * tokens + t] = static_cast<float>(rope.factor * std::sin(angle));
        }
    }
}

/// Cosines and sines of one position: [pairs] each, without the factor.
inline void rope_angles(const RopeView& rope, std::int64_t position, float* cosines, float* sines) noexcept {
    for (std::size_t j = 0; j < rope.pairs; ++j) {
        const double angle = static_cast<double>(position) * rope.inverse_frequencies[j];
        cosines[j] = static_cast<float>(std::cos(angle));
        sines[j] = static_cast<float>(std::sin(angle));
    }
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
