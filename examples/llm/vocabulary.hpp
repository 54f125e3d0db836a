/// What the two kinds of tokenizers have in common: the vocabulary of a GGUF file, and an encoder for plain text.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "tokenizer.hpp"

namespace llm {

class Gguf;

struct HashText {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
};
template <class T>
using ByText = std::unordered_map<std::string, T, HashText, std::equal_to<>>;

/// GGUF's kinds of tokens.
enum class TokenKind : std::int64_t { normal = 1, unknown, control, user_defined, unused, byte };

struct Vocabulary {
    std::vector<std::string> pieces;  // of each token, as the file writes it
    std::vector<TokenKind> kinds;
    ByText<Token> ids;  // by piece; the first one where a piece occurs twice

    explicit Vocabulary(const Gguf& gguf);

    /// Control tokens ("<|im_start|>") and those that a user added ("<table>"): no merging makes or splits them.
    bool is_whole(std::size_t id) const {
        return kinds[id] == TokenKind::control || kinds[id] == TokenKind::user_defined;
    }
};

class PlainEncoder {
public:
    virtual ~PlainEncoder() = default;

    /// Appends the ids of a UTF-8 text in which no special token is to be read.
    virtual void encode(std::string_view text, std::vector<Token>& ids) const = 0;

    /// The text that a piece of the vocabulary stands for, which may be a part of a UTF-8 character.
    virtual std::string bytes_of(const std::string& piece, TokenKind kind) const = 0;
};

std::unique_ptr<PlainEncoder> make_byte_pair_encoder(const Gguf& gguf, const Vocabulary& vocabulary);
std::unique_ptr<PlainEncoder> make_sentence_piece_encoder(const Gguf& gguf, const Vocabulary& vocabulary);

}  // namespace llm
