// Columns of keys that are made of codes where queries are few: pairs of channels that RoPE turns, and slow pairs,
// which it hardly turns within a tile and which are never built (backend/slow_pairs.hpp).
//
// Where a channel's tokens share a scale, it is folded into the columns, which every block of tokens rounds to 8 bits
// anew. Where a token's channels do, columns are rounded once for a task. Where K itself is stored, before RoPE and a
// channel's tokens side by side (kivi4), columns are channels: those of built ones need no product.
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

/// Pairs that turn no more than that in half a stretch of positions are expanded about its middle. To a stretch belong
/// the tiles that begin in it.
inline constexpr std::int64_t stretch_positions = 1024;
inline constexpr double half_stretch = (stretch_positions + tile_tokens) / 2.0;

/// Whether the codes are K itself, a channel's tokens side by side, which RoPE turns when it is read.
constexpr bool stores_key_channels(const AttendTask& task, const StreamFormat& format) noexcept {
    return task.key.matrix == nullptr && task.key.constant == nullptr && task.rules.key_norm == nullptr &&
           task.rope.pairs > 0 && task.head_dim % 4 == 0 && fits_products(format, task.key) &&
           format.group_channels == 1;
}

/// Whether scores may come from codes of this format, a few columns of K at a time.
constexpr bool makes_columns(const AttendTask& task, const StreamFormat& format, unsigned rough_bits = 8) noexcept {
    return task.queries() <= direct_queries && task.shared_channels == 0 &&
           (stores_key_channels(task, format) ||
            (fits_int8(format, task.key, rough_bits) && task.head_dim % 2 == 0 && !absorbs_keys(task) &&
             (format.group_channels > 1 || task.key.width <= int8_channels)));
}

/// Whether a backend with 8-bit products takes scores so.
template <class Backend>
constexpr bool scores_by_products(const AttendTask& task, const StreamView& in) noexcept {
    return Backend::int8_products && makes_columns(task, in.format, Backend::dot_bits);
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
        slow = 0,           ///< channels of slow pairs, behind them: of pairs by tile, first ones, then second ones;
                            ///< likewise of pairs by stretch
        by_tile = 0,        ///< slow pairs that are expanded about the middle of a tile, before those of a stretch
        width = 0;          ///< of a slow column: that of A_k; of stored channels, `slow` up to a multiple of 4
    bool stored = false;    ///< stores_key_channels: a slow column has the slow channels alone
    std::array<std::uint16_t, 2 * max_pairs> channels;                ///< [built + slow] which channel of a head it is
    std::array<std::uint16_t, max_pairs> numbers;                     ///< [pairs + slow / 2] which pair of RoPE's it is
    std::array<std::array<float, max_pairs>, constant_terms> series;  ///< [terms][slow / 2] bessel_series in a tile
    std::array<std::array<float, max_pairs>, slow_terms> stretch_series;  ///< [terms][pairs of a stretch]
    float* built_matrix = nullptr;  ///< [built][width] columns of A_k; null where codes lie per token
    float* slow_matrix = nullptr;   ///< [slow][width] likewise, in any case
    float* terms = nullptr;         ///< [3 queries][slow] u of the tile's queries; of stored channels, [queries][slow]
                                    ///< what they are when turned to the tile's middle
    float* slow_columns = nullptr;  ///< [3 queries][width] u A^T of them
    float* stretch_columns = nullptr;                              ///< [3 queries][width] their part of a stretch
    std::array<float, constant_terms * direct_queries> constants;  ///< [5 queries] u c_k, nought without a constant
    /// What stretch_columns were made for.
    struct Stretch {
        std::int64_t number = -1;  ///< of a stretch of positions; -1: none
        Slots rows{};              ///< of queries

        bool operator==(const Stretch& other) const noexcept {
            return number == other.number && rows.first == other.rows.first && rows.count == other.rows.count;
        }
    } stretch;
    float* rest = nullptr;       ///< room for what a backend makes of it
    StreamFormat weights_for{};  ///< codes per token: those that a backend has rounded A_k for; width 0: none

    /// The channel of a head's codes that entry c of a slow column meets.
    [[nodiscard]] constexpr std::size_t channel(std::size_t c) const noexcept {
        if (!stored) return c;
        return channels[built + c];
    }
    /// Columns of all queries that stand for slow pairs.
    [[nodiscard]] constexpr std::size_t terms_of(std::size_t queries) const noexcept {
        return slow > 0 ? slow_terms * queries : 0;
    }
};

