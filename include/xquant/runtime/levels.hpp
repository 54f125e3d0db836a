// The levels that the runtime may be compiled for, and what each asks of the processor. The one place that asks the
// processor.
#pragma once

#include <array>
#include <string>
#include <string_view>

#include <xquant/config.hpp>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace xquant::runtime::detail {

/// A level, and the backend that its compiler flags give.
struct KnownLevel {
    const char* name;
    const char* backend;
};

/// The least first. The last one is x86-64-v4 and VNNI, on which 8-bit products rest: a processor with AVX-512 and
/// without VNNI runs x86-64-v3.
inline constexpr std::array<KnownLevel, 3> x86_levels{{
    {"x86-64", "scalar"},
    {"x86-64-v3", "avx2_int8"},
    {"x86-64-v4", "avx512_int8"},
}};

/// The only level of other processors. Every 64-bit Arm has the registers of backend/neon.
#if defined(XQUANT_HAS_NEON)
inline constexpr KnownLevel base_level{"base", "neon_int8"};
#else
inline constexpr KnownLevel base_level{"base", "scalar"};
#endif

/// The level of a name, or null.
constexpr const KnownLevel* known_level(std::string_view name) noexcept {
    for (const KnownLevel& level : x86_levels) {
        if (name == level.name) return &level;
    }
    return name == base_level.name ? &base_level : nullptr;
}

inline namespace XQUANT_ABI_NS {

/// Instructions that a level needs and this processor, or its operating system, lacks: "avx2, fma"; empty if it can
/// run.
inline std::string missing_instructions([[maybe_unused]] std::string_view level) {
    std::string missing;
#if defined(__x86_64__)
    const auto need = [&missing](const char* name, bool there) {
        if (!there) missing += (missing.empty() ? "" : ", ") + std::string(name);
    };
    // f16c, movbe and lzcnt are asked of CPUID: clang 14 does not know their names. Their registers are those of AVX,
    // of which __builtin_cpu_supports says whether the operating system keeps them.
    unsigned a = 0, b = 0, c = 0, d = 0, extended = 0;
    const unsigned first = __get_cpuid(1, &a, &b, &c, &d) != 0 ? c : 0;
    if (__get_cpuid(0x80000001U, &a, &b, &c, &d) != 0) extended = c;
    __builtin_cpu_init();
    if (level == "x86-64-v3" || level == "x86-64-v4") {
        need("sse4.2", __builtin_cpu_supports("sse4.2"));
        need("popcnt", __builtin_cpu_supports("popcnt"));
        need("avx", __builtin_cpu_supports("avx"));
        need("avx2", __builtin_cpu_supports("avx2"));
        need("bmi", __builtin_cpu_supports("bmi"));
        need("bmi2", __builtin_cpu_supports("bmi2"));
        need("fma", __builtin_cpu_supports("fma"));
        need("f16c", (first & bit_F16C) != 0);
        need("movbe", (first & bit_MOVBE) != 0);
        need("lzcnt", (extended & bit_LZCNT) != 0);
    }
    if (level == "x86-64-v4") {
        need("avx512f", __builtin_cpu_supports("avx512f"));
        need("avx512bw", __builtin_cpu_supports("avx512bw"));
        need("avx512cd", __builtin_cpu_supports("avx512cd"));
        need("avx512dq", __builtin_cpu_supports("avx512dq"));
        need("avx512vl", __builtin_cpu_supports("avx512vl"));
        need("avx512vnni", __builtin_cpu_supports("avx512vnni"));
    }
#endif
    return missing;
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::runtime::detail
