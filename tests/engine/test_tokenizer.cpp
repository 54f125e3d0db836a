/// The tokenizer on a tiny vocabulary: 256 bytes, a few merges, three special tokens.
#include <algorithm>
#include <random>

#include "catch.hpp"
#include "error.hpp"
#include "gguf.hpp"
#include "tiny_model.hpp"
#include "tokenizer.hpp"

using namespace llm;
using namespace llm::test;

namespace {

Tokenizer make(const std::vector<std::string>& merges, const std::string& pre = "smollm") {
    GgufWriter file;
    return Tokenizer(Gguf::parse(add_vocabulary(file, merges, pre).bytes(), "test.gguf"));
}

/// The texts of the tokens, for reading.
std::vector<std::string> pieces(const Tokenizer& tokenizer, std::string_view text, bool special = false) {
    std::vector<std::string> texts;
    for (const Token token : tokenizer.encode(text, special)) texts.push_back(tokenizer.decode(token));
    return texts;
}

using Pieces = std::vector<std::string>;

/// BPE as it is defined, on a word of plain ASCII letters: join the leftmost pair of lowest rank until there is none.
Pieces naive_merge(const std::string& word, const std::vector<std::string>& merges) {
    Pieces parts;
    for (const char c : word) parts.emplace_back(1, c);
    for (;;) {
        std::size_t best = merges.size(), where = 0;
        for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
            const auto rank = static_cast<std::size_t>(
                std::find(merges.begin(), merges.end(), parts[i] + " " + parts[i + 1]) - merges.begin());
            if (rank < best) best = rank, where = i;
        }
        if (best == merges.size()) return parts;
        parts[where] += parts[where + 1];
        parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(where) + 1);
    }
}

}  // namespace

TEST_CASE("merges go by rank", "[tokenizer]") {
    const Tokenizer tokenizer = make({"a b", "b c", "ab c", "\u0120 a"});  // U+0120 stands for the space
    CHECK(pieces(tokenizer, "abc") == Pieces{"abc"});
    CHECK(pieces(tokenizer, "bc") == Pieces{"bc"});
    CHECK(pieces(tokenizer, "ababc") == Pieces{"ab", "abc"});
    CHECK(pieces(tokenizer, "x abc") == Pieces{"x", " ", "abc"});  // "a b" has a lower rank than " a"
    CHECK(pieces(tokenizer, "x ac") == Pieces{"x", " a", "c"});
    CHECK(tokenizer.encode("").empty());
}

TEST_CASE("merging equals the definition on random words", "[tokenizer]") {
    const std::vector<std::string> merges{"a a",   "b a",   "aa a", "a b", "ba ba", "aa b",
                                          "ab ab", "aaa a", "c a",  "b c", "ca bc"};
    const Tokenizer tokenizer = make(merges);
    std::mt19937 random(1);
    for (int round = 0; round < 500; ++round) {
        std::string word;
        for (auto n = 1 + random() % 40; n > 0; --n) word += static_cast<char>('a' + random() % 3);
        INFO(word);
        REQUIRE(pieces(tokenizer, word) == naive_merge(word, merges));
    }
}

TEST_CASE("a very long word takes no quadratic time", "[tokenizer]") {
    const Tokenizer tokenizer = make({"a a", "aa aa", "aaaa aaaa"});
    CHECK(tokenizer.encode(std::string(400000, 'a')).size() == 50000);
}

TEST_CASE("words are split like SmolLM's", "[tokenizer]") {
    // With merges for all that could join, what is left apart was split by the pattern.
    const Tokenizer tokenizer =
        make({"1 2", "\u0120 1", "\u0120 \u0120", "' s", "s '", "a '", "\u0120 a", "! !", "a !", "\u010a \u010a"});
    CHECK(pieces(tokenizer, "12") == Pieces{"1", "2"});
    CHECK(pieces(tokenizer, " 1") == Pieces{" ", "1"});
    CHECK(pieces(tokenizer, "  1") == Pieces{"  ", "1"});
    CHECK(pieces(tokenizer, "  a") == Pieces{" ", " a"});
    CHECK(pieces(tokenizer, "a's") == Pieces{"a", "'s"});
    CHECK(pieces(tokenizer, "a!!") == Pieces{"a", "!!"});
    CHECK(pieces(tokenizer, "a\n\n") == Pieces{"a", "\n\n"});
    const Tokenizer gpt2 = make({"1 2", "\u0120 1"}, "gpt-2");
    CHECK(pieces(gpt2, "12") == Pieces{"12"});
    CHECK(pieces(gpt2, " 1") == Pieces{" 1"});
}

