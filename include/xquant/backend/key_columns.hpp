// Columns of keys that are made of codes per channel where queries are few: pairs of channels that RoPE turns, and slow
// pairs, which it hardly turns within a tile. Slow pairs are never built.
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
// Tried   Four terms and 1e-3: 12 columns in place of 9 for 3 queries, and u A^T, which is made for each tile, took 1.6
//         times as long.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include <xquant/attention/task.hpp>
#include <xquant/backend/rematerialize.hpp>
#include <xquant/backend/scalar/rope.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {

/// Up to this many query heads (of all rows), vector backends take scores from the codes; more share a tile of K.
inline constexpr std::size_t direct_queries = 8;

/// Columns that stand for the slow pairs, for each query; and terms of a constant.
inline constexpr std::size_t slow_terms = 3, constant_terms = 5;

/// The most that a slow pair turns within half a tile, in radians.
inline constexpr double slow_angle = 0.42;

/// Whether a backend with 8-bit products takes scores from codes per channel, a few columns of K at a time.
template <class Backend>
constexpr bool scores_by_products(const AttendTask& task, const StreamView& in) noexcept {
    return Backend::int8_products && task.queries() <= direct_queries && task.shared_channels == 0 &&
           in.format.group_channels == 1 && task.key.width <= int8_channels && fits_int8(in.format, task.key) &&
           task.head_dim % 2 == 0 && !absorbs_keys(task);
}

/// T_1 to T_4 of the tokens -128 .. 255 of a tile, [term - 1][before + token]; T_0 is 1.
struct TurnTable {
    static constexpr std::size_t before = tile_tokens;  ///< tokens that stand before the tile's first
    std::array<std::array<float, 3 * tile_tokens>, constant_terms - 1> at{};

    constexpr TurnTable() noexcept {
        constexpr double half = tile_tokens / 2;
        for (std::size_t i = 0; i < 3 * tile_tokens; ++i) {
            const double s = (static_cast<double>(i) - static_cast<double>(before) - half) / half;
            double last = 1, term = s;
            for (auto& row : at) {
                row[i] = static_cast<float>(term);
                const double next = 2 * s * term - last;
                last = term;
                term = next;
            }
        }
    }
};
inline constexpr TurnTable turn_table;

/// The columns of A_k of a task in the order in which scores use them, and what its slow pairs need. Memory: of
/// key_columns_floats.
struct KeyColumns {
    bool ready = false;     ///< whether all of this is made
    std::size_t pairs = 0,  ///< that are built and turned
        built = 0,          ///< channels that are built: 2 pairs, and those without RoPE
        slow = 0;           ///< channels of slow pairs, behind them: first ones, second ones
    std::array<std::uint16_t, 2 * max_pairs> channels;                ///< [built + slow] which channel of a head it is
    std::array<std::uint16_t, max_pairs> numbers;                     ///< [pairs + slow / 2] which pair of RoPE's it is
    std::array<std::array<float, max_pairs>, constant_terms> series;  ///< [terms][slow / 2] bessel_series
    float* columns = nullptr;                                         ///< [built + slow][width]
    float* terms = nullptr;                                           ///< [3 queries][slow] u of the tile's queries
    float* slow_columns = nullptr;                                    ///< [3 queries][width] u A^T of them
    std::array<float, constant_terms * direct_queries> constants;     ///< [5 queries] u c_k, nought without a constant
    float* rest = nullptr;                                            ///< room for what a backend makes of it

    /// Columns of all queries that stand for slow pairs.
    [[nodiscard]] constexpr std::size_t terms_of(std::size_t queries) const noexcept {
        return slow > 0 ? slow_terms * queries : 0;
    }
};

/// Floats behind the weights of a backend's last column, which are written in whole registers.
inline constexpr std::size_t column_overrun = 16;

/// Floats that KeyColumns need.
constexpr std::size_t key_columns_floats(const AttendTask& task) noexcept {
    const std::size_t dh = task.head_dim, width = task.key.width, terms = slow_terms * direct_queries;
    if (task.key.matrix == nullptr || width > int8_channels || task.queries() > direct_queries) return 0;
    const std::size_t weights = (dh + 4 + terms) * (width / 4 + 2) + column_overrun;  // with their scales and offsets
    return dh * width + terms * (dh + width) + weights + direct_queries * (dh + 4);
}

