/// Reads a prompt into a cache, and goes on from there.
#pragma once

#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "sampling.hpp"
#include "threads.hpp"
#include "tokenizer.hpp"

namespace llm {

class AttentionCache;
class Gguf;
class Model;

/// Tokens after which the model has nothing more to say.
std::vector<Token> end_tokens(const Gguf& gguf, const Tokenizer& tokenizer);

/// Reads those of the tokens that the cache does not hold yet, at least one, 512 at once; with a progress bar on
/// stderr. Returns the hidden state of the last one, [D], which predicts the next token.
std::vector<float> read_tokens(const Model& model, std::span<const Token> ids, AttentionCache& cache, ThreadPool& pool);

/// Draws a token, says it and reads it, `most` times or until the model has nothing more to say. hidden [D] is that of
/// the last token in the cache. say() gets whole UTF-8 characters. Returns the tokens; the cache holds them, too.
std::vector<Token> continue_text(const Model& model, std::vector<float> hidden, AttentionCache& cache, Sampler& sampler,
                                 const Tokenizer& tokenizer, std::span<const Token> ends, std::size_t most,
                                 ThreadPool& pool, const std::function<void(std::string_view)>& say);

}  // namespace llm
