#include "support/gpu/kernels.hpp"

#include "parity/attention_of.hpp"

std::vector<float> parity::run_emulated_cuda(Form form, const Case& c) {
    return run<xquant::backend::emulated_cuda>(form, c);
}

std::vector<float> parity::run_emulated_cuda_int8(Form form, const Case& c) {
    return run<xquant::backend::int8<xquant::backend::emulated_cuda>>(form, c);
}
