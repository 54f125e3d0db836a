#include <xquant/quantizer/unquantized.hpp>

#ifdef GOOD
using Element = xquant::bf16;
#else
using Element = double;
#endif

int main() { return sizeof(xquant::Unquantized<Element>) > 0 ? 0 : 1; }
