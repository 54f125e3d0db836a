// Slow pairs of channels, which RoPE hardly turns within a tile: their part in q K^T without K.
//
// A token at s = (number - 64) / 64 of its tile is turned by x s more than the tile's middle, x = 64 |frequency|, and
//
//     cos(x s) ~ J0(x) - 2 J2(x) T2(s) + ...,   sin(x s) ~ 2 J1(x) T1(s) - ...               T: Chebyshev's polynomials
//
// so the part that all slow pairs have in q K^T is  sum over m < 3 of T_m(s) (u_m A^T z)  with three vectors u_m of the
// query: three columns for a query where a pair has two.
//
// Error   at most 2 J3(slow_angle) = 3e-3 of |q| |z A| of a pair, at the ends of a tile, and a hundredth of that for a
//         pair that turns a fifth as fast; u_m A^T is rounded to 8 bits, as the columns of A are, which is off by more.
//         A constant c_k may be far larger than z A, as biases of keys are: its part has five terms, at most 7e-6 of
//         |q| |c_k| off.
// Cost    u A^T for each tile, three columns of slow channels times width for each query. Pairs that turn ten times
//         less are expanded about the middle of a stretch of 1,024 positions, and their u A^T is made once for it:
//         polynomials of a position are polynomials of its place in a tile, of the same degree. Of 39 slow pairs (Dh
//         128, base 500,000) these are 29, and a token took 4 % less time.
// Tried   Four terms and 1e-3: 12 columns in place of 9 for 3 queries, and u A^T, which is made for each tile, took 1.6
//         times as long.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include <xquant/backend/key_columns.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// Slow pairs of KeyColumns that are expanded about one middle.
struct SlowPairs {
    const std::uint16_t *numbers,  ///< [count] which pair of RoPE's it is
        *channels;                 ///< [count] first ones, [count] second ones
    std::size_t count;
};

inline SlowPairs pairs_of_tile(const KeyColumns& columns) noexcept {
    return {columns.numbers.data() + columns.pairs, columns.channels.data() + columns.built, columns.by_tile};
}
inline SlowPairs pairs_of_stretch(const KeyColumns& columns) noexcept {
    return {columns.numbers.data() + columns.pairs + columns.by_tile,
            columns.channels.data() + columns.built + 2 * columns.by_tile, columns.slow / 2 - columns.by_tile};
}

/// Angles of slow pairs at one position, times RoPE's factor and the scale of scores.
struct SlowAngles {
    std::array<float, max_pairs> cosines, sines;

    /// At token `place` of a tile, by the angles of its start.
    SlowAngles(const AttendTask& task, const SlowPairs& of, const TileAngles& angles, std::size_t place) noexcept {
        for (std::size_t k = 0; k < of.count; ++k) {
            const std::size_t j = of.numbers[k], at = j * task.rope.tokens + place;
            const float c = task.rope.cosines[at] * task.rules.scale, s = task.rope.sines[at] * task.rules.scale;
            cosines[k] = angles.cosines[j] * c - angles.sines[j] * s;
            sines[k] = angles.cosines[j] * s + angles.sines[j] * c;
        }
    }

    /// A query's pairs turned back by them.
    void turn(const SlowPairs& of, const float* q, float* XQUANT_RESTRICT x, float* XQUANT_RESTRICT y) const noexcept {
        for (std::size_t k = 0; k < of.count; ++k) {
            const float a = q[of.channels[k]], b = q[of.channels[of.count + k]];
            x[k] = a * cosines[k] + b * sines[k];
            y[k] = b * cosines[k] - a * sines[k];
        }
    }
};

/// u_m [2 n] of a query's n pairs, turned to the middle: what their first and their second channels meet.
inline void expand_pairs(std::size_t m, const float* XQUANT_RESTRICT series, const float* x, const float* y,
                         std::size_t n, float* XQUANT_RESTRICT u) noexcept {
    const float* const one = m % 2 == 0 ? x : y;
    const float* const other = m % 2 == 0 ? y : x;
    const float sign = m % 2 == 0 ? 1.0F : -1.0F;
    for (std::size_t k = 0; k < n; ++k) {
        u[k] = series[k] * one[k];
        u[n + k] = sign * series[k] * other[k];
    }
}

