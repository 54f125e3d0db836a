#include <xquant/quantizer/per_stream.hpp>

struct A {};

#ifdef GOOD
using Quantizers = xquant::PerStream<A, A>;
#else
using Quantizers = xquant::PerStream<A>;
#endif

int main() { return sizeof(Quantizers) > 0 ? 0 : 1; }
