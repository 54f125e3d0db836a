// Sums of products of codes with weights in 8 bits: by the dot instruction, or by a matrix unit where the registers
// have one (backend/amx).
//
// Shapes  code quads [channels / 4][128 tokens], a word holds 4 channels of one token. Weights of a block of channels:
//         words of 4 channels of a column, [channels / 4][columns], or [columns][channels / 4] as a matrix unit reads
//         them. A panel of a matrix unit: sums of 16 columns and 64 tokens.
// Limit   the dot instruction: channels / 4 for each column and register of tokens. A matrix unit: one instruction for
//         64 channels, 16 columns and 16 tokens, by count 16 cycles on Sapphire Rapids, where the dot instruction takes
//         128; up to 60 channels that are left go by the dot instruction.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include <xquant/backend/backend.hpp>
#include <xquant/backend/simd/codec.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// Words of a row of quads: one for each token of a page.
inline constexpr std::size_t quad_tokens = tile_tokens;

/// A block of A [channels, columns] in 8 bits: factor_c A[c][j] ~ scale[j] weight[c][j].
struct Int8Block {
    std::size_t column_step,  ///< words from a column's weights to the next one's
        quad_step;            ///< words from the weights of 4 channels to those of the next 4
    std::uint32_t* weights;   ///< 4 channels a word
    float* scales;            ///< [columns]
    float* shifts;            ///< [columns] what is added to scale[j] times a sum of products
    float* offsets;           ///< [columns] sum over c of A[c][j], where codes lie per token; or null

    /// Of all columns, rounded up to whole registers, in memory of int8_block_floats.
    template <class R>
    static Int8Block in(float* memory, std::size_t channels, std::size_t dh) noexcept {
        const std::size_t columns = (dh + R::lanes - 1) / R::lanes * R::lanes, quads = channels / 4;
        float* const scales = memory + quads * columns;
        return {
            R::matrix_unit ? quads : 1, R::matrix_unit ? 1 : columns, reinterpret_cast<std::uint32_t*>(memory), scales,
            scales + columns,           scales + 2 * columns};
    }
};

/// Registers of tokens, and columns, whose sums are kept at a time.
template <class R>
inline constexpr std::size_t dot_vectors = R::count >= 32 ? 4 : 2;
inline constexpr std::size_t dot_columns = 4;

/// Sums of products, [columns][registers of tokens].
template <class R, std::size_t Vectors, std::size_t Columns = dot_columns>
struct DotSums {
    typename R::i32 at[Columns][Vectors];
};

/// Sums of codes of up to 128 tokens times the columns of a block. The block has to have 15 more columns in memory,
/// which may hold anything, where there is a matrix unit.
template <class R>
class Products {
public:
    /// `run` is how many quads a sum of the dot instruction may hold.
    Products(const std::uint32_t* quads, std::size_t channels, std::size_t run, const Int8Block& block) noexcept
        : quads_(quads), end_(channels / 4), run_(run), block_(block) {}

    /// at[k][v] = sum over all channels, for column j + k and tokens t + v * lanes .. .
    template <std::size_t Columns>
    XQUANT_INLINE DotSums<R, dot_vectors<R>, Columns> of(std::size_t t, std::size_t j) noexcept {
        if constexpr (R::matrix_unit) {
            if (panel_.groups(end_) > 0) {
                panel_.move_to(quads_, end_, block_, t, j, Columns);
                DotSums<R, dot_vectors<R>, Columns> sums = panel_.template sums<Columns>(j);
                const std::size_t done = panel_.groups(end_) * panel_quads;
                if (done < end_) add(sums, of_run<Columns>(done, end_, t, j));
                return sums;
            }
        }
        DotSums<R, dot_vectors<R>, Columns> sums = of_run<Columns>(0, (std::min)(run_, end_), t, j);
        for (std::size_t q = run_; q < end_ && run_ < end_; q += run_) {
            add(sums, of_run<Columns>(q, (std::min)(q + run_, end_), t, j));
        }
        return sums;
    }

private:
    static constexpr std::size_t vectors = dot_vectors<R>;
    static constexpr std::size_t panel_quads = 16;  // of one instruction of a matrix unit

