#include <xquant/xcache.hpp>

using namespace xquant;

#ifdef GOOD
using Kept = Plain;
#else
using Kept = HeadSvd;  // without its header
#endif

int main() { return Scheme<Uniform<4>, Layout<PerToken>, Projection<Kept>>::streams == 1 ? 0 : 1; }
