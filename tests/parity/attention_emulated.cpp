#include <xquant/backend/emulated/registers.hpp>

#include "parity/attention_of.hpp"

std::vector<float> parity::run_emulated(Form form, const Case& c) {
    return run<xquant::backend::simd<xquant::backend::emulated_registers>>(form, c);
}
std::vector<float> parity::run_emulated_int8(Form form, const Case& c) {
    return run<xquant::backend::int8<xquant::backend::simd<xquant::backend::emulated_registers>>>(form, c);
}
