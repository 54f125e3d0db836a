// A program that uses the runtime, and caches of the headers in another object (header_object.cpp), which is compiled
// for any processor. Both answer, and nearly alike, whichever object is linked first.
#include <cstdio>
#include <cstring>
#include <exception>

#include <xquant/runtime.hpp>

#include "check.hpp"
#include "header_object.hpp"

int main(int count, char** arguments) {
    try {
        const xquant::runtime::LevelInfo level = xquant::runtime::level();
        if (count > 1) {
            check::that(level.name == arguments[1], "level " + level.name + " runs; expected " + arguments[1]);
        }
        const test::Setup setup = script::model();
        for (const char* scheme : {"f16", "kv4", "kivi4", "x4_rot"}) {
            const auto cache = xquant::runtime::make_cache(scheme, setup.model, script::options());
            const script::Record found = script::run(*cache, setup.model, xquant::Serial{});
            const script::Record expected = header_object(scheme);
            check::that(found.numbers == expected.numbers, std::string(scheme) + ": sizes, positions and bytes");
            // 8-bit products change answers by up to 3 % (tests/parity), fused products by less than 2e-3.
            const bool same_rule = level.backend == "scalar" || std::strcmp(scheme, "f16") == 0;
            const double off = script::distance(found.answers, expected.answers);
            std::printf("%s, %s: answers differ from the headers' by %g\n", level.name.c_str(), scheme, off);
            check::that(off < (same_rule ? 2e-3 : 0.03), std::string(scheme) + ": answers");
        }
    } catch (const std::exception& error) {
        check::that(false, error.what());
    }
    return check::result("beside the headers");
}
