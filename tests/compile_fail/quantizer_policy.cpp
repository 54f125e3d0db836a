#include <xquant/xcache.hpp>

using namespace xquant;

/// Without noexcept, encode is no encoder.
struct Mine {
    static constexpr unsigned bits = 1, group = 8;
    static constexpr bool stores_zero = true;
#ifdef GOOD
    static GroupScale encode(std::span<const float>, std::span<std::uint8_t>) noexcept { return {}; }
#else
    static GroupScale encode(std::span<const float>, std::span<std::uint8_t>) { return {}; }
#endif
};

int main() { return Scheme<Mine>::recipe().streams == 1 ? 0 : 1; }
