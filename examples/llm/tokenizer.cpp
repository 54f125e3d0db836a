#include "tokenizer.hpp"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <queue>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "error.hpp"
#include "gguf.hpp"
#include "utf8.hpp"

namespace llm {
namespace {

constexpr const char* gpt2_pattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// The same inside the pieces between digits: as a piece ends at a digit, white space before one is taken whole.
constexpr const char* smollm_pattern =
    R"(\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+)";

class Pattern {
public:
    explicit Pattern(const char* pattern) {
        int error = 0;
        PCRE2_SIZE at = 0;
        code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern), PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP,
                                  &error, &at, nullptr));
        if (!code_) throw Error(fmt::format("PCRE2 refuses the tokenizer's pattern at {}, error {}", at, error));
        pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);  // without a JIT it is slower, and that is all
    }

    /// Calls f(word) for all matches in turn. The text must be valid UTF-8.
    template <class F>
    void for_each(std::string_view text, F&& f) const {
        const std::unique_ptr<pcre2_match_data, Free> match(pcre2_match_data_create_from_pattern(code_.get(), nullptr));
        if (!match) throw std::bad_alloc();
        const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
        for (std::size_t at = 0; at < text.size();) {
            const int found =
                pcre2_match(code_.get(), subject, text.size(), at, PCRE2_NO_UTF_CHECK, match.get(), nullptr);
            if (found == PCRE2_ERROR_NOMATCH) break;
            if (found < 0) throw Error(fmt::format("PCRE2 fails on the text at byte {}, error {}", at, found));
            const PCRE2_SIZE* span = pcre2_get_ovector_pointer(match.get());
            f(text.substr(span[0], span[1] - span[0]));
            at = span[1];
        }
    }

private:
    struct Free {
        void operator()(pcre2_code* code) const { pcre2_code_free(code); }
        void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
    };
    std::unique_ptr<pcre2_code, Free> code_;
};

/// GPT-2's printable stand-ins: '!'..'~', U+A1..U+AC and U+AE..U+FF stand for themselves, the other bytes in turn for
/// U+100 ...
std::array<std::uint32_t, 256> byte_characters() {
    std::array<std::uint32_t, 256> character{};
    std::uint32_t next = 0x100;
    for (std::uint32_t byte = 0; byte < 256; ++byte)
        character[byte] =
            (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae ? byte : next++;
    return character;
}

constexpr std::uint64_t pair_of(Token left, Token right) {
    return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 | static_cast<std::uint32_t>(right);
}

struct Merge {
    std::size_t rank;
    Token token;
};

struct HashText {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
};
template <class T>
using ByText = std::unordered_map<std::string, T, HashText, std::equal_to<>>;

enum Kind : std::int64_t { control = 3, user_defined = 4 };

}  // namespace

struct Tokenizer::Data {
    explicit Data(const char* pattern_text) : pattern(pattern_text) {}

    Pattern pattern;
    std::vector<std::string> bytes;  // of each token
    std::vector<bool> special;
    ByText<Token> specials;
    std::size_t longest_special = 0;
    std::array<Token, 256> token_of_byte{};           // -1: none
    std::unordered_map<std::uint64_t, Merge> merges;  // by pair_of

    void merge(std::string_view word, std::vector<Token>& ids) const;
    void encode_plain(std::string_view text, std::vector<Token>& ids, ByText<std::vector<Token>>& known) const;
};

/// Byte-pair encoding of one word: again and again the neighbours of lowest rank become one token, the leftmost first.
/// A heap over a linked list, so that a long word costs n log n.
void Tokenizer::Data::merge(std::string_view word, std::vector<Token>& ids) const {
    struct Part {
        Token token;
        std::size_t before, after;  // neighbours; `none` at the ends
        bool gone;                  // swallowed by the part before it
    };
    constexpr std::size_t none = static_cast<std::size_t>(-1);
    std::vector<Part> parts(word.size());
    for (std::size_t i = 0; i < word.size(); ++i) {
        const auto byte = static_cast<unsigned char>(word[i]);
        if (token_of_byte[byte] < 0) throw Error(fmt::format("the vocabulary has no token for byte 0x{:02x}", byte));
        parts[i] = {token_of_byte[byte], i == 0 ? none : i - 1, i + 1 == word.size() ? none : i + 1, false};
    }

    using Candidate = std::tuple<std::size_t, std::size_t, std::uint64_t>;  // rank, left part, the pair it was made for
    std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> heap;
    const auto consider = [&](std::size_t left) {
        if (left == none || parts[left].after == none) return;
        const std::uint64_t pair = pair_of(parts[left].token, parts[parts[left].after].token);
        if (const auto found = merges.find(pair); found != merges.end()) heap.emplace(found->second.rank, left, pair);
    };
    for (std::size_t i = 0; i + 1 < parts.size(); ++i) consider(i);
    while (!heap.empty()) {
        const auto [rank, left, pair] = heap.top();
        heap.pop();
        Part& part = parts[left];
        if (part.gone || part.after == none || pair_of(part.token, parts[part.after].token) != pair)
            continue;  // out of date
        part.token = merges.at(pair).token;
        parts[part.after].gone = true;
        part.after = parts[part.after].after;
        if (part.after != none) parts[part.after].before = left;
        consider(part.before);
        consider(left);
    }
    for (const Part& part : parts)
        if (!part.gone) ids.push_back(part.token);
}

