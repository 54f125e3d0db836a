// Vector copies of prepared matrices to f32.
//
// Limit   memory, for 16 bits and less.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include <xquant/backend/scalar/weights.hpp>
#include <xquant/backend/simd/registers.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {

/// Like the scalar load_weights.
template <class R>
void load_weights(simd<R>, const WeightMatrix& matrix, Slots entries, float* out) noexcept {
    const std::size_t n = entries.count, whole = n / R::lanes * R::lanes;
    const WeightMatrix in = weights_from(matrix, entries.first);
    if (in.type == WeightType::f32) {
        std::copy_n(in.floats(), n, out);
        return;
    }
    if (in.type == WeightType::f16) {
        const auto* halves = static_cast<const f16*>(in.entries);
        const auto factor = R::splat(in.factor);
        for (std::size_t i = 0; i < whole; i += R::lanes) R::store(out + i, R::mul(factor, R::load_f16(halves + i)));
    } else if (in.type == WeightType::bf16) {
        const auto* halves = static_cast<const bf16*>(in.entries);
        for (std::size_t i = 0; i < whole; i += R::lanes) R::store(out + i, R::load_bf16(halves + i));
    } else if (in.first % R::lanes == 0) {
        // No register has entries of two groups.
        const auto* bytes = static_cast<const std::uint8_t*>(in.entries);
        const auto middle = R::splat(-128.0F);
        for (std::size_t i = 0; i < whole; i += R::lanes) {
            const auto scale = R::splat(in.scales[(in.first + i) / weight_group]);
            R::store(out + i, R::mul(scale, R::add(middle, R::to_f32(R::load_u8(bytes + i)))));
        }
    } else {
        return load_weights(scalar{}, in, {0, n}, out);
    }
    load_weights(scalar{}, in, {whole, n - whole}, out + whole);
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
