// A, packed for the tensor cores: 64 channels of a head at a time, in an order that brings the two channels of a RoPE
// pair into one lane; as halves and, where codes allow it, as 8-bit whole numbers. The processor packs it once.
//
//     set s of keys, columns 0 .. 63   places 32 s .. + 32, and the places that many further in the second half
//     set s of values                  places 64 s .. + 64
//     place p of a head                RoPE of halves: the first channels of pairs in the first half, the second
//                                      ones in the second, what is not turned behind them. Otherwise channel p
//
// In every set the channels of a pair are 32 columns apart, or neighbours. Either way one lane has both
// (fragments.cuh), whatever the head's size and however much of it RoPE turns.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include <xquant/backend/cuda/device/slots.cuh>
#include <xquant/backend/rematerialize.hpp>
#include <xquant/position/rope.hpp>
#include <xquant/projection/plan.hpp>

namespace xquant::backend::gpu {
inline namespace XQUANT_ABI_NS {

/// Channels of a head that are rebuilt at a time: columns of A in shared memory.
inline constexpr unsigned set_channels = 64;

/// Keys are multiplied by this before they are rounded to halves, since their norm is not known yet: the keys of some
/// models would be beyond what a half holds.
inline constexpr float norm_scale = 1.0F / 64;

/// Which channel of a head lies where.
struct ChannelOrder {
    unsigned size = 0;      ///< of the kernel: places
    unsigned head_dim = 0;  ///< channels
    unsigned pairs = 0;     ///< of RoPE of halves; 0: channels stay where they are
    bool keys = false;      ///< sets have two halves

    /// The place of a column of a set.
    [[nodiscard]] XQUANT_DEVICE constexpr unsigned place(unsigned set, unsigned column) const noexcept {
        constexpr unsigned half = set_channels / 2;
        if (!keys) return set_channels * set + column;
        return half * set + (column < half ? column : size / 2 + column - half);
    }
    /// The channel of a place; head_dim or more: none.
    [[nodiscard]] XQUANT_DEVICE constexpr unsigned channel(unsigned place) const noexcept {
        if (pairs == 0) return place;
        const unsigned half = size / 2, in_half = place < half ? place : place - half;
        if (in_half < pairs) return place < half ? in_half : pairs + in_half;
        return 2 * pairs + (in_half - pairs) + (place < half ? 0 : half - pairs);
    }
};

/// The order of rebuilt keys. Where heads share the channels that are turned, the others stay where they are.
constexpr ChannelOrder key_order(unsigned size, std::size_t head_dim, const RopeView& rope,
                                 std::size_t shared_channels) noexcept {
    const bool moves = rope.pairing == RopePairing::halves && shared_channels == 0;
    return {size, static_cast<unsigned>(head_dim), moves ? static_cast<unsigned>(rope.pairs) : 0, true};
}
constexpr ChannelOrder value_order(unsigned size, std::size_t head_dim) noexcept {
    return {size, static_cast<unsigned>(head_dim), 0, false};
}

/// Of a column of A: what sums of codes times whole numbers are multiplied with (step), and the sum of its entries.
struct ColumnFactor {
    float step = 0, sum = 0;
};

/// A of one head; pointers to device memory.
struct MatrixTable {
    const f16* halves = nullptr;               ///< [sets][64][depth]; null: there is no A
    const std::int8_t* weights = nullptr;      ///< [sets][64][coded_depth], or null: codes become halves first
    const ColumnFactor* factors = nullptr;     ///< [sets][coded_depth / group][64]
    const float* constant = nullptr;           ///< [size], by place, or null
    std::uint32_t depth = 0;                   ///< channels of the latent, rounded up to 16
    std::uint32_t coded_depth = 0, group = 0;  ///< channels of the latent, rounded up to whole groups of `group`
};

/// Whether codes of a stream can meet 8-bit weights: groups along a token that are 1, 2 or 4 blocks of 32 channels.
XQUANT_DEVICE constexpr bool fits_codes(const StreamFormat& format, const HeadDecoder& head) noexcept {
    const std::size_t g = format.group_channels, last = head.first + head.width;
    return fits_int8(format, head) && format.group_tokens == 1 && (g == 32 || g == 64 || g == 128) &&
           has_words(format.width % g, format.bits) && head.first % g == 0 && (last % g == 0 || last == format.width);
}

/// The numbers behind a MatrixTable, in memory of the processor.
struct PackedMatrix {
    std::vector<f16> halves;
    std::vector<std::int8_t> weights;
    std::vector<ColumnFactor> factors;
    std::vector<float> constant;
    MatrixTable table;  ///< without pointers

    /// The table, with pointers to these numbers.
    [[nodiscard]] MatrixTable view() const noexcept {
        MatrixTable out = table;
        out.halves = halves.data();
        if (!weights.empty()) out.weights = weights.data();
        out.factors = factors.data();
        if (!constant.empty()) out.constant = constant.data();
        return out;
    }
};

/// @param masked  first channels of the head that count as 0: they come from elsewhere
/// @param coded   the stream's format, for products of codes; null: without
inline PackedMatrix pack_matrix(const HeadDecoder& head, const ChannelOrder& order, std::size_t masked,
                                const StreamFormat* coded) {
    PackedMatrix out;
    const std::size_t dh = order.head_dim, width = head.width, depth = (width + 15) / 16 * 16;
    const unsigned sets = order.size / set_channels;
    const bool codes = coded != nullptr && fits_codes(*coded, head);
    const std::size_t group = codes ? coded->group_channels : 1, coded_depth = (width + group - 1) / group * group;
    out.table.depth = static_cast<std::uint32_t>(depth);
    out.halves.resize(std::size_t{order.size} * depth);
    if (codes) {
        out.table.coded_depth = static_cast<std::uint32_t>(coded_depth);
        out.table.group = static_cast<std::uint32_t>(group);
        out.weights.resize(std::size_t{order.size} * coded_depth);
        out.factors.resize(order.size * (coded_depth / group));
    }
    if (head.constant != nullptr) out.constant.resize(order.size);
    std::vector<float> a(group);  // a part of a column
    for (unsigned set = 0; set < sets; ++set) {
        for (unsigned column = 0; column < set_channels; ++column) {
            const unsigned place = order.place(set, column), c = order.channel(place);
            if (c < masked || c >= dh) continue;
            const std::size_t row = std::size_t{set} * set_channels + column;
            if (head.constant != nullptr) out.constant[place] = head.constant[c];
            for (std::size_t k = 0; k < width; ++k)
                out.halves[row * depth + k] = to_f16(weight_at(head.matrix, k * dh + c));
            for (std::size_t first = 0; codes && first < width; first += group) {
                const std::size_t some = width - first < group ? width - first : group;
                for (std::size_t k = 0; k < some; ++k) a[k] = weight_at(head.matrix, (first + k) * dh + c);
                ColumnFactor& factor =
                    out.factors[(set * (coded_depth / group) + first / group) * set_channels + column];
                factor.step = backend::detail::quantize_weights(a.data(), 1, some, nullptr, int8_top,
                                                                out.weights.data() + row * coded_depth + first)
                                  .step;
                for (std::size_t k = 0; k < some; ++k) factor.sum += a[k];
            }
        }
    }
    return out;
}

/// The gain of a norm of keys by place, times norm_scale.
inline std::vector<float> pack_gain(const float* gain, const ChannelOrder& order) {
    std::vector<float> out(order.size);
    for (unsigned place = 0; place < order.size; ++place) {
        if (order.channel(place) < order.head_dim) out[place] = norm_scale * gain[order.channel(place)];
    }
    return out;
}

/// Cosines (low) and sines of RoPE's table as pairs of halves: [tokens][pairs].
inline std::vector<std::uint32_t> pack_rope(const RopeView& rope) {
    std::vector<std::uint32_t> out(rope.pairs * rope.tokens);
    for (std::size_t i = 0; i < out.size(); ++i) {
        const std::size_t from = i % rope.pairs * rope.tokens + i / rope.pairs;
        out[i] = to_f16(rope.cosines[from]).bits | static_cast<std::uint32_t>(to_f16(rope.sines[from]).bits) << 16U;
    }
    return out;
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend::gpu
