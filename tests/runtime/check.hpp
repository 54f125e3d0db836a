// Checks of programs that run on emulated processors: no Catch2, which is compiled for this machine.
#pragma once

#include <cstdio>
#include <string>

namespace check {

inline int failures = 0;

inline void that(bool holds, const std::string& sentence) {
    if (!holds) {
        std::printf("FAILED: %s\n", sentence.c_str());
        ++failures;
    }
}

/// What a call says when it throws Error, or what it did instead.
template <class Error, class F>
std::string complaint(F&& call) {
    try {
        call();
    } catch (const Error& error) {
        return error.what();
    } catch (const std::exception& error) {
        return "(another type of error) " + std::string(error.what());
    }
    return "(no error)";
}

/// That a call throws Error, with these words in its text.
template <class Error, class F>
void throws(F&& call, const std::string& words) {
    const std::string text = complaint<Error>(call);
    that(text.find(words) != std::string::npos && text[0] != '(',
         "an error says \"" + words + "\"; found \"" + text + "\"");
}

/// The exit status of a program; says so where all is well.
inline int result(const char* name) {
    std::printf("%s: %s\n", name, failures == 0 ? "all checks passed" : "checks FAILED");
    return failures == 0 ? 0 : 1;
}

}  // namespace check
