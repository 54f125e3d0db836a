// What this translation unit is compiled for.
//
// Yours to set:   XQUANT_FORCE_SCALAR       use the scalar backend whatever the flags allow
//                 XQUANT_ALLOW_FAST_MATH    accept that -ffast-math changes stored bytes
//                 XQUANT_CUDA_LARGEST_HEAD  GPU kernels for heads of up to 64 or 128 channels only
// Ours:           XQUANT_ABI_*, XQUANT_HAS_*, XQUANT_RESTRICT, XQUANT_NOINLINE, XQUANT_COLD, XQUANT_INLINE,
//                 XQUANT_UNROLL, XQUANT_UNDEFINED_REGISTERS_*, XQUANT_DEVICE, XQUANT_DEVICE_INLINE, XQUANT_DEVICE_COLD
//
// All code (not data) lives in an inline namespace named after every macro that a header looks at and that changes what
// code does: the instruction set, whether the best backend is scalar, which heads GPU kernels are compiled for,
// -ffast-math (of its parts, -fassociative-math), exceptions. Two translation units that differ in one of them then get
// two sets of functions instead of one set picked by the linker. Functions of the standard library have no such
// namespace: docs/embedding.md says what follows for programs that mix instruction sets.
#pragma once

#if defined(__FAST_MATH__) && !defined(XQUANT_ALLOW_FAST_MATH)
#error "xquant: -ffast-math lets the compiler change stored codes; define XQUANT_ALLOW_FAST_MATH to accept that"
#endif

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define XQUANT_HAS_AVX2 1
#endif
#if defined(XQUANT_HAS_AVX2) && defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && \
    defined(__AVX512DQ__)
#define XQUANT_HAS_AVX512 1
#endif
#if defined(XQUANT_HAS_AVX512) && defined(__AVX512VNNI__) && defined(__AMX_TILE__) && defined(__AMX_INT8__) && \
    defined(__linux__)
#define XQUANT_HAS_AMX 1
#endif
#if defined(__aarch64__) && defined(__ARM_NEON) && defined(__ORDER_LITTLE_ENDIAN__) && \
    __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define XQUANT_HAS_NEON 1
#endif

#if defined(XQUANT_HAS_AMX)
#define XQUANT_ABI_ISA avx512_amx
#elif defined(XQUANT_HAS_AVX512) && defined(__AVX512VNNI__)
#define XQUANT_ABI_ISA avx512_vnni
#elif defined(XQUANT_HAS_AVX512)
#define XQUANT_ABI_ISA avx512
#elif defined(XQUANT_HAS_AVX2)
#define XQUANT_ABI_ISA avx2
#elif defined(XQUANT_HAS_NEON) && defined(__ARM_FEATURE_MATMUL_INT8)
#define XQUANT_ABI_ISA neon_i8mm
#elif defined(XQUANT_HAS_NEON) && defined(__ARM_FEATURE_DOTPROD)
#define XQUANT_ABI_ISA neon_dotprod
#elif defined(XQUANT_HAS_NEON)
#define XQUANT_ABI_ISA neon
#else
#define XQUANT_ABI_ISA base
#endif

#if defined(XQUANT_FORCE_SCALAR)
#define XQUANT_ABI_SCALAR _scalar
#else
#define XQUANT_ABI_SCALAR
#endif

#if defined(__FAST_MATH__)
#define XQUANT_ABI_MATH _fast_math
#elif defined(__ASSOCIATIVE_MATH__)
#define XQUANT_ABI_MATH _associative
#else
#define XQUANT_ABI_MATH
#endif

// Channels of the largest heads that GPU kernels are compiled for: 64, 128 or 256. An engine whose models have heads of
// 128 channels defines 128 and spares nvcc a third of its minutes; larger heads are refused when a cache is made.
#if !defined(XQUANT_CUDA_LARGEST_HEAD) || XQUANT_CUDA_LARGEST_HEAD == 256
#define XQUANT_ABI_HEADS
#elif XQUANT_CUDA_LARGEST_HEAD == 128
#define XQUANT_ABI_HEADS _heads_128
#elif XQUANT_CUDA_LARGEST_HEAD == 64
#define XQUANT_ABI_HEADS _heads_64
#else
#error "xquant: XQUANT_CUDA_LARGEST_HEAD is 64, 128 or 256"
#endif
#if !defined(XQUANT_CUDA_LARGEST_HEAD)
#define XQUANT_CUDA_LARGEST_HEAD 256
#endif

#if defined(__cpp_exceptions) || defined(__EXCEPTIONS) || defined(_CPPUNWIND)
#define XQUANT_HAS_EXCEPTIONS 1
#define XQUANT_ABI_EXCEPTIONS
#else
#define XQUANT_HAS_EXCEPTIONS 0
#define XQUANT_ABI_EXCEPTIONS _no_exceptions
#endif

