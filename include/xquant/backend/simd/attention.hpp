// Vector attention: softmax, and for few query rows scores and P z straight from what is stored.
//
//     score_codes   scores.hpp
//     add_codes     lanes are channels: sum += (p scale) code for 4 registers of channels and up to 4 query heads; zeros
//                   need one number for each group
//
// Everything else (other formats, many query rows) goes through a tile of K or z in f32, and `multiply`.
// Limit   P z: conversion and FMA, 20 operations a token for 64 channels and 3 heads.
// Not     P in 8 bits against the codes of V: weights below 1/510 of the largest round to 0, and 127 of them beside one large
//         weight may hold a fifth of the softmax.
#pragma once

#include <xquant/backend/simd/scores.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// e^x for x <= 0: exp_negative in lanes, but e^-87 below -87.
template <class R>
typename R::f32 exp_lanes(typename R::f32 x) noexcept {
    x = R::max(x, R::splat(-87.0F));
    const auto n = R::round(R::mul(x, R::splat(1.44269504F)));
    const auto whole = R::to_f32(n);
    const auto r = R::fma(whole, R::splat(2.12194440e-4F), R::fma(whole, R::splat(-0.693359375F), x));
    auto p = R::splat(1.9875691500e-4F);
    p = R::fma(p, r, R::splat(1.3981999507e-3F));
    p = R::fma(p, r, R::splat(8.3334519073e-3F));
    p = R::fma(p, r, R::splat(4.1665795894e-2F));
    p = R::fma(p, r, R::splat(1.6666665459e-1F));
    p = R::fma(p, r, R::splat(5.0000001201e-1F));
    const auto e = R::add(R::fma(p, R::mul(r, r), r), R::splat(1.0F));
    const auto power = R::as_f32(R::shift_left(R::add_i32(n, R::splat_i32(127)), 23));
    return R::mul(e, power);
}

}  // namespace detail

template <class R>
void soften(simd<R>, float* scores, std::size_t begin, std::size_t end, std::size_t tokens, float& maximum,
            float& total, float* sum, std::size_t width) noexcept {
    const std::size_t whole = (tokens + R::lanes - 1) / R::lanes * R::lanes;
    if (begin >= end) {
        std::fill_n(scores, whole, 0.0F);
        return;
    }
    constexpr float nothing = -std::numeric_limits<float>::max();
    std::fill_n(scores, begin, nothing);
    std::fill_n(scores + end, whole - end, nothing);
    auto highest = R::load(scores);
    for (std::size_t t = R::lanes; t < whole; t += R::lanes) highest = R::max(highest, R::load(scores + t));
    const float top = R::reduce_max(highest);
    if (top > maximum) {
        const float factor = total > 0 ? exp_negative(maximum - top) : 0.0F;
        total *= factor;
        for (std::size_t c = 0; c < width; c += R::lanes) {
            const std::size_t n = std::min(R::lanes, width - c);
            R::store_first(sum + c, R::mul(R::load_first(sum + c, n), R::splat(factor)), n);
        }
        maximum = top;
    }
    const auto reference = R::splat(maximum);
    auto weights = R::zero();
    for (std::size_t t = 0; t < whole; t += R::lanes) {
        const auto e = detail::exp_lanes<R>(R::sub(R::load(scores + t), reference));
        R::store(scores + t, e);
        weights = R::add(weights, e);
    }
    total += R::reduce_add(weights);
    std::fill_n(scores, begin, 0.0F);
    std::fill_n(scores + end, whole - end, 0.0F);
}

namespace detail {

/// sums [Heads][width] += sum over tokens of weights [Heads][128] * rows; load(t, c) gives `lanes` channels of a row.
template <class R, std::size_t Heads, std::size_t Vectors, class Load>
void add_rows(Load&& load, std::size_t tokens, std::size_t channel, const float* weights, float* sums,
              std::size_t stride) noexcept {
    typename R::f32 sum[Heads][Vectors];
    XQUANT_UNROLL
    for (std::size_t h = 0; h < Heads; ++h) {
        XQUANT_UNROLL
        for (std::size_t v = 0; v < Vectors; ++v) sum[h][v] = R::load(sums + h * stride + v * R::lanes);
    }
    for (std::size_t t = 0; t < tokens; ++t) {
        typename R::f32 row[Vectors];
        XQUANT_UNROLL
        for (std::size_t v = 0; v < Vectors; ++v) row[v] = load(t, channel + v * R::lanes);
        XQUANT_UNROLL
        for (std::size_t h = 0; h < Heads; ++h) {
            const auto weight = R::splat(weights[h * tile_tokens + t]);
            XQUANT_UNROLL
            for (std::size_t v = 0; v < Vectors; ++v) sum[h][v] = R::fma(weight, row[v], sum[h][v]);
        }
    }
    XQUANT_UNROLL
    for (std::size_t h = 0; h < Heads; ++h) {
        XQUANT_UNROLL
        for (std::size_t v = 0; v < Vectors; ++v) R::store(sums + h * stride + v * R::lanes, sum[h][v]);
    }
}

/// The same for any number of heads, over `channels` channels of the rows.
template <class R, class Load>
void add_all_rows(Load&& load, std::size_t tokens, std::size_t channels, const float* weights, std::size_t count,
                  float* sums, std::size_t stride) noexcept {
    for_heads(count, [&]<std::size_t Heads>(std::size_t i, std::integral_constant<std::size_t, Heads>) {
        constexpr std::size_t vectors = Heads * 4 + 5 <= R::count ? 4 : 2;
        std::size_t c = 0;
        for (; c + vectors * R::lanes <= channels; c += vectors * R::lanes) {
            add_rows<R, Heads, vectors>(load, tokens, c, weights + i * tile_tokens, sums + i * stride + c, stride);
        }
        for (; c < channels; c += R::lanes) {
            add_rows<R, Heads, 1>(load, tokens, c, weights + i * tile_tokens, sums + i * stride + c, stride);
        }
    });
}

}  // namespace detail

