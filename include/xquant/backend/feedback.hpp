// Encoding with feedback: rows into a stream, channel after channel, errors fed into the channels that follow
// (quantizer/feedback.hpp). Drives every backend that has the steps of scalar/feedback.hpp.
//
// Groups are taken in the order of their channels: a first pass with the scale of what the groups before left, a second
// with the scale of the targets of the first, since feedback within a group widens them. A group of one channel needs
// one pass. Where a target would leave f16, the token block is rounded without feedback, in that block of channels.
//
// Shapes  targets [channels][tokens]: a block of the metric, or a group that holds several; 16 tokens or a token block.
// Limit   n / 2 fused products for each value of a block of n channels, and half a group's width more for each of the
//         two passes.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <numeric>

#include <xquant/backend/rematerialize.hpp>
#include <xquant/backend/scalar/feedback.hpp>
#include <xquant/projection/metric.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// Channels that are rounded together.
constexpr std::size_t feedback_unit(const StreamFormat& format, const FeedbackView& feedback) noexcept {
    return (std::min)(std::lcm(feedback.block, std::size_t{format.group_channels}), std::size_t{format.width});
}
/// Tokens that are: whole token blocks.
constexpr std::size_t feedback_tokens(const StreamFormat& format) noexcept {
    return (std::max)(std::size_t{16}, std::size_t{format.group_tokens});
}

}  // namespace detail

/// Floats of scratch that encode_with_feedback needs.
constexpr std::size_t feedback_scratch(const StreamFormat& format, const FeedbackView& feedback) noexcept {
    const std::size_t group = format.group_channels, codes = group / sizeof(float) + 1;
    return (2 * detail::feedback_unit(format, feedback) + group + codes) * detail::feedback_tokens(format) +
           feedback_panel * feedback.block;
}

namespace detail {

/// Column i of F of the block of channels that begins at `first`, below the diagonal.
template <class Backend>
const float* column_of(Backend tag, const FeedbackView& of, std::size_t first, std::size_t i, float* room) noexcept {
    const std::size_t n = of.block, at = first / n * feedback_entries(n) + feedback_column(n, i);
    return weights_as_floats(tag, of.columns, {at, n - i - 1}, room);
}

/// Some tokens and channels on their way.
struct FeedbackWork {
    const StreamCodec& codec;
    const FeedbackView& feedback;
    Matrix rows;              ///< [tokens, width]
    Slots unit;               ///< the channels
    float *values, *targets;  ///< [unit][tokens] each: the rows, and what is left of them by errors
    float *group, *room;      ///< [group][tokens], [panel][block]
    std::uint8_t* codes;      ///< [group][tokens]
    std::array<float, tile_tokens> scales, zeros, inverses;

