/// Byte-level BPE, as GGUF describes it (tokenizer.ggml.model = "gpt2"; .pre = "smollm" or "gpt-2").
///
///   text -> words (a pattern) -> bytes, each written as one printable character -> merges by rank -> ids
///
/// "smollm" splits like GPT-2, but takes every digit alone and lets no word reach over a digit.
/// Source  Radford et al. 2019; tokenizers' ByteLevel and Digits pre-tokenizers
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace llm {

class Gguf;

using Token = std::int32_t;

class Tokenizer {
public:
    explicit Tokenizer(const Gguf& gguf);
    ~Tokenizer();
    Tokenizer(Tokenizer&&) noexcept;
    Tokenizer& operator=(Tokenizer&&) noexcept;

    /// Ids of a UTF-8 text, without BOS. Bytes that are no UTF-8 are an error that names the first of them.
    /// special: also read "<|im_start|>" and the like as their tokens; leave it off for text that a user wrote.
    std::vector<Token> encode(std::string_view text, bool special = false) const;

    /// The bytes of a token, which may be a part of a UTF-8 character (see Utf8Stream); of a special token, its name.
    std::string decode(Token token) const;
    std::string decode(const std::vector<Token>& tokens) const;

    std::size_t size() const;                    // tokens in the vocabulary
    Token find(std::string_view special) const;  // id of a special token, -1 if there is none of that name
    bool is_special(Token token) const;

private:
    struct Data;
    std::unique_ptr<Data> data_;
};

/// The text of a file, CRLF as LF.
std::string read_text(const std::string& path);

}  // namespace llm
