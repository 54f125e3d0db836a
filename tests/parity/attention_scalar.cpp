#include "parity/attention_of.hpp"

std::vector<float> parity::run_scalar(Form form, const Case& c) { return run<xquant::backend::scalar>(form, c); }
std::vector<float> parity::run_scalar_int8(Form form, const Case& c) {
    return run<xquant::backend::int8<xquant::backend::scalar>>(form, c);
}
