// A program that uses the runtime beside two kinds of its own code: caches of the headers, compiled for any processor
// (header_object.cpp), and code for AVX-512 that is full of the standard library's functions (tests/odr). Whichever is
// linked first, all answer, and runtime and headers nearly alike.
//
//     runtime_<order> [LEVEL]     LEVEL: that this level runs; fewer schemes, for emulated processors, which are slow
#include <cstdint>
#include <cstdio>
#include <exception>
#include <vector>

#include <xquant/runtime.hpp>

#include "check.hpp"
#include "header_object.hpp"

extern "C" std::uint32_t odr_sum_avx512();

namespace {

/// The share of bytes that differ.
double share_of_other_bytes(const std::vector<std::byte>& a, const std::vector<std::byte>& b) {
    if (a.empty() || a.size() != b.size()) return 1;
    std::size_t other = 0;
    for (std::size_t i = 0; i < a.size(); ++i) other += a[i] != b[i] ? 1 : 0;
    return static_cast<double>(other) / static_cast<double>(a.size());
}

void compare(const xquant::runtime::LevelInfo& level, const std::string& scheme) {
    const test::Setup setup = script::model();
    const auto cache = xquant::runtime::make_cache(scheme, setup.model, script::options());
    const script::Record found = script::run(*cache, setup.model, xquant::Serial{});
    const script::Record expected = header_object(scheme);
    check::that(found.numbers == expected.numbers, scheme + ": sizes, positions and counted bytes");
    // Projected rows differ in the last bit of f32, and then one code in some thousands is the neighbouring one.
    const double bytes = share_of_other_bytes(found.stored, expected.stored);
    check::that(bytes <= (level.backend == "scalar" ? 0 : 1.0 / 500), scheme + ": stored bytes");
    // 8-bit products change answers by up to 3 % (tests/parity), fused products by less than 2e-3.
    const bool same_rule = level.backend == "scalar" || scheme == "f16";
    const double answers = script::distance(found.answers, expected.answers);
    check::that(answers < (same_rule ? 2e-3 : 0.03), scheme + ": answers");
    std::printf("%s, %s: beside the headers' %g of the bytes differ, and answers by %g\n", level.name.c_str(),
                scheme.c_str(), bytes, answers);
}

void check_avx512() {
    for (const xquant::runtime::LevelInfo& one : xquant::runtime::levels()) {
        if (one.backend != "avx512_int8") continue;
        if (one.missing.empty()) {
            check::that(odr_sum_avx512() == 960, "the program's own AVX-512 code answers");
        } else {
            std::printf("the program's own AVX-512 code is not called: this processor lacks %s\n", one.missing.c_str());
        }
    }
}

}  // namespace

int main(int count, char** arguments) {
    try {
        const xquant::runtime::LevelInfo level = xquant::runtime::level();
        const bool expects = count > 1;
        if (expects) {
            check::that(level.name == arguments[1], "level " + level.name + " runs; expected " + arguments[1]);
        }
        for (const char* scheme : {"f16", "x4_rot", "kv4", "kivi4"}) {
            if (!expects || scheme[0] != 'k') compare(level, scheme);
        }
        check_avx512();
    } catch (const std::exception& error) {
        check::that(false, error.what());
    }
    return check::result("beside the headers");
}
