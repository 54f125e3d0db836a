// Keys and values rebuilt on tensor cores: what a warp's strip of z is multiplied with, and what is done to K after that.
//
//     Product [16 Tiles slots x Dh] += z A          then + c, norm, RoPE: in registers, lane by lane
//     MatrixStage   128 rows of A, as halves in shared memory, for all warps of a block
//
// Keys that are stored as they are (or whose pairs of RoPE do not meet in a lane) are finished in the strip, by rows.
// Limit   for 16 slots and 8 channels: 8 mma.m16n8k16 and 4 loads of B from shared memory, if z has 128 channels.
#pragma once

#include <cstddef>
#include <cstdint>

#include <xquant/backend/cuda/codec.cuh>
#include <xquant/backend/cuda/rope.cuh>

namespace xquant::backend::gpu {
inline namespace XQUANT_ABI_NS {

/// Channels of a latent that meet A at a time: rows of A in shared memory.
inline constexpr unsigned matrix_rows = 128;

namespace detail {

template <class M, class T>
using Lanes = typename M::template Lanes<T>;

/// Columns 16 k .. + 16 of 16 rows, `stride` halves apart, as A.
template <class M>
XQUANT_DEVICE void load_rows(const typename M::Warp& warp, Lanes<M, std::uint32_t> (&a)[4], const f16* from,
                             unsigned stride, unsigned k) noexcept {
    Lanes<M, const f16*> row;
    warp.each([&](unsigned lane) { row[lane] = from + (lane % 16) * stride + 16 * k + 8 * (lane / 16); });
    warp.template load_matrices<false>(a, row);
}

/// 16 rows along k, columns 8 j .. + 16, as two of B.
template <class M>
XQUANT_DEVICE void load_columns(const typename M::Warp& warp, Lanes<M, std::uint32_t> (&b)[2][2], const f16* from,
                                unsigned stride, unsigned j) noexcept {
    Lanes<M, const f16*> row;
    Lanes<M, std::uint32_t> four[4];
    warp.each([&](unsigned lane) { row[lane] = from + (lane % 16) * stride + 8 * j + 8 * (lane / 16); });
    warp.template load_matrices<true>(four, row);
    for (unsigned i = 0; i < 4; ++i) b[i / 2][i % 2] = four[i];
}

/// Columns 16 k .. + 16 along k of 16 rows, as two of B of 8 rows each.
template <class M>
XQUANT_DEVICE void load_across(const typename M::Warp& warp, Lanes<M, std::uint32_t> (&b)[2][2], const f16* from,
                               unsigned stride, unsigned k) noexcept {
    Lanes<M, const f16*> row;
    Lanes<M, std::uint32_t> four[4];
    warp.each(
        [&](unsigned lane) { row[lane] = from + (lane % 8 + 8 * (lane / 16)) * stride + 16 * k + 8 * (lane / 8 % 2); });
    warp.template load_matrices<false>(four, row);
    for (unsigned i = 0; i < 4; ++i) b[i / 2][i % 2] = four[i];
}

/// The sum over the four lanes that share a row of C.
template <class M>
XQUANT_DEVICE Lanes<M, float> sum_of_four(const typename M::Warp& warp, Lanes<M, float> x) noexcept {
    XQUANT_UNROLL
    for (unsigned mask = 1; mask < 4; mask *= 2) {
        const Lanes<M, float> other = warp.exchange(x, mask);
        warp.each([&](unsigned lane) { x[lane] += other[lane]; });
    }
    return x;
}

}  // namespace detail

/// Rows of A [width, Dh] in shared memory, [matrix_rows][stride] halves, as long as the same ones are asked for.
template <class M, unsigned Dh>
class MatrixStage {
public:
    static constexpr unsigned stride = Dh + 8;
    static constexpr std::size_t halves = matrix_rows * stride;

    XQUANT_DEVICE explicit MatrixStage(f16* memory) noexcept : memory_(memory) {}
    [[nodiscard]] XQUANT_DEVICE const f16* data() const noexcept { return memory_; }

    /// Rows first .. first + matrix_rows; those beyond A, and channels beyond Dh, are 0. All warps take part.
    XQUANT_DEVICE void load(typename M::Block& block, const HeadDecoder& head, std::size_t dh,
                            unsigned first) noexcept {
        const float* from = head.matrix + first * dh;
        if (from == staged_) return;
        staged_ = from;
        block.barrier();
        block.each_thread([&](unsigned thread) {
            for (unsigned i = thread; i < matrix_rows * Dh / 2; i += block.warps() * lanes) {
                const unsigned row = i / (Dh / 2), c = 2 * (i % (Dh / 2));
                float value[2] = {0, 0};
                for (unsigned h = 0; h < 2; ++h) {
                    if (first + row < head.width && c + h < dh) value[h] = from[row * dh + c + h];
                }
                detail::put(memory_, stride, row, c, M::pack(value[0], value[1]));
            }
        });
        block.barrier();
    }

private:
    f16* memory_;
    const float* staged_ = nullptr;  ///< row `first` of the matrix that is there
};

/// z A for the slots of a strip, in registers: C of 16 slots and 8 channels, Tiles x Dh / 8 times.
template <class M, unsigned Dh, unsigned Tiles>
struct Product {
    detail::Lanes<M, float> at[Tiles][Dh / 8][4];

    XQUANT_DEVICE void clear(const typename M::Warp& warp) noexcept {
        each_row(warp, [](unsigned, unsigned, unsigned, float& a, float& b) { a = b = 0; });
    }

    /// Calls f(lane, row of the strip, channel, value, value of the next channel) for all of them.
    template <class F>
    XQUANT_DEVICE void each_row(const typename M::Warp& warp, F&& f) noexcept {
        warp.each([&](unsigned lane) {
            XQUANT_UNROLL
            for (unsigned tile = 0; tile < Tiles; ++tile) {
                XQUANT_UNROLL
                for (unsigned r = 0; r < 2; ++r) {
                    XQUANT_UNROLL
                    for (unsigned j = 0; j < Dh / 8; ++j) {
                        f(lane, 16 * tile + lane / 4 + 8 * r, 8 * j + 2 * (lane % 4), at[tile][j][2 * r][lane],
                          at[tile][j][2 * r + 1][lane]);
                    }
                }
            }
        });
    }

    /// += z A for up to matrix_rows channels of z in the strip.
    XQUANT_DEVICE void add(const typename M::Warp& warp, const f16* strip, unsigned stride, unsigned channels,
                           const MatrixStage<M, Dh>& matrix) noexcept {
        for (unsigned k = 0; k < (channels + 15) / 16; ++k) {
            detail::Lanes<M, std::uint32_t> a[Tiles][4];
            XQUANT_UNROLL
            for (unsigned tile = 0; tile < Tiles; ++tile) {
                detail::load_rows<M>(warp, a[tile], strip + 16 * tile * stride, stride, k);
            }
            XQUANT_UNROLL
            for (unsigned j = 0; j < Dh / 8; j += 2) {
                detail::Lanes<M, std::uint32_t> b[2][2];
                detail::load_columns<M>(warp, b, matrix.data() + 16 * k * MatrixStage<M, Dh>::stride,
                                        MatrixStage<M, Dh>::stride, j);
                XQUANT_UNROLL
                for (unsigned tile = 0; tile < Tiles; ++tile) {
                    warp.multiply(at[tile][j], a[tile], b[0]);
                    warp.multiply(at[tile][j + 1], a[tile], b[1]);
                }
            }
        }
    }

    XQUANT_DEVICE void add_constant(const typename M::Warp& warp, const float* constant, std::size_t dh) noexcept {
        each_row(warp, [&](unsigned, unsigned, unsigned c, float& a, float& b) {
            a += c < dh ? constant[c] : 0.0F;
            b += c + 1 < dh ? constant[c + 1] : 0.0F;
        });
    }

    /// An RMS norm of each slot's key.
    XQUANT_DEVICE void normalize(const typename M::Warp& warp, const float* gain, float epsilon,
                                 std::size_t dh) noexcept {
        XQUANT_UNROLL
        for (unsigned tile = 0; tile < Tiles; ++tile) {
            XQUANT_UNROLL
            for (unsigned r = 0; r < 2; ++r) {
                detail::Lanes<M, float> squares;
                warp.each([&](unsigned lane) {
                    squares[lane] = 0;
                    XQUANT_UNROLL
                    for (unsigned j = 0; j < Dh / 8; ++j) {
                        const float a = at[tile][j][2 * r][lane], b = at[tile][j][2 * r + 1][lane];
                        squares[lane] += a * a + b * b;
                    }
                });
                squares = detail::sum_of_four<M>(warp, squares);
                warp.each([&](unsigned lane) {
                    const float factor = M::inverse_root(squares[lane] / static_cast<float>(dh) + epsilon);
                    XQUANT_UNROLL
                    for (unsigned j = 0; j < Dh / 8; ++j) {
                        const unsigned c = 8 * j + 2 * (lane % 4);
                        at[tile][j][2 * r][lane] *= factor * (c < dh ? gain[c] : 0.0F);
                        at[tile][j][2 * r + 1][lane] *= factor * (c + 1 < dh ? gain[c + 1] : 0.0F);
                    }
                });
            }
        }
    }

    /// Whether both channels of every pair lie in one lane.
    [[nodiscard]] XQUANT_DEVICE static constexpr bool holds_pairs(const RopeView& rope) noexcept {
        return rope.pairs == 0 || rope.pairing == RopePairing::interleaved || 2 * rope.pairs == Dh;
    }

    /// RoPE, where holds_pairs.
    XQUANT_DEVICE void turn(const typename M::Warp& warp, const Angles& angles, const Strip& place) noexcept {
        if (angles.rope.pairing == RopePairing::interleaved) {
            each_row(warp, [&](unsigned, unsigned row, unsigned c, float& a, float& b) {
                if (c / 2 < angles.rope.pairs) {
                    angles.turn(a, b, c / 2, place.offset(row));
                }
            });
            return;
        }
        warp.each([&](unsigned lane) {
            XQUANT_UNROLL
            for (unsigned tile = 0; tile < Tiles; ++tile) {
                XQUANT_UNROLL
                for (unsigned i = 0; i < 4; ++i) {
                    const unsigned row = 16 * tile + lane / 4 + 8 * (i / 2);
                    const auto offset = place.offset(row);
                    XQUANT_UNROLL
                    for (unsigned j = 0; j < Dh / 16; ++j) {
                        angles.turn(at[tile][j][i][lane], at[tile][j + Dh / 16][i][lane],
                                    8 * j + 2 * (lane % 4) + i % 2, offset);
                    }
                }
            }
        });
    }

    /// As halves into the strip.
    XQUANT_DEVICE void store(const typename M::Warp& warp, f16* strip, unsigned stride) noexcept {
        warp.sync();
        each_row(warp, [&](unsigned, unsigned row, unsigned c, float& a, float& b) {
            detail::put(strip, stride, row, c, M::pack(a, b));
        });
        warp.sync();
    }
};

/// Keys in a strip: constants and norm (where `whole`), and RoPE. A row is one lane's.
template <class M>
XQUANT_DEVICE_COLD void finish_strip(const typename M::Warp& warp, const AttendTask& task, const Angles& angles,
                                     const Strip& place, bool whole, f16* strip, unsigned stride) noexcept {
    const std::size_t dh = task.head_dim;
    warp.each([&](unsigned lane) {
        if (lane >= place.rows) return;
        f16* row = strip + lane * stride;
        for (std::size_t c = 0; whole && task.key.constant != nullptr && c < dh; ++c) {
            row[c] = M::to_half(M::to_float(row[c]) + task.key.constant[c]);
        }
        if (whole && task.rules.key_norm != nullptr) {
            float squares = 0;
            for (std::size_t c = 0; c < dh; ++c) squares += M::to_float(row[c]) * M::to_float(row[c]);
            const float factor = M::inverse_root(squares / static_cast<float>(dh) + task.rules.key_norm_epsilon);
            for (std::size_t c = 0; c < dh; ++c) {
                row[c] = M::to_half(M::to_float(row[c]) * factor * task.rules.key_norm[c]);
            }
        }
        const auto offset = place.offset(lane);
        for (unsigned j = 0; j < task.rope.pairs; ++j) {
            f16 &first = row[task.rope.first(j)], &second = row[task.rope.second(j)];
            float a = M::to_float(first), b = M::to_float(second);
            angles.turn(a, b, j, offset);
            first = M::to_half(a);
            second = M::to_half(b);
        }
    });
    warp.sync();
}

/// Keys of all heads share their first channels: those of the strip are replaced.
template <class M>
XQUANT_DEVICE_COLD void put_shared(const typename M::Warp& warp, const StreamView& shared, unsigned channels,
                                   const Strip& place, f16* strip, unsigned stride) noexcept {
    warp.each([&](unsigned lane) {
        for (unsigned i = lane; i < place.rows * channels; i += lanes) {
            const unsigned row = i / channels, c = i % channels;
            strip[row * stride + c] =
                place.wants(row) ? M::to_half(stored_value<M>(shared, place.slot(row), c)) : f16{};
        }
    });
    warp.sync();
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend::gpu
