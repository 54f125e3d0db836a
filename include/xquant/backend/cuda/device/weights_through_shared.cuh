// z A for the strips of a block's warps. A comes through shared memory, once for all warps; each warp decodes its own
// strip of z.
//
// For a latent of up to 128 channels, A stays in shared memory as long as the block runs. For a wider one it passes
// through: the next 128 rows are loaded while these are multiplied.
#pragma once

#include <type_traits>

#include <xquant/backend/cuda/device/product.cuh>

namespace xquant::backend::gpu {
inline namespace XQUANT_ABI_NS {

/// @tparam Tiles  of 16 slots, in a strip
/// @tparam Size   of the kernel
/// @tparam Coded  whether codes may meet 8-bit weights
template <class M, unsigned Tiles, unsigned Size, bool Coded>
class Rebuilder {
    using Warp = typename M::Warp;

public:
    /// Halves between columns of A, and between rows of codes.
    static constexpr unsigned stride = matrix_rows + 8, code_stride = matrix_rows / 2 + 8;
    /// Parts of A that there is room for: all sets of a narrow latent, or these and the next rows of a wide one.
    static constexpr unsigned parts = Size == 64 ? 2 : Size / set_channels;
    static constexpr std::size_t part_halves = set_channels * stride;
    /// Halves of shared memory that it takes.
    static constexpr std::size_t halves = parts * part_halves;

    XQUANT_DEVICE_INLINE Rebuilder(typename M::Block& block, f16* memory) noexcept : block_(block), memory_(memory) {}

    /// A set of channels of every slot: products.keys, or products.values.
    /// @param place_of    Warp -> its Strip
    /// @param strip_of    Warp -> its strip in shared memory, `strip_stride` halves from row to row; it holds z between
    ///                    sets
    /// @param product_of  Warp -> the product
    template <bool Keys, class PlaceOf, class StripOf, class ProductOf>
    XQUANT_DEVICE_INLINE void run(const StreamView& in, const HeadDecoder& head, const MatrixTable& matrix,
                                  unsigned set, PlaceOf&& place_of, StripOf&& strip_of, unsigned strip_stride,
                                  ProductOf&& product_of) noexcept {
        block_.each_warp([&](Warp& warp) { product_of(warp).clear(warp); });
        const bool codes = Coded && matrix.weights != nullptr && in.format.quantized();
        const auto width = static_cast<unsigned>(head.width);
        const bool wide = width > matrix_rows, decodes = set == 0 || wide;
        const auto channels = [&](unsigned first) { return width - first < matrix_rows ? width - first : matrix_rows; };
        // Rows first .. + 128 of A's columns, to where they have room.
        const auto begin_load = [&](unsigned first, unsigned part) {
            const std::size_t column = std::size_t{set} * set_channels;
            if (codes) {
                load(matrix.weights + column * matrix.coded_depth + first, matrix.coded_depth,
                     rounded(channels(first), matrix.group), part, code_stride);
            } else {
                load(matrix.halves + column * matrix.depth + first, matrix.depth * 2, 2 * rounded(channels(first), 16),
                     part, stride);
            }
        };
        if (wide) {
            block_.barrier();
            begin_load(0, 0);
            forget();
        } else if (!holds(matrix.halves, set, codes)) {
            block_.barrier();
            begin_load(0, set);
            end_load();
        }
        for (unsigned first = 0, part = wide ? 0 : set; first < width; first += matrix_rows, part ^= 1U) {
            if (wide) {
                end_load();
                if (first + matrix_rows < width) begin_load(first + matrix_rows, part ^ 1U);
            }
            const f16* a = memory_ + part * part_halves;
            block_.each_warp([&](Warp& warp) {
                f16* strip = strip_of(warp);
                const Strip place = place_of(warp);
                if constexpr (Coded) {
                    if (codes) {
                        if (decodes) {
                            warp.sync();
                            decode_codes<M>(warp, in, place, head.first + first, channels(first), matrix.group, strip,
                                            code_stride);
                            warp.sync();
                        }
                        if (matrix.group == 128)
                            add<Keys, 4>(warp, in, head, matrix, set, first, place, a, strip, product_of);
                        if (matrix.group == 64)
                            add<Keys, 2>(warp, in, head, matrix, set, first, place, a, strip, product_of);
                        if (matrix.group == 32)
                            add<Keys, 1>(warp, in, head, matrix, set, first, place, a, strip, product_of);
                        return;
                    }
                }
                if (decodes) {
                    warp.sync();
                    decode_strip<M, Tiles>(warp, in, place, head.first + first, channels(first), strip, strip_stride);
                    warp.wait_for_copies();
                    warp.sync();
                }
                const Operand z{strip, strip_stride}, columns{a, stride};
                if constexpr (Keys) {
                    product_of(warp).add(warp, z, columns, (channels(first) + 15) / 16);
                } else {
                    product_of(warp).add(warp, columns, z, (channels(first) + 15) / 16);
                }
            });
        }
    }

private:
    XQUANT_DEVICE_INLINE static constexpr unsigned rounded(unsigned n, unsigned multiple) noexcept {
        return (n + multiple - 1) / multiple * multiple;
    }

    /// The codes of up to 128 channels, group by group.
    template <bool Keys, unsigned Steps, class ProductOf>
    XQUANT_DEVICE_INLINE void add(const Warp& warp, const StreamView& in, const HeadDecoder& head,
                                  const MatrixTable& matrix, unsigned set, unsigned first, const Strip& place,
                                  const f16* weights, const f16* codes, ProductOf&& product_of) noexcept {
        constexpr unsigned group = 32 * Steps;
        const unsigned left = static_cast<unsigned>(head.width) - first;
        const ColumnFactor* factors =
            matrix.factors + (std::size_t{set} * (matrix.coded_depth / group) + first / group) * set_channels;
        for (unsigned g = 0; g < matrix_rows && g < left; g += group, factors += set_channels) {
            SlotFactors<M, Tiles> slots;
            slots.template load<Keys>(warp, in, static_cast<unsigned>(head.first + first + g) / group, place);
            add_codes<Steps>(warp, product_of(warp), {codes + g / 2, code_stride}, {weights + g / 2, code_stride},
                             slots, factors);
        }
    }

    /// `bytes` (a multiple of 16) of each of 64 columns, which lie `pitch` bytes apart, in the background.
    XQUANT_DEVICE_INLINE void load(const void* from, std::size_t pitch, unsigned bytes, unsigned part,
                                   unsigned to_stride) noexcept {
        block_.each_warp([&](Warp& warp) {
            constexpr unsigned most = matrix_rows * 2 / 16;  // pieces of a column
            warp.each([&](unsigned lane) {
                const unsigned piece = lane % most;
                if (16 * piece >= bytes) return;
                for (unsigned column = warp.index * (lanes / most) + lane / most; column < set_channels;
                     column += block_.warps() * (lanes / most)) {
                    warp.copy(memory_ + part * part_halves + column * to_stride + 8 * piece,
                              static_cast<const std::byte*>(from) + column * pitch + 16 * piece);
                }
            });
        });
    }
    /// What was loaded is there, and all warps are done with what was there before.
    XQUANT_DEVICE_INLINE void end_load() noexcept {
        block_.each_warp([&](Warp& warp) { warp.wait_for_copies(); });
        block_.barrier();
    }

    /// Whether a set of this A is there; from now on it is.
    XQUANT_DEVICE_INLINE bool holds(const f16* matrix, unsigned set, bool codes) noexcept {
        if (matrix != held_ || codes != held_codes_) held_sets_ = 0;
        held_ = matrix;
        held_codes_ = codes;
        const bool there = (held_sets_ >> set & 1U) != 0;
        held_sets_ |= 1U << set;
        return there;
    }
    XQUANT_DEVICE_INLINE void forget() noexcept { held_sets_ = 0; }

    typename M::Block& block_;
    f16* memory_;
    const f16* held_ = nullptr;  ///< the A of which sets are there
    bool held_codes_ = false;
    unsigned held_sets_ = 0;
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend::gpu
