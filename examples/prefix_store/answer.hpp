/// Answers a prompt, and begins with what a store of prefixes has of it.
#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "attention_cache.hpp"
#include "model.hpp"
#include "prefix_store.hpp"
#include "threads.hpp"
#include "tokenizer.hpp"

namespace llm {

struct Question {
    std::string scheme;             // the cache's, with what its options are: the store's key
    std::span<const Token> prompt;  // one token or more
    std::span<const Token> ends;    // tokens after which there is nothing more to say
    std::size_t most = 64;          // tokens of the answer
};

struct Answer {
    std::vector<Token> tokens;
    double first_token_seconds = 0;    // until the first token was drawn, loading and saving included
    double load_seconds = 0;           // of these, finding and loading
    std::size_t reused = 0, read = 0;  // tokens of the prompt: out of the store, and computed
    std::size_t saved = 0;             // tokens of the entry that was put into the store
};

/// Loads the longest prefix that the store has and this cache can continue; an entry that cannot be loaded is removed,
/// and the next best one tried. Returns its tokens, 0 if there is none; the cache is empty then.
std::size_t load_prefix(PrefixStore& store, const std::string& scheme, std::span<const Token> prompt,
                        AttentionCache& cache);

/// The cache must be empty. Whole blocks of the prompt that are not in the store are put there. store: or nullptr. The
/// prompt is read in two parts, whole blocks and the rest, with a store and without: so both give the same answer.
/// The most likely token is always taken. say() gets the answer as it comes.
Answer answer(const Question& question, const Model& model, const Tokenizer& tokenizer, AttentionCache& cache,
              PrefixStore* store, ThreadPool& pool, const std::function<void(std::string_view)>& say);

}  // namespace llm
