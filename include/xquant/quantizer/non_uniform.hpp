// NonUniform<Bits, Group>: levels that k-means places where the values of a stream are dense, on calibration rows.
//
//     zero = f16(min), scale = f16(max - zero);   code = nearest level to (x - zero) / scale;
//     x ~ zero + scale * level[code]
//
// Levels are shared by all groups of a stream of a layer, and live in the prepared weights: 4 * 2^Bits bytes. They are
// learnt when the cache is constructed, from Layer::calibration, rows of X of some other text.
// Error   half the gap between the neighbouring levels, times scale; beyond the outer levels the distance to them; and
//         the f16 rounding of zero and scale (2^-11 of either, and 2^-25 at least). A group that spans more than f16's
//         65504 saturates: values above zero + 65504 come back as those at 65504
// Source  KVQuant (arXiv 2401.18079), section 3.3. There each value is weighted by its Fisher information, which needs
//         gradients; here all weigh the same.
#pragma once

#include <vector>

#include <xquant/quantizer/codebook.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {

/// @tparam Bits   of a code: 2 to 8
/// @tparam Group  values that share a scale: 8 to 4096
template <unsigned Bits, unsigned Group = 128>
struct NonUniform {
    static_assert(Bits >= 2 && Bits <= 8, "xquant: NonUniform<Bits, Group> takes 2 to 8 bits");
    static_assert(Group >= 8 && Group <= 4096, "xquant: NonUniform<Bits, Group> takes groups of 8 to 4096 values");

    static constexpr unsigned bits = Bits;     ///< of a code
    static constexpr unsigned group = Group;   ///< values that share a scale
    static constexpr bool stores_zero = true;  ///< beside the scale

    /// x [n] -> codes [n] into `levels` [2^Bits], rising.
    static GroupScale encode(std::span<const float> x, std::span<std::uint8_t> codes, const float* levels) noexcept {
        const GroupScale found = scale_for(x);
        encode_levels(x, found, levels, std::size_t{1} << Bits, codes);
        return found;
    }

    /// K-means (Lloyd's algorithm) on the values of all groups, each shifted and scaled to 0 .. 1. It starts from
    /// evenly spaced levels; the result never has a larger error on these groups. Sums are taken in a fixed order, so
    /// levels are equal on every machine. Cost: sorting the values, then up to 100 rounds of a binary search for each
    /// level.
    static void learn(std::span<const std::span<const float>> groups, std::span<float> levels) {
        std::vector<float> values;
        for (const std::span<const float> x : groups) {
            const GroupScale scale = scale_for(x);
            if (scale.scale == 0) continue;
            const float inverse = inverse_scale(scale);
            for (const float value : x) values.push_back((value - scale.zero) * inverse);
        }
        std::sort(values.begin(), values.end());
        std::vector<double> sums{0.0};
        for (const float value : values) sums.push_back(sums.back() + static_cast<double>(value));
        const std::size_t count = levels.size();
        for (std::size_t k = 0; k < count; ++k)
            levels[k] = detail::divide(static_cast<float>(k), static_cast<float>(count - 1));
        for (unsigned round = 0; round < 100 && !values.empty(); ++round) {
            const std::vector<float> before(levels.begin(), levels.end());
            std::size_t first = 0, idle = count;
            for (std::size_t k = 0; k < count; ++k) {
                const std::size_t last =
                    k + 1 < count ? below(values, (before[k] + before[k + 1]) * 0.5F) : values.size();
                if (last > first) {
                    levels[k] = static_cast<float>((sums[last] - sums[first]) / static_cast<double>(last - first));
                } else {
                    idle = k;
                }
                first = last;
            }
            // A level without values moves to the value that is farthest from all levels.
            if (idle < count) {
                levels[idle] = farthest(values, levels);
                std::sort(levels.begin(), levels.end());
            }
            if (std::equal(levels.begin(), levels.end(), before.begin())) break;
        }
    }

private:
    static GroupScale scale_for(std::span<const float> x) noexcept {
        const Range range = range_of(x);
        const float zero = detail::zero_to_f16(range.low);
        // The whole range may be twice what f16 holds.
        return {detail::scale_to_f16((std::min)(range.high - zero, f16_max)), zero};
    }

    /// How many of the rising values are at most `limit`.
    static std::size_t below(const std::vector<float>& values, float limit) noexcept {
        return static_cast<std::size_t>(std::upper_bound(values.begin(), values.end(), limit) - values.begin());
    }

    /// The value farthest from its nearest level; both rise.
    static float farthest(const std::vector<float>& values, std::span<const float> levels) noexcept {
        float found = values.front(), most = -1;
        std::size_t k = 0;
        for (const float value : values) {
            while (k + 1 < levels.size() && std::abs(levels[k + 1] - value) <= std::abs(levels[k] - value)) ++k;
            const float distance = std::abs(levels[k] - value);
            if (distance > most) {
                most = distance;
                found = value;
            }
        }
        return found;
    }
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
