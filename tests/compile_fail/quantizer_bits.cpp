#include <xquant/xquant.hpp>

#ifdef GOOD
constexpr unsigned bits = 6;
#else
constexpr unsigned bits = 7;
#endif

int main() { return xquant::Quantizer<bits>::bits == bits ? 0 : 1; }
