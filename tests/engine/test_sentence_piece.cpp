/// SentencePiece's BPE on a tiny vocabulary with scores, bytes, control and user-defined tokens.
#include <algorithm>
#include <map>
#include <optional>
#include <random>

#include "catch.hpp"
#include "error.hpp"
#include "gguf.hpp"
#include "gguf_writer.hpp"
#include "tokenizer.hpp"
#include "utf8.hpp"

using namespace llm;
using namespace llm::test;

namespace {

struct Piece {
    std::string text;
    float score;
    std::int32_t kind = 1;  // 1 normal, 3 control, 4 user-defined, 6 byte
};

struct File {
    std::vector<Piece> pieces{
        {"<bos>", 0, 3}, {"<eos>", 0, 3}, {"\n\n", -1000, 4}, {"\n\n\n", -1000, 4}, {"<b>", 0, 4}};
    std::optional<bool> space_prefix = false, add_bos = true;
    bool bytes = true;

    Gguf gguf() const {
        std::vector<Piece> all = pieces;
        for (int byte = 0; bytes && byte < 256; ++byte) {
            const char* digits = "0123456789ABCDEF";
            all.push_back({std::string("<0x") + digits[byte / 16] + digits[byte % 16] + ">", 0, 6});
        }
        std::vector<std::string> texts;
        std::vector<float> scores;
        std::vector<std::int32_t> kinds;
        for (const Piece& piece : all) {
            texts.push_back(piece.text), scores.push_back(piece.score), kinds.push_back(piece.kind);
        }
        GgufWriter file;
        file.text("tokenizer.ggml.model", "llama").texts("tokenizer.ggml.tokens", texts);
        file.numbers("tokenizer.ggml.scores", 6, scores).numbers("tokenizer.ggml.token_type", 5, kinds);
        file.u32("tokenizer.ggml.bos_token_id", 0);
        if (add_bos) file.boolean("tokenizer.ggml.add_bos_token", *add_bos);
        if (space_prefix) file.boolean("tokenizer.ggml.add_space_prefix", *space_prefix);
        return Gguf::parse(file.bytes(), "test.gguf");
    }
};

File with(const std::vector<Piece>& more) {
    File file;
    file.pieces.insert(file.pieces.end(), more.begin(), more.end());
    return file;
}

using Pieces = std::vector<std::string>;

Pieces pieces(const Tokenizer& tokenizer, std::string_view text, bool special = false) {
    Pieces out;
    for (const Token token : tokenizer.encode(text, special)) out.push_back(tokenizer.decode(token));
    return out;
}

/// As it is defined: join the pair whose piece scores highest, the leftmost of them, until there is none.
Pieces naive_merge(const std::string& word, const std::map<std::string, float>& score) {
    Pieces parts;
    for (const char c : word) parts.emplace_back(1, c);
    for (;;) {
        std::size_t best = parts.size();
        for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
            const auto found = score.find(parts[i] + parts[i + 1]);
            if (found == score.end()) continue;
            if (best == parts.size() || found->second > score.at(parts[best] + parts[best + 1])) best = i;
        }
        if (best == parts.size()) return parts;
        parts[best] += parts[best + 1];
        parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    }
}

}  // namespace

TEST_CASE("SentencePiece merges by score", "[tokenizer]") {
    // ab scores higher than bc, abc and the words with a space.
    const Tokenizer tokenizer(
        with(
            {{"a", -20}, {"b", -21}, {"c", -22}, {"\u2581", -23}, {"ab", -1}, {"bc", -2}, {"abc", -3}, {"\u2581a", -4}})
            .gguf());
    CHECK(pieces(tokenizer, "abc") == Pieces{"abc"});
    CHECK(pieces(tokenizer, "bcab") == Pieces{"bc", "ab"});
    CHECK(pieces(tokenizer, "x ab") == Pieces{"x", " ", "ab"});
    CHECK(pieces(tokenizer, "x ac") == Pieces{"x", " a", "c"});
    CHECK(tokenizer.encode("").empty());
    CHECK(tokenizer.bos() == 0);
    CHECK(tokenizer.adds_bos());
}

