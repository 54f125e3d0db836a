// Requantizable<Fresh, Old>: pages are written by Fresh, and rewritten by Old when requantize() is told to.
#pragma once

#include <cstddef>

#include <xquant/quantizer/per_stream.hpp>

namespace xquant {

/// Old should take fewer bits than Fresh. Either is a quantizer, or PerStream<...> of several.
///
///     XCache<Requantizable<Uniform<4>, Uniform<2>>, Layout<PerToken>>
template <class Fresh, class Old>
struct Requantizable {};

inline namespace XQUANT_ABI_NS {
namespace detail {

template <class Fresh, class Old, std::size_t I>
struct quantizer_of<Requantizable<Fresh, Old>, I> : quantizer_of<Fresh, I> {};

/// The quantizer that stream I is rewritten by: its own where there is no other.
template <class Quantizer, std::size_t I>
struct requantizer_of : quantizer_of<Quantizer, I> {};
template <class Fresh, class Old, std::size_t I>
struct requantizer_of<Requantizable<Fresh, Old>, I> : quantizer_of<Old, I> {};

template <class Quantizer>
inline constexpr bool is_requantizable = false;
template <class Fresh, class Old>
inline constexpr bool is_requantizable<Requantizable<Fresh, Old>> = true;

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
