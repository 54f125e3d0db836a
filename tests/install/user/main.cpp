#include <cstdio>

#include <xquant/xquant.hpp>

int main() {
    std::printf("xquant %d.%d.%d %s, %u bits\n", XQUANT_VERSION_MAJOR, XQUANT_VERSION_MINOR, XQUANT_VERSION_PATCH,
                xquant::abi_name(), xquant::Uniform<4>::bits);
}
