#include "adapter.hpp"

#include <algorithm>
#include <mutex>
#include <stdexcept>
#include <typeinfo>
#include <utility>

#include "llama-arch.h"
#include "llama-cparams.h"
#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache.h"
#include "llama-memory-recurrent.h"
#include "memory.hpp"

namespace adapter {
namespace {

/// create_memory asks llama.cpp, which asks create_memory.
thread_local bool asking = false;

/// The memory that llama.cpp would make, with 256 cells: which kind it is, and which layers it serves.
std::unique_ptr<llama_memory_i> own_memory(const llama_model& model, const llama_memory_params& params,
                                           llama_cparams cparams) {
    cparams.n_ctx = cparams.n_ctx_seq = 256;
    cparams.n_seq_max = 1;
    // What it logs is about that memory. The callback is the process's, so one thread at a time takes it away.
    static std::mutex one;
    const std::lock_guard lock(one);
    ggml_log_callback callback = nullptr;
    void* data = nullptr;
    llama_log_get(&callback, &data);
    struct Restore {
        ggml_log_callback callback;
        void* data;
        ~Restore() {
            asking = false;
            llama_log_set(callback, data);
        }
    } const restore{callback, data};
    llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
    asking = true;
    return std::unique_ptr<llama_memory_i>(model.create_memory(params, cparams));
}

std::vector<std::uint32_t> sorted(std::vector<std::uint32_t> layers) {
    std::sort(layers.begin(), layers.end());
    return layers;
}

std::vector<std::uint32_t> joined(std::vector<std::uint32_t> a, const std::vector<std::uint32_t>& b) {
    a.insert(a.end(), b.begin(), b.end());
    return sorted(std::move(a));
}

/// An input whose tensors nobody needs: llama.cpp's would cast our memory's context to its own.
template <class Input>
class NoInput final : public Input {
public:
    using Input::Input;
    void set_input(const llama_ubatch*) override {}
    bool can_reuse(const llm_graph_params& params) override { return rows_of(params.mctx) != nullptr; }
};

template <class Input>
Input* no_input(const llm_graph_context& graph) {
    if (rows_of(graph.mctx) == nullptr) return nullptr;
    return static_cast<Input*>(
        graph.res->add_input(std::make_unique<NoInput<Input>>(graph.hparams, graph.cparams, nullptr)));
}

/// llama.cpp's input of recurrent layers, and none of attention.
class RecurrentInput final : public llm_graph_input_mem_hybrid {
public:
    using llm_graph_input_mem_hybrid::llm_graph_input_mem_hybrid;
    void set_input(const llama_ubatch* ubatch) override {
        inp_rs->mctx = mctx->get_recr();
        inp_rs->set_input(ubatch);
    }
    bool can_reuse(const llm_graph_params& params) override {
        mctx = static_cast<const llama_memory_hybrid_context*>(params.mctx);
        const llama_memory_recurrent_context& states = *mctx->get_recr();
        inp_rs->mctx = &states;
        const auto n_seqs = static_cast<std::int64_t>(params.ubatch.n_seqs),
                   n_rs = static_cast<std::int64_t>(states.get_n_rs());
        return inp_rs->s_copy->ne[0] == n_rs && inp_rs->s_copy_main->ne[0] == n_seqs &&
               inp_rs->s_copy_extra->ne[0] == n_rs - n_seqs && inp_rs->head == states.get_head() &&
               inp_rs->rs_z == states.get_rs_z();
    }
};

}  // namespace

llama_memory_i* create_memory(const llama_model& model, const llama_memory_params& params,
                              const llama_cparams& cparams) {
    if (asking) return nullptr;
    std::optional<Settings> settings = settings_from_environment();
    if (!settings) return nullptr;
    const auto refuse_model = [&](const std::string& why) {
        throw std::runtime_error("XQUANT_CACHE is '" + settings->asked + "', and xquant does not serve " +
                                 llm_arch_name(model.arch) + " models: " + why + ". Unset XQUANT_CACHE to run it");
    };
    const std::unique_ptr<llama_memory_i> own = own_memory(model, params, cparams);
    if (own == nullptr || typeid(*own) == typeid(llama_memory_recurrent)) return nullptr;  // no keys and values
    if (model.hparams.is_mla()) refuse_model("latent attention");
    if (params.mem_other != nullptr) refuse_model("it reads another context's keys and values");
    const auto rows = [&](std::vector<std::uint32_t> layers) {
        return std::make_unique<Rows>(model, cparams, *settings, std::move(layers));
    };
    if (typeid(*own) == typeid(llama_kv_cache)) {
        const auto& cache = static_cast<const llama_kv_cache&>(*own);
        return make_memory(rows(sorted(cache.get_layer_ids())), cparams).release();
    }
    if (typeid(*own) == typeid(llama_kv_cache_iswa)) {
        const auto& cache = static_cast<const llama_kv_cache_iswa&>(*own);
        return make_memory(rows(joined(cache.get_base()->get_layer_ids(), cache.get_swa()->get_layer_ids())), cparams)
            .release();
    }
    if (typeid(*own) == typeid(llama_memory_hybrid)) {
        const auto& hybrid = static_cast<const llama_memory_hybrid&>(*own);
        std::vector<std::uint32_t> recurrent;
        const auto& states = hybrid.get_mem_recr()->r_l;
        for (std::size_t il = 0; il < states.size(); ++il) {
            if (states[il] != nullptr) recurrent.push_back(static_cast<std::uint32_t>(il));
        }
        return make_memory(rows(sorted(hybrid.get_mem_attn()->get_layer_ids())), model, cparams, std::move(recurrent))
            .release();
    }
    refuse_model("they choose which keys they see, or keep more than keys and values");
    return nullptr;
}

llm_graph_input_attn_kv* attention_input(const llm_graph_context& graph) {
    return no_input<llm_graph_input_attn_kv>(graph);
}

llm_graph_input_attn_kv_iswa* attention_input_iswa(const llm_graph_context& graph) {
    return no_input<llm_graph_input_attn_kv_iswa>(graph);
}

llm_graph_input_mem_hybrid* hybrid_input(const llm_graph_context& graph) {
    if (rows_of(graph.mctx) == nullptr) return nullptr;
    const auto* const context = static_cast<const llama_memory_hybrid_context*>(graph.mctx);
    const llama_memory_recurrent_context& states = *context->get_recr();
    const auto n_rs = static_cast<std::int64_t>(states.get_n_rs()),
               n_seqs = static_cast<std::int64_t>(graph.ubatch.n_seqs);
    auto input = std::make_unique<llm_graph_input_rs>(&states);
    input->s_copy = ggml_new_tensor_1d(graph.ctx0, GGML_TYPE_I32, n_rs);
    ggml_set_input(input->s_copy);
    ggml_set_name(input->s_copy, "rs_s_copy");
    input->s_copy_main = ggml_view_1d(graph.ctx0, input->s_copy, n_seqs, 0);
    input->s_copy_extra =
        ggml_view_1d(graph.ctx0, input->s_copy, n_rs - n_seqs, static_cast<std::size_t>(n_seqs) * input->s_copy->nb[0]);
    input->head = states.get_head();
    input->rs_z = states.get_rs_z();
    auto attention = std::make_unique<llm_graph_input_attn_kv>(graph.hparams, graph.cparams, nullptr);
    return static_cast<llm_graph_input_mem_hybrid*>(graph.res->add_input(
        std::make_unique<RecurrentInput>(graph.cparams, std::move(attention), std::move(input), context)));
}

ggml_tensor* attention(const llm_graph_context& graph, const AttentionArguments& a) {
    Rows* const rows = rows_of(graph.mctx);
    if (rows == nullptr) return nullptr;
    ggml_tensor* out = rows->attention(graph, a);
    graph.cb(out, "kqv_out", a.il);
    if (a.wo != nullptr) out = graph.build_lora_mm(a.wo, out, a.wo_s);
    if (a.wo_b != nullptr) out = ggml_add(graph.ctx0, out, a.wo_b);
    return out;
}

bool finish(llama_memory_i* memory, bool computed) {
    Rows* const rows = rows_of(memory);
    return rows == nullptr ? computed : rows->finish(computed);
}

}  // namespace adapter
