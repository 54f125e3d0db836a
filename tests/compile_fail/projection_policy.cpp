#include <xquant/xcache.hpp>

using namespace xquant;

/// A projection without prepare.
struct Mine {
    static constexpr std::size_t streams = 1;
    static LayerFootprint<1> footprint(const Layer&) { return {}; }
#ifdef GOOD
    static LayerPlan prepare(const Layer&) { return {}; }
#endif
};

int main() { return Scheme<Uniform<4>, Layout<PerToken>, Projection<Mine>>::streams == 1 ? 0 : 1; }
