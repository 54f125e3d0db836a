#include <xquant/projection/svd.hpp>

#ifdef GOOD
constexpr std::size_t rank = 1;
#else
constexpr std::size_t rank = 0;
#endif

int main() { return xquant::Rank<rank>::rank({}, 0, 4) == rank ? 0 : 1; }
