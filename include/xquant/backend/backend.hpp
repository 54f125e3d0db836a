// Backends: one tag for each machine. A kernel is an overload that takes the tag first; a tag that derives from another
// inherits its kernels where it has none of its own.
//
//     scalar            plain C++: the specification every other backend is compared with
//     simd<Registers>   the kernels of backend/simd over a register wrapper: avx2, avx512, amx, neon, emulated
//     int8<Base>        rebuilds keys with 8-bit integer products where the stored codes allow it (scalar/int8.hpp)
//
// `best` is chosen in backend/simd/backends.hpp, by the flags of the translation unit.
#pragma once

#include <xquant/config.hpp>

namespace xquant::backend {

/// Plain C++, for any machine.
struct scalar {
    static constexpr const char* name = "scalar";            ///< as programs print it
    static constexpr const char* int8_name = "scalar_int8";  ///< the name of int8<scalar>
    static constexpr bool int8_products = false;             ///< whether keys are rebuilt by 8-bit products
    static constexpr unsigned dot_bits = 8;                  ///< the most bits of codes in such products
    struct MatrixScope {};                                   ///< lives as long as a thread uses a matrix unit
};

/// Vector registers. @tparam Registers  a wrapper such as avx2_registers; backend/simd/registers.hpp says what it has
template <class Registers>
struct simd : scalar {
    using registers = Registers;                                    ///< the wrapper
    using MatrixScope = typename Registers::MatrixScope;            ///< lives as long as a thread uses a matrix unit
    static constexpr unsigned dot_bits = Registers::dot_bits;       ///< what its dot instruction takes
    static constexpr const char* name = Registers::name;            ///< as programs print it
    static constexpr const char* int8_name = Registers::int8_name;  ///< the name of int8<simd<Registers>>
};

/// Like Base, but keys are rebuilt by 8-bit integer products where the stored codes allow it.
template <class Base>
struct int8 : Base {
    static constexpr const char* name = Base::int8_name;  ///< as programs print it
    static constexpr bool int8_products = true;           ///< keys are rebuilt by 8-bit products
};

}  // namespace xquant::backend
