#include "ggml_attention.hpp"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>

#include <ggml-cpu.h>
#include <ggml.h>

namespace bench {
namespace {

/// A cache has room for whole blocks of this many tokens; the mask hides what is behind the last one.
constexpr std::size_t cache_step = 256;

/// Rows of values as a tensor of a type.
void store(ggml_tensor* to, const float* values, std::size_t rows, std::size_t width) {
    const std::size_t row_bytes = ggml_row_size(to->type, static_cast<std::int64_t>(width));
    auto* const bytes = static_cast<std::byte*>(to->data);
    const ggml_type_traits_cpu* const traits = ggml_get_type_traits_cpu(to->type);
    for (std::size_t i = 0; i < rows; ++i) {
        traits->from_float(values + i * width, bytes + i * row_bytes, static_cast<std::int64_t>(width));
    }
}

}  // namespace

struct GgmlAttention::Graph {
    ggml_context* context = nullptr;
    ggml_tensor* out = nullptr;
    ggml_cgraph* steps = nullptr;
    ggml_cplan plan{};
    std::vector<std::uint8_t> work;

    Graph() = default;
    Graph(const Graph&) = delete;
    Graph& operator=(const Graph&) = delete;
    ~Graph() { ggml_free(context); }
};

GgmlAttention::GgmlAttention(const GgmlPrompt& prompt, GgmlForm form, const std::vector<float>& k,
                             const std::vector<float>& v, const std::vector<float>& q)
    : graph_(std::make_unique<Graph>()) {
    const auto n = [](std::size_t value) { return static_cast<std::int64_t>(value); };
    const std::size_t dh = prompt.head_dim, width = prompt.kv_heads * dh;
    const std::size_t room = (prompt.tokens + cache_step - 1) / cache_step * cache_step;
    const bool fused = form != GgmlForm::unfused_f16;
    const ggml_type type = form == GgmlForm::flash_q8_0 ? GGML_TYPE_Q8_0 : GGML_TYPE_F16;
    const std::size_t scores = fused ? 0 : 2 * 4 * room * prompt.rows * prompt.heads;
    const std::size_t bytes =
        4 * (2 * room * width + room * prompt.rows + 8 * prompt.rows * prompt.heads * dh) + scores;
    graph_->context = ggml_init({bytes + (std::size_t{64} << 20U), nullptr, false});
    if (graph_->context == nullptr) throw std::runtime_error("ggml has no memory");
    ggml_context* const c = graph_->context;

    ggml_tensor* queries = ggml_new_tensor_3d(c, GGML_TYPE_F32, n(dh), n(prompt.heads), n(prompt.rows));
    std::memcpy(queries->data, q.data(), q.size() * sizeof(float));
    ggml_tensor* keys = ggml_new_tensor_3d(c, type, n(dh), n(prompt.kv_heads), n(room));
    std::memset(keys->data, 0, ggml_nbytes(keys));
    store(keys, k.data(), prompt.tokens, width);
    // Without flash attention llama.cpp keeps V with the tokens of a channel side by side.
    ggml_tensor* values = fused ? ggml_new_tensor_3d(c, type, n(dh), n(prompt.kv_heads), n(room))
                                : ggml_new_tensor_3d(c, type, n(room), n(dh), n(prompt.kv_heads));
    std::memset(values->data, 0, ggml_nbytes(values));
    if (fused) {
        store(values, v.data(), prompt.tokens, width);
    } else {
        std::vector<float> turned(width * room, 0.0F);
        for (std::size_t t = 0; t < prompt.tokens; ++t) {
            for (std::size_t i = 0; i < width; ++i) turned[i * room + t] = v[t * width + i];
        }
        store(values, turned.data(), width, room);
    }
    ggml_tensor* mask = ggml_new_tensor_2d(c, fused ? GGML_TYPE_F16 : GGML_TYPE_F32, n(room), n(prompt.rows));
    std::vector<float> seen(room * prompt.rows, -std::numeric_limits<float>::infinity());
    for (std::size_t i = 0; i < prompt.rows; ++i) {
        const std::size_t last = prompt.tokens - prompt.rows + i;
        for (std::size_t t = 0; t <= last; ++t) seen[i * room + t] = 0;
    }
    if (fused) {
        store(mask, seen.data(), prompt.rows, room);
    } else {
        std::memcpy(mask->data, seen.data(), seen.size() * sizeof(float));
    }

    const float scale = 1 / std::sqrt(static_cast<float>(dh));
    ggml_tensor* const by_head = ggml_permute(c, queries, 0, 2, 1, 3);
    ggml_tensor* const keys_by_head = ggml_permute(c, keys, 0, 2, 1, 3);
    if (fused) {
        graph_->out =
            ggml_flash_attn_ext(c, by_head, keys_by_head, ggml_permute(c, values, 0, 2, 1, 3), mask, scale, 0, 0);
        ggml_prec_set_acc(graph_->out, GGML_PREC_F32);
    } else {
        ggml_tensor* const products = ggml_mul_mat(c, keys_by_head, by_head);
        ggml_prec_set_acc(products, GGML_PREC_F32);
        ggml_tensor* const weights = ggml_soft_max_ext(c, products, mask, scale, 0);
        graph_->out = ggml_cont(c, ggml_permute(c, ggml_mul_mat(c, values, weights), 0, 2, 1, 3));
    }
    graph_->steps = ggml_new_graph(c);
    ggml_build_forward_expand(graph_->steps, graph_->out);
    graph_->plan = ggml_graph_plan(graph_->steps, 1, nullptr);
    graph_->work.resize(graph_->plan.work_size);
    graph_->plan.work_data = graph_->work.data();
}

GgmlAttention::~GgmlAttention() = default;

void GgmlAttention::run() {
    if (ggml_graph_compute(graph_->steps, &graph_->plan) != GGML_STATUS_SUCCESS) {
        throw std::runtime_error("ggml could not compute the graph");
    }
}

std::vector<float> GgmlAttention::answer() const {
    std::vector<float> out(ggml_nbytes(graph_->out) / sizeof(float));
    std::memcpy(out.data(), graph_->out->data, out.size() * sizeof(float));
    return out;
}

}  // namespace bench
