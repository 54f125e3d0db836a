// The end of attention: from a partial result to rows of out. Drives every backend that has `multiply` and
// `load_weights`.
//
//     out = (sum / total) A_v + c_v
//
// Limit   reading A_v, once for each kv head while decoding.
#pragma once

#include <algorithm>
#include <cstddef>

#include <xquant/backend/tile_loop.hpp>
#include <xquant/backend/weights.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {

/// out = (sum / total) A_v + c_v for some of the task's rows. Shape out: [rows.count][out_stride], the query heads of
/// the kv head side by side. Their sum is overwritten. A head whose query is not finite becomes NaN: 8-bit products
/// would have rounded it to something else.
template <class Backend>
void finish_partial(Backend tag, const AttendTask& task, Partial partial, Slots rows, float* out,
                    std::size_t out_stride) noexcept {
    const std::size_t dh = task.head_dim, queries = task.queries(), group = task.queries_per_kv;
    const bool absorbed = sums_latents(tag, task.value, queries, dh);
    const std::size_t width = absorbed ? task.value.width : dh;
    const bool multiplies = absorbed && task.value.matrix != nullptr;
    for (std::size_t i = rows.first * group; i < (rows.first + rows.count) * group; ++i) {
        float* XQUANT_RESTRICT target = out + (i / group - rows.first) * out_stride + i % group * dh;
        if (!xquant::detail::all_finite(task.query(i), dh)) {
            std::fill_n(target, dh, xquant::detail::not_a_number);
            continue;
        }
        float* XQUANT_RESTRICT sum = partial.sum + i * width;
        // A sink logit takes its share of the softmax and leaves that much less of V, its constant included.
        float factor = 1.0F, sink = 0.0F;
        if (task.rules.sink_logits != nullptr) {
            const float logit = task.rules.sink_logits[i % group], highest = (std::max)(logit, partial.maximum[i]);
            factor = exp_negative(partial.maximum[i] - highest);
            sink = exp_negative(logit - highest);
        }
        const float inverse = factor / (partial.total[i] * factor + sink), share = partial.total[i] * inverse;
        for (std::size_t c = 0; c < width; ++c) sum[c] *= inverse;
        for (std::size_t c = 0; c < dh; ++c) {
            target[c] =
                (multiplies ? 0.0F : sum[c]) + (task.value.constant != nullptr ? task.value.constant[c] * share : 0.0F);
        }
    }
    if (!multiplies) return;
    // A_v is read as few times as rows or query heads allow.
    const float* const first = partial.sum + rows.first * group * width;
    if (rows.count < group) {
        for (std::size_t row = 0; row < rows.count; ++row) {
            multiply_weights(tag, {first + row * group * width, width, 1}, task.value.matrix, width,
                             {out + row * out_stride, group, dh, dh}, true);
        }
        return;
    }
    for (std::size_t head = 0; head < group; ++head) {
        multiply_weights(tag, {first + head * width, group * width, 1}, task.value.matrix, width,
                         {out + head * dh, rows.count, dh, out_stride}, true);
    }
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
