/// BPE as SentencePiece does it.
///
///   text, spaces as U+2581 -> characters -> the neighbours whose joint piece scores highest become one -> ids
///   a character without a token -> its bytes, as the tokens <0x00> .. <0xFF>
///
/// Source  Kudo and Richardson 2018 (arXiv 1808.06226)
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <utility>

#include "error.hpp"
#include "gguf.hpp"
#include "merge.hpp"
#include "utf8.hpp"
#include "vocabulary.hpp"

namespace llm {
namespace {

constexpr std::string_view space_piece = "\u2581";

/// The byte that a piece like <0x0A> stands for.
std::optional<unsigned char> byte_of(std::string_view piece) {
    const auto digit = [](char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1; };
    if (piece.size() != 6 || !piece.starts_with("<0x") || piece[5] != '>') return std::nullopt;
    const int high = digit(piece[3]), low = digit(piece[4]);
    if (high < 0 || low < 0) return std::nullopt;
    return static_cast<unsigned char>(high * 16 + low);
}

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
    std::string out;
    out.reserve(text.size());
    for (std::size_t at = 0;;) {
        const std::size_t found = text.find(from, at);
        out += text.substr(at, found - at);
        if (found == std::string_view::npos) return out;
        out += to;
        at = found + from.size();
    }
}

class SentencePieceEncoder final : public PlainEncoder {
public:
    SentencePieceEncoder(const Gguf& gguf, const Vocabulary& vocabulary)
        : prefix_(!gguf.has("tokenizer.ggml.add_space_prefix") || gguf.boolean("tokenizer.ggml.add_space_prefix")) {
        const std::vector<double> scores = gguf.numbers("tokenizer.ggml.scores");
        if (scores.size() != vocabulary.pieces.size())
            throw Error(
                fmt::format("{}: {} tokens, but {} scores", gguf.name(), vocabulary.pieces.size(), scores.size()));
        token_of_byte_.fill(-1);
        for (std::size_t i = 0; i < scores.size(); ++i) {
            if (std::isnan(scores[i]))
                throw Error(fmt::format("{}: the score of token {} is no number", gguf.name(), i));
            const std::string& piece = vocabulary.pieces[i];
            const auto id = static_cast<Token>(i);
            if (vocabulary.kinds[i] == TokenKind::normal) {
                pieces_.emplace(piece, std::pair(-scores[i], id));
                longest_ = std::max(longest_, piece.size());
            } else if (vocabulary.kinds[i] == TokenKind::byte) {
                const auto byte = byte_of(piece);
                if (!byte) throw Error(fmt::format("{}: byte token {} is not written as <0x00>", gguf.name(), i));
                token_of_byte_[*byte] = id;
            }
        }
    }

    void encode(std::string_view plain, std::vector<Token>& ids) const override {
        if (plain.empty()) return;
        const std::string text = (prefix_ ? std::string(space_piece) : "") + replace_all(plain, " ", space_piece);
        const auto piece = [&](std::size_t begin, std::size_t length) {
            return std::string_view(text).substr(begin, length);
        };
        const auto find = [&](std::size_t begin, std::size_t length) -> std::optional<Scored> {
            if (length > longest_) return std::nullopt;
            const auto found = pieces_.find(piece(begin, length));
            return found == pieces_.end() ? std::nullopt : std::optional(found->second);
        };
        std::vector<Part> parts;
        for (std::size_t at = 0, length = 0; at < text.size(); at += length) {
            first_character(piece(at, text.size() - at), length);
            const auto found = find(at, length);
            parts.push_back({at, length, found ? found->second : -1});
        }
        parts = merge_neighbours<double>(
            parts, [&](const Part& left, const Part& right) { return find(left.begin, left.length + right.length); });
        for (const Part& part : parts) {
            if (part.token >= 0) {
                ids.push_back(part.token);
                continue;
            }
            for (const char c : piece(part.begin, part.length)) {
                const auto byte = static_cast<unsigned char>(c);
                if (token_of_byte_[byte] < 0)
                    throw Error(fmt::format("the vocabulary has no token for byte 0x{:02x}", byte));
                ids.push_back(token_of_byte_[byte]);
            }
        }
    }

    std::string bytes_of(const std::string& piece, TokenKind kind) const override {
        if (kind == TokenKind::byte) return {static_cast<char>(*byte_of(piece))};
        return replace_all(piece, space_piece, " ");
    }

private:
    using Scored = std::pair<double, Token>;  // minus the score: the smallest goes first

    bool prefix_;  // a space before the text
    ByText<Scored> pieces_;
    std::size_t longest_ = 0;               // bytes of a piece
    std::array<Token, 256> token_of_byte_;  // -1: none
};

}  // namespace

std::unique_ptr<PlainEncoder> make_sentence_piece_encoder(const Gguf& gguf, const Vocabulary& vocabulary) {
    return std::make_unique<SentencePieceEncoder>(gguf, vocabulary);
}

}  // namespace llm
