// A careful program: AVX-512 is called only where the processor has it. It can die of SIGILL all the same:
// CMakeLists.txt says when.
#include <cstdio>

#include "mixed.hpp"

int main() {
    constexpr std::uint32_t expected = 128 / 16 * (15 * 16 / 2);
    const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                            __builtin_cpu_supports("avx512vnni");
    const std::uint32_t base = odr::sum_base(), avx512 = has_avx512 ? odr_sum_avx512() : expected;
    std::printf("base %u, AVX-512 %s%u\n", base, has_avx512 ? "" : "left out: ", avx512);
    return base == expected && avx512 == expected ? 0 : 1;
}
