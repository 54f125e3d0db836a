#include "trace.hpp"

#include <cstring>

namespace adapter {
namespace {

float parameter(const ggml_tensor* of, int i) {
    float value = 0;
    std::memcpy(&value, of->op_params + i, sizeof value);
    return value;
}

bool is_leaf(const ggml_tensor* t) { return t != nullptr && t->op == GGML_OP_NONE; }

/// A bias: a leaf, or what old files have in its place, the biases of Q, K and V joined in the graph.
bool is_bias(const ggml_tensor* t) {
    if (t == nullptr) return false;
    if (t->op == GGML_OP_CONCAT) return is_bias(t->src[0]) && is_bias(t->src[1]);
    return is_leaf(t) && t->type == GGML_TYPE_F32 && ggml_nelements(t) == t->ne[0];
}

/// One step back. Null: the walk has ended, at X or where `out.stopped` says.
ggml_tensor* step_back(ggml_tensor* t, std::int64_t head_dim, std::int64_t tokens, Origin& out) {
    ggml_tensor *const a = t->src[0], *const b = t->src[1];
    const auto stop = [&](const std::string& why) -> ggml_tensor* {
        out.stopped = why;
        return nullptr;
    };
    switch (t->op) {
        case GGML_OP_RESHAPE:
        case GGML_OP_CONT:
            return a;
        case GGML_OP_VIEW: {
            // Some channels of each token: a part of W_q, W_k and W_v in one.
            const std::size_t offset = t->view_offs - a->view_offs;
            const std::size_t token = tokens == 1 || a->ne[2] == tokens ? a->nb[2] : a->nb[1];
            const bool has_all = tokens == 1 ? a->ne[2] == 1 : a->ne[2] == tokens || a->ne[1] == tokens;
            if (!has_all || offset >= token || t->type != a->type) return stop("a view of other rows");
            out.first_row += offset / ggml_type_size(t->type);
            return a;
        }
        case GGML_OP_ROPE:
            if (out.rope.present()) return stop("RoPE for the second time");
            // A norm without a gain, and a factor, commute with turning.
            if (out.gain != nullptr) return stop("a gain behind RoPE");
            if (!out.biases.empty()) return stop("a bias behind RoPE");
            out.after_rope = out.normed || out.factor != 1;
            out.rope.parameters.assign(t->op_params, t->op_params + GGML_MAX_OP_PARAMS / sizeof(std::int32_t));
            out.rope.factors = t->src[2];
            out.rope.source = a;
            return a;
        case GGML_OP_RMS_NORM:
            if (out.normed) return stop("two norms");
            if (!out.biases.empty()) return stop("a bias behind the norm");
            if (t->ne[0] != head_dim) return stop("a norm over all heads");
            out.normed = true;
            out.epsilon = static_cast<double>(parameter(t, 0));
            return a;
        case GGML_OP_MUL:
            if (is_leaf(b) && ggml_nelements(b) == 1 && a->op == GGML_OP_MUL_MAT) {
                out.scale = b;
                return a;
            }
            if (!is_leaf(b) || b->ne[0] != head_dim || ggml_nelements(b) != head_dim || a->op != GGML_OP_RMS_NORM) {
                return stop("a product that is no norm's gain");
            }
            out.gain = b;
            return a;
        case GGML_OP_ADD:
            if (!is_bias(b)) return stop("a sum with something that is no bias, such as an adapter's product");
            out.biases.emplace_back(b, out.first_row);
            return a;
        case GGML_OP_SCALE:
            if (out.normed) return stop("a factor before the norm");
            if (!out.biases.empty()) return stop("a factor before the bias");
            if (parameter(t, 1) != 0) return stop("a shift");
            out.factor *= static_cast<double>(parameter(t, 0));
            return a;
        case GGML_OP_MUL_MAT:
            if (!is_leaf(a)) return stop("a weight that is computed");
            out.weight = a;
            out.x = b;
            return nullptr;
        default:
            return stop(std::string("the operation ") + ggml_op_name(t->op));
    }
}

}  // namespace

Origin trace(ggml_tensor* from) {
    Origin out;
    for (ggml_tensor* at = from; at != nullptr;) at = step_back(at, from->ne[0], from->ne[2], out);
    return out;
}

bool same_origin(const Origin& a, const Origin& b) {
    return a.rope.parameters == b.rope.parameters && a.rope.factors == b.rope.factors && a.gain == b.gain &&
           a.biases == b.biases && a.scale == b.scale && a.weight == b.weight && a.first_row == b.first_row &&
           a.stopped == b.stopped;
}

}  // namespace adapter
