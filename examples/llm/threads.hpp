/// The engine's threads, which are also the executor handed to xquant: the pool of the library's bindings, which
/// says how it shares out iterations, and what its limits are.
#pragma once

#include "../../bindings/pool.hpp"

namespace llm {

using ThreadPool = xquant::bindings::Pool;

}  // namespace llm
