#include <xquant/projection/x.hpp>
#include <xquant/testing/contract.hpp>

#ifdef GOOD
using Mine = xquant::Plain;
#else
struct Mine {
    static constexpr std::size_t streams = 1;
};
#endif

int main() { xquant::testing::check_projection<Mine>(xquant::Layer{}); }
