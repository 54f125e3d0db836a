// Vector attention, the scores: for few query rows straight from what is stored.
//
//     rows       f16 or bf16: simd/product.hpp
//     codes      per token, without A or with A taken into q (kv4, q8_0); scales are applied to the sums. Rows of 4 and
//                8 bits meet queries in bytes as they are stored (simd/code_rows.hpp); others become words of 4
//                channels, lanes are tokens, and queries have 8 bits where codes have at most 5, or are floats
//     products   with A, int8; what RoPE hardly turns is never built (backend/slow_pairs.hpp). Per channel: products,
//                A's step, RoPE and q in one pass over 4 columns of K, which itself is never stored; per token: a tile
//                of K, block by block of channels
//     tile       everything else: a tile of K in f32, and `multiply`
//
// Limit   rows: memory, then FMA. codes: simd/code_rows.hpp; of floats, FMA and conversion. products:
//         simd/key_products.hpp, simd/row_products.hpp. Each kernel asks for a row of the next tile while it reads one
//         of this tile, and for scales likewise, so that memory works while it computes.
// Tried   Asking for rows 32 ahead, and for the first 4 KB of the next page when a page begins: with cold caches f16
//         took 1.35 times, kv4 1.4 times the time. A quarter of the rows asked for lay behind the page's end, where
//         nobody reads, and a core that asks for 64 lines at once waits. Asking for all scales of the next tile at
//         once, 32 lines: 1.1 times the time of kv4 and kv8 with 128 channels.
#pragma once

