// Compiled against the one header that `tools/amalgamate --svd --persistence` writes, and nothing else of xquant.
#include <xquant/xquant.hpp>

#include <cstdio>

int main() {
    if (xquant::HeadSvd::streams != 2 || xquant::find_scheme("svd_head4").forms.empty()) return 1;
    try {
        static_cast<void>(xquant::inspect("no such file"));
    } catch (const xquant::file_error&) {
        std::printf("xquant %d.%d.%d %s\n", XQUANT_VERSION_MAJOR, XQUANT_VERSION_MINOR, XQUANT_VERSION_PATCH,
                    xquant::abi_name());
        return 0;
    }
    return 1;
}
