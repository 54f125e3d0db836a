#include <xquant/xcache.hpp>

using namespace xquant;

struct ThreeStreams {
    static constexpr std::size_t streams = 3;
    static LayerFootprint<3> footprint(const Layer&) { return {}; }
    static LayerPlan prepare(const Layer&) { return {}; }
};

#ifdef GOOD
using Quantizers = PerStream<Uniform<4>, Uniform<4>, Uniform<3>>;
#else
using Quantizers = PerStream<Uniform<4>, Uniform<3>>;
#endif

int main() { return Scheme<Quantizers, Layout<PerToken>, Projection<ThreeStreams>>::recipe().streams == 3 ? 0 : 1; }
