// The kernels for GPUs on an emulated GPU in plain C++: what a machine without one can test of them. Slow; not for use.
#pragma once

#include <span>

#include <xquant/backend/cuda/kernels/decode_attention.cuh>
#include <xquant/backend/cuda/kernels/prefill_attention.cuh>
#include <xquant/backend/tile_loop.hpp>
#include "support/gpu/machine.hpp"

namespace xquant::backend::gpu {
inline namespace XQUANT_ABI_NS {

/// The spans of a task, for a kernel.
struct TaskSpans {
    std::span<const TokenSpan> spans;
    [[nodiscard]] std::uint32_t size() const noexcept { return static_cast<std::uint32_t>(spans.size()); }
    const TokenSpan& operator[](std::uint32_t i) const noexcept { return spans[i]; }
    [[nodiscard]] static std::int64_t lag(std::uint32_t) noexcept { return 0; }
};

/// A task in the kernels' own form, packed for itself alone.
class PackedTask {
public:
    /// @param coded  whether codes may meet 8-bit weights
    PackedTask(const AttendTask& task, bool coded) {
        const unsigned size = size_of_head(task.head_dim);
        static_cast<AttendTask&>(task_) = task;
        task_.key_channels = task.head_dim;
        if (absorbs_queries(task.key, task.head_dim, task.rope, task.rules, task.shared_channels)) {
            absorb_into_queries(task);
        }
        const auto format_of = [&](StreamView TokenSpan::*stream) -> const StreamFormat* {
            for (const TokenSpan& span : task.spans) {
                if (coded && (span.*stream).format.quantized()) return &(span.*stream).format;
            }
            return nullptr;
        };
        if (task_.key.matrix != nullptr) {
            keys_ = pack_matrix(task.key, key_order(size, task.head_dim, task.rope, task.shared_channels),
                                task.shared_channels, format_of(&TokenSpan::keys));
            task_.key_matrix = keys_.view();
            if (task.rules.key_norm != nullptr) {
                gain_ = pack_gain(task.rules.key_norm, key_order(size, task.head_dim, task.rope, task.shared_channels));
                task_.key_gain = gain_.data();
            }
        }
        if (!sums_latents(task.value, task.head_dim)) {
            values_ = pack_matrix(task.value, value_order(size, task.head_dim), 0, format_of(&TokenSpan::values));
            task_.value_matrix = values_.view();
        }
        rope_table_ = pack_rope(task.rope);
        task_.rope_table = packed_rope_of(task.rope, rope_table_.data());
    }
    [[nodiscard]] const DeviceTask& task() const noexcept { return task_; }

private:
    void absorb_into_queries(const AttendTask& task) {
        const std::size_t width = task.key.width;
        queries_.resize(task.queries() * width);
        for (std::size_t i = 0; i < task.queries(); ++i) {
            const float* q = task.query(i);
            for (std::size_t k = 0; k < width; ++k) {
                for (std::size_t c = 0; c < task.head_dim; ++c) {
                    queries_[i * width + k] += q[c] * weight_at(task.key.matrix, k * task.head_dim + c);
                }
            }
        }
        task_.q = queries_.data();
        task_.q_stride = task.queries_per_kv * width;
        absorb(task_);
    }

    PackedMatrix keys_, values_;
    std::vector<float> gain_, queries_;
    std::vector<std::uint32_t> rope_table_;
    DeviceTask task_;
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend::gpu

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {

/// Attention by backend/cuda on emulated_gpu, everything else by scalar code. int8<emulated_cuda>: with products of
/// codes.
struct emulated_cuda : scalar {
    static constexpr const char* name = "emulated_cuda";
    static constexpr const char* int8_name = "emulated_cuda_int8";
};

constexpr bool sums_latents(emulated_cuda, const HeadDecoder& value, std::size_t, std::size_t head_dim) noexcept {
    return gpu::sums_latents(value, head_dim);
}

template <class Backend>
    requires std::is_base_of_v<emulated_cuda, Backend>
void attend_task(Backend, const AttendTask& task, Partial partial, float*) noexcept {
    const gpu::PackedTask packed(task, Backend::int8_products);
    const auto run = [&]<class Kernel>(std::type_identity<Kernel>) {
        for (unsigned query = 0; query < task.queries(); query += Kernel::queries) {
            emulated_gpu::Block block(Kernel::warps, Kernel::shared_bytes, query / Kernel::queries % 2 != 0);
            const std::size_t width = partial_width(emulated_cuda{}, task.value, 0, task.head_dim);
            Kernel(block, packed.task(), query)
                .run(gpu::TaskSpans{task.spans}, task.rope,
                     {partial.sum + query * width, partial.maximum + query, partial.total + query});
        }
    };
    gpu::with_size<emulated_gpu>(task.head_dim, [&]<unsigned Size>(std::integral_constant<unsigned, Size>) {
        const auto with = [&]<gpu::Products How>(std::integral_constant<gpu::Products, How>) {
            if (task.queries() > gpu::warp_queries) {
                run(std::type_identity<gpu::PrefillAttention<emulated_gpu, Size, How>>{});
            } else {
                run(std::type_identity<gpu::DecodeAttention<emulated_gpu, Size, How>>{});
            }
        };
        using gpu::Products;
        constexpr Products products = Backend::int8_products ? Products::codes : Products::halves;
        if (packed.task().key.matrix != nullptr || !gpu::sums_latents(task.value, task.head_dim)) {
            with(std::integral_constant<Products, products>{});
        } else {
            with(std::integral_constant<Products, Products::none>{});
        }
    });
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
