/// The one exception of this engine: what() is a sentence that names the file, the key or the option that is wrong.
#pragma once

#include <stdexcept>

namespace llm {

struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

}  // namespace llm
