/// What the tests on real models share. XQUANT_MODEL and XQUANT_MODEL_GEMMA name the models, XQUANT_TEXT a text
/// instead of the one that is shipped with the engine. Where a file is missing, or a part cannot be tested, the test
/// says that it was skipped, and ctest counts it as skipped; without a model it fails where CI=true.
#pragma once

#include <cmath>
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

/// cmake/RunWithModel.cmake looks for these words.
inline void skipped(const std::string& what) { std::cerr << "\n*** SKIPPED: " << what << "\n\n"; }

/// The file that the variable names, or nothing, said loudly.
inline std::optional<std::string> model_file(const char* variable) {
    const auto path = environment(variable);
    if (path) return path;
    if (environment("CI") == "true") FAIL(variable << " is not set, and CI=true");
    skipped(std::string("a test on a real model, since ") + variable + " is not set");
    return std::nullopt;
}

/// The text that the tests read: XQUANT_TEXT, or the shipped one, from the root of the repository.
inline std::string text_file() { return environment("XQUANT_TEXT").value_or("examples/llm/text/essays.txt"); }

/// A text whose figures are known.
struct KnownText {
    const char* name;
    std::size_t tokens;            ///< of the whole text, by which it is known
    std::size_t first, count;      ///< tokens that the perplexity is of
    std::size_t context, skipped;  ///< and how it is measured: positions from `skipped` on, of each context
    double perplexity;
};

/// The one that has so many tokens; said loudly if there is none.
inline const KnownText* known_text(std::span<const KnownText> all, std::size_t tokens) {
    for (const KnownText& one : all) {
        if (one.tokens == tokens) return &one;
    }
    skipped("the known perplexity: " + text_file() + " has " + std::to_string(tokens) +
            " tokens, and is none of the texts whose perplexity is known");
    return nullptr;
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

/// The perplexity of the part of a text that is known, beside what it is known to be.
inline void check_perplexity(const Model& model, const KnownText& text, std::span<const Token> ids, ThreadPool& pool) {
    const double found = exact_perplexity(model, ids.subspan(text.first, text.count), text.context, text.skipped, pool);
    INFO("perplexity of " << text.name << ": " << found);
    CHECK(std::abs(found / text.perplexity - 1) < 0.001);
}

}  // namespace llm::test
