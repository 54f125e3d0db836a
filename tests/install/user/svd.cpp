#include <xquant/projection/svd.hpp>
#include <xquant/xquant.hpp>

int main() { return xquant::HeadSvd::streams == 2 ? 0 : 1; }
