#ifdef GOOD
#define XQUANT_ALLOW_FAST_MATH
#endif
#define __FAST_MATH__ 1  // as -ffast-math does
#include <xquant/config.hpp>

int main() {}
