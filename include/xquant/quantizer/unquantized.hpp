// Unquantized<T>: the row as it is, in f32, f16 or bf16. With f32 every scheme equals plain attention to rounding,
// which is how projections are tested; with f16 it is the ordinary cache.
#pragma once

#include <xquant/types.hpp>

namespace xquant {

/// @tparam T  float, f16 or bf16
template <class T = float>
struct Unquantized {
    static_assert(is_element<T>, "xquant: Unquantized<T> takes float, f16 or bf16");
    using element = T;  ///< what a stored value is
};

}  // namespace xquant
