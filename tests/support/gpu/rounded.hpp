// Encoding with feedback on the emulated GPU, as the kernel EncodeWithFeedback does it.
#pragma once

#include <cstddef>
#include <limits>
#include <vector>

#include <xquant/backend/cuda/kernels/append.cuh>
#include "support/gpu/machine.hpp"

namespace test {

/// As backend::encode_with_feedback. Parts run last one first, each in a block of its own.
inline void encode_on_gpu(const xquant::StreamCodec& codec, const xquant::FeedbackView& feedback,
                          const xquant::backend::Matrix& rows, std::size_t first,
                          const xquant::MutableStreamView& out) {
    using namespace xquant::backend;
    using gpu::RuleScale;
    const RuleScale scale(codec.rule, codec.format);
    // A NaN that is read before it is written shows in the bytes.
    std::vector<float> scratch(gpu::feedback_workspace(out.format, feedback, rows.rows));
    for (std::size_t part = gpu::feedback_parts(out.format, feedback, rows.rows); part-- > 0;) {
        scratch.assign(scratch.size(), std::numeric_limits<float>::quiet_NaN());
        emulated_gpu::Block block(gpu::feedback_warps, gpu::feedback_shared_bytes, part % 2 != 0);
        gpu::FeedbackEncoder<emulated_gpu, RuleScale>(block, feedback, rows.data, rows.stride, first, rows.rows, out,
                                                      scale, scratch.data())
            .encode(part);
    }
}

}  // namespace test
