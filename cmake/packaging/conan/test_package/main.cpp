// What a program needs of the package, for each of its options.
#include <xquant/registry.hpp>
#include <xquant/xquant.hpp>
#if defined(WITH_SVD)
#include <xquant/registry_svd.hpp>
#endif
#if defined(WITH_PERSISTENCE)
#include <xquant/persistence.hpp>
#endif

#include <cstdio>

int main() {
    bool found = !xquant::find_scheme("kv4").forms.empty();
#if defined(WITH_SVD)
    found = found && !xquant::find_scheme("svd_head4").forms.empty();
#endif
#if defined(WITH_PERSISTENCE)
    try {
        static_cast<void>(xquant::inspect("no such file"));
        found = false;
    } catch (const xquant::file_error&) {
    }
#endif
    std::printf("xquant %d.%d.%d %s: %zu schemes\n", XQUANT_VERSION_MAJOR, XQUANT_VERSION_MINOR, XQUANT_VERSION_PATCH,
                xquant::abi_name(), xquant::schemes().size());
    return found ? 0 : 1;
}
