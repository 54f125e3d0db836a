// Vector RoPE over a tile of keys: lanes are tokens.
//
// Limit   loads and stores of the tile.
#pragma once

#include <xquant/backend/scalar/rope.hpp>
#include <xquant/backend/simd/registers.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {

template <class R>
void apply_rope_to_tile(simd<R>, const RopeView& rope, const TileAngles* start, Tile keys) noexcept {
    for (std::size_t j = 0; j < rope.pairs; ++j) {
        float* a = keys.data + rope.first(j) * keys.stride;
        float* b = keys.data + rope.second(j) * keys.stride;
        const auto start_cosine = R::splat(start != nullptr ? start->cosines[j] : 1.0F);
        const auto start_sine = R::splat(start != nullptr ? start->sines[j] : 0.0F);
        for (std::size_t t = 0; t < keys.tokens; t += R::lanes) {
            const std::size_t n = (std::min)(R::lanes, keys.tokens - t);
            const auto load = [n](const float* from) { return n == R::lanes ? R::load(from) : R::load_first(from, n); };
            auto cosine = load(rope.cosines + j * rope.tokens + t), sine = load(rope.sines + j * rope.tokens + t);
            if (start != nullptr) {
                const auto turned = R::sub(R::mul(cosine, start_cosine), R::mul(sine, start_sine));
                sine = R::fma(cosine, start_sine, R::mul(sine, start_cosine));
                cosine = turned;
            }
            const auto x = load(a + t), y = load(b + t);
            R::store_first(a + t, R::sub(R::mul(x, cosine), R::mul(y, sine)), n);
            R::store_first(b + t, R::fma(x, sine, R::mul(y, cosine)), n);
        }
    }
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
