// The backends of this translation unit, by its flags, and the best of them.
#pragma once

#include <xquant/backend/project.hpp>
#include <xquant/backend/simd/attention.hpp>
#include <xquant/backend/simd/feedback.hpp>

#if defined(XQUANT_HAS_AMX)
#include <xquant/backend/amx/registers.hpp>
#endif
#if defined(XQUANT_HAS_AVX512)
#include <xquant/backend/avx512/registers.hpp>
#endif
#if defined(XQUANT_HAS_AVX2)
#include <xquant/backend/avx2/registers.hpp>
#endif
#if defined(XQUANT_HAS_NEON)
#include <xquant/backend/neon/registers.hpp>
#endif

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {

#if defined(XQUANT_HAS_AMX)
using amx = simd<amx_registers>;
#endif
#if defined(XQUANT_HAS_AVX512)
using avx512 = simd<avx512_registers>;
#endif
#if defined(XQUANT_HAS_AVX2)
using avx2 = simd<avx2_registers>;
#endif
#if defined(XQUANT_HAS_NEON)
using neon = simd<neon_registers>;
#endif

#if defined(XQUANT_FORCE_SCALAR)
using best = scalar;
#elif defined(XQUANT_HAS_AMX)
using best = int8<amx>;
#elif defined(XQUANT_HAS_AVX512)
using best = int8<avx512>;
#elif defined(XQUANT_HAS_AVX2)
using best = int8<avx2>;
#elif defined(XQUANT_HAS_NEON)
using best = int8<neon>;
#else
using best = scalar;
#endif

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
