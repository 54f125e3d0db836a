#include <xquant/quantizer/uniform.hpp>

#ifdef GOOD
constexpr unsigned group = 4096;
#else
constexpr unsigned group = 4;
#endif

int main() { return xquant::Uniform<4, group>::group == group ? 0 : 1; }
