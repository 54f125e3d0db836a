#include <xquant/xcache.hpp>

using namespace xquant;

#ifdef GOOD
using Mixed = MixedCache<Scheme<>>;
#else
using Mixed = MixedCache<>;
#endif

int main() { return sizeof(Mixed) > 0 ? 0 : 1; }
