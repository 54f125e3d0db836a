// What the CUDA kernels ask of a GPU: warps of 32 lanes, a block of warps with shared memory, tensor cores.
// Kernels are written once over it, lane by lane, so that a machine in plain C++ (tests/support/gpu) can run them, too.
//
//     Lanes<T>                 one T for each lane of a warp: a register. x[lane] is the lane's own
//     PerWarp<T>               one T for each warp of a block, in registers
//     Block  each_warp(f)      f(Warp&) for every warp        each_thread(f)   f(number) for every thread of the block
//            barrier()         what was written to shared memory before is seen by all warps after
//            shared()          the block's memory
//     Warp   each(f)           f(lane) for every lane         index            the warp's number in its block
//            sync()            as Block::barrier, within the warp
//            copy(to, from)    16 bytes from global to shared memory in the background, both aligned to 16
//            wait_for_copies() until they are there; then sync()
//            multiply(c, a, b) C [16 x 8] += A [16 x 16] B [16 x 8], halves; fragments.cuh has the lanes
//                              or, for c in whole numbers, C [16 x 8] += A [16 x 32] B [32 x 8], signed bytes
//            load_matrices<Transposed>(out, rows)   4 matrices of 8 x 8 halves: lane 8 i + r gives row r of matrix i
//                              (16 bytes, aligned); lane l gets from matrix i the pair of column 2 (l % 4) in row
//                              l / 4, or, transposed, that of row 2 (l % 4) in column l / 4
//            exchange(x, mask) the value of lane ^ mask             fetch(x, from)   the value of lane `from`
//     largest_head             channels of the largest head that kernels are compiled for: 64, 128 or 256
//     pack(low, high)          two floats to halves, to nearest even      to_float, to_half
//     subtract_halves(a, b)    a - b          scale_halves(a, b, c)   a b + c, rounded once: pairs of halves
//     select_bytes(a, b, s)    byte i of the result is byte (s >> 4 i) & 7 of a, b          mask(a, b, c)   (a & b) | c
//     exp tanh inverse_root    of a float, relative error below 2^-21
//     angle(turns, c, s)       cosine and sine of an angle, in turns of a whole circle, given in f64
#pragma once

#include <cstddef>
#include <cstdint>

#include <xquant/backend/cuda/machine/fragments.cuh>
#include <xquant/types.hpp>

#if defined(__CUDACC__)

#include <cuda_fp16.h>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {

struct cuda_gpu {
    static constexpr const char* name = "cuda";
    static constexpr std::size_t largest_head = XQUANT_CUDA_LARGEST_HEAD;

    template <class T>
    struct Lanes {
        T own{};
        __device__ T& operator[](unsigned) noexcept { return own; }
        __device__ const T& operator[](unsigned) const noexcept { return own; }
    };

    class Warp {
    public:
        __device__ explicit Warp(unsigned number) noexcept : index(number) {}
        unsigned index;

        template <class F>
        __device__ __forceinline__ void each(F&& f) const {
            f(threadIdx.x % gpu::lanes);
        }
        __device__ __forceinline__ void copy(void* to, const void* from) const noexcept {
            const auto target = static_cast<unsigned>(__cvta_generic_to_shared(to));
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(target), "l"(from) : "memory");
        }
        __device__ __forceinline__ void wait_for_copies() const noexcept {
            asm volatile("cp.async.wait_all;" ::: "memory");
        }
        __device__ __forceinline__ void sync() const noexcept { __syncwarp(); }

