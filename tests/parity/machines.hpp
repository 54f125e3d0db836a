/// The vector backends that this program can run, and a word about those it cannot.
#pragma once

#include <string>

#include <xquant/backend/emulated/matrix_unit.hpp>
#include <xquant/backend/emulated/registers.hpp>
#include <xquant/xquant.hpp>

namespace parity {

/// Calls f<Registers>() for the emulated registers and for those that the flags allow.
template <class F>
void for_each_registers(F&& f) {
    f.template operator()<xquant::backend::emulated_registers>();
#if defined(XQUANT_HAS_AVX2)
    f.template operator()<xquant::backend::avx2_registers>();
#endif
#if defined(XQUANT_HAS_AVX512)
    f.template operator()<xquant::backend::avx512_registers>();
#endif
#if defined(XQUANT_HAS_NEON)
    f.template operator()<xquant::backend::neon_registers>();
#endif
}

/// Likewise for those with a matrix unit, which differ from others in 8-bit products alone.
template <class F>
void for_each_product_registers(F&& f) {
    for_each_registers(f);
    f.template operator()<xquant::backend::emulated_matrix_registers>();
#if defined(XQUANT_HAS_AMX)
    f.template operator()<xquant::backend::amx_registers>();
#endif
}

inline std::string missing_machines() {
#if defined(XQUANT_HAS_AMX)
    if (xquant::backend::amx_permitted()) return "nothing is skipped";
    return "SKIPPED: AMX, which the operating system refuses (its kernels run on the dot instruction)";
#elif defined(XQUANT_HAS_AVX512)
    return "SKIPPED: AMX (its kernels run through an emulated matrix unit)";
#elif defined(XQUANT_HAS_AVX2)
    return "SKIPPED: AVX-512 and AMX (their kernels run through the emulated registers)";
#elif defined(XQUANT_HAS_NEON)
    return "SKIPPED: AVX2, AVX-512 and AMX (this is an Arm processor, or an emulated one)";
#else
    return "SKIPPED: AVX2, AVX-512 and AMX (their kernels run through the emulated registers)";
#endif
}

}  // namespace parity
