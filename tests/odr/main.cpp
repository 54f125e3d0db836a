#include <cstdio>
#include <cstring>

#include "probe.hpp"

namespace {

int failures = 0;

void check(bool holds, const char* sentence) {
    std::printf("%s: %s\n", holds ? "ok" : "FAILED", sentence);
    if (!holds) ++failures;
}

}  // namespace

int main() {
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
        std::puts("xquant: SKIPPED, this processor has no AVX2");
        return 0;
    }
    const odr::Probe base = odr::probe_base(), avx2 = odr::probe_avx2();
    check(std::strcmp(base.abi_name, "abi_base") == 0, "base.cpp is compiled as abi_base");
    check(std::strcmp(avx2.abi_name, "abi_avx2") == 0, "avx2.cpp is compiled as abi_avx2");
    check(base.encode != avx2.encode, "each has an encoder of its own");
    check(base.cache_count == avx2.cache_count, "caches of both are numbered by one counter");
    check(base.codes == avx2.codes, "both write the same codes");
    check(base.scale_and_zero == avx2.scale_and_zero, "both write the same scales and zeros");
    return failures == 0 ? 0 : 1;
}
