// What the two fronts (preload.cpp, hook.py) call in place of llama.cpp's own functions of the same purpose. A function
// that returns null leaves its work to llama.cpp. Namespace, files and order: README.md.
#pragma once

#include "llama-graph.h"
#include "llama-memory.h"
#include "llama-model.h"

namespace adapter {

/// The memory of a context over xquant, or null where XQUANT_CACHE is not set or the model keeps no keys and values.
/// Throws std::runtime_error, with a sentence, for settings that do not hold and for models that are not served.
llama_memory_i* create_memory(const llama_model& model, const llama_memory_params& params,
                              const llama_cparams& cparams);

/// Inputs of a graph over this memory: they hold no tensor, since positions and masks are the cache's.
llm_graph_input_attn_kv* attention_input(const llm_graph_context& graph);
llm_graph_input_attn_kv_iswa* attention_input_iswa(const llm_graph_context& graph);
llm_graph_input_mem_hybrid* hybrid_input(const llm_graph_context& graph);

/// What build_attn is given of a layer.
struct AttentionArguments {
    ggml_tensor *wo, *wo_b, *wo_s;  ///< W_o, its bias and its scale, or null
    ggml_tensor *q, *k, *v;         ///< [Dh, H, n], [Dh, Hkv, n], [Dv, Hkv, n]; k and v null: an earlier layer's
    ggml_tensor *kq_b, *sinks, *v_mla;
    float kq_scale;
    int il;
};

/// Attention of a layer and what follows it in build_attn: W_o and its bias. Throws std::runtime_error for a layer that
/// is not served.
ggml_tensor* attention(const llm_graph_context& graph, const AttentionArguments& arguments);

/// After a graph has run, well or not: the step that it was is committed or dropped. False if something in it failed;
/// it is logged then.
bool finish(llama_memory_i* memory, bool computed);

/// The schemes that XQUANT_CACHE may name, one a line.
std::string scheme_list();

}  // namespace adapter
