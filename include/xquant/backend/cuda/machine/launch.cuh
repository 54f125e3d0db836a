// A CUDA device as a cache sees it: memory and kernels of one stream. For nvcc.
//
// Nothing here waits for the device but to_host. Memory comes from a stream-ordered pool of the cache's own, which keeps what it has
// until the cache goes, so that after a warm-up allocating is a matter of the processor alone. The process's default pool is not touched.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <new>
#include <string>

#include <xquant/backend/cuda/machine/machine.cuh>
#include <xquant/error.hpp>

namespace xquant {

/// A call of the CUDA runtime failed; what() names it.
class cuda_error : public error {
public:
    cuda_error(const char* call, cudaError_t status)
        : error(std::string("xquant: ") + call + ": " + cudaGetErrorName(status) + ", " + cudaGetErrorString(status)),
          status_(status) {}
    [[nodiscard]] cudaError_t status() const noexcept { return status_; }

private:
    cudaError_t status_;
};

inline namespace XQUANT_ABI_NS {

/// Throws cuda_error unless a call succeeded.
inline void check_cuda(const char* call, cudaError_t status) {
    if (status != cudaSuccess) detail::raise_error(cuda_error(call, status));
}

}  // namespace XQUANT_ABI_NS

namespace backend {
inline namespace XQUANT_ABI_NS {

/// Kernel::warps is the size of a block; Kernel::at_once blocks are to find registers on a multiprocessor.
template <class Kernel, class... Arguments>
__global__ void __launch_bounds__(Kernel::warps* gpu::lanes, Kernel::at_once) run_kernel(Arguments... arguments) {
    extern __shared__ __align__(16) std::byte shared[];
    cuda_gpu::Block block(shared);
    Kernel::template run<cuda_gpu>(block, blockIdx.x, blockIdx.y, blockIdx.z, arguments...);
}

class CudaDevice {
public:
    using machine = cuda_gpu;
    static constexpr const char *name = "cuda_exact", *int8_name = "cuda";

    /// Works in this stream (null: the default one), on the device that is current now.
    explicit CudaDevice(void* stream) : stream_(static_cast<cudaStream_t>(stream)) {
        int device = 0, multiprocessors = 0;
        check_cuda("cudaGetDevice", cudaGetDevice(&device));
        check_cuda("cudaDeviceGetAttribute",
                   cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
        blocks_at_once_ = 2 * static_cast<unsigned>(multiprocessors);
        int shared = 0;
        check_cuda("cudaDeviceGetAttribute",
                   cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
        shared_limit_ = static_cast<std::size_t>(shared);
        cudaMemPoolProps properties{};
        properties.allocType = cudaMemAllocationTypePinned;
        properties.location.type = cudaMemLocationTypeDevice;
        properties.location.id = device;
        check_cuda("cudaMemPoolCreate", cudaMemPoolCreate(&pool_, &properties));
        xquant::detail::Undo undo([this] { static_cast<void>(cudaMemPoolDestroy(pool_)); });
        std::uint64_t keep = ~std::uint64_t{0};
        check_cuda("cudaMemPoolSetAttribute", cudaMemPoolSetAttribute(pool_, cudaMemPoolAttrReleaseThreshold, &keep));
        undo.release();
    }
    CudaDevice(const CudaDevice&) = delete;
    CudaDevice& operator=(const CudaDevice&) = delete;
    /// What was allocated must have been released; the stream may not have got there yet.
    ~CudaDevice() { static_cast<void>(cudaMemPoolDestroy(pool_)); }

    /// Blocks of the larger kernels that run side by side.
    [[nodiscard]] unsigned blocks_at_once() const noexcept { return blocks_at_once_; }

    /// Bytes of shared memory that a block can have.
    [[nodiscard]] std::size_t shared_limit() const noexcept { return shared_limit_; }

    [[nodiscard]] void* allocate(std::size_t bytes) {
        void* memory = nullptr;
        const cudaError_t status = cudaMallocFromPoolAsync(&memory, bytes, pool_, stream_);
        if (status == cudaErrorMemoryAllocation) {
            static_cast<void>(cudaGetLastError());
            xquant::detail::raise_error(std::bad_alloc());
        }
        check_cuda("cudaMallocFromPoolAsync", status);
        return memory;
    }
    void release(void* memory, std::size_t) noexcept { static_cast<void>(cudaFreeAsync(memory, stream_)); }
    void zero(void* to, std::size_t bytes) { check_cuda("cudaMemsetAsync", cudaMemsetAsync(to, 0, bytes, stream_)); }
    /// `from` may be changed as soon as this returns.
    void to_device(void* to, const void* from, std::size_t bytes) {
        check_cuda("cudaMemcpyAsync", cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_));
    }
    void to_host(void* to, const void* from, std::size_t bytes) {
        check_cuda("cudaMemcpyAsync", cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream_));
        check_cuda("cudaStreamSynchronize", cudaStreamSynchronize(stream_));
    }

    template <class Kernel, class... Arguments>
    void launch(unsigned x, unsigned y, unsigned z, std::size_t shared_bytes, const Arguments&... arguments) {
        constexpr std::size_t without_asking = 48 * 1024;
        const auto kernel = &run_kernel<Kernel, Arguments...>;
        if (shared_bytes > without_asking) {
            check_cuda("cudaFuncSetAttribute", cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                                    static_cast<int>(shared_bytes)));
        }
        kernel<<<dim3(x, y, z), Kernel::warps * gpu::lanes, shared_bytes, stream_>>>(arguments...);
        check_cuda("kernel launch", cudaGetLastError());
    }

private:
    cudaStream_t stream_;
    cudaMemPool_t pool_{};
    unsigned blocks_at_once_ = 0;
    std::size_t shared_limit_ = 0;
};

}  // namespace XQUANT_ABI_NS
}  // namespace backend
}  // namespace xquant
