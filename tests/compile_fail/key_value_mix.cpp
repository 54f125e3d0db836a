#include <xquant/projection/key_value.hpp>

#ifdef GOOD
using Mix = xquant::Hadamard;
#else
using Mix = int;
#endif

int main() { return xquant::KeyValue<xquant::BeforeRope, Mix>::streams == 2 ? 0 : 1; }
