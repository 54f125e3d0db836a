// The quantizer and the axis of a stream, as data: its format, and functions that write it. Kernels never see a
// policy's type.
#pragma once

#include <cstddef>
#include <iterator>
#include <span>

#include <xquant/concepts.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// Encodes a group by a policy of either form.
template <quantizer_policy Q>
GroupScale encode_group(std::span<const float> x, std::span<std::uint8_t> codes, const float* levels) noexcept {
    if constexpr (learning_policy<Q>) {
        return Q::encode(x, codes, levels);
    } else {
        return Q::encode(x, codes);
    }
}

}  // namespace detail

/// The format and encoder of a stream of `width` channels under these policies.
template <element_policy Q, axis_policy Axis>
StreamCodec make_codec(std::size_t width) {
    const auto columns = static_cast<std::uint32_t>(width);
    if constexpr (unquantized_policy<Q>) {
        using T = typename Q::element;
        return {
            {columns, 1, columns, kind_of(dtype_of<T>), static_cast<std::uint8_t>(8 * sizeof(T)), false, 0, nullptr},
            nullptr};
    } else {
        constexpr GroupShape shape = Axis::group_shape(Q::group);
        static_assert(shape.tokens >= 1 && 128 % shape.tokens == 0,
                      "xquant: the tokens of a group must divide 128, the tokens of a page");
        StreamFormat format{
            columns, shape.tokens, shape.channels, CodeKind::planes, static_cast<std::uint8_t>(Q::bits), Q::stores_zero,
            0,       nullptr};
        if constexpr (!Q::stores_zero) format.zero_code = Q::zero_code;
        if constexpr (requires { Q::levels; }) {
            static_assert(std::size(Q::levels) == (1U << Q::bits), "xquant: levels needs 2^bits entries");
            format.levels = std::data(Q::levels);
        }
        StreamCodec codec{format, &detail::encode_group<Q>};
        if constexpr (learning_policy<Q>) codec.learn = &Q::learn;
        codec.feeds_back = feedback_policy<Q>;
        if constexpr (requires { Q::scale_rule; }) codec.rule = Q::scale_rule;
        if constexpr (requires(Range range) { Q::scale_of(range); }) codec.scale_of = &Q::scale_of;
        if constexpr (outlier_policy<Q>) {
            codec.choose = &Q::choose;
            codec.format.outliers = static_cast<std::uint8_t>(Q::outliers);
        }
        return codec;
    }
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
