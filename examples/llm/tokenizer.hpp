/// Text to token ids and back, by the vocabulary of a GGUF file: byte-level BPE (tokenizer.ggml.model = "gpt2";
/// byte_pair.cpp) or SentencePiece's BPE with scores and byte fallback ("llama"; sentence_piece.cpp).
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
    /// Tokens that the file calls user-defined ("<table>", a run of newlines) are read wherever their name stands, the
    /// longest name first. special: control tokens like "<|im_start|>" too; leave it off for text that a user wrote.
    std::vector<Token> encode(std::string_view text, bool special = false) const;

    /// The bytes of a token, which may be a part of a UTF-8 character (see Utf8Stream); of a special token, its name.
    std::string decode(Token token) const;
    std::string decode(const std::vector<Token>& tokens) const;

    std::size_t size() const;                    // tokens in the vocabulary
    Token find(std::string_view special) const;  // id of a control or user-defined token, -1 if none has that name
    bool is_special(Token token) const;          // control or user-defined
    Token bos() const;                           // the token that begins a text, -1 if the file names none
    bool adds_bos() const;                       // whether the file asks for it

private:
    struct Data;
    std::unique_ptr<Data> data_;
};

/// The text of a file, CRLF as LF.
std::string read_text(const std::string& path);

}  // namespace llm