#include <xquant/backend/simd/code_rows.hpp>
#include <xquant/backend/simd/product.hpp>
#include <xquant/backend/tile_loop.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {
namespace detail {

constexpr bool in_one_block(const StreamFormat& format, std::size_t first, std::size_t channels) noexcept {
    return first / format.group_channels == (first + channels - 1) / format.group_channels;
}

/// How scores are taken from a stream.
enum class ScoreForm : unsigned char { tile, rows, codes, products };

template <class Backend>
constexpr ScoreForm score_form(const AttendTask& task, const StreamView& in) noexcept {
    const StreamFormat& format = in.format;
    const HeadDecoder& head = task.key;
    if (task.queries() > direct_queries || task.shared_channels > 0 || format.outliers > 0) return ScoreForm::tile;
    if (reads_latent(task)) {
        const bool half = format.kind == CodeKind::f16 || format.kind == CodeKind::bf16;
        const bool whole = head.width % Backend::registers::lanes == 0 && in_one_block(format, head.first, head.width);
        if (half && whole) return ScoreForm::rows;
        if (has_code_words(format, head)) return ScoreForm::codes;
    }
    return scores_by_products<Backend>(task, in) ? ScoreForm::products : ScoreForm::tile;
}

/// The scales of one head in a page, and the first 4 KB of its codes.
inline void prefetch_head(const StreamView& in, const HeadDecoder& head) noexcept {
    const StreamFormat& format = in.format;
    if (!format.quantized()) return;
    const std::size_t first = head.first / format.group_channels;
    const std::size_t last = (head.first + head.width - 1) / format.group_channels;
    const std::byte* codes = in.codes + format.code_offset(0, first);
    const std::byte* end = in.codes + format.code_offset(0, last + 1);
    for (std::size_t i = 0; i < 4096 && codes + i < end; i += 64) prefetch(codes + i);
    for (const f16* halves : {in.scales, in.zeros}) {
        if (halves == nullptr) continue;
        const f16* halves_end = halves + format.group_index(0, last + 1);
        halves += format.group_index(0, first);
        for (std::size_t i = 0; i < 1024 && halves + i < halves_end; i += 32) prefetch(halves + i);
    }
}

/// Calls f(rows): the rows of some tokens in a stream of f16 or bf16, channels of one block.
template <class F>
void with_half_rows(const StreamView& in, Slots tokens, Slots channels, std::size_t ahead, F&& f) {
    const StreamFormat& format = in.format;
    const std::size_t block = channels.first / format.group_channels, step = format.channels_of(block);
    const std::byte* base =
        in.codes + format.code_offset(tokens.first, block) + channels.first % format.group_channels * sizeof(f16);
    if (in.format.kind == CodeKind::f16) {
        f(Rows<f16>{reinterpret_cast<const f16*>(base), tokens.count, channels.count, step, ahead});
    } else {
        f(Rows<bf16>{reinterpret_cast<const bf16*>(base), tokens.count, channels.count, step, ahead});
    }
}

/// How queries meet codes per token: as floats; in 8 bits; or, for rows of 8-bit codes that score_byte_rows reads, in
/// 15 bits, two bytes. With bytes, products are integers.
enum class QueryForm : unsigned char { floats, bytes, two_bytes };

template <class Backend>
constexpr QueryForm query_form(const AttendTask& task, const StreamView& in) noexcept {
    if (!Backend::int8_products) return QueryForm::floats;
    if (rounds_queries<Backend>(task, in)) return QueryForm::bytes;
    return Backend::registers::dot_bits >= 8 && in.format.bits == 8 ? QueryForm::two_bytes : QueryForm::floats;
}

template <class Backend, class F>
void with_query_form(const AttendTask& task, const StreamView& in, F&& f) noexcept {
    const QueryForm form = query_form<Backend>(task, in);
    if constexpr (Backend::int8_products) {
        if (form == QueryForm::bytes) return f(std::integral_constant<QueryForm, QueryForm::bytes>{});
        if constexpr (Backend::registers::dot_bits >= 8) {
            if (form == QueryForm::two_bytes) return f(std::integral_constant<QueryForm, QueryForm::two_bytes>{});
        }
    }
    f(std::integral_constant<QueryForm, QueryForm::floats>{});
}

/// Rounds a row of floats to 8 bits, as quantize_weights does: x ~ step * byte, |byte| <= 127. `bytes` [n] has room up
/// to the next multiple of `lanes`; `sum` is the sum of the bytes.
struct RoundedRow {
    float step, sum;
};
template <class R>
RoundedRow round_row(const float* x, std::size_t n, std::uint8_t* bytes) noexcept {
    const float most = largest_of<R>(x, n);
    const auto inverse = R::splat(most > 0 ? int8_top / most : 0.0F);
    auto sum = R::zero();
    for (std::size_t c = 0; c < n; c += R::lanes) {
        const auto whole = R::round(R::mul(R::load_first(x + c, (std::min)(R::lanes, n - c)), inverse));
        R::store_u8(bytes + c, R::bits_and(whole, R::splat_i32(0xFF)));
        sum = R::add(sum, R::to_f32(whole));
    }
    return {most / int8_top, R::reduce_add(sum)};
}

/// Rounds the queries [count, width] of a task, once for all tiles.
template <QueryForm Form, class R>
void round_all_queries(const HeadDecoder& head, const StreamFormat& format, const float* queries, std::size_t count,
                       QueryGroups& out) noexcept {
    QueryGroup* group = out.groups;
    for (std::size_t c = 0; c < head.width; ++group) {
        const std::size_t channels = rounded_channels(format, head, c);
        for (std::size_t i = 0; i < count; ++i) {
            const float* const query = queries + i * head.width + c;
            if constexpr (Form == QueryForm::two_bytes) {
                round_weights<R>(load_tile_row<R>(query, channels), i, *group);
                group->sums[i] = sum_of<R>(query, channels);
            } else {
                const RoundedRow row = round_row<R>(query, channels, group->high.data() + i * tile_tokens);
                group->steps[i] = row.step;
                group->sums[i] = row.step * row.sum;
            }
        }
        c += channels;
    }
    out.format = format;
}

/// sums[h][v] = sum over channels of code * q, for tokens t + v * lanes .. of the quads.
template <class R, std::size_t Heads, std::size_t Vectors>
void dot_codes(const std::uint32_t* quads, std::size_t channels, std::size_t t, const float* queries, std::size_t dh,
               typename R::f32 (&sums)[Heads][Vectors]) noexcept {
    const auto byte = R::splat_i32(0xFF);
    XQUANT_UNROLL
    for (auto& row : sums) {
        XQUANT_UNROLL
        for (auto& sum : row) sum = R::zero();
    }
    for (std::size_t q = 0; q < channels / 4; ++q) {
        XQUANT_UNROLL
        for (std::size_t v = 0; v < Vectors; ++v) {
            const auto words = R::load_i32(quads + q * quad_tokens + t + v * R::lanes);
            const typename R::f32 codes[4] = {
                R::to_f32(R::bits_and(words, byte)), R::to_f32(R::bits_and(R::shift_right(words, 8), byte)),
                R::to_f32(R::bits_and(R::shift_right(words, 16), byte)), R::to_f32(R::shift_right(words, 24))};
            XQUANT_UNROLL
            for (std::size_t h = 0; h < Heads; ++h) {
                XQUANT_UNROLL
                for (std::size_t k = 0; k < 4; ++k) {
                    sums[h][v] = R::fma(codes[k], R::splat(queries[h * dh + 4 * q + k]), sums[h][v]);
                }
            }
        }
    }
}

/// Like dot_codes in f32, but queries have 8 bits: weights [Heads][int8_channels / 4], 4 channels a word.
template <class R, std::size_t Heads, std::size_t Vectors>
void dot_codes(const std::uint32_t* quads, std::size_t channels, std::size_t t, const std::uint32_t* weights,
               std::size_t run, typename R::f32 (&sums)[Heads][Vectors]) noexcept {
    typename R::i32 total[Heads][Vectors], part[Heads][Vectors];
    XQUANT_UNROLL
    for (auto& row : total) {
        XQUANT_UNROLL
        for (auto& sum : row) sum = R::zero_i32();
    }
    for (std::size_t q = 0; q < channels / 4;) {
        const std::size_t end = channels / 4 - q > run ? q + run : channels / 4;
        XQUANT_UNROLL
        for (auto& row : part) {
            XQUANT_UNROLL
            for (auto& sum : row) sum = R::zero_i32();
        }
        for (; q < end; ++q) {
            typename R::i32 codes[Vectors];
            XQUANT_UNROLL
            for (std::size_t v = 0; v < Vectors; ++v)
                codes[v] = R::load_i32(quads + q * quad_tokens + t + v * R::lanes);
            XQUANT_UNROLL
            for (std::size_t h = 0; h < Heads; ++h) {
                const auto weight = R::template repeat<4>(weights + h * (int8_channels / 4) + q);
                XQUANT_UNROLL
                for (std::size_t v = 0; v < Vectors; ++v) part[h][v] = R::dot(part[h][v], codes[v], weight);
            }
        }
        XQUANT_UNROLL
        for (std::size_t h = 0; h < Heads; ++h) {
            XQUANT_UNROLL
            for (std::size_t v = 0; v < Vectors; ++v) total[h][v] = R::add_i32(total[h][v], R::dot_end(part[h][v]));
        }
    }
    XQUANT_UNROLL
    for (std::size_t h = 0; h < Heads; ++h) {
        XQUANT_UNROLL
        for (std::size_t v = 0; v < Vectors; ++v) sums[h][v] = R::to_f32(total[h][v]);
    }
}

/// Queries [count, width] of some rows, and where their scores [count, 128] go.
struct ScoredQueries {
    const float* queries;
    std::size_t first,  ///< of them among those of the task
        count;
    float* scores;
};

/// Scores from codes per token: scale * (code . q) + zero * sum of q, group by group. Queries in bytes are those of
/// `groups`.
template <QueryForm Form, class R>
void score_codes_direct(simd<R> tag, const HeadDecoder& head, const StreamView& in, Slots of_tokens,
                        const ScoredQueries& of, const BytesAhead& ahead, const QueryGroup* groups,
                        std::uint32_t* quads) noexcept {
    const std::size_t tokens = of_tokens.count, count = of.count;
    const float* const queries = of.queries;
    float* const scores = of.scores;
    constexpr std::size_t vectors = R::count >= 32 ? 4 : 2, wide = vectors * R::lanes;
    [[maybe_unused]] const std::size_t run = R::dot_run(in.format.bits);
    const std::size_t width = head.width;
    alignas(64) std::array<float, quad_tokens + R::lanes> scales, zeros;
    for (std::size_t c = 0; c < width;) {
        const std::size_t channel = head.first + c;
        const std::size_t channels = rounded_channels(in.format, head, c);
        const std::size_t block = channel / in.format.group_channels;
        const std::size_t row_bytes = Form != QueryForm::floats ? code_row_bytes<R>(in.format, {channel, channels}) : 0;
        const CodeRows rows{in.codes + in.format.code_offset(of_tokens.first, block), tokens, ahead.codes};
        if (row_bytes == 0) load_quads(tag, in, of_tokens, {channel, channels}, ahead.codes, quads);
        load_token_scales<R>(in, of_tokens, block, ahead.scales, scales.data(), zeros.data());
        for_heads(count, [&]<std::size_t Heads>(std::size_t i, std::integral_constant<std::size_t, Heads>) {
            float totals[Heads], steps[Heads];
            const std::size_t first = of.first + i;
            XQUANT_UNROLL
            for (std::size_t h = 0; h < Heads; ++h) {
                if constexpr (Form == QueryForm::floats) {
                    totals[h] = sum_of<R>(queries + (i + h) * width + c, channels);
                    steps[h] = 1;
                } else {
                    totals[h] = groups->sums[first + h];
                    steps[h] = Form == QueryForm::bytes || row_bytes > 0 ? groups->steps[first + h] : 1;
                }
            }
            const auto put = [&](std::size_t h, std::size_t at, typename R::f32 sum) {
                float* to = scores + (i + h) * tile_tokens + at;
                auto value = R::mul(R::load(zeros.data() + at), R::splat(totals[h]));
                value = R::fma(R::mul(R::load(scales.data() + at), R::splat(steps[h])), sum, value);
                R::store(to, c == 0 ? value : R::add(value, R::load(to)));
            };
            if constexpr (Form != QueryForm::floats) {
                if (row_bytes > 0) {
                    with_code_row_bytes<R>(row_bytes, [&](auto bytes) {
                        if constexpr (Form == QueryForm::two_bytes) {
                            score_byte_rows<R, bytes(), Heads>(rows, *groups, first, put);
                        } else {
                            score_code_rows<R, bytes(), Heads>(rows, groups->high.data() + first * tile_tokens, put);
                        }
                    });
                    return;
                }
            }
            for (std::size_t t = 0; t < tokens; t += wide) {
                typename R::f32 sums[Heads][vectors];
                if constexpr (Form == QueryForm::bytes) {
                    std::array<std::uint32_t, Heads * int8_channels / 4> words;
                    std::memcpy(words.data(), groups->high.data() + first * tile_tokens, sizeof words);
                    dot_codes<R, Heads, vectors>(quads, channels, t, words.data(), run, sums);
                } else {
                    dot_codes<R, Heads, vectors>(quads, channels, t, queries + i * width + c, width, sums);
                }
                XQUANT_UNROLL
                for (std::size_t h = 0; h < Heads; ++h) {
                    for (std::size_t v = 0; v < vectors && t + v * R::lanes < tokens; ++v) {
                        put(h, t + v * R::lanes, sums[h][v]);
                    }
                }
            }
        });
        c += channels;
        ++groups;
    }
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
