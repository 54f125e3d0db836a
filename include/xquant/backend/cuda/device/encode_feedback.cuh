// Encodes rows on the device with feedback (quantizer/feedback.hpp): the bytes of backend/feedback.hpp.
//
// A block takes up to 32 tokens, or the tokens of a token block where groups lie along a channel, and the channels that
// are rounded together. These are taken in panels of 16: one warp rounds a panel, channel after channel, its lanes the
// tokens; then all warps take the panel's errors from the targets behind it, each thread those of one token. So a
// target is loaded and stored once for 16 errors, and barriers stand between panels, not between channels. A target
// loses errors in the order of their channels all the same, each by one fma: neither panels nor threads change a byte.
//
// Targets [channels][tokens] lie in global memory: where a block of the metric is as wide as a model, shared memory has
// no room for them. Where groups lie along a token, a group's targets are there twice, since the first of its two
// passes has its own.
// Limit   many tokens: n / 2 fused products for each value, and for each a load of F, from L1 where threads have the
//         same channel. One token: reading F, n^2 / 2 entries, by one multiprocessor, and the chain of n channels.
//         MinMse along a channel: f64 arithmetic, the same eleven sums by every lane of one warp.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include <xquant/backend/cuda/device/encode.cuh>
#include <xquant/backend/feedback.hpp>

