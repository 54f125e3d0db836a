// Outliers of a stream: values that are kept in f16 beside the codes of their group, with their index in the group.
//
//     take_outliers   a group [n] -> values and indices; what stays is encoded without them
//     put_outliers    writes them into a decoded tile
//
// Source  KVQuant (arXiv 2401.18079), section 3.4, dense-and-sparse quantization; there for whole rows, here for each
//         group.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include <xquant/backend/views.hpp>
#include <xquant/storage/stream.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {

/// Moves the outliers of a group x [n] to values, indices [format.outliers]. In x they are replaced by the first value
/// that stays (0 if none does), so that they widen no range. A group of fewer values repeats its first outlier.
inline void take_outliers(const StreamCodec& codec, std::span<float> x, f16* values, std::byte* indices) noexcept {
    auto* const at = reinterpret_cast<std::uint8_t*>(indices);
    const std::size_t count = std::min<std::size_t>(codec.format.outliers, x.size());
    codec.choose(x, {at, count});
    for (std::size_t i = count; i < codec.format.outliers; ++i) at[i] = at[0];
    for (std::size_t i = 0; i < codec.format.outliers; ++i) values[i] = to_f16(x[at[i]]);
    float stays = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
        if (std::find(at, at + count, i) == at + count) {
            stays = x[i];
            break;
        }
    }
    for (std::size_t i = 0; i < count; ++i) x[at[i]] = stays;
}

/// Writes the outliers into a tile, from `token` and `channel` on, over what their codes gave. An index beyond its
/// group, which damaged bytes may have, is left out.
inline void put_outliers(const StreamView& in, std::size_t token, std::size_t channel, Tile out) noexcept {
    const StreamFormat& format = in.format;
    if (out.tokens == 0 || out.channels == 0) return;
    const std::size_t last_token = (token + out.tokens - 1) / format.group_tokens;
    const std::size_t last_channel = (channel + out.channels - 1) / format.group_channels;
    for (std::size_t block = token / format.group_tokens; block <= last_token; ++block) {
        for (std::size_t b = channel / format.group_channels; b <= last_channel; ++b) {
            const std::size_t first = format.group_index(block, b) * format.outliers, columns = format.channels_of(b);
            for (std::size_t i = first; i < first + format.outliers; ++i) {
                const auto place = std::to_integer<std::size_t>(in.indices[i]);
                const std::size_t in_group = place / columns;
                if (in_group >= format.group_tokens) continue;
                // Unsigned: what lies before the tile is beyond its end, too.
                const std::size_t t = block * format.group_tokens + in_group - token;
                const std::size_t c = b * format.group_channels + place % columns - channel;
                if (t < out.tokens && c < out.channels) *out.at(t, c) = to_float(in.outliers[i]);
            }
        }
    }
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
