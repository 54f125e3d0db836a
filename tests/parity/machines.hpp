/// The vector backends that this program can run, and a word about those it cannot.
#pragma once

#include <string>

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
}

inline std::string missing_machines() {
#if defined(XQUANT_HAS_AVX512)
    return "nothing is skipped";
#elif defined(XQUANT_HAS_AVX2)
    return "SKIPPED: AVX-512 (its kernels run through the emulated registers)";
#else
    return "SKIPPED: AVX2 and AVX-512 (their kernels run through the emulated registers)";
#endif
}

}  // namespace parity
