/// The CUDA backend on a GPU beside the processor. Says so and exits with 77 where there is no GPU.
#include "support/compiled/cuda.cuh"

#include <algorithm>
#include <cstdio>
#include <string>

#include "cuda/caches.hpp"
#include "support/gpu.cuh"

using namespace xquant;

int main() {
    const std::string device = test::find_gpu("the kernels were compiled, none has run");
    if (device.empty()) return test::skipped;
    std::printf("device: %s\n", device.c_str());
    int failed = 0;
    const auto report = [&](double least, double most, double most_with_other_codes = 0) {
        return [=, &failed](const on_device::Case& c, const on_device::Outcome& outcome) {
            const bool good =
                outcome.attention < (outcome.different == 0 ? most : std::max(most, most_with_other_codes)) &&
                outcome.attention > least && outcome.same_pages && outcome.different * 500 <= outcome.bytes &&
                !outcome.bad_rows;
            failed += good ? 0 : 1;
            std::printf("%-6s %-36s attention off by %.1e, %zu of %zu bytes differ%s\n", good ? "passed" : "FAILED",
                        c.name, outcome.attention, outcome.different, outcome.bytes,
                        outcome.bad_rows ? ", rows are not finite" : "");
        };
    };
    on_device::for_each_case<backend::cuda_exact, test::GpuArray<float>>(report(1e-6, 2e-3));
    on_device::for_each_latent_case<backend::cuda_exact, test::GpuArray<float>>(report(1e-6, 2e-3, 0.03));
    on_device::for_each_coded_case<backend::cuda, test::GpuArray<float>>(report(2e-3, 0.03));
    return failed == 0 ? 0 : 1;
}
