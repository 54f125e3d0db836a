/// Byte-level BPE.
///
///   text -> words (a pattern) -> bytes, each written as one printable character -> merges by rank -> ids
///
/// Source  Radford et al. 2019; tokenizers' ByteLevel and Digits pre-tokenizers
#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <array>
#include <optional>
#include <utility>

#include "error.hpp"
#include "gguf.hpp"
#include "merge.hpp"
#include "utf8.hpp"
#include "vocabulary.hpp"

namespace llm {
namespace {

constexpr const char* gpt2_pattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// GPT-2's, but every digit alone, and no word reaches over a digit: as a piece ends at a digit, white space before one
// is taken whole.
constexpr const char* smollm_pattern =
    R"(\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+)";

constexpr const char* qwen2_pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

constexpr std::pair<std::string_view, const char*> patterns[] = {
    {"smollm", smollm_pattern}, {"gpt-2", gpt2_pattern}, {"qwen2", qwen2_pattern}};

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

const char* pattern_of(const Gguf& gguf) {
    const std::string& asked = gguf.text("tokenizer.ggml.pre");
    std::string known;
    for (const auto& [name, pattern] : patterns) {
        if (name == asked) return pattern;
        known += fmt::format("{}'{}'", known.empty() ? "" : ", ", name);
    }
    throw Error(
        fmt::format("{}: the tokenizer splits words like '{}'; this engine knows {}", gguf.name(), asked, known));
}

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

class BytePairEncoder final : public PlainEncoder {
public:
    BytePairEncoder(const Gguf& gguf, const Vocabulary& vocabulary) : pattern_(pattern_of(gguf)) {
        const auto character = byte_characters();
        for (std::size_t byte = 0; byte < 256; ++byte) {
            std::string stand_in;
            append_utf8(stand_in, character[byte]);
            const auto found = vocabulary.ids.find(stand_in);
            token_of_byte_[byte] = found == vocabulary.ids.end() ? -1 : found->second;
            byte_of_.emplace(std::move(stand_in), static_cast<char>(static_cast<unsigned char>(byte)));
        }
        const std::vector<std::string>& merges = gguf.texts("tokenizer.ggml.merges");
        merges_.reserve(merges.size());
        for (std::size_t rank = 0; rank < merges.size(); ++rank) {
            const std::string& merge = merges[rank];
            const std::size_t space = merge.find(' ');
            if (space == std::string::npos) throw Error(fmt::format("{}: merge {} is no pair", gguf.name(), rank));
            const auto find = [&](const std::string& piece) {
                const auto found = vocabulary.ids.find(piece);
                if (found == vocabulary.ids.end())
                    throw Error(
                        fmt::format("{}: merge {} needs a token that isn't in the vocabulary", gguf.name(), rank));
                return found->second;
            };
            const std::string left = merge.substr(0, space), right = merge.substr(space + 1);
            merges_.emplace(pair_of(find(left), find(right)), std::pair(rank, find(left + right)));
        }
    }

    void encode(std::string_view text, std::vector<Token>& ids) const override {
        constexpr std::size_t longest_kept = 64, most_kept = 1u << 18;
        ByText<std::vector<Token>> known;  // words that came up before: a text has few different ones
        pattern_.for_each(text, [&](std::string_view word) {
            if (const auto found = known.find(word); found != known.end()) {
                ids.insert(ids.end(), found->second.begin(), found->second.end());
                return;
            }
            const std::size_t start = ids.size();
            encode_word(word, ids);
            if (word.size() <= longest_kept && known.size() < most_kept)
                known.emplace(word, std::vector<Token>(ids.begin() + static_cast<std::ptrdiff_t>(start), ids.end()));
        });
    }

    /// Stand-ins back to bytes; characters that stand for none are kept (added tokens may be plain text).
    std::string bytes_of(const std::string& piece, TokenKind) const override {
        std::string bytes;
        for (std::size_t at = 0, length = 0; at < piece.size(); at += length) {
            if (first_character(std::string_view(piece).substr(at), length) != Utf8::whole) length = 1;
            const auto found = byte_of_.find(std::string_view(piece).substr(at, length));
            if (found != byte_of_.end())
                bytes += found->second;
            else
                bytes.append(piece, at, length);
        }
        return bytes;
    }

private:
    using Merge = std::pair<std::size_t, Token>;  // rank, and what the two become

    void encode_word(std::string_view word, std::vector<Token>& ids) const {
        std::vector<Part> parts;
        for (std::size_t i = 0; i < word.size(); ++i) {
            const auto byte = static_cast<unsigned char>(word[i]);
            if (token_of_byte_[byte] < 0)
                throw Error(fmt::format("the vocabulary has no token for byte 0x{:02x}", byte));
            parts.push_back({i, 1, token_of_byte_[byte]});
        }
        const auto find = [&](const Part& left, const Part& right) -> std::optional<Merge> {
            const auto found = merges_.find(pair_of(left.token, right.token));
            return found == merges_.end() ? std::nullopt : std::optional(found->second);
        };
        for (const Part& part : merge_neighbours<std::size_t>(parts, find)) ids.push_back(part.token);
    }

    Pattern pattern_;
    std::array<Token, 256> token_of_byte_{};           // -1: none
    ByText<char> byte_of_;                             // by its stand-in
    std::unordered_map<std::uint64_t, Merge> merges_;  // by pair_of
};

}  // namespace

std::unique_ptr<PlainEncoder> make_byte_pair_encoder(const Gguf& gguf, const Vocabulary& vocabulary) {
    return std::make_unique<BytePairEncoder>(gguf, vocabulary);
}

}  // namespace llm
