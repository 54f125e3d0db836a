#include <xquant/cache.hpp>

using namespace xquant;

#ifdef GOOD
using Cache = MixedCache<Scheme<>>;
#else
using Cache = MixedCache<>;
#endif

int main() { return sizeof(Cache) > 0 ? 0 : 1; }