    /// Sums that the matrix unit has made: of 16 columns and 64 tokens.
    struct Panel {
        static constexpr std::size_t columns = 16, tokens = vectors * R::lanes;
        typename R::MatrixScope scope;
        std::size_t t = tile_tokens, first = 0;
        alignas(64) std::array<std::int32_t, columns * tokens> at;

        /// Groups of 64 channels that the matrix unit takes.
        [[nodiscard]] std::size_t groups(std::size_t end) const noexcept {
            return scope.ready() ? end / panel_quads : 0;
        }

        void move_to(const std::uint32_t* quads, std::size_t end, const Int8Block& block, std::size_t token,
                     std::size_t j, std::size_t count) noexcept {
            if (token == t && j >= first && j + count <= first + columns) return;
            t = token;
            first = j;
            R::multiply_panel(block.weights + j * block.column_step, block.column_step, quads + t, quad_tokens,
                              groups(end), at.data());
        }
        template <std::size_t Columns>
        [[nodiscard]] XQUANT_INLINE DotSums<R, vectors, Columns> sums(std::size_t j) const noexcept {
            DotSums<R, vectors, Columns> out;
            XQUANT_UNROLL
            for (std::size_t k = 0; k < Columns; ++k) {
                XQUANT_UNROLL
                for (std::size_t v = 0; v < vectors; ++v) {
                    out.at[k][v] = R::load_i32(at.data() + (j - first + k) * tokens + v * R::lanes);
                }
            }
            return out;
        }
    };
    struct NoPanel {};

    template <std::size_t Columns>
    static XQUANT_INLINE void add(DotSums<R, vectors, Columns>& sums,
                                  const DotSums<R, vectors, Columns>& more) noexcept {
        XQUANT_UNROLL
        for (std::size_t k = 0; k < Columns; ++k) {
            XQUANT_UNROLL
            for (std::size_t v = 0; v < vectors; ++v) sums.at[k][v] = R::add_i32(sums.at[k][v], more.at[k][v]);
        }
    }

    /// Sums over the quads begin .. end by the dot instruction.
    template <std::size_t Columns>
    XQUANT_INLINE DotSums<R, vectors, Columns> of_run(std::size_t begin, std::size_t end, std::size_t t,
                                                      std::size_t j) const noexcept {
        DotSums<R, vectors, Columns> sums;
        XQUANT_UNROLL
        for (std::size_t k = 0; k < Columns; ++k) {
            XQUANT_UNROLL
            for (std::size_t v = 0; v < vectors; ++v) sums.at[k][v] = R::zero_i32();
        }
        for (std::size_t q = begin; q < end; ++q) {
            typename R::i32 codes[vectors];
            XQUANT_UNROLL
            for (std::size_t v = 0; v < vectors; ++v) {
                codes[v] = R::load_i32(quads_ + q * quad_tokens + t + v * R::lanes);
            }
            XQUANT_UNROLL
            for (std::size_t k = 0; k < Columns; ++k) {
                const auto weight =
                    R::template repeat<4>(block_.weights + q * block_.quad_step + (j + k) * block_.column_step);
                XQUANT_UNROLL
                for (std::size_t v = 0; v < vectors; ++v) sums.at[k][v] = R::dot(sums.at[k][v], codes[v], weight);
            }
        }
        XQUANT_UNROLL
        for (std::size_t k = 0; k < Columns; ++k) {
            XQUANT_UNROLL
            for (std::size_t v = 0; v < vectors; ++v) sums.at[k][v] = R::dot_end(sums.at[k][v]);
        }
        return sums;
    }

    const std::uint32_t* quads_;
    std::size_t end_, run_;
    Int8Block block_;
    [[no_unique_address]] std::conditional_t<R::matrix_unit, Panel, NoPanel> panel_;
};

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
