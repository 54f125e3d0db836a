// Scalar copies of prepared matrices to f32, and what every backend takes from them. Every backend makes the numbers
// that weight_at makes, to the last bit.
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

/// Entries of a matrix in f32: where they lie, or copied to `room` [entries.count].
template <class Backend>
const float* weights_as_floats(Backend tag, const WeightMatrix& matrix, Slots entries, float* room) noexcept {
    if (matrix.type == WeightType::f32) return matrix.floats() + entries.first;
    load_weights(tag, matrix, entries, room);
    return room;
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
