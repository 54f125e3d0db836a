/// One sequence of a library cache behind the engine's interface.
#pragma once

#include <memory>

#include "attention_cache.hpp"
#include "schemes.hpp"

namespace llm {

class Model;

/// The model as the library sees it; its views point into `model`.
xquant::Model describe(const Model& model);

std::unique_ptr<AttentionCache> make_library_sequence(const Scheme& scheme, const Model& model,
                                                      const SchemeOptions& options);

/// One sequence of a cache of this model that was made already.
std::unique_ptr<AttentionCache> make_library_sequence(std::unique_ptr<xquant::Cache<>> cache, const Model& model,
                                                      ThreadPool& pool);

}  // namespace llm
