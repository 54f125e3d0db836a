// The contract of an axis policy: see contract.hpp.
#pragma once

#include <algorithm>
#include <cmath>

#include <xquant/quantizer/uniform.hpp>
#include <xquant/stages.hpp>
#include <xquant/testing/violation.hpp>

namespace xquant::testing {
inline namespace XQUANT_ABI_NS {

/// Checks an axis policy, with groups of 32, 64 and 128 values: tokens * channels values a group, tokens a divisor of
/// 128, and rows that are stored this way hold each value once, in the group of its place.
template <class Axis>
void check_layout() {
    const auto check = []<class Q>(Q) {
        const GroupShape shape = Axis::group_shape(Q::group);
        const std::string of = " for groups of " + std::to_string(Q::group);
        detail::holds(shape.tokens >= 1 && shape.channels >= 1 && shape.tokens * shape.channels == Q::group,
                      "group_shape: tokens * channels is not the size of the group" + of);
        detail::holds(128 % shape.tokens == 0, "group_shape: the tokens of a group do not divide 128" + of);
        if constexpr (128 % Axis::group_shape(Q::group).tokens == 0) {
            constexpr std::size_t rows = 133, width = 150;
            detail::Numbers numbers(7);
            const std::vector<float> x = numbers.row(rows * width, 1);
            const QuantizedRows stored = quantize<Q, Axis>(MatrixView(x.data(), rows, width));
            std::vector<float> whole(rows * width), group(Q::group);
            dequantize(stored, whole.data());
            for (std::size_t t = 0; t < rows; t += shape.tokens) {
                for (std::size_t c = 0; c < width; c += shape.channels) {
                    const std::size_t tokens = std::min<std::size_t>(shape.tokens, rows - t);
                    const std::size_t channels = std::min<std::size_t>(shape.channels, width - c);
                    std::vector<std::uint8_t> codes(tokens * channels);
                    for (std::size_t i = 0; i < codes.size(); ++i) {
                        group[i] = x[(t + i / channels) * width + c + i % channels];
                    }
                    const GroupScale scale = Q::encode({group.data(), codes.size()}, codes);
                    for (std::size_t i = 0; i < codes.size(); ++i) {
                        const float expected = scale.zero + scale.scale * static_cast<float>(codes[i]);
                        const float found = whole[(t + i / channels) * width + c + i % channels];
                        detail::holds(std::abs(found - expected) <= 0x1p-20F,
                                      "a value is not in the group of its place" + of);
                    }
                }
            }
        }
    };
    check(Uniform<8, 32>{});
    check(Uniform<4, 64>{});
    check(Uniform<3, 128>{});
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::testing
