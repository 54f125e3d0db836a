#include <xquant/xcache.hpp>

using namespace xquant;

#ifdef GOOD
using Rule = Off;
#else
struct Rule {};
#endif

int main() { return XCache<Uniform<4>, Layout<PerToken>, CrossLayer<Rule>>::streams == 1 ? 0 : 1; }
