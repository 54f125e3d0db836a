#include <xquant/quantizer/uniform.hpp>

#ifdef GOOD
using Scale = xquant::Symmetric;
#else
struct Scale {};
#endif

int main() { return xquant::Uniform<4, 128, Scale>::bits == 4 ? 0 : 1; }
