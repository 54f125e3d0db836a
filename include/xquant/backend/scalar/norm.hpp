// Scalar RMS norms. Source: arXiv 1910.07467.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>

#include <xquant/backend/backend.hpp>
#include <xquant/backend/views.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {

/// x [n] becomes x / sqrt(mean of squares + epsilon) * gain [n]: a head, or a row.
inline void normalize(scalar, const float* gain, float epsilon, std::size_t n, float* x) noexcept {
    float sum = 0;
    for (std::size_t c = 0; c < n; ++c) sum += x[c] * x[c];
    const float inverse = 1.0F / std::sqrt(sum / static_cast<float>(n) + epsilon);
    for (std::size_t c = 0; c < n; ++c) x[c] *= inverse * gain[c];
}

/// Applies such an RMS norm to every token of a channel-major tile of keys, at most 128 tokens.
inline void normalize_keys(scalar, const float* gain, float epsilon, Tile keys) noexcept {
    std::array<float, tile_tokens> factor{};
    for (std::size_t c = 0; c < keys.channels; ++c) {
        const float* XQUANT_RESTRICT row = keys.data + c * keys.stride;
        for (std::size_t t = 0; t < keys.tokens; ++t) factor[t] += row[t] * row[t];
    }
    for (std::size_t t = 0; t < keys.tokens; ++t) {
        factor[t] = 1.0F / std::sqrt(factor[t] / static_cast<float>(keys.channels) + epsilon);
    }
    for (std::size_t c = 0; c < keys.channels; ++c) {
        float* XQUANT_RESTRICT row = keys.data + c * keys.stride;
        for (std::size_t t = 0; t < keys.tokens; ++t) row[t] *= factor[t] * gain[c];
    }
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