TEST_CASE("words are split like Qwen's", "[tokenizer]") {
    const Tokenizer tokenizer = make({"1 2", "\u0120 1", "\u0120 \u0120", "' S", "\u0120 a", "( a", "! !", "! \u010a",
                                      "!! \u010a", "\u0120 \u010a", "\u010a a"},
                                     "qwen2");
    CHECK(pieces(tokenizer, "12") == Pieces{"1", "2"});
    CHECK(pieces(tokenizer, "  1") == Pieces{" ", " ", "1"});
    CHECK(pieces(tokenizer, "  a") == Pieces{" ", " a"});
    CHECK(pieces(tokenizer, "a'S") == Pieces{"a", "'S"});
    CHECK(pieces(tokenizer, "(a") == Pieces{"(a"});
    CHECK(pieces(tokenizer, "a!!\n") == Pieces{"a", "!!\n"});
    CHECK(pieces(tokenizer, " \na") == Pieces{" \n", "a"});
}

TEST_CASE("decoding gives the text back", "[tokenizer]") {
    const Tokenizer tokenizer = make({"\u0120 t", "h e", "\u0120t he"});
    std::string control;
    for (char c = 0; c < 127; ++c) control += c;
    for (const std::string& text :
         {std::string("the the  the\tna\u00efve \u65e5\u672c \U0001f642 12\u00bd\r\n"), control})
        CHECK(tokenizer.decode(tokenizer.encode(text)) == text);
}

TEST_CASE("special tokens count only when asked for", "[tokenizer]") {
    const Tokenizer tokenizer = make({});
    const std::string text = "<|im_start|>a<|im_end|>";
    CHECK(tokenizer.encode(text).size() == text.size());
    CHECK(tokenizer.encode(text, true) == std::vector<Token>{1, first_byte_token + 'a', 2});
    CHECK(tokenizer.decode(tokenizer.encode(text, true)) == text);
    CHECK(tokenizer.find("<|im_end|>") == 2);
    CHECK(tokenizer.find("a") == -1);
    CHECK(tokenizer.is_special(1));
    CHECK_FALSE(tokenizer.is_special(first_byte_token));
    CHECK_FALSE(tokenizer.is_special(-1));
}

TEST_CASE("what the tokenizer can't do, it says", "[tokenizer]") {
    const Tokenizer tokenizer = make({});
    CHECK(contains(message<Error>([&] { tokenizer.encode("ab\xff"); }), "no UTF-8 at byte 2"));
    CHECK(contains(message<Error>([&] { tokenizer.encode("ab\xe6\x97"); }), "no UTF-8 at byte 2"));
    CHECK(contains(message<Error>([&] { tokenizer.decode(100000); }), "token 100000 is outside"));
    CHECK(contains(message<Error>([&] { tokenizer.decode(-1); }), "token -1 is outside"));
    CHECK(contains(message<Error>([&] { make({"a b", "abc d"}); }), "merge 1 needs a token"));
    CHECK(contains(message<Error>([&] { make({}, "llama-bpe"); }), "'llama-bpe'"));
    const Gguf empty = Gguf::parse(GgufWriter().bytes(), "test.gguf");
    CHECK(contains(message<Error>([&] { Tokenizer{empty}; }), "'tokenizer.ggml.model' is missing"));
}

TEST_CASE("a stream of bytes comes out in whole characters", "[tokenizer]") {
    const std::string text = "a\u00e9\u65e5\U0001f642z";
    Utf8Stream stream;
    std::string out;
    for (const char c : text) {
        const std::string more = stream.push({&c, 1});
        CHECK(find_bad_utf8(more) == std::string::npos);
        out += more;
    }
    CHECK(out + stream.finish() == text);
    CHECK(stream.push("\xe6\x97").empty());
    CHECK(stream.finish() == "\ufffd");
    CHECK(stream.push("\xff"
                      "a\xc0") ==
          "\ufffd"
          "a\ufffd");
    CHECK(stream.push("\xe6"
                      "a") ==
          "\ufffd"
          "a");
    CHECK(stream.finish().empty());
    CHECK(find_bad_utf8("\xed\xa0\x80") == 0);       // a surrogate
    CHECK(find_bad_utf8("a\xf4\x90\x80\x80") == 1);  // beyond U+10FFFF
    CHECK(find_bad_utf8("\xc1\x81") == 0);           // overlong
}
