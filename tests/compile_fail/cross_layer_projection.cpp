#include <xquant/xcache.hpp>

using namespace xquant;

#ifdef GOOD
using Kept = Rotated;
#else
using Kept = KeyValue<BeforeRope>;
#endif

int main() {
    using Cache = XCache<Uniform<4>, Layout<PerToken>, CrossLayer<Delta>, Projection<Kept>>;
    return Cache::predict(Model{}, Options{}, 0).total() == 0 ? 0 : 1;
}