/// u A^T of the queries of some rows [3 queries][width], for slow pairs whose angles and series about one position are
/// given. `terms` [3 queries][2 pairs] are made on the way.
template <class Backend, std::size_t Terms>
void multiply_slow_pairs(Backend tag, const AttendTask& task, Slots rows, const SlowPairs& of, const SlowAngles& angles,
                         const std::array<std::array<float, max_pairs>, Terms>& series, const float* a, float* terms,
                         float* out) noexcept {
    const std::size_t width = task.key.width, n = of.count, first = rows.first * task.queries_per_kv;
    const std::size_t count = rows.count * task.queries_per_kv;
    std::array<float, max_pairs> x, y;
    for (std::size_t i = 0; i < count; ++i) {
        angles.turn(of, task.query(first + i), x.data(), y.data());
        for (std::size_t m = 0; m < slow_terms; ++m) {
            expand_pairs(m, series[m].data(), x.data(), y.data(), n, terms + (slow_terms * i + m) * 2 * n);
        }
    }
    multiply(tag, {terms, 2 * n, 1}, {a, 2 * n, width, width}, {out, slow_terms * count, width, width}, false);
}

/// Where channels of K are stored: u of the tile's queries, which are the columns, and the queries that are turned to
/// its middle.
inline void turn_stored_pairs(const AttendTask& task, Slots rows, const TileAngles& angles, KeyColumns& out) noexcept {
    const SlowPairs of = pairs_of_tile(out);
    const SlowAngles middle(task, of, angles, tile_tokens / 2);
    for (std::size_t i = 0; i < rows.count * task.queries_per_kv; ++i) {
        float *const x = out.terms + i * out.slow, *const y = x + of.count;
        middle.turn(of, task.query(rows.first * task.queries_per_kv + i), x, y);
        for (std::size_t m = 0; m < slow_terms; ++m) {
            float* const u = out.slow_columns + (slow_terms * i + m) * out.width;
            expand_pairs(m, out.series[m].data(), x, y, of.count, u);
            std::fill(u + out.slow, u + out.width, 0.0F);
        }
    }
}

/// Columns of T_0, T_1 and T_2 of a place in a stretch -> those of a place in a tile.
struct StretchToTile {
    float one, two,  ///< what is added to the first column: this much of the second and of the third
        one_of_one, one_of_two, two_of_two;

    /// to [3][width] += from [3][width]. Restricted parameters: g++ vectorizes with them, not with local pointers.
    void add(std::size_t width, const float* XQUANT_RESTRICT from, float* XQUANT_RESTRICT to,
             float* XQUANT_RESTRICT to_one, float* XQUANT_RESTRICT to_two) const noexcept {
        for (std::size_t k = 0; k < width; ++k) {
            const float b = from[width + k], c = from[2 * width + k];
            to[k] += from[k] + one * b + two * c;
            to_one[k] += one_of_one * b + one_of_two * c;
            to_two[k] += two_of_two * c;
        }
    }
};

/// slow_columns += stretch_columns, whose polynomials of a position become those of its place in the tile.
inline void add_stretch_columns(std::size_t queries, std::size_t width, double middle,
                                const KeyColumns& columns) noexcept {
    // T_m of alpha + beta s in T_0, T_1 and T_2 of s.
    const double stretch_middle =
        static_cast<double>(columns.stretch.number * stretch_positions) + stretch_positions / 2.0 + tile_tokens / 2.0;
    const double alpha = (middle - stretch_middle) / half_stretch, beta = tile_tokens / 2.0 / half_stretch;
    const StretchToTile shift{static_cast<float>(alpha), static_cast<float>(2 * alpha * alpha - 1 + beta * beta),
                              static_cast<float>(beta), static_cast<float>(4 * alpha * beta),
                              static_cast<float>(beta * beta)};
    for (std::size_t i = 0; i < queries; ++i) {
        float* const to = columns.slow_columns + slow_terms * i * width;
        shift.add(width, columns.stretch_columns + slow_terms * i * width, to, to + width, to + 2 * width);
    }
}

/// constants [5] += u c of n slow pairs of a query, turned to the middle of the tile, whose keys are all (a, b); the
/// series of the first is `before`.
inline void add_constant_terms(const KeyColumns& columns, std::size_t before, std::size_t n, const float* x,
                               const float* y, const float* a, const float* b, float* constants) noexcept {
    for (std::size_t m = 0; m < constant_terms; ++m) {
        const float* const series = columns.series[m].data() + before;
        float sum = 0;
        for (std::size_t k = 0; k < n; ++k) {
            sum += series[k] * (m % 2 == 0 ? x[k] * a[k] + y[k] * b[k] : y[k] * a[k] - x[k] * b[k]);
        }
        constants[m] += sum;
    }
}