namespace xquant::backend::gpu {
inline namespace XQUANT_ABI_NS {

/// Warps of a block, and channels of a panel.
inline constexpr unsigned feedback_warps = 8, feedback_panel = 16;

/// Bytes of shared memory of a block: targets and errors of a panel; a scale, a zero, an inverse, a mark of each token.
inline constexpr std::size_t feedback_shared_bytes = (2 * feedback_panel + 4) * tile_tokens * sizeof(float);

/// Tokens that a block takes at a time where a write has `count`, and its scratch for them.
XQUANT_DEVICE constexpr std::size_t feedback_rows(const StreamFormat& format, std::size_t count) noexcept {
    const std::size_t most = format.group_channels == 1 ? format.group_tokens : lanes;
    return count < most ? count : most;
}
XQUANT_DEVICE constexpr std::size_t feedback_workspace(const StreamFormat& format, const FeedbackView& feedback,
                                                       std::size_t count) noexcept {
    const std::size_t again = format.group_channels == 1 ? 0 : format.group_channels;
    return (backend::detail::feedback_unit(format, feedback) + again) * feedback_rows(format, count);
}
/// Blocks that `count` rows can use, each by itself.
XQUANT_DEVICE constexpr std::size_t feedback_parts(const StreamFormat& format, const FeedbackView& feedback,
                                                   std::size_t count) noexcept {
    const std::size_t unit = backend::detail::feedback_unit(format, feedback), rows = feedback_rows(format, count);
    return (format.width + unit - 1) / unit * ((count + rows - 1) / rows);
}

/// Encodes rows [count, width] (f32, `stride` apart) into slots first .. first + count of a stream, by a block.
template <class M, class ScaleOf>
class FeedbackEncoder {
    using Block = typename M::Block;
    using Warp = typename M::Warp;

public:
    /// @param scale_of  as encode_part's
    /// @param scratch   feedback_workspace
    XQUANT_DEVICE FeedbackEncoder(Block& block, const FeedbackView& feedback, const float* rows, std::size_t stride,
                                  std::size_t first, std::size_t count, const MutableStreamView& out,
                                  const ScaleOf& scale_of, float* scratch) noexcept
        : block_(block),
          feedback_(feedback),
          all_rows_(rows),
          stride_(stride),
          first_(first),
          count_(count),
          out_(out),
          scale_of_(scale_of),
          targets_(scratch),
          along_channel_(out.format.group_channels == 1),
          top_(static_cast<float>((1U << out.format.bits) - 1)),
          panel_(reinterpret_cast<float*>(block.shared())),
          errors_(panel_ + feedback_panel * tile_tokens),
          scales_(errors_ + feedback_panel * tile_tokens),
          zeros_(scales_ + tile_tokens),
          inverses_(zeros_ + tile_tokens),
          lost_(reinterpret_cast<std::uint32_t*>(inverses_ + tile_tokens)) {}

    /// Part `part` of feedback_parts.
    XQUANT_DEVICE void encode(std::size_t part) noexcept {
        const std::size_t size = backend::detail::feedback_unit(out_.format, feedback_);
        const std::size_t units = (out_.format.width + size - 1) / size, most = feedback_rows(out_.format, count_);
        const std::size_t channel = part % units * size, left = out_.format.width - channel;
        unit_ = {channel, left < size ? left : size};
        token_ = part / units * most;
        tokens_ = count_ - token_ < most ? count_ - token_ : most;
        rows_ = all_rows_ + token_ * stride_;
        begin();
        if (along_channel_) {
            encode_channels();
        } else {
            encode_groups();
        }
        round_lost();
    }

private:
    /// Rows become targets.
    XQUANT_DEVICE void begin() noexcept {
        block_.each_thread([&](unsigned thread) {
            if (thread < tokens_) lost_[thread] = 0;
            for (std::size_t i = thread; i < unit_.count * tokens_; i += threads()) {
                const std::size_t token = i / unit_.count, c = i % unit_.count;
                targets_[c * tokens_ + token] = rows_[token * stride_ + unit_.first + c];
            }
        });
        block_.barrier();
    }

    /// Groups of one token, one after the other.
    XQUANT_DEVICE void encode_groups() noexcept {
        const StreamFormat& format = out_.format;
        for (std::size_t c = unit_.first; c < unit_.end();) {
            const Slots group{c, format.channels_of(c / format.group_channels)};
            float *given = targets_ + (c - unit_.first) * tokens_, *copy = targets_ + unit_.count * tokens_;
            block_.each_thread([&](unsigned thread) {
                for (std::size_t i = thread; i < group.count * tokens_; i += threads()) copy[i] = given[i];
            });
            find_scales(given, group.count);
            round_group(copy, group, group.end(), true);
            find_scales(copy, group.count);
            round_group(given, group, unit_.end(), false);
            store_groups(given, group);
            block_.barrier();
            c = group.end();
        }
    }

    /// The scale of each token's group of n channels, from its targets [n][tokens].
    XQUANT_DEVICE void find_scales(const float* targets, std::size_t n) noexcept {
        // Ranges of some channels each, then those of all.
        const std::size_t most = threads() / tokens_ < feedback_panel ? threads() / tokens_ : feedback_panel;
        const std::size_t shares = n < most ? n : most;
        float *lows = panel_, *highs = errors_;
        block_.each_thread([&](unsigned thread) {
            if (thread >= shares * tokens_) return;
            const float* x = targets + thread % tokens_;
            std::size_t i = thread / tokens_;
            Range range{x[i * tokens_], x[i * tokens_]};
            for (i += shares; i < n; i += shares) range = with(range, x[i * tokens_], x[i * tokens_]);
            lows[thread] = range.low;
            highs[thread] = range.high;
        });
        block_.barrier();
        block_.each_thread([&](unsigned token) {
            if (token >= tokens_) return;
            Range range{lows[token], highs[token]};
            for (std::size_t i = token + tokens_; i < shares * tokens_; i += tokens_) {
                range = with(range, lows[i], highs[i]);
            }
            keep(token, scale_of_(range, n, [&](std::size_t i) { return targets[i * tokens_ + token]; }));
        });
        block_.barrier();
    }

    /// Rounds the channels of a group with the scales found. Errors go into the channels behind, up to `end`, of the
    /// same block of the metric.
    XQUANT_DEVICE void round_group(float* targets, Slots group, std::size_t end, bool marks) noexcept {
        for (std::size_t c = group.first; c < group.end();) {
            const std::size_t block_end = c - c % feedback_.block + feedback_.block;
            const std::size_t within = block_end < group.end() ? block_end : group.end();
            const Slots panel{c, within - c < feedback_panel ? within - c : feedback_panel};
            float* of_panel = targets + (c - group.first) * tokens_;
            block_.each_warp([&](Warp& warp) {
                if (warp.index == 0) round_panel(warp, of_panel, panel, marks);
            });
            block_.barrier();
            feed_back(of_panel, panel, block_end < end ? block_end : end);
            block_.barrier();
            c = panel.end();
        }
    }

    /// Channels whose tokens are a group, one after the other; they are one block of the metric.
    XQUANT_DEVICE void encode_channels() noexcept {
        for (std::size_t c = unit_.first; c < unit_.end();) {
            const Slots panel{c, unit_.end() - c < feedback_panel ? unit_.end() - c : feedback_panel};
            float* targets = targets_ + (c - unit_.first) * tokens_;
            block_.each_warp([&](Warp& warp) {
                if (warp.index == 0) round_panel(warp, targets, panel, true);
            });
            block_.barrier();
            feed_back(targets, panel, unit_.end());
            store_channels(targets, panel);
            block_.barrier();
            c = panel.end();
        }
    }

    /// Targets [panel][tokens] become final, and errors_ what their codes leave. Where groups lie along a channel, its
    /// scale is found before. `marks`: tokens with targets beyond f16 are marked as lost.
    XQUANT_DEVICE void round_panel(const Warp& warp, float* targets, Slots panel, bool marks) noexcept {
        warp.each([&](unsigned lane) {
            for (std::size_t i = 0; i < panel.count; ++i) {
                for (std::size_t t = lane; t < tokens_; t += lanes) {
                    panel_[i * tokens_ + t] = targets[i * tokens_ + t];
                }
            }
        });
        for (std::size_t i = 0; i < panel.count; ++i) {
            if (along_channel_) find_scale(warp, panel_ + i * tokens_, i);
            const std::size_t column = column_of(panel.first + i);
            warp.each([&](unsigned lane) {
                for (std::size_t t = lane; t < tokens_; t += lanes) {
                    const float target = panel_[i * tokens_ + t];
                    const std::size_t at = along_channel_ ? i : t;
                    const auto code = static_cast<float>(code_for(target, at));
                    // The product is exact, so it does not matter whether it is fused.
                    const float error = zeros_[at] + scales_[at] * code - rows_[t * stride_ + panel.first + i];
                    errors_[i * tokens_ + t] = error;
                    targets[i * tokens_ + t] = target;
                    if (marks && !xquant::detail::fits_f16(target)) lost_[t] = 1;
                    for (std::size_t k = i + 1; k < panel.count; ++k) {
                        float& later = panel_[k * tokens_ + t];
                        later = std::fma(-entry(column, panel.first + k), error, later);
                    }
                }
            });
        }
    }

    /// The scale of a channel, from its targets [tokens]: the panel's scale i.
    XQUANT_DEVICE void find_scale(const Warp& warp, const float* x, std::size_t i) noexcept {
        typename M::template Lanes<float> low, high;
        warp.sync();
        warp.each([&](unsigned lane) {
            low[lane] = high[lane] = x[lane < tokens_ ? lane : 0];
            for (std::size_t t = lane + lanes; t < tokens_; t += lanes) {
                const Range range = with({low[lane], high[lane]}, x[t], x[t]);
                low[lane] = range.low;
                high[lane] = range.high;
            }
        });
        for (unsigned mask = 1; mask < lanes; mask *= 2) {
            const auto other_low = warp.exchange(low, mask), other_high = warp.exchange(high, mask);
            warp.each([&](unsigned lane) {
                const Range range = with({low[lane], high[lane]}, other_low[lane], other_high[lane]);
                low[lane] = range.low;
                high[lane] = range.high;
            });
        }
        warp.each([&](unsigned lane) {
            const GroupScale scale =
                scale_of_(Range{low[lane], high[lane]}, tokens_, [&](std::size_t t) { return x[t]; });
            if (lane == 0) keep(i, scale);
        });
        warp.sync();
    }

    /// Takes the errors of a panel, whose targets these are, from the targets behind it, up to channel `end`.
    XQUANT_DEVICE void feed_back(float* targets, Slots panel, std::size_t end) noexcept {
        if (panel.end() >= end) return;
        // Loads in a row wait for each other where a branch stands between them, so the type of F is asked for once.
        const WeightMatrix& columns = feedback_.columns;
        if (columns.type == WeightType::f16) {
            const auto* entries = static_cast<const f16*>(columns.entries);
            feed_back(targets, panel, end,
                      [entries, factor = columns.factor](std::size_t i) { return factor * M::to_float(entries[i]); });
        } else if (columns.type == WeightType::f32) {
            feed_back(targets, panel, end, [entries = columns.floats()](std::size_t i) { return entries[i]; });
        } else {
            feed_back(targets, panel, end, [&](std::size_t i) { return weight_at(columns, i); });
        }
    }
    template <class Entry>
    XQUANT_DEVICE void feed_back(float* targets, Slots panel, std::size_t end, Entry&& entry_at) noexcept {
        const std::size_t n = feedback_.block, step = threads() / tokens_;
        block_.each_thread([&](unsigned thread) {
            if (thread >= step * tokens_) return;
            const std::size_t t = thread % tokens_;
            float errors[feedback_panel];
            for (unsigned i = 0; i < feedback_panel; ++i) errors[i] = i < panel.count ? errors_[i * tokens_ + t] : 0.0F;
            for (std::size_t c = panel.end() + thread / tokens_; c < end; c += step) {
                float& target = targets[(c - panel.first) * tokens_ + t];
                float value = target;
                std::size_t at = column_of(panel.first) + c, after = n - panel.first % n;
                for (unsigned i = 0; i < feedback_panel; ++i) {
                    if (i < panel.count) value = std::fma(-entry_at(at), errors[i], value);
                    at += --after - 1;  // the column of the next channel has one entry less
                }
                target = value;
            }
        });
    }

    /// Codes, scales and zeros of the tokens' groups, whose final targets these are.
    XQUANT_DEVICE void store_groups(const float* targets, Slots group) noexcept {
        const StreamFormat& format = out_.format;
        const std::size_t block = group.first / format.group_channels;
        block_.each_warp([&](Warp& warp) {
            for (std::size_t t = warp.index; t < tokens_; t += block_.warps()) {
                const std::size_t slot = first_ + token_ + t;
                store(warp, format.code_offset(slot, block), format.group_index(slot, block), group.count, group.count,
                      t, [&](std::size_t i) { return targets[i * tokens_ + t]; });
            }
        });
    }
    /// The same where each channel of a panel is a group.
    XQUANT_DEVICE void store_channels(const float* targets, Slots panel) noexcept {
        const StreamFormat& format = out_.format;
        const std::size_t block = (first_ + token_) / format.group_tokens;
        block_.each_warp([&](Warp& warp) {
            for (std::size_t i = warp.index; i < panel.count; i += block_.warps()) {
                const std::size_t c = panel.first + i;
                store(warp, format.code_offset(block, c), format.group_index(block, c), format.group_tokens, tokens_, i,
                      [&](std::size_t t) { return targets[i * tokens_ + t]; });
            }
        });
    }
    /// A group with room for so many values, of which n are there: values x(i), scale `at` of those found.
    template <class X>
    XQUANT_DEVICE void store(const Warp& warp, std::size_t offset, std::size_t index, std::size_t room, std::size_t n,
                             std::size_t at, X&& x) noexcept {
        warp.each([&](unsigned lane) {
            detail::each_plane(out_.codes + offset, room, out_.format.bits,
                               [&](unsigned plane, unsigned shift, std::byte* to, std::size_t bytes) {
                                   for (std::size_t j = lane; 4 * j < bytes; j += lanes) {
                                       detail::pack_word(to, bytes, n, plane, shift, j,
                                                         [&](std::size_t i) { return code_for(x(i), at); });
                                   }
                               });
            if (lane == 0) detail::store_scale(out_, index, {scales_[at], zeros_[at]});
        });
    }

    /// Tokens that are lost are rounded without feedback: the token block where groups lie along a channel.
    XQUANT_DEVICE void round_lost() noexcept {
        const StreamFormat& format = out_.format;
        if (along_channel_) {
            bool lost = false;
            for (std::size_t t = 0; t < tokens_; ++t) lost |= lost_[t] != 0;
            if (lost) {
                const MutableStreamView unit = backend::detail::some_channels(out_, unit_);
                block_.each_warp([&](Warp& warp) {
                    for (std::size_t c = warp.index * lanes; c < unit_.count; c += threads()) {
                        detail::encode_channels<M>(warp, rows_ + unit_.first, stride_, tokens_,
                                                   (first_ + token_) / format.group_tokens, c, unit, scale_of_);
                    }
                });
            }
        } else {
            const std::size_t begin = unit_.first / format.group_channels;
            const std::size_t end = (unit_.end() + format.group_channels - 1) / format.group_channels;
            block_.each_warp([&](Warp& warp) {
                for (std::size_t t = warp.index; t < tokens_; t += block_.warps()) {
                    if (lost_[t] == 0) continue;
                    for (std::size_t block = begin; block < end; ++block) {
                        detail::encode_token<M>(warp, rows_ + t * stride_, first_ + token_ + t, block, out_, scale_of_);
                    }
                }
            });
        }
        block_.barrier();
    }

    [[nodiscard]] XQUANT_DEVICE unsigned threads() const noexcept { return block_.warps() * lanes; }
    [[nodiscard]] XQUANT_DEVICE static Range with(Range range, float low, float high) noexcept {
        return {low < range.low ? low : range.low, high > range.high ? high : range.high};
    }
    XQUANT_DEVICE void keep(std::size_t at, GroupScale scale) noexcept {
        scales_[at] = scale.scale;
        zeros_[at] = scale.zero;
        inverses_[at] = inverse_scale(scale);
    }
    [[nodiscard]] XQUANT_DEVICE std::int32_t code_for(float target, std::size_t at) const noexcept {
        return code_of(target, {scales_[at], zeros_[at]}, inverses_[at], top_);
    }
    /// Where the column of channel i of F would have its entry of channel 0; entries before it are not there.
    [[nodiscard]] XQUANT_DEVICE std::size_t column_of(std::size_t i) const noexcept {
        const std::size_t n = feedback_.block;
        return i / n * feedback_entries(n) + feedback_column(n, i % n) - i - 1;
    }
    [[nodiscard]] XQUANT_DEVICE float entry(std::size_t column, std::size_t channel) const noexcept {
        return weight_at(feedback_.columns, column + channel);
    }

    Block& block_;
    const FeedbackView& feedback_;
    const float* all_rows_;  ///< [count, stride]
    std::size_t stride_, first_, count_;
    const MutableStreamView& out_;
    const ScaleOf& scale_of_;
    float* targets_;      ///< [unit][tokens], then, where groups lie along a token, [group][tokens]
    bool along_channel_;  ///< else along a token
    float top_;
    // Shared memory.
    float *panel_, *errors_;              ///< [panel][tokens]
    float *scales_, *zeros_, *inverses_;  ///< [tokens], or of the panel's channels
    std::uint32_t* lost_;                 ///< [tokens] whether a target left f16
    // The part.
    const float* rows_ = nullptr;  ///< [tokens, stride]
    Slots unit_{};
    std::size_t token_ = 0, tokens_ = 0;
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend::gpu
