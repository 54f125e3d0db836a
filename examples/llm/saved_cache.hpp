/// A saved cache of a text's first tokens: what its note says, and how a prompt goes on from it.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "schemes.hpp"
#include "tokenizer.hpp"

namespace llm {

/// Kept beside the rows, as text: "xquant-llm\nscheme svd_head4:tail=64\ntokens 12 34 56\n".
struct CacheNote {
    std::string scheme;
    std::vector<Token> ids;
};

std::string to_text(const CacheNote& note);

/// Throws llm::Error for a note that is not one of to_text.
CacheNote parse_note(std::string_view text);

/// How many tokens both begin with.
std::size_t common_prefix(std::span<const Token> a, std::span<const Token> b);

/// Throws what saving this cache will throw whatever it holds: so that it is said before the work.
void check_savable(const AttentionCache& cache);

/// Replaces `path`. ids: the tokens that the cache holds. Throws llm::Error, and what xquant::save throws.
void save_cache(const AttentionCache& cache, const Scheme& scheme, std::span<const Token> ids, const std::string& path);

/// Loads as many of the prompt's first tokens as a saved cache has, but not the last one, so that a token is left to
/// read. Returns how many. Throws llm::Error for another scheme, or if no token is common; and what xquant::load
/// throws.
std::size_t load_cache(AttentionCache& cache, const Scheme& scheme, std::span<const Token> prompt,
                       const std::string& path);

}  // namespace llm
