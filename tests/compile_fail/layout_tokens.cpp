#include <xquant/xcache.hpp>

using namespace xquant;

struct FourChannels {
    static constexpr GroupShape group_shape(unsigned group) noexcept { return {group / 4, 4}; }
};

#ifdef GOOD
constexpr unsigned group = 32;  // 8 tokens
#else
constexpr unsigned group = 48;  // 12 tokens
#endif

int main() { return Scheme<Uniform<4, group>, Layout<FourChannels>>::recipe().streams == 1 ? 0 : 1; }
