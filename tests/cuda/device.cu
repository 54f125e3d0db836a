/// The CUDA backend on a GPU beside the processor. Says so and exits with 77 where there is no GPU.
#include <xquant/cuda.cuh>

#include <cstdio>

#include "cuda/caches.hpp"

using namespace xquant;

namespace {

void expect(cudaError_t status, const char* call) {
    if (status != cudaSuccess) throw cuda_error(call, status);
}

/// Floats on the device.
class Memory {
public:
    explicit Memory(const std::vector<float>& values) : count_(values.size()) {
        expect(cudaMalloc(&data_, count_ * sizeof(float)), "cudaMalloc");
        expect(cudaMemcpy(data_, values.data(), count_ * sizeof(float), cudaMemcpyHostToDevice), "cudaMemcpy");
    }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    ~Memory() { cudaFree(data_); }
    float* data() const noexcept { return static_cast<float*>(data_); }
    std::vector<float> read() const {
        std::vector<float> out(count_);
        copy(out.data(), data_, count_ * sizeof(float));
        return out;
    }
    static void copy(void* to, const void* from, std::size_t bytes) {
        expect(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), "cudaMemcpy");
    }

private:
    void* data_ = nullptr;
    std::size_t count_;
};

}  // namespace

int main() {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        std::printf("xquant: SKIPPED, no GPU: the kernels were compiled, none has run\n");
        return 77;
    }
    cudaDeviceProp device{};
    expect(cudaGetDeviceProperties(&device, 0), "cudaGetDeviceProperties");
    std::printf("device: %s, compute capability %d.%d\n", device.name, device.major, device.minor);
    int failed = 0;
    on_device::for_each_case<backend::cuda, Memory>([&](const on_device::Case& c, const on_device::Outcome& outcome) {
        const bool good = outcome.attention < 2e-3 && outcome.attention > 1e-6 && outcome.same_pages &&
                          outcome.different * 500 <= outcome.bytes && !outcome.bad_rows;
        failed += good ? 0 : 1;
        std::printf("%-6s %-36s attention off by %.1e, %zu of %zu bytes differ%s\n", good ? "passed" : "FAILED", c.name,
                    outcome.attention, outcome.different, outcome.bytes,
                    outcome.bad_rows ? ", rows are not finite" : "");
    });
    return failed == 0 ? 0 : 1;
}
