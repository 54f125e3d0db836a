/// What an error says.
#pragma once

#include <string>
#include <string_view>

namespace test {

/// What a call says when it throws Error, or "".
template <class Error, class F>
std::string complaint(F call) {
    try {
        call();
    } catch (const Error& e) {
        return e.what();
    }
    return "";
}

inline bool contains(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

}  // namespace test
