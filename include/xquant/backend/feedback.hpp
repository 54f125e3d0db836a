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
    return (detail::feedback_unit(format, feedback) + group + codes) * detail::feedback_tokens(format) + feedback.block;
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
    Matrix rows;                    ///< [tokens, width]
    Slots unit;                     ///< the channels
    float *targets, *group, *room;  ///< [unit][tokens], [group][tokens], [block]
    std::uint8_t* codes;            ///< [group][tokens]
    std::array<float, tile_tokens> scales, zeros, inverses;

    [[nodiscard]] TokenScalesOf by() noexcept { return {scales.data(), zeros.data(), inverses.data()}; }
};

/// Rounds the channels of a group, whose targets `at.group` are, one after the other. Errors go into later channels of
/// the group, and where `further` is true into the targets behind it.
template <class Backend>
void round_group(Backend tag, FeedbackWork& at, Slots channels, bool further) noexcept {
    const std::size_t n = at.feedback.block, tokens = at.rows.rows;
    std::array<float, tile_tokens> values, errors;
    for (std::size_t i = 0; i < channels.count; ++i) {
        const std::size_t channel = channels.first + i, in_block = channel % n, block_end = channel - in_block + n;
        for (std::size_t k = 0; k < tokens; ++k) values[k] = at.rows.data[k * at.rows.stride + channel];
        round_channel(tag, at.codec.format, at.group + i * tokens, values.data(), tokens, at.by(),
                      at.codes + i * tokens, errors.data());
        const float* const column = column_of(tag, at.feedback, channel - in_block, in_block, at.room);
        const std::size_t inside = (std::min)(block_end, channels.end()) - channel - 1;
        feed_back(tag, column, inside, errors.data(), tokens, at.group + (i + 1) * tokens);
        if (!further || block_end <= channels.end()) continue;
        feed_back(tag, column + inside, block_end - channels.end(), errors.data(), tokens,
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
        for (std::size_t k = 0; k < some; ++k) {
            for (std::size_t i = 0; i < channels.count; ++i) {
                codes[k * channels.count + i] = at.codes[i * tokens + t + k];
            }
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

/// The tokens and channels of `at`. Sets lost[t] where a target of a token of the block that begins at token t leaves
/// f16: then what was written of the block means nothing.
template <class Backend>
void encode_unit(Backend tag, FeedbackWork& at, std::size_t first, MutableStreamView out,
                 std::array<bool, tile_tokens>& lost) noexcept {
    const StreamFormat& format = out.format;
    const std::size_t tokens = at.rows.rows;
    transpose(tag, {at.rows.data + at.unit.first, tokens, at.unit.count, at.rows.stride}, at.targets, tokens);
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
        for (std::size_t i = 0; i < size; ++i) {
            const std::size_t token = i % tokens;
            lost[token - token % format.group_tokens] |= !xquant::detail::fits_f16(at.group[i]);
        }
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
    detail::FeedbackWork at{codec, feedback, {}, {}, scratch, nullptr, nullptr, nullptr, {}, {}, {}};
    at.group = at.targets + unit * step;
    at.room = at.group + group * step;
    at.codes = reinterpret_cast<std::uint8_t*>(at.room + feedback.block);
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