/// Floats behind the weights of a backend's last column, which are written in whole registers.
inline constexpr std::size_t column_overrun = 16;

/// Columns behind the last one that a matrix unit reads, whatever they hold.
inline constexpr std::size_t panel_overrun = 15;

/// Floats that KeyColumns need where codes have this format.
constexpr std::size_t key_columns_floats(const AttendTask& task, const StreamFormat& format) noexcept {
    if (!makes_columns(task, format)) return 0;
    const std::size_t dh = task.head_dim, width = task.key.width, terms = slow_terms * direct_queries;
    const std::size_t matrix = task.key.matrix != nullptr ? dh * width : 0;
    const std::size_t slow = matrix + terms * (dh + 2 * width), queries = direct_queries * (dh + 4);
    if (format.group_channels == 1) {
        const std::size_t columns = (matrix > 0 ? dh + 4 : 0) + terms + panel_overrun;
        return slow + columns * (width / 4 + 2) + column_overrun + queries;  // weights, scales and offsets
    }
    std::size_t weights = 0;
    for_each_int8_block(format, task.key,
                        [&](std::size_t, std::size_t channels) { weights += int8_block_floats(channels, dh); });
    return slow + weights + queries;
}

/// Floats that KeyColumns need for any of a task's spans.
constexpr std::size_t key_columns_floats(const AttendTask& task) noexcept {
    std::size_t most = 0;
    for (const TokenSpan& span : task.spans) most = (std::max)(most, key_columns_floats(task, span.keys.format));
    return most;
}

