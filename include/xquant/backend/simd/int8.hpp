// Vector 8-bit products: keys straight from codes.
//
//     rematerialize_int8   K [Dh, tokens] from codes as they are: no dequantization, one dot instruction for 4 channels
//                          of `lanes` tokens
//
// Shapes  code quads [channels / 4][128 tokens], a word holds 4 channels of one token; weight quads [channels / 4][Dh].
// Limit   the dot instruction (vpdpbusd, or vpmaddubsw + vpaddw on AVX2), Dh / 4 for each channel block and register of
//         tokens. By count, folding scales into A adds a fifth for 128 tokens and Dh = 64.
#pragma once

#include <xquant/backend/rematerialize.hpp>
#include <xquant/backend/simd/product.hpp>
#include <xquant/backend/simd/products.hpp>
#include <xquant/backend/simd/quads.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// The weights of quantize_weights (scalar) for all columns of A [channels, Dh], for codes that count from `middle` on.
/// `factors`, and what a channel's middle code stands for, `centers`, are [channels]; null: codes lie per token.
/// `memory` has int8_block_floats(channels, Dh) floats.
template <class R>
Int8Block fold_weights(simd<R>, Matrix weights, const float* factors, const float* centers, float middle,
                       float* memory) noexcept {
    constexpr std::size_t lanes = R::lanes;
    const float* const a = weights.data;
    const std::size_t dh = weights.columns, channels = weights.rows;
    const Int8Block out = Int8Block::in<R>(memory, channels, dh);
    [[maybe_unused]] typename R::i32 turned[lanes];
    const auto byte = R::splat_i32(0xFF), magnitude = R::splat_i32(0x7FFFFFFF), ones = R::splat_i32(0x01010101);
    for (std::size_t j = 0; j < dh; j += lanes) {
        const std::size_t n = (std::min)(lanes, dh - j);
        const auto row = [&](std::size_t c) {
            return n == lanes ? R::load(a + c * dh + j) : R::load_first(a + c * dh + j, n);
        };
        auto largest = R::zero(), offset = R::zero();
        for (std::size_t c = 0; c < channels; ++c) {
            const auto value = row(c), scaled = factors != nullptr ? R::mul(R::splat(factors[c]), value) : value;
            largest = R::maximum(largest, R::as_f32(R::bits_and(R::as_i32(scaled), magnitude)));
            offset = centers != nullptr ? R::fma(R::splat(centers[c]), value, offset) : R::add(offset, value);
        }
        alignas(64) float inverse[lanes], scale[lanes];
        R::store(inverse, largest);
        for (std::size_t i = 0; i < lanes; ++i) {
            scale[i] = inverse[i] / int8_top;
            inverse[i] = inverse[i] > 0 ? int8_top / inverse[i] : 0.0F;
        }
        R::store(out.scales + j, R::load(scale));
        const auto up = R::load(inverse);
        auto sum = R::zero_i32();  // of weights, in runs that 16-bit sums hold
        auto part = R::zero_i32();
        const std::size_t run = R::dot_run(1);
        for (std::size_t c = 0; c < channels; c += 4) {
            auto word = R::zero_i32();
            for (std::size_t k = 4; k-- > 0;) {
                const auto value = row(c + k),
                           scaled = factors != nullptr ? R::mul(R::splat(factors[c + k]), value) : value;
                word = R::bits_or(R::shift_left(word, 8), R::bits_and(R::round(R::mul(scaled, up)), byte));
            }
            if constexpr (R::matrix_unit) {
                const std::size_t q = c / 4, first = q / lanes * lanes;
                turned[q - first] = word;
                if (q - first + 1 == lanes || c + 4 >= channels) {
                    R::transpose(turned);
                    for (std::size_t i = 0; i < lanes; ++i) {
                        auto* const to = reinterpret_cast<float*>(out.weights + (j + i) * out.column_step + first);
                        R::store_first(to, R::as_f32(turned[i]), q - first + 1);
                    }
                }
            } else {
                R::store_i32(out.weights + c / 4 * out.quad_step + j, word);
            }
            part = R::dot(part, ones, word);
            if ((c / 4 + 1) % run == 0 || c + 4 >= channels) {
                sum = R::add_i32(sum, R::dot_end(part));
                part = R::zero_i32();
            }
        }
        const auto shift = R::mul(R::mul(R::splat(-middle), R::to_f32(sum)), R::load(scale));
        R::store(out.shifts + j, centers != nullptr ? R::add(shift, offset) : shift);
        R::store(out.offsets + j, offset);
    }
    return out;
}