/// constants += u c_k of some slow pairs, by their angles in the middle of the tile; their series begin at `before`.
inline void add_slow_constants(const AttendTask& task, Slots rows, const SlowPairs& of, const SlowAngles& middle,
                               std::size_t before, KeyColumns& out) noexcept {
    std::array<float, max_pairs> x, y, a, b;
    for (std::size_t k = 0; k < of.count; ++k) {
        a[k] = task.key.constant[of.channels[k]];
        b[k] = task.key.constant[of.channels[of.count + k]];
    }
    for (std::size_t i = 0; i < rows.count * task.queries_per_kv; ++i) {
        middle.turn(of, task.query(rows.first * task.queries_per_kv + i), x.data(), y.data());
        add_constant_terms(out, before, of.count, x.data(), y.data(), a.data(), b.data(),
                           out.constants.data() + constant_terms * i);
    }
}

/// Where channels of K are stored: constants become those of a block of tokens, u times what the middle codes of slow
/// channels stand for, `centers` [slow].
inline void set_stored_constants(std::size_t queries, const float* centers, KeyColumns& out) noexcept {
    const std::size_t n = out.slow / 2;
    out.constants.fill(0);
    for (std::size_t i = 0; i < queries; ++i) {
        const float* const x = out.terms + i * out.slow;
        add_constant_terms(out, 0, n, x, x + n, centers, centers + n, out.constants.data() + constant_terms * i);
    }
}

/// u A^T and u c_k of the queries of some rows, for a tile by the angles of its start.
template <class Backend>
void make_slow_columns(Backend tag, const AttendTask& task, Slots rows, const TileAngles& angles,
                       KeyColumns& out) noexcept {
    const std::size_t width = task.key.width, queries = rows.count * task.queries_per_kv;
    if (out.slow == 0) return;
    if (out.stored) return turn_stored_pairs(task, rows, angles, out);
    const SlowPairs tile = pairs_of_tile(out), stretch = pairs_of_stretch(out);
    const float* const tile_a = out.slow_matrix;
    const SlowAngles tile_angles(task, tile, angles, tile_tokens / 2);
    multiply_slow_pairs(tag, task, rows, tile, tile_angles, out.series, tile_a, out.terms, out.slow_columns);
    if (stretch.count > 0) {
        const std::int64_t start = angles.start();
        const KeyColumns::Stretch here{start / stretch_positions, rows};
        if (!(here == out.stretch)) {
            TileAngles begin;
            begin.move_to(task.rope, here.number * stretch_positions + stretch_positions / 2);
            const SlowAngles middle(task, stretch, begin, tile_tokens / 2);
            multiply_slow_pairs(tag, task, rows, stretch, middle, out.stretch_series, tile_a + 2 * tile.count * width,
                                out.terms, out.stretch_columns);
            out.stretch = here;
        }
        add_stretch_columns(queries, width, static_cast<double>(start) + tile_tokens / 2.0, out);
    }
    out.constants.fill(0);
    if (task.key.constant == nullptr) return;
    add_slow_constants(task, rows, tile, tile_angles, 0, out);
    add_slow_constants(task, rows, stretch, SlowAngles(task, stretch, angles, tile_tokens / 2), tile.count, out);
}

/// The slow pairs' part of scores, before their polynomials: [5 queries][128].
using SlowParts = std::array<float, constant_terms * direct_queries * tile_tokens>;

