#include <xquant/xcache.hpp>

using namespace xquant;

#ifdef GOOD
using Axes = Layout<PerChannel, PerToken>;
#else
using Axes = Layout<PerChannel, PerToken, PerToken>;
#endif

int main() { return Scheme<Uniform<4>, Axes, Projection<KeyValue<>>>::streams == 2 ? 0 : 1; }