        __device__ __forceinline__ void multiply(Lanes<float> (&c)[4], const Lanes<std::uint32_t> (&a)[4],
                                                 const Lanes<std::uint32_t> (&b)[2]) const noexcept {
            asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                "{%0,%1,%2,%3};"
                : "+f"(c[0].own), "+f"(c[1].own), "+f"(c[2].own), "+f"(c[3].own)
                : "r"(a[0].own), "r"(a[1].own), "r"(a[2].own), "r"(a[3].own), "r"(b[0].own), "r"(b[1].own));
        }

        __device__ __forceinline__ void multiply(Lanes<std::int32_t> (&c)[4], const Lanes<std::uint32_t> (&a)[4],
                                                 const Lanes<std::uint32_t> (&b)[2]) const noexcept {
            asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                "{%0,%1,%2,%3};"
                : "+r"(c[0].own), "+r"(c[1].own), "+r"(c[2].own), "+r"(c[3].own)
                : "r"(a[0].own), "r"(a[1].own), "r"(a[2].own), "r"(a[3].own), "r"(b[0].own), "r"(b[1].own));
        }

        template <bool Transposed>
        __device__ __forceinline__ void load_matrices(Lanes<std::uint32_t> (&out)[4],
                                                      const Lanes<const f16*>& rows) const noexcept {
            const auto address = static_cast<unsigned>(__cvta_generic_to_shared(rows.own));
            if constexpr (Transposed) {
                asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                             : "=r"(out[0].own), "=r"(out[1].own), "=r"(out[2].own), "=r"(out[3].own)
                             : "r"(address)
                             : "memory");
            } else {
                asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                             : "=r"(out[0].own), "=r"(out[1].own), "=r"(out[2].own), "=r"(out[3].own)
                             : "r"(address)
                             : "memory");
            }
        }

        __device__ __forceinline__ Lanes<float> exchange(const Lanes<float>& x, unsigned mask) const noexcept {
            return {__shfl_xor_sync(0xFFFFFFFFU, x.own, static_cast<int>(mask))};
        }
        __device__ __forceinline__ Lanes<float> fetch(const Lanes<float>& x,
                                                      const Lanes<unsigned>& from) const noexcept {
            return {__shfl_sync(0xFFFFFFFFU, x.own, static_cast<int>(from.own))};
        }
    };

    template <class T>
    class PerWarp {
    public:
        __device__ explicit PerWarp(unsigned) noexcept {}
        __device__ __forceinline__ T& operator[](const Warp&) noexcept { return own_; }

    private:
        T own_{};
    };

    class Block {
    public:
        __device__ explicit Block(std::byte* shared) noexcept : shared_(shared) {}
        __device__ __forceinline__ unsigned warps() const noexcept { return blockDim.x / gpu::lanes; }
        __device__ __forceinline__ std::byte* shared() const noexcept { return shared_; }

        template <class F>
        __device__ __forceinline__ void each_warp(F&& f) const {
            Warp warp(threadIdx.x / gpu::lanes);
            f(warp);
        }
        template <class F>
        __device__ __forceinline__ void each_thread(F&& f) const {
            f(threadIdx.x);
        }
        __device__ __forceinline__ void barrier() const noexcept { __syncthreads(); }

    private:
        std::byte* shared_;
    };

    __device__ __forceinline__ static std::uint32_t pack(float low, float high) noexcept {
        return bits_of(__floats2half2_rn(low, high));
    }
    __device__ __forceinline__ static float to_float(f16 half) noexcept {
        return __half2float(__ushort_as_half(half.bits));
    }
    __device__ __forceinline__ static f16 to_half(float value) noexcept {
        return f16{__half_as_ushort(__float2half_rn(value))};
    }
    __device__ __forceinline__ static std::uint32_t subtract_halves(std::uint32_t a, std::uint32_t b) noexcept {
        return bits_of(__hsub2(halves_of(a), halves_of(b)));
    }
    __device__ __forceinline__ static std::uint32_t scale_halves(std::uint32_t a, std::uint32_t b,
                                                                 std::uint32_t c) noexcept {
        return bits_of(__hfma2(halves_of(a), halves_of(b), halves_of(c)));
    }
    __device__ __forceinline__ static std::uint32_t select_bytes(std::uint32_t a, std::uint32_t b,
                                                                 std::uint32_t selector) noexcept {
        return __byte_perm(a, b, selector);
    }
    __device__ __forceinline__ static std::uint32_t mask(std::uint32_t a, std::uint32_t b, std::uint32_t c) noexcept {
        std::uint32_t out;
        asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
        return out;
    }
    __device__ __forceinline__ static float exp(float x) noexcept { return __expf(x); }
    __device__ __forceinline__ static float tanh(float x) noexcept { return ::tanhf(x); }
    __device__ __forceinline__ static float inverse_root(float x) noexcept { return 1.0F / ::sqrtf(x); }
    __device__ __forceinline__ static void angle(double turns, float& cosine, float& sine) noexcept {
        // The part of a circle within half a turn of 0, where f32 has it exactly enough.
        ::sincospif(2.0F * static_cast<float>(turns - ::rint(turns)), &sine, &cosine);
    }

private:
    // Copies that cost nothing; taking halves out one by one does.
    __device__ __forceinline__ static std::uint32_t bits_of(__half2 pair) noexcept {
        std::uint32_t bits = 0;
        memcpy(&bits, &pair, sizeof bits);
        return bits;
    }
    __device__ __forceinline__ static __half2 halves_of(std::uint32_t bits) noexcept {
        __half2 pair;
        memcpy(&pair, &bits, sizeof pair);
        return pair;
    }
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend

#endif
