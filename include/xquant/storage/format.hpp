// How a stream's rows lie in memory. Bytes mean the same on every machine and backend; docs/format.md draws them.
//
// A stream of a page holds `tokens` rows of `width` channels, cut into groups of group_tokens x group_channels values
// (one of the two is 1 in the shipped layouts). Groups follow each other by channel block, then by token block, so that
// what an attention head reads lies in one piece:
//
//     codes   [channel blocks][token blocks][bytes of a group]        scales, zeros  [channel blocks][token blocks] f16
//
// A format with outliers keeps some values of each group in f16, with their index in the group:
//
//     outliers   [channel blocks][token blocks][outliers] f16           indices  likewise, one byte each
//
// The codes of a group of n values, n rounded up to N = 8 ceil(n / 8), are cut into planes of 4, 2 and 1 bits (5 bits =
// 4 + 1, 3 = 2 + 1; 8 bits are one plane). A plane of p bits takes N p / 8 bytes; its byte j holds, from the lowest
// bits up, the codes j, j + S, j + 2 S ... with S = N p / 8. Nothing has to be shuffled to unpack it: one load, a shift
// and a mask give S consecutive codes, on any vector width. 3 bits take 3 bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include <xquant/config.hpp>

namespace xquant {

/// What one stored value is.
enum class CodeKind : std::uint8_t { planes, f32, f16, bf16 };

/// The format of one stream. Plain data; the same on every machine.
struct StreamFormat {
    std::uint32_t width = 0;           ///< channels of a row
    std::uint32_t group_tokens = 1;    ///< tokens in a group
    std::uint32_t group_channels = 1;  ///< channels in a group; the last group of a row may be shorter
    CodeKind kind = CodeKind::planes;  ///< planes: codes; else rows as they are
    std::uint8_t bits = 0;             ///< of one code
    bool stores_zero = true;           ///< else zero = -zero_code * scale
    float zero_code = 0;               ///< the code that stands for zero, where no zero is stored
    const float* levels = nullptr;     ///< [2^bits] values of the codes, or null: the code itself
    std::uint8_t outliers = 0;         ///< values of each group that are kept in f16, with their index
    bool rough = false;        ///< as attention sees it: rows are sums of coarser codes, so that they are off by more
                               ///< than products with 8-bit weights are, whatever `bits` says
    std::uint32_t tokens = 0;  ///< room of the page, or 0 if there is no page yet; offsets of groups depend on it

    friend bool operator==(const StreamFormat&, const StreamFormat&) = default;

    /// Whether rows are in codes.
    [[nodiscard]] constexpr bool quantized() const noexcept { return kind == CodeKind::planes; }
    /// Groups that a row is cut into along its channels.
    [[nodiscard]] constexpr std::size_t channel_blocks() const noexcept {
        return (width + group_channels - 1) / group_channels;
    }
    /// Groups that n tokens are cut into along the tokens.
    [[nodiscard]] constexpr std::size_t token_blocks(std::size_t n) const noexcept {
        return (n + group_tokens - 1) / group_tokens;
    }
    /// Channels of channel block b.
    [[nodiscard]] constexpr std::size_t channels_of(std::size_t b) const noexcept {
        const std::size_t first = b * group_channels;
        return width - first < group_channels ? width - first : group_channels;
    }
    /// Bytes of the codes of a group that spans this many channels.
    [[nodiscard]] constexpr std::size_t group_bytes(std::size_t channels) const noexcept {
        const std::size_t values = group_tokens * channels;
        return quantized() ? (values + 7) / 8 * bits : values * bits / 8;
    }
    /// Where the codes of a group begin.
    [[nodiscard]] constexpr std::size_t code_offset(std::size_t token_block, std::size_t channel_block) const noexcept {
        return channel_block * token_blocks(tokens) * group_bytes(group_channels) +
               token_block * group_bytes(channels_of(channel_block));
    }
    /// The number of a group's scale.
    [[nodiscard]] constexpr std::size_t group_index(std::size_t token_block, std::size_t channel_block) const noexcept {
        return channel_block * token_blocks(tokens) + token_block;
    }

    /// This format with room for n tokens.
    [[nodiscard]] constexpr StreamFormat with_room(std::size_t n) const noexcept {
        StreamFormat out = *this;
        out.tokens = static_cast<std::uint32_t>(n);
        return out;
    }

    /// Bytes of the codes of a page of n tokens.
    [[nodiscard]] constexpr std::size_t code_bytes(std::size_t n) const noexcept {
        const std::size_t last = channel_blocks() - 1;
        return token_blocks(n) * (last * group_bytes(group_channels) + group_bytes(channels_of(last)));
    }
    /// f16 numbers stored for each group.
    [[nodiscard]] constexpr std::size_t scales_per_group() const noexcept {
        return quantized() ? (stores_zero ? 2 : 1) : 0;
    }
    /// Bytes of the scales and zeros of a page of n tokens.
    [[nodiscard]] constexpr std::size_t scale_bytes(std::size_t n) const noexcept {
        return token_blocks(n) * channel_blocks() * scales_per_group() * 2;
    }
    /// Outliers of a page of n tokens. Each takes 3 bytes: an f16 and an index.
    [[nodiscard]] constexpr std::size_t outlier_count(std::size_t n) const noexcept {
        return token_blocks(n) * channel_blocks() * outliers;
    }
    /// The formula of the literature: bits of the codes, scales, zeros and outliers of n tokens, groups starting at the
    /// first.
    [[nodiscard]] constexpr std::size_t ideal_bits(std::size_t n) const noexcept {
        return n * width * bits + token_blocks(n) * channel_blocks() * scales_per_group() * 16 + outlier_count(n) * 24;
    }
};

inline namespace XQUANT_ABI_NS {

/// The planes that codes of this many bits are cut into call f(plane bits, shift of the plane in the code), widest
/// first.
template <class F>
constexpr void for_each_plane(unsigned bits, F&& f) {
    unsigned left = bits;
    for (const unsigned plane : {8U, 4U, 2U, 1U}) {
        if (left >= plane) {
            left -= plane;
            f(plane, left);
        }
    }
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
