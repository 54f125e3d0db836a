#include <xquant/xcache.hpp>

using namespace xquant;

/// Groups that lose values are no axis.
struct Mine {
#ifdef GOOD
    static constexpr GroupShape group_shape(unsigned group) noexcept { return {2, group / 2}; }
#else
    static constexpr GroupShape group_shape(unsigned group) noexcept { return {2, group / 4}; }
#endif
};

int main() { return Scheme<Uniform<4>, Layout<Mine>>::recipe().streams == 1 ? 0 : 1; }