TEST_CASE("SentencePiece's merging equals the definition on random words", "[tokenizer]") {
    const std::vector<Piece> more{{"a", -90},  {"b", -91}, {"c", -92},   {"aa", -5},  {"ba", -3},
                                  {"aaa", -4}, {"ab", -6}, {"baba", -1}, {"aab", -2}, {"abab", -7},
                                  {"ca", -8},  {"bc", -5}, {"cabc", -9}};
    std::map<std::string, float> score;
    for (const Piece& piece : more) score[piece.text] = piece.score;
    const Tokenizer tokenizer(with(more).gguf());
    std::mt19937 random(2);
    for (int round = 0; round < 500; ++round) {
        std::string word;
        for (auto n = 1 + random() % 40; n > 0; --n) word += static_cast<char>('a' + random() % 3);
        INFO(word);
        REQUIRE(pieces(tokenizer, word) == naive_merge(word, score));
    }
}

TEST_CASE("characters without a token become their bytes", "[tokenizer]") {
    const Tokenizer tokenizer(with({{"a", -1}, {"\u00e9", -2}, {"\u2581", -3}}).gguf());
    const Token first_byte = tokenizer.encode("\t").front() - '\t';
    CHECK(tokenizer.encode("\u65e5") == std::vector<Token>{first_byte + 0xe6, first_byte + 0x97, first_byte + 0xa5});
    CHECK(tokenizer.encode("\u00e9").size() == 1);
    const std::string text = "a \u00e9\u65e5 \U0001f642\n";
    CHECK(tokenizer.decode(tokenizer.encode(text)) == text);

    File without = with({{"a", -1}});
    without.bytes = false;
    const Tokenizer poor(without.gguf());
    CHECK(contains(message<Error>([&] { poor.encode("ab"); }), "no token for byte 0x62"));
}

TEST_CASE("user-defined tokens are always read, control tokens when asked for", "[tokenizer]") {
    const Tokenizer tokenizer(with({{"a", -1}, {"<", -1}, {"b", -2}, {">", -3}}).gguf());
    CHECK(pieces(tokenizer, "a\n\n\n\na") == Pieces{"a", "\n\n\n", "\n", "a"});  // the longest name first
    CHECK(pieces(tokenizer, "a<b>b") == Pieces{"a", "<b>", "b"});
    CHECK(tokenizer.encode("<bos>").size() == 5);
    CHECK(tokenizer.encode("<bos>a", true) == std::vector<Token>{0, 5});
    CHECK(tokenizer.find("<b>") == 4);
    CHECK(tokenizer.is_special(4));
    CHECK_FALSE(tokenizer.is_special(5));
}

TEST_CASE("a file says whether a space and a BOS are put before a text", "[tokenizer]") {
    File file = with({{"a", -1}, {"\u2581a", -2}});
    CHECK(pieces(Tokenizer(file.gguf()), "a") == Pieces{"a"});
    file.space_prefix = std::nullopt;  // the kind's own habit
    CHECK(pieces(Tokenizer(file.gguf()), "a") == Pieces{" a"});
    file.add_bos = false;
    CHECK_FALSE(Tokenizer(file.gguf()).adds_bos());
    file.add_bos = std::nullopt;
    CHECK(Tokenizer(file.gguf()).adds_bos());
}

TEST_CASE("a damaged SentencePiece vocabulary is refused", "[tokenizer]") {
    const auto refusal = [](const File& file) { return message<Error>([&] { Tokenizer(file.gguf()); }); };
    CHECK(contains(refusal(with({{"<0xZZ>", 0, 6}})), "byte token 5 is not written as <0x00>"));
    CHECK(
        contains(refusal(with({{"a", std::numeric_limits<float>::quiet_NaN()}})), "the score of token 5 is no number"));
    CHECK(contains(refusal(with({{"", 0, 4}})), "special token 5 has no name"));
    GgufWriter file;
    file.text("tokenizer.ggml.model", "llama").texts("tokenizer.ggml.tokens", {"a", "b"});
    file.numbers("tokenizer.ggml.scores", 6, std::vector<float>{1});
    const Gguf gguf = Gguf::parse(file.bytes(), "test.gguf");
    CHECK(contains(message<Error>([&] { Tokenizer{gguf}; }), "2 tokens, but 1 scores"));
}
