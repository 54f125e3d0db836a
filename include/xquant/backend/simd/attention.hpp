// Vector attention: softmax, and for few query rows scores and P z straight from what is stored.
//
//     score_codes   scores.hpp       add_codes   values.hpp
//
// Everything else (other formats, many query rows) goes through a tile of K or z in f32, and `multiply`.
#pragma once

#include <xquant/backend/simd/key_blocks.hpp>
#include <xquant/backend/simd/row_products.hpp>
#include <xquant/backend/simd/values.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// e^x for x <= 0, lane by lane; NaN of NaN. Like exp_negative, but e^-87 for all x below -87.
template <class R>
typename R::f32 exp_lanes(typename R::f32 x) noexcept {
    x = R::maximum(R::splat(-87.0F), x);  // in this order NaN stays NaN
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
void online_softmax(simd<R>, float* scores, VisibleTokens seen, SoftmaxRow row) noexcept {
    const std::size_t begin = seen.begin, end = seen.end;
    const std::size_t whole = (seen.tokens + R::lanes - 1) / R::lanes * R::lanes;
    if (begin >= end) {
        std::fill_n(scores, whole, 0.0F);
        return;
    }
    // Where all scores are -infinity, so is the maximum, and their differences are NaN.
    constexpr float nothing = -std::numeric_limits<float>::infinity();
    std::fill_n(scores, begin, nothing);
    std::fill_n(scores + end, whole - end, nothing);
    auto highest = R::load(scores);
    for (std::size_t t = R::lanes; t < whole; t += R::lanes) highest = R::maximum(highest, R::load(scores + t));
    const float top = R::reduce_max(highest);
    if (top > row.maximum) {
        const float factor = row.total > 0 ? exp_negative(row.maximum - top) : 0.0F;
        row.total *= factor;
        for (std::size_t c = 0; c < row.width; c += R::lanes) {
            const std::size_t n = (std::min)(R::lanes, row.width - c);
            R::store_first(row.sum + c, R::mul(R::load_first(row.sum + c, n), R::splat(factor)), n);
        }
        row.maximum = top;
    }
    const auto reference = R::splat(row.maximum);
    auto weights = R::zero();
    for (std::size_t t = 0; t < whole; t += R::lanes) {
        const auto e = detail::exp_lanes<R>(R::sub(R::load(scores + t), reference));
        R::store(scores + t, e);
        weights = R::add(weights, e);
    }
    row.total += R::reduce_add(weights);
    std::fill_n(scores, begin, 0.0F);
    std::fill_n(scores + end, whole - end, 0.0F);
}

template <class Backend>
    requires requires { typename Backend::registers; }
constexpr bool scores_from_codes(Backend, const AttendTask& task, const StreamView& in) noexcept {
    return detail::score_form<Backend>(task, in) != detail::ScoreForm::tile;
}

template <class Backend>
    requires requires { typename Backend::registers; }
void score_codes(Backend tag, const AttendTask& task, const StreamView& in, Slots tokens, TileAngles& angles,
                 Slots rows, const AttendScratch& at) noexcept {
    using R = typename Backend::registers;
    const std::size_t count = rows.count * task.queries_per_kv;
    const bool absorbed = absorbs_keys(task);
    const float* queries = absorbed ? at.absorbed + rows.first * task.queries_per_kv * task.key.width : at.queries;
    if (!absorbed) detail::scale_queries(task, rows, at.queries);
    const detail::ScoreForm form = detail::score_form<Backend>(task, in);
    auto* quads = reinterpret_cast<std::uint32_t*>(at.inner);
    if (form == detail::ScoreForm::rows) {
        const std::size_t width = task.key.width;
        detail::with_half_rows(in, tokens, {task.key.first, width}, at.keys_ahead.codes, [&](const auto& keys) {
            detail::multiply_rows<R>({queries, count, width, width}, keys, at.scores, tile_tokens);
        });
        if (absorbed) detail::add_constants(task, rows, tokens.count, at);
    } else if (form == detail::ScoreForm::codes) {
        const std::size_t first = rows.first * task.queries_per_kv;
        const detail::ScoredQueries of{queries, first, count, at.scores};
        const auto score = [&]<detail::QueryForm Form>(std::integral_constant<detail::QueryForm, Form>) {
            if constexpr (Form != detail::QueryForm::floats) {
                if (at.rounded->format != in.format) {
                    // Rows that see nothing of this tile see the next ones.
                    if (!absorbed) detail::scale_queries(task, {0, task.rows}, at.queries);
                    detail::round_all_queries<Form, R>(task.key, in.format, absorbed ? at.absorbed : at.queries,
                                                       task.queries(), *at.rounded);
                    if (!absorbed) detail::scale_queries(task, rows, at.queries);
                }
            }
            detail::score_codes_direct<Form>(tag, task.key, in, tokens, of, at.keys_ahead, at.rounded->groups, quads);
        };
        detail::with_query_form<Backend>(task, in, score);
        if (absorbed) detail::add_constants(task, rows, tokens.count, at);
    } else if constexpr (Backend::int8_products) {
        if (in.format.group_channels == 1) {
            detail::score_token_blocks(tag, task, in, tokens, angles, rows, at);
        } else {
            detail::score_products_by_token(tag, task, in, tokens, angles, rows, at);
        }
    }
}

/// Whether P z can be added up straight from a stream's rows.
template <class Backend>
    requires requires { typename Backend::registers; }
constexpr bool adds_from_codes(Backend, const AttendTask& task, const StreamView& in) noexcept {
    constexpr std::size_t lanes = Backend::registers::lanes;
    const StreamFormat& format = in.format;
    const std::size_t queries = task.queries();
    if (queries > direct_queries || !absorbs_values(task.value, queries, task.head_dim)) return false;
    if (format.kind == CodeKind::f16 || format.kind == CodeKind::bf16) {
        return task.value.width % lanes == 0 && detail::in_one_block(format, task.value.first, task.value.width);
    }
    return format.quantized() && format.levels == nullptr && format.outliers == 0 && format.group_tokens == 1 &&
           format.group_channels % lanes == 0 && task.value.first % lanes == 0 && task.value.width % lanes == 0;
}

template <class Backend>
    requires requires { typename Backend::registers; }
void add_codes(Backend, const AttendTask& task, const StreamView& in, Slots of_tokens, std::size_t count, float* sums,
               const AttendScratch& at) noexcept {
    using R = typename Backend::registers;
    const StreamFormat& format = in.format;
    const std::size_t width = task.value.width, first = of_tokens.first, tokens = of_tokens.count;
    if (!format.quantized()) {
        detail::with_half_rows(in, of_tokens, {task.value.first, width}, at.values_ahead.codes,
                               [&](const auto& values) {
                                   const auto load = [values](std::size_t t, std::size_t c) {
                                       const auto* const from = values.data + t * values.stride + c;
                                       detail::prefetch(from, values.ahead);
                                       return detail::load_some<R>(from, R::lanes);
                                   };
                                   detail::add_all_rows<R>(load, tokens, width, at.scores, count, sums, width);
                               });
        return;
    }
    alignas(64) std::array<float, detail::quad_tokens + R::lanes> scales, zeros;
    auto* codes = reinterpret_cast<std::uint8_t*>(at.values);   // [tokens][at most 128]
    auto* quads = reinterpret_cast<std::uint32_t*>(at.values);  // or [tokens / 4][at most 128]
    float* weights = at.keys;                                   // [count][128]
    for (std::size_t c = 0; c < width;) {
        const std::size_t channel = task.value.first + c, block = channel / format.group_channels;
        const std::size_t in_group = channel % format.group_channels;
        const std::size_t channels = (std::min)({format.channels_of(block) - in_group, width - c, std::size_t{128}});
        detail::load_token_scales<R>(in, of_tokens, block, at.values_ahead.scales, scales.data(), zeros.data());
        const std::size_t row_bytes = detail::value_row_bytes<Backend>(format, {channel, channels});
        const bool quads_there = row_bytes == 0 && detail::load_value_quads<R>(in, of_tokens, {channel, channels},
                                                                               at.values_ahead.codes, quads);
        if constexpr (Backend::int8_products) {
            if (row_bytes > 0 || (quads_there && format.bits <= R::dot_bits)) {
                detail::GroupWeights whole;
                detail::weigh_group<R>(at.scores, tokens, count, scales.data(), zeros.data(), whole);
                if (quads_there) {
                    const detail::ValueQuads of{quads, (tokens + 3) / 4, channels, R::dot_run(format.bits)};
                    detail::add_products<R>(of, whole, count, sums + c, width);
                } else if constexpr (detail::adds_code_rows<R>) {
                    const detail::CodeRows rows{in.codes + format.code_offset(first, block), tokens,
                                                at.values_ahead.codes};
                    detail::with_code_row_bytes<R>(row_bytes, [&](auto bytes) {
                        detail::add_all_code_rows<R, bytes()>(rows, format.bits == 8, whole, count, sums + c, width);
                    });
                }
                c += channels;
                continue;
            }
        }
        for (std::size_t i = 0; i < count; ++i) {
            auto total = R::zero();
            for (std::size_t t = 0; t < tokens; t += R::lanes) {
                const std::size_t n = (std::min)(R::lanes, tokens - t);
                const auto p = R::load_first(at.scores + i * tile_tokens + t, n);
                R::store(weights + i * tile_tokens + t, R::mul(p, R::load_first(scales.data() + t, n)));
                total = R::fma(p, R::load_first(zeros.data() + t, n), total);
            }
            const float zero = R::reduce_add(total);
            for (std::size_t k = 0; k < channels; ++k) sums[i * width + c + k] += zero;
        }
        if (quads_there) {
            const auto load = [&](std::size_t t, std::size_t k) {
                const auto words = R::load_i32(quads + t / 4 * channels + k);
                return R::to_f32(
                    R::bits_and(R::shift_right(words, static_cast<unsigned>(t % 4) * 8), R::splat_i32(0xFF)));
            };
            detail::add_all_rows<R>(load, tokens, channels, weights, count, sums + c, width);
        } else {
            for (std::size_t t = 0; t < tokens; ++t) {
                unpack_group(scalar{}, in.codes + format.code_offset(first + t, block), format.channels_of(block),
                             format.bits, {in_group, channels}, codes + t * channels);
            }
            const auto load = [&](std::size_t t, std::size_t k) {
                return R::to_f32(R::load_u8(codes + t * channels + k));
            };
            detail::add_all_rows<R>(load, tokens, channels, weights, count, sums + c, width);
        }
        c += channels;
    }
}

/// The kernels that read codes ask for those of the next tile while they read; the others leave it to this.
template <class Backend>
    requires requires { typename Backend::registers; }
void prefetch_span(Backend tag, const AttendTask& task, const TokenSpan& span) noexcept {
    if (!scores_from_codes(tag, task, span.keys)) detail::prefetch_head(span.keys, task.key);
    if (!adds_from_codes(tag, task, span.values)) detail::prefetch_head(span.values, task.value);
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
