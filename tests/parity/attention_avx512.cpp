#include "parity/attention_of.hpp"

#if defined(XQUANT_HAS_AVX512)
std::vector<float> parity::run_avx512(Form form, const Case& c) { return run<xquant::backend::avx512>(form, c); }
std::vector<float> parity::run_avx512_int8(Form form, const Case& c) {
    return run<xquant::backend::int8<xquant::backend::avx512>>(form, c);
}
#endif
