#include <xquant/projection/joint_svd.hpp>

#ifdef GOOD
using Mix = xquant::NoMix;
#else
using Mix = int;
#endif

int main() { return xquant::JointSvd<Mix, xquant::FullRank>::streams == 1 ? 0 : 1; }
