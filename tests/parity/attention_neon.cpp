#include "parity/attention_of.hpp"

#if defined(XQUANT_HAS_NEON)
std::vector<float> parity::run_neon(Form form, const Case& c) { return run<xquant::backend::neon>(form, c); }
std::vector<float> parity::run_neon_int8(Form form, const Case& c) {
    return run<xquant::backend::int8<xquant::backend::neon>>(form, c);
}
#endif