template <class Backend>
    requires requires { typename Backend::registers; }
constexpr bool scores_from_codes(Backend, const AttendTask& task, const StreamView& in) noexcept {
    return detail::score_form<Backend>(task, in) != detail::ScoreForm::tile;
}

template <class Backend>
    requires requires { typename Backend::registers; }
void score_codes(Backend tag, const AttendTask& task, const StreamView& in, std::size_t first, std::size_t tokens,
                 TileAngles& angles, std::size_t row, std::size_t rows, const detail::AttendScratch& at) noexcept {
    using R = typename Backend::registers;
    const std::size_t count = rows * task.group, dh = task.head_dim;
    const bool absorbed = absorbs_keys(task);
    const float* queries = absorbed ? at.absorbed + row * task.group * task.key.width : at.queries;
    if (!absorbed) detail::scale_queries(task, row, count, at.queries);
    const detail::ScoreForm form = detail::score_form<Backend>(task, in);
    auto* quads = reinterpret_cast<std::uint32_t*>(at.inner);
    if (form == detail::ScoreForm::rows) {
        detail::with_half_rows<R>(in, first, task.key.first, [&](auto load) {
            detail::score_rows_direct<R>(task.key.width, load, tokens, count, queries, at.scores);
        });
        if (absorbed) detail::add_constants(task, row, count, tokens, at);
    } else if (form == detail::ScoreForm::codes) {
        bool rounded = false;
        if constexpr (Backend::int8_products) {
            rounded = rounds_queries<Backend>(task, in);
            if (rounded)
                detail::score_codes_direct<true>(tag, task.key, in, first, tokens, count, queries, at.scores, quads);
        }
        if (!rounded)
            detail::score_codes_direct<false>(tag, task.key, in, first, tokens, count, queries, at.scores, quads);
        if (absorbed) detail::add_constants(task, row, count, tokens, at);
    } else if constexpr (Backend::int8_products) {
        const HeadDecoder& head = task.key;
        const StreamFormat& format = in.format;
        float* memory = at.inner + int8_channels / 4 * detail::quad_tokens;
        std::array<float, int8_channels> scales, zeros;
        const std::int64_t start = angles.start();
        // Token block by token block, each from its first token: the query is turned back by the position of that.
        for (std::size_t t = first / format.group_tokens * format.group_tokens; t < first + tokens;
             t += format.group_tokens) {
            if (task.rope.pairs > 0) {
                angles.move_to(task.rope, start + static_cast<std::int64_t>(t) - static_cast<std::int64_t>(first));
                if (t > first / format.group_tokens * format.group_tokens)
                    detail::scale_queries(task, row, count, at.queries);
                for (std::size_t i = 0; i < count; ++i) {
                    turn_head(tag, task.rope, angles.cosines.data(), angles.sines.data(), -1.0F, at.queries + i * dh);
                }
            }
            const std::size_t some = std::min<std::size_t>(format.group_tokens, first + tokens - t);
            detail::load_quads(tag, in, t, some, head.first, head.width, quads);
            detail::load_channel_scales(in, t / format.group_tokens, head.first, head.width, scales.data(),
                                        zeros.data());
            const detail::Int8Block block =
                detail::fold_weights(tag, head.matrix, dh, head.width, scales.data(), zeros.data(), memory);
            for (std::size_t j = 0; j < dh && head.constant != nullptr; ++j) block.offsets[j] += head.constant[j];
            // at.keys is free: no tile of K is built here.
            float* scores = at.keys;
            if (task.rules.key_norm != nullptr) {
                detail::score_products<R, true>(task, quads, some, block, at.queries, count, format.bits, scores);
            } else {
                detail::score_products<R, false>(task, quads, some, block, at.queries, count, format.bits, scores);
            }
            const std::size_t skip = t < first ? first - t : 0;
            for (std::size_t i = 0; i < count; ++i) {
                std::copy_n(scores + i * tile_tokens + skip, some - skip,
                            at.scores + i * tile_tokens + (t + skip - first));
            }
        }
        angles.move_to(task.rope, start);
    }
}

