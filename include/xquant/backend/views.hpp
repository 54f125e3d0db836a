// What kernels are handed: blocks of f32 values, and where in a stream they come from. Views: none owns memory.
#pragma once

#include <cstddef>

namespace xquant::backend {

/// The tokens of a tile, and of a page.
inline constexpr std::size_t tile_tokens = 128;
/// The channels of a latent that are decoded and multiplied at a time.
inline constexpr std::size_t width_step = 128;
/// The most values a group may have.
inline constexpr std::size_t max_group = 4096;
/// The most pairs that RoPE may turn in a head (head_dim 512).
inline constexpr std::size_t max_pairs = 256;

/// Entries first .. first + count: tokens of a stream, rows of a step, codes of a group.
struct Slots {
    std::size_t first = 0, count = 0;

    [[nodiscard]] constexpr std::size_t end() const noexcept { return first + count; }
};

/// How a tile lies in memory: a token's channels side by side, or a channel's tokens.
enum class TileOrder : unsigned char { token_major, channel_major };

/// Values of some tokens and channels: token t, channel c lies at data[t * token_step() + c * channel_step()].
struct Tile {
    float* data = nullptr;
    std::size_t tokens = 0, channels = 0;
    std::size_t stride = 0;  ///< floats from a token to the next (token-major), or from a channel (channel-major)
    TileOrder order = TileOrder::token_major;

    [[nodiscard]] constexpr bool by_channel() const noexcept { return order == TileOrder::channel_major; }
    [[nodiscard]] constexpr std::size_t token_step() const noexcept { return by_channel() ? 1 : stride; }
    [[nodiscard]] constexpr std::size_t channel_step() const noexcept { return by_channel() ? stride : 1; }
    [[nodiscard]] constexpr float* at(std::size_t token, std::size_t channel) const noexcept {
        return data + token * token_step() + channel * channel_step();
    }
    /// The part from a token and a channel on.
    [[nodiscard]] constexpr Tile part(Slots of_tokens, Slots of_channels) const noexcept {
        return {at(of_tokens.first, of_channels.first), of_tokens.count, of_channels.count, stride, order};
    }
};

/// A matrix [rows, columns], rows `stride` floats apart.
struct Matrix {
    const float* data = nullptr;
    std::size_t rows = 0, columns = 0, stride = 0;
};
struct MutableMatrix {
    float* data = nullptr;
    std::size_t rows = 0, columns = 0, stride = 0;
};

/// The left side of a product: entry (i, k) lies at data[i * row_step + k * column_step].
struct Operand {
    const float* data;
    std::size_t row_step, column_step;
};

}  // namespace xquant::backend
