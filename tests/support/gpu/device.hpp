// A device in plain C++: memory that is the processor's, kernels that run on emulated_gpu, block after block. The tests
// of a cache on a device run on it where there is no GPU.
#pragma once

#include <cstddef>
#include <cstring>
#include <memory_resource>

#include "support/gpu/machine.hpp"

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {

class EmulatedDevice {
public:
    using machine = emulated_gpu;
    static constexpr const char *name = "emulated_device", *int8_name = "emulated_device_int8";

    explicit EmulatedDevice(void*) noexcept {}

    /// As CudaDevice's.
    [[nodiscard]] static unsigned blocks_at_once() noexcept { return 24; }
    [[nodiscard]] static std::size_t shared_limit() noexcept { return shared_bytes; }
    /// Shared memory of a block, of devices to come; a test may make it small.
    static inline std::size_t shared_bytes = std::size_t{227} * 1024;

    [[nodiscard]] static void* allocate(std::size_t bytes) {
        return std::pmr::get_default_resource()->allocate(bytes, 256);
    }
    static void release(void* memory, std::size_t bytes) noexcept {
        std::pmr::get_default_resource()->deallocate(memory, bytes, 256);
    }
    static void zero(void* to, std::size_t bytes) noexcept { std::memset(to, 0, bytes); }
    static void to_device(void* to, const void* from, std::size_t bytes) noexcept { std::memcpy(to, from, bytes); }
    static void to_host(void* to, const void* from, std::size_t bytes) noexcept { std::memcpy(to, from, bytes); }

    template <class Kernel, class... Arguments>
    void launch(unsigned x, unsigned y, unsigned z, std::size_t shared, const Arguments&... arguments) {
        for (unsigned k = 0; k < z; ++k) {
            for (unsigned j = 0; j < y; ++j) {
                for (unsigned i = 0; i < x; ++i) {
                    emulated_gpu::Block block(Kernel::warps, shared, (launched_++ & 1U) != 0);
                    Kernel::template run<emulated_gpu>(block, i, j, k, arguments...);
                }
            }
        }
    }

private:
    std::size_t launched_ = 0;
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