void Tokenizer::Data::encode_plain(std::string_view text, std::vector<Token>& ids,
                                   ByText<std::vector<Token>>& known) const {
    constexpr std::size_t longest_kept = 64, most_kept = 1u << 18;
    pattern.for_each(text, [&](std::string_view word) {
        if (const auto found = known.find(word); found != known.end()) {
            ids.insert(ids.end(), found->second.begin(), found->second.end());
            return;
        }
        const std::size_t start = ids.size();
        merge(word, ids);
        if (word.size() <= longest_kept && known.size() < most_kept)
            known.emplace(word, std::vector<Token>(ids.begin() + static_cast<std::ptrdiff_t>(start), ids.end()));
    });
}

Tokenizer::Tokenizer(const Gguf& gguf) {
    const auto fail = [&](const std::string& what) { throw Error(fmt::format("{}: {}", gguf.name(), what)); };
    if (const auto& model = gguf.text("tokenizer.ggml.model"); model != "gpt2")
        fail(fmt::format("the tokenizer is of the kind '{}'; this engine knows 'gpt2', byte-level BPE", model));
    const std::string& pre = gguf.text("tokenizer.ggml.pre");
    if (pre != "smollm" && pre != "gpt-2")
        fail(fmt::format("the tokenizer splits words like '{}'; this engine knows 'smollm' and 'gpt-2'", pre));
    data_ = std::make_unique<Data>(pre == "smollm" ? smollm_pattern : gpt2_pattern);

    const std::vector<std::string>& tokens = gguf.texts("tokenizer.ggml.tokens");
    if (tokens.empty() || tokens.size() > 0x7fffffff) fail(fmt::format("a vocabulary of {} tokens", tokens.size()));
    std::vector<std::int64_t> kinds(tokens.size(), 1);
    if (gguf.has("tokenizer.ggml.token_type")) kinds = gguf.integers("tokenizer.ggml.token_type");
    if (kinds.size() != tokens.size()) fail(fmt::format("{} tokens, but {} token types", tokens.size(), kinds.size()));

    const auto character = byte_characters();
    std::unordered_map<std::string, char> byte_of;  // by its stand-in
    data_->token_of_byte.fill(-1);
    for (std::size_t byte = 0; byte < 256; ++byte) {
        std::string text;
        append_utf8(text, character[byte]);
        byte_of.emplace(std::move(text), static_cast<char>(static_cast<unsigned char>(byte)));
    }
    /// Stand-ins back to bytes; characters that stand for none are kept (added tokens may be plain text).
    const auto bytes_of = [&](const std::string& text) {
        std::string bytes;
        for (std::size_t at = 0, length = 0; at < text.size(); at += length) {
            if (first_character(std::string_view(text).substr(at), length) != Utf8::whole) length = 1;
            const auto found = byte_of.find(text.substr(at, length));
            if (found != byte_of.end())
                bytes += found->second;
            else
                bytes.append(text, at, length);
        }
        return bytes;
    };

    ByText<Token> ids;
    data_->bytes.reserve(tokens.size());
    data_->special.resize(tokens.size());
    for (std::size_t i = 0; i < tokens.size(); ++i) {
        const auto id = static_cast<Token>(i);
        data_->special[i] = kinds[i] == control || kinds[i] == user_defined;
        if (data_->special[i]) {
            if (tokens[i].empty()) fail(fmt::format("special token {} has no name", i));
            data_->specials.emplace(tokens[i], id);
            data_->longest_special = std::max(data_->longest_special, tokens[i].size());
        }
        data_->bytes.push_back(data_->special[i] ? tokens[i] : bytes_of(tokens[i]));
        ids.emplace(tokens[i], id);
        if (const auto found = byte_of.find(tokens[i]); found != byte_of.end())
            data_->token_of_byte[static_cast<unsigned char>(found->second)] = id;
    }

    const std::vector<std::string>& merges = gguf.texts("tokenizer.ggml.merges");
    data_->merges.reserve(merges.size());
    for (std::size_t rank = 0; rank < merges.size(); ++rank) {
        const std::string& merge = merges[rank];
        const std::size_t space = merge.find(' ');
        if (space == std::string::npos) fail(fmt::format("merge {} is no pair", rank));
        const auto find = [&](const std::string& text) {
            const auto found = ids.find(text);
            if (found == ids.end()) fail(fmt::format("merge {} needs a token that isn't in the vocabulary", rank));
            return found->second;
        };
        const std::string left = merge.substr(0, space), right = merge.substr(space + 1);
        data_->merges.emplace(pair_of(find(left), find(right)), Merge{rank, find(left + right)});
    }
}

Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

std::vector<Token> Tokenizer::encode(std::string_view text, bool special) const {
    if (const std::size_t bad = find_bad_utf8(text); bad != std::string_view::npos)
        throw Error(fmt::format("the text is no UTF-8 at byte {}", bad));
    std::vector<Token> ids;
    ByText<std::vector<Token>> known;  // words that came up before: a text has few different ones
    std::size_t plain = 0;             // start of the text that is still to be encoded
    for (std::size_t at = 0; special && at < text.size();) {
        // Names of special tokens may start alike: the longest one counts.
        Token found = -1;
        std::size_t length = std::min(data_->longest_special, text.size() - at);
        while (length > 0) {
            const auto name = data_->specials.find(text.substr(at, length));
            if (name != data_->specials.end()) {
                found = name->second;
                break;
            }
            --length;
        }
        if (found < 0) {
            ++at;
            continue;
        }
        data_->encode_plain(text.substr(plain, at - plain), ids, known);
        ids.push_back(found);
        plain = at += length;
    }
    data_->encode_plain(text.substr(plain), ids, known);
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
    const auto found = data_->specials.find(special);
    return found == data_->specials.end() ? -1 : found->second;
}

bool Tokenizer::is_special(Token token) const {
    return token >= 0 && static_cast<std::size_t>(token) < data_->special.size() &&
           data_->special[static_cast<std::size_t>(token)];
}

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
