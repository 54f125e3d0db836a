#include "weights.hpp"

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>

#include "error.hpp"
#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpp.h"

namespace adapter {
namespace {

/// Whether the bytes of a weight are rows of its type, in memory of this process or of a device. ggml repacks some for
/// the processor, and nothing can read those but its own products.
bool is_readable(const ggml_tensor* weight) {
    if (ggml_backend_buffer_is_host(weight->buffer)) return true;
    const ggml_backend_dev_t device = ggml_backend_buft_get_device(ggml_backend_buffer_get_type(weight->buffer));
    return device != nullptr && ggml_backend_dev_type(device) != GGML_BACKEND_DEVICE_TYPE_CPU;
}

std::vector<float> read_rows(const ggml_tensor* weight, std::size_t first, std::size_t count) {
    const auto width = static_cast<std::size_t>(weight->ne[0]);
    const auto* const traits = ggml_get_type_traits(weight->type);
    if (weight->type != GGML_TYPE_F32 && traits->to_float == nullptr) {
        fail(std::string("weights of type ") + ggml_type_name(weight->type) + " cannot be read");
    }
    std::vector<float> out(count * width);
    std::vector<char> row(weight->nb[1]);
    for (std::size_t i = 0; i < count; ++i) {
        ggml_backend_tensor_get(weight, row.data(), (first + i) * weight->nb[1], row.size());
        float* const to = out.data() + i * width;
        if (weight->type == GGML_TYPE_F32)
            std::memcpy(to, row.data(), width * sizeof(float));
        else
            traits->to_float(row.data(), to, weight->ne[0]);
    }
    return out;
}

/// ggml multiplies them by 127 I: every type that it quantizes right sides to has 127 and 0 exactly.
std::vector<float> multiply_rows(const ggml_tensor* weight, std::size_t first, std::size_t count) {
    constexpr std::size_t block = 64;
    const auto width = static_cast<std::size_t>(weight->ne[0]), height = static_cast<std::size_t>(weight->ne[1]);
    const ggml_backend_ptr backend(ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr));
    const ggml_context_ptr context(ggml_init({ggml_tensor_overhead() * 8 + ggml_graph_overhead(), nullptr, true}));
    ggml_tensor* const right = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, weight->ne[0], block);
    ggml_tensor* const product = ggml_mul_mat(context.get(), const_cast<ggml_tensor*>(weight), right);
    ggml_cgraph* const graph = ggml_new_graph(context.get());
    ggml_build_forward_expand(graph, product);
    const ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(context.get(), backend.get()));
    std::vector<float> in(width * block), got(height * block), out(count * width);
    for (std::size_t column = 0; column < width; column += block) {
        const std::size_t columns = std::min(block, width - column);
        std::fill(in.begin(), in.end(), 0.0F);
        for (std::size_t j = 0; j < columns; ++j) in[j * width + column + j] = 127;
        ggml_backend_tensor_set(right, in.data(), 0, in.size() * sizeof(float));
        if (ggml_backend_graph_compute(backend.get(), graph) != GGML_STATUS_SUCCESS) {
            fail("a product with repacked weights failed");
        }
        ggml_backend_tensor_get(product, got.data(), 0, got.size() * sizeof(float));
        for (std::size_t j = 0; j < columns; ++j) {
            for (std::size_t i = 0; i < count; ++i) out[i * width + column + j] = got[j * height + first + i] / 127;
        }
    }
    return out;
}

}  // namespace

std::vector<float> rows_of(const ggml_tensor* weight, std::size_t first, std::size_t count) {
    return is_readable(weight) ? read_rows(weight, first, count) : multiply_rows(weight, first, count);
}

std::vector<float> vector_of(const ggml_tensor* vector, std::size_t first, std::size_t count) {
    if (vector->op == GGML_OP_CONCAT) {
        const auto size = [](const ggml_tensor* t) { return static_cast<std::size_t>(t->ne[0]); };
        std::vector<float> all = vector_of(vector->src[0], 0, size(vector->src[0]));
        const std::vector<float> rest = vector_of(vector->src[1], 0, size(vector->src[1]));
        all.insert(all.end(), rest.begin(), rest.end());
        const auto at = all.begin() + static_cast<std::ptrdiff_t>(first);
        return {at, at + static_cast<std::ptrdiff_t>(count)};
    }
    if (vector->type != GGML_TYPE_F32) {
        fail(std::string(vector->name) + " is of type " + ggml_type_name(vector->type) + "; expected f32");
    }
    std::vector<float> out(count);
    ggml_backend_tensor_get(vector, out.data(), first * sizeof(float), count * sizeof(float));
    return out;
}

}  // namespace adapter
