// runtime_refused WORDS [FOLDER]: every call of the runtime throws level_error with WORDS in its text, at the first
// and at the second try. FOLDER: the program goes there before its first call.
#include <unistd.h>

#include <cstdio>
#include <string>

#include <xquant/runtime.hpp>

#include "check.hpp"

int main(int count, char** arguments) {
    namespace runtime = xquant::runtime;
    if (count < 2 || (count > 2 && ::chdir(arguments[2]) != 0)) return 2;
    for (int i = 0; i < 2; ++i) {
        check::throws<runtime::level_error>([] { static_cast<void>(runtime::schemes()); }, arguments[1]);
        check::throws<runtime::level_error>([] { static_cast<void>(runtime::level()); }, arguments[1]);
        check::throws<runtime::level_error>([] { static_cast<void>(runtime::make_cache("kv4", {})); }, arguments[1]);
    }
    std::printf("%s\n", check::complaint<runtime::level_error>([] { static_cast<void>(runtime::schemes()); }).c_str());
    return check::result("refused");
}
