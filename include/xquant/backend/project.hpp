// Projection: rows of one stream from x (or from K or V), as they will be stored. Drives every backend that has
// `multiply` and `load_weights`.
//
//     z [n, R] = mix(rotate(rope(norms((x - mean) T + b))))
//
// Limit   the product, by FMA throughput: 2 n D R operations.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include <xquant/backend/scalar/norm.hpp>
#include <xquant/backend/scalar/product.hpp>
#include <xquant/backend/scalar/rope.hpp>
#include <xquant/backend/weights.hpp>
#include <xquant/projection/plan.hpp>
#include <xquant/projection/rotation.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {

/// Floats of scratch that project needs for n rows.
constexpr std::size_t project_scratch(std::size_t d, std::size_t width, std::size_t n) noexcept {
    return n * d + (std::max)(d, width);
}

/// Positions and RoPE of the rows. Read only where keys are stored after RoPE.
struct RowPositions {
    const std::int64_t* positions = nullptr;  ///< [n] by which stored keys are turned
    const std::int64_t* lags = nullptr;       ///< [n] by which the rows' own positions are higher; null: by nothing
    const RopeView& rope;
    std::size_t head_dim = 0;
};

/// Multiplies each block of channels of some rows by its matrix. Scratch: `floats` of them, a row's or more.
template <class Backend>
void mix_blocks(Backend tag, const StreamEncoder& encoder, MutableMatrix rows, float* scratch,
                std::size_t floats) noexcept {
    const std::size_t n = encoder.mixed, step = (std::min)(floats / n, rows.rows);
    for (std::size_t c = 0; c < rows.columns; c += n) {
        const WeightMatrix matrix = encoder.mix + c / n * n * n;
        for (std::size_t t = 0; t < rows.rows; t += step) {
            const std::size_t some = (std::min)(step, rows.rows - t);
            float* const block = rows.data + t * rows.stride + c;
            for (std::size_t i = 0; i < some; ++i) std::copy_n(block + i * rows.stride, n, scratch + i * n);
            multiply_weights(tag, {scratch, n, 1}, matrix, n, {block, some, n, rows.stride}, false);
        }
    }
}

/// Rows of one stream from x [n, D], D as the encoder reads it. Shape out: [n, R]. Scratch: project_scratch(D, R, n)
/// floats.
template <class Backend>
void project(Backend tag, const StreamEncoder& encoder, Matrix x, const RowPositions& at, float* out,
             float* scratch) noexcept {
    const std::size_t n = x.rows, d = x.columns, r = encoder.width;
    Matrix rows = x;
    if (encoder.mean != nullptr) {
        for (std::size_t i = 0; i < n; ++i) {
            for (std::size_t c = 0; c < d; ++c) scratch[i * d + c] = x.data[i * x.stride + c] - encoder.mean[c];
        }
        rows = {scratch, n, d, d};
    }
    if (encoder.matrix != nullptr) {
        const std::size_t from = d / encoder.blocks, to = r / encoder.blocks;
        for (std::size_t b = 0; b < encoder.blocks; ++b) {
            multiply_weights(tag, {rows.data + b * from, rows.stride, 1}, weights_from(encoder.matrix, b * from * to),
                             from, {out + b * to, n, to, r}, false);
        }
    } else {
        for (std::size_t i = 0; i < n; ++i) std::copy_n(rows.data + i * rows.stride, d, out + i * d);
    }
    for (std::size_t i = 0; i < n && encoder.bias != nullptr; ++i) {
        for (std::size_t c = 0; c < r; ++c) out[i * r + c] += encoder.bias[c];
    }
    for (std::size_t i = 0; i < n * r && encoder.norm != nullptr; i += encoder.norm_width) {
        normalize(tag, encoder.norm, encoder.norm_epsilon, encoder.norm_width, out + i);
    }
    for (std::size_t i = 0; i < n && encoder.rope; ++i) {
        apply_rope_to_row(tag, at.rope, at.positions[i], at.head_dim, out + i * r, r);
    }
    for (std::size_t i = 0; i < n && encoder.comes_with_rope && at.lags != nullptr; ++i) {
        if (at.lags[i] != 0) turn_row(tag, at.rope, -at.lags[i], at.head_dim, out + i * r, r);
    }
    for (std::size_t i = 0; i < n && encoder.rotate != 0; ++i) {
        rotate_blocks(out + i * r, r, encoder.rotate, encoder.dct, scratch + n * d);
    }
    if (encoder.mix != nullptr) mix_blocks(tag, encoder, {out, n, r, r}, scratch, project_scratch(d, r, n));
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