/// parts from codes per channel, token by token. Where channels of K are stored, constants are made for each block.
inline void add_slow_parts_by_channel(const HeadDecoder& head, const StreamView& in, Slots tokens, std::size_t queries,
                                      KeyColumns& columns, SlowParts& parts) noexcept {
    const StreamFormat& format = in.format;
    const float middle = middle_code(format);
    const std::size_t width = columns.stored ? columns.slow : columns.width;
    std::array<std::array<std::uint8_t, tile_tokens>, int8_channels> codes;  // [channel][token]
    std::array<float, int8_channels> scales, centers;
    for (std::size_t t = 0; t < tokens.count;) {
        const std::size_t in_block = (tokens.first + t) % format.group_tokens;
        const std::size_t block = (tokens.first + t) / format.group_tokens;
        const std::size_t some = (std::min)(format.group_tokens - in_block, tokens.count - t);
        for (std::size_t c = 0; c < width; ++c) {
            const std::size_t channel = head.first + columns.channel(c);
            const GroupScale scale = stored_scale(in, format.group_index(block, channel));
            scales[c] = scale.scale;
            centers[c] = scale.zero + middle * scale.scale;
            unpack_group(scalar{}, in.codes + format.code_offset(block, channel), format.group_tokens, format.bits,
                         {in_block, some}, codes[c].data());
        }
        if (columns.stored) set_stored_constants(queries, centers.data(), columns);
        for (std::size_t i = 0; i < queries; ++i) {
            for (std::size_t m = 0; m < constant_terms; ++m) {
                float* const part = parts.data() + (constant_terms * i + m) * tile_tokens + t;
                std::fill_n(part, some, columns.constants[constant_terms * i + m]);
                if (m >= slow_terms) continue;
                const float* const column = columns.slow_columns + (slow_terms * i + m) * columns.width;
                std::array<std::int8_t, int8_channels> weights;
                const RoundedColumn rounded =
                    quantize_weights(column, 1, width, scales.data(), int8_top, weights.data());
                float offset = rounded.shift(middle);
                for (std::size_t c = 0; c < width && !columns.stored; ++c) offset += centers[c] * column[c];
                for (std::size_t k = 0; k < some; ++k) {
                    std::int32_t sum = 0;
                    for (std::size_t c = 0; c < width; ++c) sum += codes[c][k] * weights[c];
                    part[k] += static_cast<float>(sum) * rounded.step + offset;
                }
            }
        }
        t += some;
    }
}

/// Likewise from codes per token, block by block of channels.
inline void add_slow_parts_by_token(const HeadDecoder& head, const StreamView& in, Slots tokens, std::size_t queries,
                                    KeyColumns& columns, SlowParts& parts) noexcept {
    const StreamFormat& format = in.format;
    const float middle = middle_code(format);
    std::array<std::uint8_t, max_group> codes;
    std::array<std::int8_t, int8_channels> weights;
    for (std::size_t i = 0; i < constant_terms * queries; ++i) {
        std::fill_n(parts.data() + i * tile_tokens, tile_tokens, columns.constants[i]);
    }
    for_each_int8_block(format, head, [&](std::size_t c, std::size_t channels) {
        const std::size_t channel = head.first + c, block = channel / format.group_channels;
        for (std::size_t i = 0; i < slow_terms * queries; ++i) {
            const float* const column = columns.slow_columns + i * head.width + c;
            const RoundedColumn rounded = quantize_weights(column, 1, channels, nullptr, int8_top, weights.data());
            float offset = 0;
            for (std::size_t k = 0; k < channels; ++k) offset += column[k];
            for (std::size_t t = 0; t < tokens.count; ++t) {
                const std::size_t token = tokens.first + t;
                const GroupScale scale = stored_scale(in, format.group_index(token, block));
                unpack_group(scalar{}, in.codes + format.code_offset(token, block), format.channels_of(block),
                             format.bits, {channel % format.group_channels, channels}, codes.data());
                std::int32_t sum = 0;
                for (std::size_t k = 0; k < channels; ++k) sum += codes[k] * weights[k];
                const float product = static_cast<float>(sum) * rounded.step + rounded.shift(middle);
                parts[(constant_terms * (i / slow_terms) + i % slow_terms) * tile_tokens + t] +=
                    scale.scale * product + (scale.zero + middle * scale.scale) * offset;
            }
        }
    });
}

/// scores [queries of `rows`, 128] += the part of the slow pairs, token by token: what vector backends must equal.
inline void add_slow_scores(scalar, const AttendTask& task, const StreamView& in, Slots tokens, std::size_t queries,
                            KeyColumns& columns, float* scores) noexcept {
    if (columns.slow == 0) return;
    SlowParts parts;
    if (in.format.group_channels == 1) {
        add_slow_parts_by_channel(task.key, in, tokens, queries, columns, parts);
    } else {
        add_slow_parts_by_token(task.key, in, tokens, queries, columns, parts);
    }
    for (std::size_t i = 0; i < queries; ++i) {
        for (std::size_t m = 0; m < constant_terms; ++m) {
            const float* const part = parts.data() + (constant_terms * i + m) * tile_tokens;
            for (std::size_t t = 0; t < tokens.count; ++t) {
                const float turn = m == 0 ? 1.0F : turn_table.at[m - 1][TurnTable::before + t];
                scores[i * tile_tokens + t] += turn * part[t];
            }
        }
    }
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