// Two macros: arguments of ## are not expanded.
#define XQUANT_ABI_JOIN(isa, scalar, math, heads, exceptions) abi_##isa##scalar##math##heads##exceptions
#define XQUANT_ABI_OF(isa, scalar, math, heads, exceptions) XQUANT_ABI_JOIN(isa, scalar, math, heads, exceptions)
#define XQUANT_ABI_NS \
    XQUANT_ABI_OF(XQUANT_ABI_ISA, XQUANT_ABI_SCALAR, XQUANT_ABI_MATH, XQUANT_ABI_HEADS, XQUANT_ABI_EXCEPTIONS)

#define XQUANT_TEXT_OF(name) XQUANT_TEXT_AS_IT_IS(name)
#define XQUANT_TEXT_AS_IT_IS(name) #name

// XQUANT_NOINLINE: one body in the whole program, whoever calls it. g++ would make copies for callers all the same
// (noclone, and no propagation of what it knows about them), and the copies may round differently in the last bit.
#if defined(__clang__)
#define XQUANT_RESTRICT __restrict__
#define XQUANT_NOINLINE __attribute__((noinline))
#define XQUANT_COLD __attribute__((cold, noinline))
#define XQUANT_INLINE inline __attribute__((always_inline))
#elif defined(__GNUC__)
#define XQUANT_RESTRICT __restrict__
#define XQUANT_NOINLINE __attribute__((noipa))
#define XQUANT_COLD __attribute__((cold, noinline))
#define XQUANT_INLINE inline __attribute__((always_inline))
#else
#define XQUANT_RESTRICT
#define XQUANT_NOINLINE
#define XQUANT_COLD
#define XQUANT_INLINE inline
#endif

// XQUANT_DEVICE: a function of GPU kernels. nvcc compiles it for the device, too; other compilers for the processor
// alone. XQUANT_DEVICE_INLINE: one that has to be inlined, since its callers' registers would become memory otherwise.
// XQUANT_DEVICE_COLD: one that is rarely called, and not inlined.
#if defined(__CUDACC__)
#define XQUANT_DEVICE __host__ __device__
#define XQUANT_DEVICE_INLINE __host__ __device__ __forceinline__
#define XQUANT_DEVICE_COLD __host__ __device__ __noinline__
#else
#define XQUANT_DEVICE
#define XQUANT_DEVICE_INLINE
#define XQUANT_DEVICE_COLD
#endif

// In front of a short loop whose sums must stay in registers, at -O2 as well. nvcc hands code for the processor on to
// g++, which does not know "unroll", and does not know "GCC unroll" itself.
#if defined(__clang__) || defined(__CUDA_ARCH__)
#define XQUANT_UNROLL _Pragma("unroll")
#elif defined(__GNUC__) && !defined(__CUDACC__)
#define XQUANT_UNROLL _Pragma("GCC unroll 16")
#else
#define XQUANT_UNROLL
#endif

// XQUANT_KEEPS_ORDER: at the beginning of a function's body, where its sums are formed in the order of the source,
// whatever the flags (-fassociative-math). For g++, which has no such thing: in_order of quantizer/group.hpp.
#if defined(__clang__)
#define XQUANT_KEEPS_ORDER _Pragma("clang fp reassociate(off)")
#else
#define XQUANT_KEEPS_ORDER
#endif

// XQUANT_OPAQUE: in front of a local variable whose value the compiler shall not know (quantizer/group.hpp). On a GPU
// it would lie in memory, and nvcc keeps to the source without it.
#if defined(__CUDA_ARCH__)
#define XQUANT_OPAQUE
#else
#define XQUANT_OPAQUE volatile
#endif

// Around what is built on AVX-512 intrinsics. Those of g++ 12 leave registers undefined on purpose, as `__m512 y = y`,
// and g++ warns of them wherever they are inlined, in system headers as well.
#if defined(__GNUC__) && !defined(__clang__)
#define XQUANT_UNDEFINED_REGISTERS_BEGIN                                                       \
    _Pragma("GCC diagnostic push") _Pragma("GCC diagnostic ignored \"-Wmaybe-uninitialized\"") \
        _Pragma("GCC diagnostic ignored \"-Wuninitialized\"")
#define XQUANT_UNDEFINED_REGISTERS_END _Pragma("GCC diagnostic pop")
#else
#define XQUANT_UNDEFINED_REGISTERS_BEGIN
#define XQUANT_UNDEFINED_REGISTERS_END
#endif

namespace xquant {
inline namespace XQUANT_ABI_NS {

/// The name of the inline namespace this translation unit's code lives in.
constexpr const char* abi_name() noexcept { return XQUANT_TEXT_OF(XQUANT_ABI_NS); }

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
