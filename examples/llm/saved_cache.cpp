#include "saved_cache.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <iterator>
#include <sstream>
#include <xquant/persistence.hpp>

#include "error.hpp"

namespace llm {
namespace {

constexpr std::string_view head = "xquant-llm\nscheme ", before_ids = "\ntokens";

}  // namespace

std::string to_text(const CacheNote& note) {
    std::string text = fmt::format("{}{}{}", head, note.scheme, before_ids);
    for (const Token id : note.ids) fmt::format_to(std::back_inserter(text), " {}", id);
    return text + "\n";
}

CacheNote parse_note(std::string_view text) {
    const auto fail = [] {
        throw Error("the saved cache's note does not say which tokens it holds: another program wrote it");
    };
    const std::size_t at = text.find(before_ids, head.size());
    if (!text.starts_with(head) || at == std::string_view::npos || !text.ends_with('\n')) fail();
    CacheNote note{std::string(text.substr(head.size(), at - head.size())), {}};
    std::string_view ids = text.substr(at + before_ids.size());
    ids.remove_suffix(1);
    while (!ids.empty()) {
        if (ids.front() != ' ') fail();
        Token id = 0;
        const auto [end, error] = std::from_chars(ids.data() + 1, ids.data() + ids.size(), id);
        if (error != std::errc()) fail();
        note.ids.push_back(id);
        ids.remove_prefix(static_cast<std::size_t>(end - ids.data()));
    }
    return note;
}

std::size_t common_prefix(std::span<const Token> a, std::span<const Token> b) {
    return static_cast<std::size_t>(std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin());
}

void check_savable(const AttentionCache& cache) {
    std::ostringstream nowhere;
    cache.save(nowhere, "");
}

void save_cache(const AttentionCache& cache, const Scheme& scheme, std::span<const Token> ids,
                const std::string& path) {
    if (ids.size() != cache.size())
        throw Error(fmt::format("{} tokens are to be saved, and the cache holds {}", ids.size(), cache.size()));
    cache.save(path, to_text({scheme.text, {ids.begin(), ids.end()}}));
}

std::size_t load_cache(AttentionCache& cache, const Scheme& scheme, std::span<const Token> prompt,
                       const std::string& path) {
    std::string text;
    try {
        text = cache.load(path);
    } catch (const xquant::mismatch_error& error) {
        // The schemes' names say more than how their rows differ. A file of another version throws here once more.
        const std::string saved = parse_note(xquant::inspect(path).note).scheme;
        if (saved == scheme.text) throw;
        throw Error(fmt::format("{} was saved with the scheme {}, and this is {} ({})", path, saved, scheme.text,
                                error.what()));
    }
    try {
        const CacheNote note = parse_note(text);
        if (parse_scheme(note.scheme).name != scheme.name)
            throw Error(fmt::format("{} was saved with the scheme {}, and this is {}", path, note.scheme, scheme.text));
        if (note.ids.size() != cache.size())
            throw Error(fmt::format("{} holds {} tokens, and its note names {}", path, cache.size(), note.ids.size()));
        const std::size_t common = common_prefix(note.ids, prompt.first(prompt.empty() ? 0 : prompt.size() - 1));
        if (common == 0) throw Error(fmt::format("{} and the prompt have no first token in common", path));
        cache.truncate(common);
        return common;
    } catch (...) {
        cache.reset();
        throw;
    }
}

}  // namespace llm
