#include "tokenizer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <utility>

#include "error.hpp"
#include "gguf.hpp"
#include "utf8.hpp"
#include "vocabulary.hpp"

namespace llm {

Vocabulary::Vocabulary(const Gguf& gguf) {
    const auto fail = [&](const std::string& what) { throw Error(fmt::format("{}: {}", gguf.name(), what)); };
    pieces = gguf.texts("tokenizer.ggml.tokens");
    if (pieces.empty() || pieces.size() > 0x7fffffff) fail(fmt::format("a vocabulary of {} tokens", pieces.size()));
    kinds.assign(pieces.size(), TokenKind::normal);
    if (gguf.has("tokenizer.ggml.token_type")) {
        const std::vector<std::int64_t> stored = gguf.integers("tokenizer.ggml.token_type");
        if (stored.size() != pieces.size())
            fail(fmt::format("{} tokens, but {} token types", pieces.size(), stored.size()));
        std::transform(stored.begin(), stored.end(), kinds.begin(), [](auto k) { return static_cast<TokenKind>(k); });
    }
    ids.reserve(pieces.size());
    for (std::size_t i = 0; i < pieces.size(); ++i) ids.emplace(pieces[i], static_cast<Token>(i));
}

struct Tokenizer::Data {
    std::unique_ptr<PlainEncoder> encoder;
    std::vector<std::string> bytes;       // of each token
    ByText<Token> control, user_defined;  // by their names
    std::size_t longest = 0;              // name of either
    std::array<bool, 256> starts{};       // by the first byte of a text: whether a name may stand there
    Token bos = -1;                       // -1: the file names none
    bool adds_bos = false;

    /// The control or user-defined token with the longest name that the text starts with, and the name's length.
    std::pair<Token, std::size_t> special_at(std::string_view text, bool with_control) const {
        if (!starts[static_cast<unsigned char>(text.front())]) return {-1, 0};
        for (std::size_t length = std::min(longest, text.size()); length > 0; --length) {
            const std::string_view name = text.substr(0, length);
            if (const auto found = user_defined.find(name); found != user_defined.end()) return {found->second, length};
            if (!with_control) continue;
            if (const auto found = control.find(name); found != control.end()) return {found->second, length};
        }
        return {-1, 0};
    }
};

Tokenizer::Tokenizer(const Gguf& gguf) : data_(std::make_unique<Data>()) {
    const auto fail = [&](const std::string& what) { throw Error(fmt::format("{}: {}", gguf.name(), what)); };
    const std::string& kind = gguf.text("tokenizer.ggml.model");
    const bool sentence_piece = kind == "llama";
    if (!sentence_piece && kind != "gpt2")
        fail(
            fmt::format("the tokenizer is of the kind '{}'; this engine knows 'gpt2', byte-level BPE, and 'llama', "
                        "SentencePiece's BPE",
                        kind));
    const Vocabulary vocabulary(gguf);
    data_->encoder = (sentence_piece ? make_sentence_piece_encoder : make_byte_pair_encoder)(gguf, vocabulary);
    data_->bytes.reserve(vocabulary.pieces.size());
    for (std::size_t i = 0; i < vocabulary.pieces.size(); ++i) {
        const std::string& piece = vocabulary.pieces[i];
        if (!vocabulary.is_whole(i)) {
            data_->bytes.push_back(data_->encoder->bytes_of(piece, vocabulary.kinds[i]));
            continue;
        }
        if (piece.empty()) fail(fmt::format("special token {} has no name", i));
        auto& names = vocabulary.kinds[i] == TokenKind::control ? data_->control : data_->user_defined;
        names.emplace(piece, static_cast<Token>(i));
        data_->longest = std::max(data_->longest, piece.size());
        data_->starts[static_cast<unsigned char>(piece.front())] = true;
        data_->bytes.push_back(piece);
    }

    if (gguf.has("tokenizer.ggml.bos_token_id")) {
        const std::uint64_t bos = gguf.integer("tokenizer.ggml.bos_token_id");
        if (bos >= size()) fail(fmt::format("BOS is token {}, outside the vocabulary of {}", bos, size()));
        data_->bos = static_cast<Token>(bos);
    }
    data_->adds_bos = gguf.has("tokenizer.ggml.add_bos_token") ? gguf.boolean("tokenizer.ggml.add_bos_token")
                                                               : sentence_piece && data_->bos >= 0;
    if (data_->adds_bos && data_->bos < 0) fail("the file asks for a BOS but names none");
}

Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

std::vector<Token> Tokenizer::encode(std::string_view text, bool special) const {
    if (const std::size_t bad = find_bad_utf8(text); bad != std::string_view::npos)
        throw Error(fmt::format("the text is no UTF-8 at byte {}", bad));
    std::vector<Token> ids;
    if (data_->user_defined.empty() && !special) {
        data_->encoder->encode(text, ids);
        return ids;
    }
    std::size_t plain = 0;  // start of the text that is still to be encoded
    for (std::size_t at = 0; at < text.size();) {
        const auto [token, length] = data_->special_at(text.substr(at), special);
        if (token < 0) {
            ++at;
            continue;
        }
        data_->encoder->encode(text.substr(plain, at - plain), ids);
        ids.push_back(token);
        plain = at += length;
    }
    data_->encoder->encode(text.substr(plain), ids);
    return ids;
}

std::string Tokenizer::decode(Token token) const {
    if (token < 0 || static_cast<std::size_t>(token) >= data_->bytes.size())
        throw Error(fmt::format("token {} is outside the vocabulary of {}", token, data_->bytes.size()));
    return data_->bytes[static_cast<std::size_t>(token)];
}

std::string Tokenizer::decode(const std::vector<Token>& tokens) const {
    std::string text;
    for (const Token token : tokens) text += decode(token);
    return text;
}

std::size_t Tokenizer::size() const { return data_->bytes.size(); }

Token Tokenizer::find(std::string_view special) const {
    for (const auto* names : {&data_->control, &data_->user_defined})
        if (const auto found = names->find(special); found != names->end()) return found->second;
    return -1;
}

bool Tokenizer::is_special(Token token) const { return token >= 0 && find(decode(token)) == token; }

Token Tokenizer::bos() const { return data_->bos; }
bool Tokenizer::adds_bos() const { return data_->adds_bos; }

std::string read_text(const std::string& path) {
    std::ifstream stream(path, std::ios::binary);
    if (std::filesystem::is_directory(path))
        throw Error(fmt::format("{}: is a folder", path));  // which opens like a file
    std::string text{std::istreambuf_iterator<char>(stream), {}};
    if (!stream) throw Error(fmt::format("{}: can't be read", path));
    std::string unix_text;
    unix_text.reserve(text.size());
    for (std::size_t i = 0; i < text.size(); ++i)
        if (text[i] != '\r' || i + 1 == text.size() || text[i + 1] != '\n') unix_text += text[i];
    return unix_text;
}

}  // namespace llm
