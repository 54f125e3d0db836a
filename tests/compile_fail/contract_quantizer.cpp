#include <xquant/testing/contract.hpp>

#ifdef GOOD
using Mine = xquant::Uniform<4>;
#else
struct Mine {
    static constexpr unsigned bits = 4;
};
#endif

int main() { xquant::testing::check_quantizer<Mine>(); }
