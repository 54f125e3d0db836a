// Scalar copies of prepared matrices to f32. Every backend makes the numbers that weight_at makes, to the last bit.
#pragma once

#include <cstddef>

#include <xquant/backend/backend.hpp>
#include <xquant/backend/views.hpp>
#include <xquant/projection/weights.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {

/// Entries of a matrix as f32. Shape out: [entries.count].
inline void load_weights(scalar, const WeightMatrix& matrix, Slots entries, float* out) noexcept {
    for (std::size_t i = 0; i < entries.count; ++i) out[i] = weight_at(matrix, entries.first + i);
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
