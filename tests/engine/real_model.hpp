/// What the tests on real models share. Environment variables name the files; without a model such a test says that it
/// was skipped, and fails where CI=true.
#pragma once

#include <cstdlib>
#include <iostream>
#include <optional>
#include <span>
#include <string>

#include "catch.hpp"
#include "compare.hpp"
#include "exact_cache.hpp"
#include "model.hpp"

namespace llm::test {

inline std::optional<std::string> environment(const char* name) {
    const char* value = std::getenv(name);
    return value && *value ? std::optional<std::string>(value) : std::nullopt;
}

inline void skipped(const std::string& what) { std::cerr << "\n*** SKIPPED: " << what << "\n\n"; }

/// The file that the variable names, or nothing, said loudly.
inline std::optional<std::string> model_file(const char* variable) {
    const auto path = environment(variable);
    if (path) return path;
    if (environment("CI") == "true") FAIL(variable << " is not set, and CI=true");
    skipped(std::string("a test on a real model, since ") + variable + " is not set");
    return std::nullopt;
}

/// Of the positions from `first` on in each context.
inline double exact_perplexity(const Model& model, std::span<const Token> ids, std::size_t context, std::size_t first,
                               ThreadPool& pool) {
    const auto cache = make_exact_cache(model, pool);
    Predictions predictions;
    for (std::size_t at = 0; at + context <= ids.size(); at += context) {
        cache->reset();
        const auto chunk = ids.subspan(at, context);
        const std::vector<float> hidden = model.forward(chunk, *cache, pool);
        compare(make_reference(model, chunk, hidden.data(), first, pool), predictions);
    }
    return predictions.perplexity();
}

}  // namespace llm::test
