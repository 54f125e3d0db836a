/// One set of attention cases, run by every backend. Each backend is compiled in a file of its own.
#pragma once

#include <string>
#include <vector>

#include <xquant/model.hpp>

namespace parity {

/// The schemes that kernels tell apart: by axis, bits, group, with or without A, f16.
enum class Form {
    exact,
    f16,
    bf16,
    kv4,
    kv8,
    q8_0,
    q4_0_hadamard,
    kivi2,
    kivi4,
    head3,
    head4,
    head4_group32,
    head5,
    head8,
    head4_rank64,
    split4,
    x4,
    x4_group64,
    x4_group32,
    x3_group32,
    kv3,
    nf4,
    count
};

struct Case {
    std::string name;
    xquant::LayerShape shape;
    std::size_t tokens, queries;  ///< in the cache before the step, and of the step
    bool interleaved = true;
    bool normed = false;       ///< a norm of K, as in Gemma 3
    std::size_t window = 0;    ///< sliding
    bool many_things = false;  ///< soft cap, ALiBi, sink logits, biases
    float bad_query = 0;       ///< not 0: channel 1 of the last head of the first query
    std::size_t chunk = 0;     ///< Llama 4's; not on a device
    xquant::WeightType weights = xquant::WeightType::f32;
};

/// Attention of the last step, [queries, H * Dh].
using Run = std::vector<float> (*)(Form, const Case&);

std::vector<float> run_scalar(Form, const Case&);
std::vector<float> run_scalar_int8(Form, const Case&);
std::vector<float> run_emulated(Form, const Case&);
std::vector<float> run_emulated_int8(Form, const Case&);
std::vector<float> run_avx2(Form, const Case&);
std::vector<float> run_avx2_int8(Form, const Case&);
std::vector<float> run_avx512(Form, const Case&);
std::vector<float> run_avx512_int8(Form, const Case&);
std::vector<float> run_neon(Form, const Case&);
std::vector<float> run_neon_int8(Form, const Case&);
/// The kernels for GPUs on an emulated GPU in plain C++.
std::vector<float> run_emulated_cuda(Form, const Case&);
std::vector<float> run_emulated_cuda_int8(Form, const Case&);

}  // namespace parity
