// Rows of one stream from x on the device, as `project` of backend/project.hpp makes them:
//
//     z [n, R] = mix(rotate(rope(norms((x - mean) T + b))))
//
// Products are summed in order, along D and along the channels that are mixed, each fused with its addition. A
// processor that fuses, too, finds the bytes that the device finds.
// Limit   the product, in f32: quantization reads these rows, and f16 would cost more than 4 bits do. Rows are few next
//         to what attention reads.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include <xquant/backend/cuda/device/rope.cuh>
#include <xquant/backend/cuda/device/slots.cuh>
#include <xquant/projection/plan.hpp>
#include <xquant/projection/rotation.hpp>

namespace xquant::backend::gpu {
inline namespace XQUANT_ABI_NS {

/// Rows and columns of a product that one block of multiply_tile makes, and how far along its sums it goes at a time.
inline constexpr unsigned project_rows = 16, project_columns = 64, project_depth = 16, project_warps = 4;
/// Shared memory of multiply_tile.
inline constexpr std::size_t project_shared_bytes = sizeof(float) * project_depth * (project_rows + project_columns);

/// store(i, j, sum over k < depth of left_of(i, k) right_of(k, j)) for project_rows rows and project_columns columns.
/// One warp makes 4 rows, a lane 2 columns of each. Shared memory: project_shared_bytes.
template <class M, class Left, class Right, class Store>
XQUANT_DEVICE void multiply_tile(typename M::Block& block, std::size_t depth, Left&& left_of, Right&& right_of,
                                 Store&& store) noexcept {
    constexpr unsigned rows_each = project_rows / project_warps, columns_each = project_columns / lanes;
    auto* left = reinterpret_cast<float*>(block.shared());
    float* right = left + project_rows * project_depth;
    struct Sums {
        typename M::template Lanes<float> at[rows_each][columns_each];
    };
    typename M::template PerWarp<Sums> sums(project_warps);
    block.each_warp([&](typename M::Warp& warp) {
        warp.each([&](unsigned lane) {
            for (auto& of_row : sums[warp].at) {
                for (auto& sum : of_row) sum[lane] = 0;
            }
        });
    });
    for (std::size_t k = 0; k < depth; k += project_depth) {
        const unsigned count = depth - k < project_depth ? static_cast<unsigned>(depth - k) : project_depth;
        block.barrier();
        block.each_thread([&](unsigned thread) {
            for (unsigned i = thread; i < project_rows * project_depth; i += project_warps * lanes) {
                const unsigned c = i % project_depth;
                left[i] = c < count ? left_of(i / project_depth, k + c) : 0.0F;
            }
            for (unsigned i = thread; i < project_depth * project_columns; i += project_warps * lanes) {
                const unsigned c = i / project_columns;
                right[i] = c < count ? right_of(k + c, i % project_columns) : 0.0F;
            }
        });
        block.barrier();
        block.each_warp([&](typename M::Warp& warp) {
            warp.each([&](unsigned lane) {
                for (unsigned c = 0; c < count; ++c) {
                    XQUANT_UNROLL
                    for (unsigned i = 0; i < rows_each; ++i) {
                        const float factor = left[(warp.index * rows_each + i) * project_depth + c];
                        XQUANT_UNROLL
                        for (unsigned j = 0; j < columns_each; ++j) {
                            float& sum = sums[warp].at[i][j][lane];
                            sum = std::fma(factor, right[c * project_columns + lane + lanes * j], sum);
                        }
                    }
                }
            });
        });
    }
    block.each_warp([&](typename M::Warp& warp) {
        warp.each([&](unsigned lane) {
            for (unsigned i = 0; i < rows_each; ++i) {
                for (unsigned j = 0; j < columns_each; ++j) {
                    store(warp.index * rows_each + i, lane + lanes * j, sums[warp].at[i][j][lane]);
                }
            }
        });
    });
}

/// (x - mean) T + b for project_rows rows from `row` on and project_columns channels from `column` on.
/// Shared memory: project_shared_bytes.
template <class M>
XQUANT_DEVICE void project_block(typename M::Block& block, const StreamEncoder& encoder, const DeviceRows& x,
                                 std::size_t n, std::size_t d, std::size_t row, std::size_t column,
                                 float* out) noexcept {
    const std::size_t r = encoder.width;
    const auto centred = [&](std::size_t at, std::size_t c) {
        return x.at(at, c) - (encoder.mean != nullptr ? encoder.mean[c] : 0.0F);
    };
    multiply_tile<M>(
        block, encoder.matrix != nullptr ? d : 0,
        [&](unsigned i, std::size_t c) { return row + i < n ? centred(row + i, c) : 0.0F; },
        [&](std::size_t c, unsigned j) {
            return column + j < r ? weight_at(encoder.matrix, c * r + column + j) : 0.0F;
        },
        [&](unsigned i, unsigned j, float sum) {
            const std::size_t at = row + i, c = column + j;
            if (at >= n || c >= r) return;
            const float value = encoder.matrix != nullptr ? sum : centred(at, c);
            out[at * r + c] = encoder.bias != nullptr ? value + encoder.bias[c] : value;
        });
}

/// How many blocks of mix_block make a row of a stream: each is within one matrix. 0: nothing is mixed.
XQUANT_DEVICE inline std::size_t mix_tiles(const StreamEncoder& encoder) noexcept {
    if (encoder.mix == nullptr) return 0;
    return encoder.width / encoder.mixed * ((encoder.mixed + project_columns - 1) / project_columns);
}

/// z = y M for project_rows of n rows [n, R], from `row` on, and the channels of tile `tile` of mix_tiles; `bad` is set
/// where a value is not finite, or beyond what f16 holds. Rows y and z are not the same: other blocks read y.
/// Shared memory: project_shared_bytes.
template <class M>
XQUANT_DEVICE void mix_block(typename M::Block& block, const StreamEncoder& encoder, const float* y, std::size_t n,
                             std::size_t row, std::size_t tile, float* z, std::uint32_t* bad) noexcept {
    const std::size_t r = encoder.width, width = encoder.mixed;
    const std::size_t tiles = (width + project_columns - 1) / project_columns;
    const std::size_t first = tile / tiles * width, column = tile % tiles * project_columns;
    const float* const matrix = encoder.mix + first * width;
    multiply_tile<M>(
        block, width, [&](unsigned i, std::size_t c) { return row + i < n ? y[(row + i) * r + first + c] : 0.0F; },
        [&](std::size_t c, unsigned j) { return column + j < width ? matrix[c * width + column + j] : 0.0F; },
        [&](unsigned i, unsigned j, float sum) {
            if (row + i >= n || column + j >= width) return;
            z[(row + i) * r + first + column + j] = sum;
            if (!xquant::detail::fits_f16(sum)) *bad = 1;
        });
}

namespace detail {

/// An RMS norm of `count` channels.
template <class Block>
XQUANT_DEVICE void normalize(Block& block, float* x, const float* gain, float epsilon, std::size_t count,
                             float* factor) noexcept {
    // In order, by one thread, as scalar code does it: the sum decides every byte of the row.
    block.each_thread([&](unsigned thread) {
        if (thread != 0) return;
        float sum = 0;
        for (std::size_t c = 0; c < count; ++c) sum = std::fma(x[c], x[c], sum);
        *factor = 1.0F / std::sqrt(sum / static_cast<float>(count) + epsilon);
    });
    block.barrier();
    block.each_thread([&](unsigned thread) {
        for (std::size_t c = thread; c < count; c += block.warps() * lanes) x[c] *= *factor * gain[c];
    });
    block.barrier();
}

/// A Hadamard transform of the power of two in n, and a DCT across its blocks: rotate_row of projection/rotation.hpp.
template <class Block>
XQUANT_DEVICE void rotate(Block& block, float* x, std::size_t n, const float* dct, float* scratch) noexcept {
    const std::size_t p = hadamard_size(n), m = dct_size(n);
    for (std::size_t half = 1; half < p; half *= 2) {
        block.each_thread([&](unsigned thread) {
            for (std::size_t pair = thread; pair < n / 2; pair += block.warps() * lanes) {
                const std::size_t i = pair / half * 2 * half + pair % half;
                const float a = x[i], b = x[i + half];
                x[i] = a + b;
                x[i + half] = a - b;
            }
        });
        block.barrier();
    }
    const float norm = 1.0F / std::sqrt(static_cast<float>(p));
    block.each_thread([&](unsigned thread) {
        for (std::size_t i = thread; i < n; i += block.warps() * lanes) {
            float sum = 0;
            for (std::size_t k = 0; k < m && m > 1; ++k) {
                const float factor = dct[k * m + i / p] * norm;
                sum = std::fma(factor, x[k * p + i % p], sum);
            }
            scratch[i] = m > 1 ? sum : x[i] * norm;
        }
    });
    block.barrier();
    block.each_thread([&](unsigned thread) {
        for (std::size_t i = thread; i < n; i += block.warps() * lanes) x[i] = scratch[i];
    });
    block.barrier();
}

}  // namespace detail

/// Norms, RoPE and rotation of one row [R], in place; `bad` is set where a value that is not mixed any more is not
/// finite, or beyond what f16 holds.
/// @param shared  2 R + 1 floats
template <class M>
XQUANT_DEVICE void finish_row(typename M::Block& block, const StreamEncoder& encoder, std::int64_t position,
                              const RopeView& rope, std::size_t head_dim, float* row, std::uint32_t* bad) noexcept {
    const std::size_t r = encoder.width;
    auto* x = reinterpret_cast<float*>(block.shared());
    float *scratch = x + r, *factor = scratch + r;
    block.each_thread([&](unsigned thread) {
        for (std::size_t c = thread; c < r; c += block.warps() * lanes) x[c] = row[c];
    });
    block.barrier();
    for (std::size_t c = 0; c < r && encoder.norm != nullptr; c += encoder.norm_width) {
        detail::normalize(block, x + c, encoder.norm, encoder.norm_epsilon, encoder.norm_width, factor);
    }
    if (encoder.rope && rope.pairs > 0) {
        block.each_thread([&](unsigned thread) {
            for (std::size_t i = thread; i < r / head_dim * rope.pairs; i += block.warps() * lanes) {
                const std::size_t j = i % rope.pairs;
                float* head = x + i / rope.pairs * head_dim;
                float &first = head[rope.first(j)], &second = head[rope.second(j)];
                float cosine = 1, sine = 0;
                find_angle<M>(rope, j, position, cosine, sine);
                cosine *= rope.factor;
                sine *= rope.factor;
                const float a = first, b = second;
                first = a * cosine - b * sine;
                second = a * sine + b * cosine;
            }
        });
        block.barrier();
    }
    for (std::size_t c = 0; c < r && encoder.rotate != 0; c += encoder.rotate) {
        detail::rotate(block, x + c, encoder.rotate, encoder.dct, scratch);
    }
    block.each_thread([&](unsigned thread) {
        for (std::size_t c = thread; c < r; c += block.warps() * lanes) {
            row[c] = x[c];
            if (encoder.mix == nullptr && !xquant::detail::fits_f16(x[c])) *bad = 1;
        }
    });
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend::gpu
