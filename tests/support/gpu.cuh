/// What tests and benchmarks on a GPU have in common.
#pragma once

#include <xquant/backend/cuda/machine/launch.cuh>

#include <cstddef>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

namespace test {

/// The name of the GPU that is used; none: says that there is none, and "what" of it.
inline std::string find_gpu(const char* what) {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        std::printf("xquant: SKIPPED, no GPU: %s\n", what);
        return {};
    }
    cudaDeviceProp device{};
    xquant::check_cuda("cudaGetDeviceProperties", cudaGetDeviceProperties(&device, 0));
    return std::string(device.name) + ", compute capability " + std::to_string(device.major) + "." +
           std::to_string(device.minor);
}

/// The exit status of a program that was skipped.
inline constexpr int skipped = 77;

/// An array in the memory of the GPU.
template <class T>
class GpuArray {
public:
    explicit GpuArray(std::size_t count) : count_(count) {
        xquant::check_cuda("cudaMalloc", cudaMalloc(&data_, count * sizeof(T)));
    }
    explicit GpuArray(const std::vector<T>& values) : GpuArray(values.size()) {
        xquant::check_cuda("cudaMemcpy", cudaMemcpy(data_, values.data(), bytes(), cudaMemcpyHostToDevice));
    }
    GpuArray(const GpuArray&) = delete;
    GpuArray& operator=(const GpuArray&) = delete;
    ~GpuArray() { cudaFree(data_); }
    [[nodiscard]] T* data() const noexcept { return static_cast<T*>(data_); }
    [[nodiscard]] std::size_t bytes() const noexcept { return count_ * sizeof(T); }
    [[nodiscard]] std::vector<T> read() const {
        std::vector<T> out(count_);
        copy(out.data(), data_, bytes());
        return out;
    }
    static void copy(void* to, const void* from, std::size_t bytes) {
        xquant::check_cuda("cudaMemcpy", cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost));
    }

private:
    void* data_ = nullptr;
    std::size_t count_;
};

}  // namespace test
