// The front for an unmodified libllama.so. The dynamic linker finds these functions before llama.cpp's functions of the
// same names, which call each other by name; what they do not take is passed on. LD_PRELOAD=libxquant-llama.so, which
// xquant-run sets.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "adapter.hpp"
#include "llama-context.h"

namespace {

/// llama.cpp's own function of a name.
template <class Function>
Function* own(const char* name) {
    void* const at = dlsym(RTLD_NEXT, name);
    if (at == nullptr) {
        std::fprintf(stderr, "xquant: libllama.so has no %s: it is not the one that libxquant-llama.so was built for\n",
                     name);
        std::abort();
    }
    return reinterpret_cast<Function*>(at);
}

using T = ggml_tensor*;

/// XQUANT_CACHE=list needs no model.
[[gnu::constructor]] void list() {
    const char* const cache = std::getenv("XQUANT_CACHE");
    if (cache == nullptr || std::strcmp(cache, "list") != 0) return;
    std::fputs(adapter::scheme_list().c_str(), stdout);
    std::exit(0);
}

}  // namespace

llama_memory_i* llama_model::create_memory(const llama_memory_params& params, const llama_cparams& cparams) const {
    static auto* const next =
        own<llama_memory_i*(const llama_model*, const llama_memory_params&, const llama_cparams&)>(
            "_ZNK11llama_model13create_memoryERK19llama_memory_paramsRK13llama_cparams");
    if (llama_memory_i* const memory = adapter::create_memory(*this, params, cparams)) return memory;
    return next(this, params, cparams);
}

llm_graph_input_attn_kv* llm_graph_context::build_attn_inp_kv() const {
    static auto* const next =
        own<llm_graph_input_attn_kv*(const llm_graph_context*)>("_ZNK17llm_graph_context17build_attn_inp_kvEv");
    if (auto* const input = adapter::attention_input(*this)) return input;
    return next(this);
}

llm_graph_input_attn_kv_iswa* llm_graph_context::build_attn_inp_kv_iswa() const {
    static auto* const next = own<llm_graph_input_attn_kv_iswa*(const llm_graph_context*)>(
        "_ZNK17llm_graph_context22build_attn_inp_kv_iswaEv");
    if (auto* const input = adapter::attention_input_iswa(*this)) return input;
    return next(this);
}

llm_graph_input_mem_hybrid* llm_graph_context::build_inp_mem_hybrid() const {
    static auto* const next =
        own<llm_graph_input_mem_hybrid*(const llm_graph_context*)>("_ZNK17llm_graph_context20build_inp_mem_hybridEv");
    if (auto* const input = adapter::hybrid_input(*this)) return input;
    return next(this);
}

ggml_tensor* llm_graph_context::build_attn(llm_graph_input_attn_kv* input, T wo, T wo_b, T wo_s, T q, T k, T v, T kq_b,
                                           T sinks, T v_mla, float kq_scale, int il) const {
    static auto* const next =
        own<T(const llm_graph_context*, llm_graph_input_attn_kv*, T, T, T, T, T, T, T, T, T, float, int)>(
            "_ZNK17llm_graph_context10build_attnEP23llm_graph_input_attn_kvP11ggml_tensorS3_S3_S3_S3_S3_S3_S3_S3_fi");
    if (T const out = adapter::attention(*this, {wo, wo_b, wo_s, q, k, v, kq_b, sinks, v_mla, kq_scale, il}))
        return out;
    return next(this, input, wo, wo_b, wo_s, q, k, v, kq_b, sinks, v_mla, kq_scale, il);
}

ggml_tensor* llm_graph_context::build_attn(llm_graph_input_attn_kv_iswa* input, T wo, T wo_b, T wo_s, T q, T k, T v,
                                           T kq_b, T sinks, T v_mla, float kq_scale, int il) const {
    static auto* const next = own<T(const llm_graph_context*, llm_graph_input_attn_kv_iswa*, T, T, T, T, T, T, T, T, T,
                                    float, int)>(
        "_ZNK17llm_graph_context10build_attnEP28llm_graph_input_attn_kv_iswaP11ggml_tensorS3_S3_S3_S3_S3_S3_S3_S3_fi");
    if (T const out = adapter::attention(*this, {wo, wo_b, wo_s, q, k, v, kq_b, sinks, v_mla, kq_scale, il}))
        return out;
    return next(this, input, wo, wo_b, wo_s, q, k, v, kq_b, sinks, v_mla, kq_scale, il);
}

ggml_status llama_context::graph_compute(ggml_cgraph* graph, bool batched) {
    static auto* const next =
        own<ggml_status(llama_context*, ggml_cgraph*, bool)>("_ZN13llama_context13graph_computeEP11ggml_cgraphb");
    const ggml_status status = next(this, graph, batched);
    const bool computed = adapter::finish(get_memory(), status == GGML_STATUS_SUCCESS);
    return status == GGML_STATUS_SUCCESS && !computed ? GGML_STATUS_FAILED : status;
}