template <class R>
void prefetch_span(simd<R>, const AttendTask& task, const TokenSpan& span) noexcept {
    detail::prefetch_codes(span.keys, task.key);
    detail::prefetch_codes(span.values, task.value);
}

/// Whether P z can be added up straight from a stream's rows.
template <class Backend>
    requires requires { typename Backend::registers; }
constexpr bool adds_from_codes(Backend, const AttendTask& task, const StreamView& in) noexcept {
    constexpr std::size_t lanes = Backend::registers::lanes;
    const StreamFormat& format = in.format;
    const std::size_t queries = task.rows * task.group;
    if (queries > direct_queries || !absorbs_values(task.value, queries, task.head_dim)) return false;
    if (format.kind == CodeKind::f16 || format.kind == CodeKind::bf16) {
        return task.value.width % lanes == 0 && detail::in_one_block(format, task.value.first, task.value.width);
    }
    return format.quantized() && format.levels == nullptr && format.outliers == 0 && format.group_tokens == 1 &&
           format.group_channels % lanes == 0 && task.value.first % lanes == 0 && task.value.width % lanes == 0;
}

template <class Backend>
    requires requires { typename Backend::registers; }
void add_codes(Backend, const AttendTask& task, const StreamView& in, std::size_t first, std::size_t tokens,
               std::size_t count, float* sums, const detail::AttendScratch& at) noexcept {
    using R = typename Backend::registers;
    const StreamFormat& format = in.format;
    const std::size_t width = task.value.width;
    if (!format.quantized()) {
        detail::with_half_rows<R>(in, first, task.value.first, [&](auto load) {
            detail::add_all_rows<R>(load, tokens, width, at.scores, count, sums, width);
        });
        return;
    }
    alignas(64) std::array<float, detail::quad_tokens + R::lanes> scales, zeros;
    auto* codes = reinterpret_cast<std::uint8_t*>(at.values);  // [tokens][at most 128]
    float* weights = at.keys;                                  // [count][128]
    for (std::size_t c = 0; c < width;) {
        const std::size_t channel = task.value.first + c, block = channel / format.group_channels;
        const std::size_t in_group = channel % format.group_channels;
        const std::size_t channels = std::min({format.channels_of(block) - in_group, width - c, std::size_t{128}});
        // Rows of codes have room for what unpacking writes beyond their end, which the next row overwrites.
        const std::byte* group = in.codes + format.code_offset(first, block);
        const std::size_t step = format.group_bytes(format.channels_of(block));
        const bool vector =
            in_group % (4 * R::lanes) == 0 &&
            detail::with_group(format.bits, format.channels_of(block), [&](auto bits, auto n) {
                // Copies: stored bytes might change what is captured, for all the compiler knows.
                constexpr std::size_t bytes = 4 * R::lanes;
                const std::size_t count_t = tokens, each = channels, skip = in_group / bytes, by = step;
                const std::byte* from = group;
                std::uint8_t* to = codes;
                for (std::size_t t = 0; t < count_t; ++t, from += by, to += each) {
                    detail::prefetch(from + detail::prefetch_rows * by);
                    for (std::size_t k = 0; k < each; k += bytes) {
                        R::store_i32(to + k, detail::code_bytes<R, bits(), n()>(from, skip + k / bytes));
                    }
                }
            });
        for (std::size_t t = 0; t < tokens && !vector; ++t) {
            unpack_group(scalar{}, group + t * step, format.channels_of(block), format.bits, in_group, channels,
                         codes + t * channels);
        }
        detail::load_token_scales<R>(in, first, tokens, block, scales.data(), zeros.data());
        for (std::size_t i = 0; i < count; ++i) {
            auto total = R::zero();
            for (std::size_t t = 0; t < tokens; t += R::lanes) {
                const std::size_t n = std::min(R::lanes, tokens - t);
                const auto p = R::load_first(at.scores + i * tile_tokens + t, n);
                R::store(weights + i * tile_tokens + t, R::mul(p, R::load_first(scales.data() + t, n)));
                total = R::fma(p, R::load_first(zeros.data() + t, n), total);
            }
            const float zero = R::reduce_add(total);
            for (std::size_t k = 0; k < channels; ++k) sums[i * width + c + k] += zero;
        }
        const auto load = [&](std::size_t t, std::size_t k) { return R::to_f32(R::load_u8(codes + t * channels + k)); };
        detail::add_all_rows<R>(load, tokens, channels, weights, count, sums + c, width);
        c += channels;
    }
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
