// Errors of the adapter: sentences that begin as the library's do.
#pragma once

#include <stdexcept>
#include <string>

namespace adapter {

/// Throws std::runtime_error "xquant: WHAT".
[[noreturn]] inline void fail(const std::string& what) { throw std::runtime_error("xquant: " + what); }

}  // namespace adapter
