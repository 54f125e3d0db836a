#include <xquant/layout.hpp>

#ifdef GOOD
using Axes = xquant::Layout<xquant::PerToken>;
#else
using Axes = xquant::Layout<>;
#endif

int main() { return Axes::count == 1 ? 0 : 1; }