namespace detail {

/// Whether slow pairs are worth their columns: by operations, rounding columns and u A^T included. Of stored channels,
/// columns that are built are cheap, and those of slow pairs are rounded for every block of tokens.
constexpr bool worth_it(std::size_t slow_pairs, std::size_t queries) noexcept {
    return slow_pairs * (20 - queries) > 27 * queries;
}
constexpr bool worth_it_stored(std::size_t slow_pairs, std::size_t queries, std::size_t block_tokens) noexcept {
    return slow_pairs * (20 + queries) > queries * (24 + 5760 / block_tokens);
}

/// J0, 2 J1, -2 J2, -2 J3, 2 J4 of x, by their series; what is left out is below 1e-6 for x <= slow_angle.
inline std::array<float, constant_terms> bessel_series(double x) noexcept {
    const double half = x / 2, h = half * half;
    return {static_cast<float>(1 - h + h * h / 4 - h * h * h / 36),
            static_cast<float>(2 * half * (1 - h / 2 + h * h / 12)), static_cast<float>(-h * (1 - h / 3 + h * h / 24)),
            static_cast<float>(-half * h / 3 * (1 - h / 4)), static_cast<float>(h * h / 12 * (1 - h / 5))};
}

/// Sorts the channels of a task's keys, and copies columns of A_k in that order, once. `memory` is of
/// key_columns_floats, `room` of rematerialize_scratch.
template <class Backend>
void order_columns(Backend tag, const AttendTask& task, const StreamFormat& format, float* memory, float* room,
                   KeyColumns& out) noexcept {
    if (out.ready) return;
    constexpr double half = tile_tokens / 2;
    const std::size_t dh = task.head_dim, width = task.key.width, pairs = task.rope.pairs;
    const auto angle = [&](std::size_t j, double distance) { return distance * task.rope.inverse_frequencies[j]; };
    out.stored = stores_key_channels(task, format);
    // A column has the slow channels that are stored, and its weights share a step.
    const std::size_t fast = out.stored && pairs > int8_channels / 2 ? pairs - int8_channels / 2 : 0;
    const auto turns_little = [&](std::size_t j, double distance) {
        return j >= fast && std::abs(angle(j, distance)) <= slow_angle;
    };
    const auto expands_by_stretch = [&](std::size_t j) { return !out.stored && turns_little(j, half_stretch); };
    std::size_t slow = 0, slowest = 0;
    // A norm of K needs every channel of K.
    for (std::size_t j = 0; j < pairs && task.rules.key_norm == nullptr; ++j) {
        slow += turns_little(j, half) ? 1 : 0;
        slowest += expands_by_stretch(j) ? 1 : 0;
    }
    const bool worth =
        out.stored ? worth_it_stored(slow, task.queries(), format.group_tokens) : worth_it(slow, task.queries());
    if (!worth) slow = slowest = 0;
    out.pairs = pairs - slow;
    out.built = dh - 2 * slow;
    out.slow = 2 * slow;
    out.by_tile = slow - slowest;
    out.width = out.stored ? (out.slow + 3) / 4 * 4 : width;
    std::size_t turned = 0, in_tile = 0, in_stretch = 0;
    for (std::size_t j = 0; j < pairs; ++j) {
        const auto first = static_cast<std::uint16_t>(task.rope.first(j));
        const auto second = static_cast<std::uint16_t>(task.rope.second(j));
        if (slow == 0 || !turns_little(j, half)) {
            out.numbers[turned] = static_cast<std::uint16_t>(j);
            out.channels[2 * turned] = first;
            out.channels[2 * turned + 1] = second;
            ++turned;
            continue;
        }
        const bool by_stretch = expands_by_stretch(j);
        const std::size_t group = by_stretch ? slowest : out.by_tile, at = by_stretch ? in_stretch++ : in_tile++;
        const std::size_t k = by_stretch ? out.by_tile + at : at;
        std::uint16_t* const channels = out.channels.data() + out.built + (by_stretch ? 2 * out.by_tile : 0) + at;
        out.numbers[out.pairs + k] = static_cast<std::uint16_t>(j);
        channels[0] = first;
        channels[group] = second;
        const std::array<float, constant_terms> terms = bessel_series(angle(j, half));
        for (std::size_t m = 0; m < constant_terms; ++m) out.series[m][k] = terms[m];
        if (!by_stretch) continue;
        const std::array<float, constant_terms> of_stretch = bessel_series(angle(j, half_stretch));
        for (std::size_t m = 0; m < slow_terms; ++m) out.stretch_series[m][at] = of_stretch[m];
    }
    for (std::size_t c = 2 * pairs; c < dh; ++c) out.channels[c - out.slow] = static_cast<std::uint16_t>(c);

    const bool by_channel = format.group_channels == 1;
    out.built_matrix = by_channel && !out.stored ? memory : nullptr;
    out.slow_matrix = out.stored ? nullptr : memory + (by_channel ? out.built * width : 0);
    out.terms = memory + (out.stored ? 0 : dh * width);
    out.slow_columns = out.terms + slow_terms * direct_queries * dh;
    out.stretch_columns = out.slow_columns + slow_terms * direct_queries * width;
    out.rest = out.stretch_columns + slow_terms * direct_queries * width;
    const std::size_t first = by_channel ? 0 : out.built;
    float* const to = by_channel ? out.built_matrix : out.slow_matrix;
    for (std::size_t c = 0; c < width && first < dh && !out.stored; c += width_step) {
        const std::size_t some = (std::min)(width_step, width - c);
        const float* const a =
            weights_as_floats(tag, task.key.matrix, {c * dh, some * dh}, room + rematerialize_room(dh));
        transpose(tag, {a, some, dh, dh}, room, some);
        for (std::size_t k = first; k < dh; ++k) {
            std::copy_n(room + out.channels[k] * some, some, to + (k - first) * width + c);
        }
    }
    out.ready = true;
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
