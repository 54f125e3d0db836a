// PerStream<First, Second>: a quantizer for each stream of a scheme, such as 5-bit keys beside 4-bit values.
#pragma once

#include <cstddef>
#include <tuple>

#include <xquant/config.hpp>

namespace xquant {

/// Names a quantizer for each stream, in order.
template <class... Quantizers>
struct PerStream {
    static_assert(sizeof...(Quantizers) >= 2,
                  "xquant: PerStream<...> names one quantizer for each stream, two or more");
};

inline namespace XQUANT_ABI_NS {
namespace detail {

/// The quantizer of stream I: the only one there is, or entry I of PerStream.
template <class Quantizer, std::size_t I>
struct quantizer_of {
    using type = Quantizer;
};

template <class... Quantizers, std::size_t I>
struct quantizer_of<PerStream<Quantizers...>, I> {
    static_assert(I < sizeof...(Quantizers),
                  "xquant: PerStream<...> has fewer quantizers than the projection has streams");
    using type = std::tuple_element_t < I<sizeof...(Quantizers) ? I : 0, std::tuple<Quantizers...>>;
};

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
