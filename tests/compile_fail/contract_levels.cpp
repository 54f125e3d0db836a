#include <xquant/testing/contract.hpp>

#include <array>

struct Mine {
    static constexpr unsigned bits = 1, group = 8;
    static constexpr bool stores_zero = true;
#ifdef GOOD
    static constexpr std::array<float, 2> levels{0, 1};
#else
    static constexpr std::array<float, 4> levels{0, 1, 2, 3};
#endif
    static xquant::GroupScale encode(std::span<const float>, std::span<std::uint8_t>) noexcept { return {}; }
};

int main() { xquant::testing::check_quantizer<Mine>(); }
