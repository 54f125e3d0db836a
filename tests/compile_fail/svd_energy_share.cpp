#include <xquant/projection/svd.hpp>

#ifdef GOOD
constexpr unsigned share = 1000;
#else
constexpr unsigned share = 1001;
#endif

int main() { return sizeof(xquant::EnergyShare<share>) > 0 ? 0 : 1; }