/// Scales of a tile's tokens, and what their middle codes stand for, where a token's channels share them; null where a
/// channel's tokens do.
struct TokenScales {
    const float *scales, *centers;
};

/// zeros [n] become what the middle codes of groups stand for; n up to whole registers.
template <class R>
void center_codes(const float* scales, float middle, std::size_t n, float* zeros) noexcept {
    for (std::size_t t = 0; t < n; t += R::lanes) {
        R::store(zeros + t, R::fma(R::splat(middle), R::load(scales + t), R::load(zeros + t)));
    }
}

/// Adds one channel block to K, a channel-major tile; sets it where `set` is true.
template <class R>
void add_int8_block(const std::uint32_t* quads, std::size_t channels, std::size_t run, const Int8Block& block,
                    TokenScales by_token, Tile out, bool set) noexcept {
    constexpr std::size_t vectors = dot_vectors<R>, wide = vectors * R::lanes;
    const std::size_t tokens = out.tokens, columns = out.channels;
    Products<R> products(quads, channels, run, block);
    for (std::size_t t = 0; t < tokens; t += wide) {
        for (std::size_t j = 0; j < columns; j += dot_columns) {
            const auto sums = products.template of<dot_columns>(t, j);
            for (std::size_t k = 0; k < (std::min)(dot_columns, columns - j); ++k) {
                const auto scale = R::splat(block.scales[j + k]), shift = R::splat(block.shifts[j + k]);
                for (std::size_t v = 0; v < vectors; ++v) {
                    const std::size_t first = t + v * R::lanes;
                    if (first >= tokens) break;
                    const std::size_t n = (std::min)(R::lanes, tokens - first);
                    float* to = out.data + (j + k) * out.stride + first;
                    const auto before = set ? R::zero() : R::load_first(to, n);
                    auto value = R::fma(R::to_f32(sums.at[k][v]), scale, shift);
                    if (by_token.scales != nullptr) {
                        value = R::fma(R::load(by_token.scales + first), value, before);
                        value = R::fma(R::load(by_token.centers + first), R::splat(block.offsets[j + k]), value);
                    } else {
                        value = R::add(value, before);
                    }
                    R::store_first(to, value, n);
                }
            }
        }
    }
}

}  // namespace detail

/// Like the scalar rematerialize_int8: integer sums are equal, floats differ by rounding.
template <class R>
void rematerialize_int8(simd<R> tag, const StreamView& in, const HeadDecoder& head, std::size_t token, Tile out,
                        float* scratch) noexcept {
    const StreamFormat& format = in.format;
    const std::size_t dh = head.head_dim, tokens = out.tokens;
    const bool by_channel = format.group_channels == 1;
    auto* quads = reinterpret_cast<std::uint32_t*>(scratch);
    float* memory = scratch + int8_channels / 4 * detail::quad_tokens;
    float* room = scratch + rematerialize_room(dh);
    const float middle = middle_code(format);
    alignas(64) std::array<float, detail::quad_tokens + R::lanes> scales, centers;
    for (std::size_t t = 0; t < tokens;) {
        const std::size_t left = by_channel ? format.group_tokens - (token + t) % format.group_tokens : tokens;
        const Slots some{token + t, (std::min)(left, tokens - t)};
        const Tile part = out.part({t, some.count}, {0, out.channels});
        for (std::size_t c = 0; c < head.width;) {
            const Slots channels{head.first + c, int8_block(format, head.first + c, head.width - c)};
            const Matrix a{weights_as_floats(tag, head.matrix, {c * dh, channels.count * dh}, room), channels.count, dh,
                           dh};
            detail::load_quads(tag, in, some, channels, 0, quads);
            detail::Int8Block block;
            if (by_channel) {
                detail::load_channel_scales<R>(in, some.first / format.group_tokens, channels, 0, scales.data(),
                                               centers.data());
                detail::center_codes<R>(scales.data(), middle, channels.count, centers.data());
                block = detail::fold_weights(tag, a, scales.data(), centers.data(), middle, memory);
            } else {
                detail::load_token_scales<R>(in, some, channels.first / format.group_channels, 0, scales.data(),
                                             centers.data());
                detail::center_codes<R>(scales.data(), middle, some.count, centers.data());
                block = detail::fold_weights(tag, a, nullptr, nullptr, middle, memory);
            }
            detail::add_int8_block<R>(quads, channels.count, R::dot_run(format.bits), block,
                                      {by_channel ? nullptr : scales.data(), centers.data()}, part, c == 0);
            c += channels.count;
        }
        t += some.count;
    }
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
