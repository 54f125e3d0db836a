#include <xquant/projection/key_value.hpp>

#ifdef GOOD
using When = xquant::AfterRope;
#else
using When = xquant::Hadamard;
#endif

int main() { return xquant::KeyValue<When>::streams == 2 ? 0 : 1; }
