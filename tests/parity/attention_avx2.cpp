#include "parity/attention_of.hpp"

#if defined(XQUANT_HAS_AVX2)
std::vector<float> parity::run_avx2(Form form, const Case& c) { return run<xquant::backend::avx2>(form, c); }
std::vector<float> parity::run_avx2_int8(Form form, const Case& c) {
    return run<xquant::backend::int8<xquant::backend::avx2>>(form, c);
}
#endif
