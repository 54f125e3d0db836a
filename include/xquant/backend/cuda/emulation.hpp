// The kernels for GPUs on a GPU in plain C++: what a machine without one can test of them. Slow; not for use.
#pragma once

#include <span>

#include <xquant/backend/cuda/attention.cuh>
#include <xquant/backend/emulated/gpu.hpp>
#include <xquant/backend/scalar/attention.hpp>

namespace xquant::backend::gpu {
inline namespace XQUANT_ABI_NS {

/// The spans of a task, for a kernel.
struct TaskSpans {
    std::span<const TokenSpan> spans;
    [[nodiscard]] std::uint32_t size() const noexcept { return static_cast<std::uint32_t>(spans.size()); }
    const TokenSpan& operator[](std::uint32_t i) const noexcept { return spans[i]; }
    [[nodiscard]] static std::int64_t lag(std::uint32_t) noexcept { return 0; }
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend::gpu

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {

/// Attention by backend/cuda on emulated_gpu, everything else by scalar code.
struct emulated_cuda : scalar {
    static constexpr const char* name = "emulated_cuda";
};

constexpr bool sums_latents(emulated_cuda, const HeadDecoder& value, std::size_t, std::size_t head_dim) noexcept {
    return gpu::sums_latents(value, head_dim);
}

inline void attend_task(emulated_cuda, const AttendTask& task, Partial partial, float*) noexcept {
    gpu::with_size(task.head_dim, [&]<unsigned Size>(std::integral_constant<unsigned, Size>) {
        const auto run = [&]<bool Rebuilds>(std::bool_constant<Rebuilds>) {
            using Kernel = gpu::AttendBlock<emulated_gpu, Size, Rebuilds>;
            for (unsigned query = 0; query < task.rows * task.group; query += gpu::block_queries) {
                emulated_gpu::Block block(gpu::block_warps, Kernel::shared_bytes, query % 32 == 0);
                const std::size_t width = partial_width(emulated_cuda{}, task.value, 0, task.head_dim);
                Kernel(block, task, query)
                    .run(gpu::TaskSpans{task.spans}, task.rope,
                         {partial.sum + query * width, partial.maximum + query, partial.total + query});
            }
        };
        gpu::rebuilds(task) ? run(std::true_type{}) : run(std::false_type{});
    });
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