    [[nodiscard]] TokenScalesOf by() noexcept { return {scales.data(), zeros.data(), inverses.data()}; }
};

/// Rounds the channels of a group, whose targets `at.group` are, one after the other. Errors go into later channels of
/// the group, and where `further` is true into the targets behind it: one by one within a panel, a panel's together
/// behind it, which is one order of the channels for every target.
template <class Backend>
void round_group(Backend tag, FeedbackWork& at, Slots channels, bool further) noexcept {
    const std::size_t n = at.feedback.block, tokens = at.rows.rows;
    std::array<float, feedback_panel * tile_tokens> errors;
    for (std::size_t i = 0; i < channels.count;) {
        const std::size_t first = channels.first + i, block_end = first - first % n + n;
        FeedbackPanel panel{{}, errors.data(), (std::min)({feedback_panel, channels.count - i, block_end - first})};
        for (std::size_t p = 0; p < panel.count; ++p, ++i) {
            const std::size_t channel = first + p, left = panel.count - p - 1;
            const float* const values = at.values + (channel - at.unit.first) * tokens;
            float* const error = errors.data() + p * tokens;
            round_channel(tag, at.codec.format, at.group + i * tokens, values, tokens, at.by(), at.codes + i * tokens,
                          error);
            const float* const column =
                column_of(tag, at.feedback, channel - channel % n, channel % n, at.room + p * n);
            if (left > 0) feed_back(tag, {{column}, error, 1}, left, tokens, at.group + (i + 1) * tokens);
            panel.columns[p] = column + left;
        }
        const std::size_t behind = channels.first + i, inside = (std::min)(block_end, channels.end()) - behind;
        feed_back(tag, panel, inside, tokens, at.group + i * tokens);
        if (!further || block_end <= channels.end()) continue;
        for (std::size_t p = 0; p < panel.count; ++p) panel.columns[p] += inside;
        feed_back(tag, panel, block_end - channels.end(), tokens,
                  at.targets + (channels.end() - at.unit.first) * tokens);
    }
}

/// Codes, scales and zeros of a group go into the stream, from slot `first` on.
template <class Backend>
void store_group(Backend tag, FeedbackWork& at, Slots channels, std::size_t first, MutableStreamView out) noexcept {
    const StreamFormat& format = out.format;
    const std::size_t tokens = at.rows.rows, block = channels.first / format.group_channels;
    std::array<std::uint8_t, max_group> codes;
    for (std::size_t t = 0; t < tokens; t += format.group_tokens) {
        const std::size_t some = std::min<std::size_t>(format.group_tokens, tokens - t);
        for (std::size_t i = 0; i < channels.count; ++i) {
            const std::uint8_t* const from = at.codes + i * tokens + t;
            for (std::size_t k = 0; k < some; ++k) codes[k * channels.count + i] = from[k];
        }
        const std::size_t whole = format.group_tokens * channels.count;
        std::fill(codes.begin() + static_cast<std::ptrdiff_t>(some * channels.count),
                  codes.begin() + static_cast<std::ptrdiff_t>(whole), std::uint8_t{0});
        const std::size_t token_block = (first + t) / format.group_tokens;
        pack_group(tag, codes.data(), whole, format.bits, out.codes + format.code_offset(token_block, block));
        const std::size_t index = format.group_index(token_block, block);
        out.scales[index] = to_f16(at.scales[t]);
        if (format.stores_zero) out.zeros[index] = to_f16(at.zeros[t]);
    }
}

/// Sets lost[t] where a target of the token block that begins at token t is beyond f16, or not finite.
inline void note_lost(const float* targets, std::size_t channels, std::size_t tokens, std::size_t block,
                      std::array<bool, tile_tokens>& lost) noexcept {
    std::array<std::uint32_t, tile_tokens> largest{};  // magnitudes as bits rise with the magnitude; NaN is above all
    for (std::size_t i = 0; i < channels; ++i) {
        for (std::size_t k = 0; k < tokens; ++k) {
            const std::uint32_t bits = std::bit_cast<std::uint32_t>(targets[i * tokens + k]) & 0x7FFFFFFFU;
            largest[k] = bits > largest[k] ? bits : largest[k];
        }
    }
    for (std::size_t k = 0; k < tokens; ++k) {
        lost[k - k % block] |= !xquant::detail::fits_f16(std::bit_cast<float>(largest[k]));
    }
}

/// The tokens and channels of `at`. Sets lost[t] where a target of a token of the block that begins at token t leaves
/// f16: then what was written of the block means nothing.
template <class Backend>
void encode_unit(Backend tag, FeedbackWork& at, std::size_t first, MutableStreamView out,
                 std::array<bool, tile_tokens>& lost) noexcept {
    const StreamFormat& format = out.format;
    const std::size_t tokens = at.rows.rows;
    transpose(tag, {at.rows.data + at.unit.first, tokens, at.unit.count, at.rows.stride}, at.values, tokens);
    std::copy_n(at.values, at.unit.count * tokens, at.targets);
    for (std::size_t c = at.unit.first; c < at.unit.end();) {
        const Slots channels{c, format.channels_of(c / format.group_channels)};
        const float* const given = at.targets + (c - at.unit.first) * tokens;
        const std::size_t size = channels.count * tokens;
        std::copy_n(given, size, at.group);
        find_scales(tag, at.codec, at.group, channels.count, tokens, at.by());
        if (channels.count > 1) {
            round_group(tag, at, channels, false);
            find_scales(tag, at.codec, at.group, channels.count, tokens, at.by());
        }
        note_lost(at.group, channels.count, tokens, format.group_tokens, lost);
        if (channels.count > 1) std::copy_n(given, size, at.group);
        round_group(tag, at, channels, true);
        store_group(tag, at, channels, first, out);
        c = channels.end();
    }
}

/// Some channels of a stream, whole channel blocks of it, as a stream.
XQUANT_DEVICE inline MutableStreamView some_channels(MutableStreamView view, Slots channels) noexcept {
    const std::size_t block = channels.first / view.format.group_channels;
    view.codes += view.format.code_offset(0, block);
    view.scales += view.format.group_index(0, block);
    if (view.zeros != nullptr) view.zeros += view.format.group_index(0, block);
    view.format.width = static_cast<std::uint32_t>(channels.count);
    return view;
}

}  // namespace detail

/// Writes rows [count, width] into the slots first .. first + count of a stream, as encode_rows does, but rounded for
/// the metric whose F is given; its block divides the width.
/// Scratch: feedback_scratch floats.
template <class Backend>
void encode_with_feedback(Backend tag, const StreamCodec& codec, const FeedbackView& feedback, Matrix rows,
                          std::size_t first, MutableStreamView out, float* scratch) noexcept {
    const StreamFormat& format = out.format;
    const std::size_t width = format.width, stride = rows.stride, group = format.group_channels;
    const std::size_t unit = detail::feedback_unit(format, feedback), step = detail::feedback_tokens(format);
    detail::FeedbackWork at{codec,   feedback, {},      {}, scratch, scratch + unit * step,
                            nullptr, nullptr,  nullptr, {}, {},      {}};
    at.group = at.targets + unit * step;
    at.room = at.group + group * step;
    at.codes = reinterpret_cast<std::uint8_t*>(at.room + feedback_panel * feedback.block);
    for (std::size_t t = 0; t < rows.rows; t += step) {
        at.rows = {rows.data + t * stride, (std::min)(step, rows.rows - t), width, stride};
        for (std::size_t c = 0; c < width; c += unit) {
            at.unit = {c, (std::min)(unit, width - c)};
            std::array<bool, tile_tokens> lost{};
            detail::encode_unit(tag, at, first + t, out, lost);
            for (std::size_t k = 0; k < at.rows.rows; k += format.group_tokens) {
                if (!lost[k]) continue;
                const std::size_t some = std::min<std::size_t>(format.group_tokens, at.rows.rows - k);
                encode_rows(tag, codec, {at.rows.data + k * stride + c, some, at.unit.count, stride}, first + t + k,
                            detail::some_channels(out, at.unit));
            }
        }
    }
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