namespace detail {

/// Whether slow pairs are worth their columns: by operations, rounding columns and u A^T included.
constexpr bool worth_it(std::size_t slow_pairs, std::size_t queries) noexcept {
    return slow_pairs * (20 - queries) > 27 * queries;
}

/// J0, 2 J1, -2 J2, -2 J3, 2 J4 of x, by their series; what is left out is below 1e-6 for x <= slow_angle.
inline std::array<float, constant_terms> bessel_series(double x) noexcept {
    const double half = x / 2, h = half * half;
    return {static_cast<float>(1 - h + h * h / 4 - h * h * h / 36),
            static_cast<float>(2 * half * (1 - h / 2 + h * h / 12)), static_cast<float>(-h * (1 - h / 3 + h * h / 24)),
            static_cast<float>(-half * h / 3 * (1 - h / 4)), static_cast<float>(h * h / 12 * (1 - h / 5))};
}

/// Sorts the channels of a task's keys, and copies the columns of A_k in that order. `memory` is of key_columns_floats,
/// `room` [Dh, width].
template <class Backend>
void order_columns(Backend tag, const AttendTask& task, float* memory, float* room, KeyColumns& out) noexcept {
    constexpr double half = tile_tokens / 2;
    const std::size_t dh = task.head_dim, width = task.key.width, pairs = task.rope.pairs;
    const auto angle = [&](std::size_t j) { return half * task.rope.inverse_frequencies[j]; };
    const auto is_slow = [&](std::size_t j) { return std::abs(angle(j)) <= slow_angle; };
    std::size_t slow = 0;
    // A norm of K needs every channel of K.
    for (std::size_t j = 0; j < pairs && task.rules.key_norm == nullptr; ++j) slow += is_slow(j) ? 1 : 0;
    if (!worth_it(slow, task.queries())) slow = 0;
    out.pairs = pairs - slow;
    out.built = dh - 2 * slow;
    out.slow = 2 * slow;
    std::size_t turned = 0, left = 0;
    for (std::size_t j = 0; j < pairs; ++j) {
        const bool is_left = slow > 0 && is_slow(j);
        out.numbers[is_left ? out.pairs + left : turned] = static_cast<std::uint16_t>(j);
        out.channels[is_left ? out.built + left : 2 * turned] = static_cast<std::uint16_t>(task.rope.first(j));
        out.channels[is_left ? out.built + slow + left : 2 * turned + 1] =
            static_cast<std::uint16_t>(task.rope.second(j));
        if (is_left) {
            const std::array<float, constant_terms> terms = bessel_series(angle(j));
            for (std::size_t m = 0; m < constant_terms; ++m) out.series[m][left] = terms[m];
        }
        ++(is_left ? left : turned);
    }
    for (std::size_t c = 2 * pairs; c < dh; ++c) out.channels[c - out.slow] = static_cast<std::uint16_t>(c);

    out.columns = memory;
    out.terms = out.columns + dh * width;
    out.slow_columns = out.terms + slow_terms * direct_queries * dh;
    out.rest = out.slow_columns + slow_terms * direct_queries * width;
    transpose(tag, {task.key.matrix.floats(), width, dh, dh}, room, width);  // attend_task has made floats of it
    for (std::size_t k = 0; k < dh; ++k) {
        std::copy_n(room + out.channels[k] * width, width, out.columns + k * width);
    }
    out.ready = true;
}

/// u, u A^T and u c_k of the queries of some rows, for a tile by the angles of its start.
template <class Backend>
void make_slow_columns(Backend tag, const AttendTask& task, Slots rows, const TileAngles& angles,
                       KeyColumns& out) noexcept {
    const std::size_t width = task.key.width, slow = out.slow, n = slow / 2;
    const std::size_t first = rows.first * task.queries_per_kv, count = rows.count * task.queries_per_kv;
    if (slow == 0) return;
    std::array<float, max_pairs> cosines, sines, x, y;
    for (std::size_t k = 0; k < n; ++k) {
        // The angle of the tile's middle; RoPE's factor is in the table, and the scale of scores comes to it.
        const std::size_t j = out.numbers[out.pairs + k], middle = j * task.rope.tokens + tile_tokens / 2;
        const float c = task.rope.cosines[middle] * task.rules.scale, s = task.rope.sines[middle] * task.rules.scale;
        cosines[k] = angles.cosines[j] * c - angles.sines[j] * s;
        sines[k] = angles.cosines[j] * s + angles.sines[j] * c;
    }
    out.constants.fill(0);
    const std::uint16_t* const channels = out.channels.data() + out.built;
    for (std::size_t i = 0; i < count; ++i) {
        const float* const q = task.query(first + i);
        for (std::size_t k = 0; k < n; ++k) {
            const float a = q[channels[k]], b = q[channels[n + k]];
            x[k] = a * cosines[k] + b * sines[k];
            y[k] = b * cosines[k] - a * sines[k];
        }
        for (std::size_t m = 0; m < slow_terms; ++m) {
            float* XQUANT_RESTRICT const u = out.terms + (slow_terms * i + m) * slow;
            const float* XQUANT_RESTRICT const series = out.series[m].data();
            const float* const one = m % 2 == 0 ? x.data() : y.data();
            const float* const other = m % 2 == 0 ? y.data() : x.data();
            const float sign = m % 2 == 0 ? 1.0F : -1.0F;
            for (std::size_t k = 0; k < n; ++k) {
                u[k] = series[k] * one[k];
                u[n + k] = sign * series[k] * other[k];
            }
        }
        for (std::size_t k = 0; k < n && task.key.constant != nullptr; ++k) {
            const float a = task.key.constant[channels[k]], b = task.key.constant[channels[n + k]];
            for (std::size_t m = 0; m < constant_terms; ++m) {
                out.constants[constant_terms * i + m] +=
                    out.series[m][k] * (m % 2 == 0 ? x[k] * a + y[k] * b : y[k] * a - x[k] * b);
            }
        }
    }
    multiply(tag, {out.terms, slow, 1}, {out.columns + out.built * width, slow, width, width},
             {out.slow_columns, slow_terms * count, width, width}, false);
}

/// scores [queries of `rows`, 128] += the part of the slow pairs, token by token: what vector backends must equal.
inline void add_slow_scores(scalar tag, const AttendTask& task, const StreamView& in, Slots tokens, std::size_t queries,
                            const KeyColumns& columns, float* scores) noexcept {
    if (columns.slow == 0) return;
    const StreamFormat& format = in.format;
    const HeadDecoder& head = task.key;
    std::array<std::array<std::uint8_t, tile_tokens>, int8_channels> codes;  // [channel][token]
    std::array<float, int8_channels> scales, zeros;
    for (std::size_t t = 0; t < tokens.count;) {
        const std::size_t in_block = (tokens.first + t) % format.group_tokens;
        const std::size_t block = (tokens.first + t) / format.group_tokens;
        const std::size_t some = (std::min)(format.group_tokens - in_block, tokens.count - t);
        for (std::size_t c = 0; c < head.width; ++c) {
            const GroupScale scale = stored_scale(in, format.group_index(block, head.first + c));
            scales[c] = scale.scale;
            zeros[c] = scale.zero;
            unpack_group(tag, in.codes + format.code_offset(block, head.first + c), format.group_tokens, format.bits,
                         {in_block, some}, codes[c].data());
        }
        const auto turn = [&](std::size_t m, std::size_t k) {
            return m == 0 ? 1.0F : turn_table.at[m - 1][TurnTable::before + t + k];
        };
        for (std::size_t i = 0; i < slow_terms * queries; ++i) {
            const float* const column = columns.slow_columns + i * head.width;
            std::array<std::int8_t, int8_channels> weights;
            const float step = quantize_weights(column, 1, head.width, scales.data(), int8_top, weights.data());
            float offset = 0;
            for (std::size_t c = 0; c < head.width; ++c) offset += zeros[c] * column[c];
            for (std::size_t k = 0; k < some; ++k) {
                std::int32_t sum = 0;
                for (std::size_t c = 0; c < head.width; ++c) sum += codes[c][k] * weights[c];
                const float part = static_cast<float>(sum) * step + offset;
                scores[i / slow_terms * tile_tokens + t + k] += turn(i % slow_terms, k) * part;
            }
        }
        for (std::size_t i = 0; i < constant_terms * queries; ++i) {
            for (std::size_t k = 0; k < some; ++k) {
                scores[i / constant_terms * tile_tokens + t + k] += turn(i % constant_terms, k) * columns.constants[i];
            }
        }
        t += some;
    }
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
