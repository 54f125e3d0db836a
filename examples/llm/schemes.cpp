#include "schemes.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>

#include "error.hpp"
#include "exact_cache.hpp"
#include "library_cache.hpp"
#include "library_schemes.hpp"

namespace llm {
namespace {

constexpr std::string_view exact_name = "f32";

const std::vector<LibraryScheme>& library_schemes() {
    static const std::vector<LibraryScheme> all = [] {
        std::vector<LibraryScheme> list;
        add_key_value_and_x_schemes(list);
        add_svd_schemes(list);
        return list;
    }();
    return all;
}

std::size_t number(std::string_view digits, const std::string& scheme) {
    std::size_t value = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (error != std::errc() || end != digits.data() + digits.size() || value > 0x7fffffff)
        throw Error(fmt::format("scheme '{}': '{}' is no number that can be meant", scheme, digits));
    return value;
}

/// The scheme's entry for its group, or an error that says which groups there are.
const LibraryScheme& find(const Scheme& scheme) {
    std::vector<std::size_t> groups;
    for (const LibraryScheme& known : library_schemes()) {
        if (known.name != scheme.name) continue;
        if (known.group == scheme.group.value_or(known.group)) return known;
        groups.push_back(known.group);
    }
    if (groups.empty())
        throw Error(fmt::format("unknown scheme '{}'; known are {}", scheme.name, fmt::join(scheme_names(), ", ")));
    if (groups.front() == 0)
        throw Error(fmt::format("scheme '{}': {} has no groups to choose", scheme.text, scheme.name));
    throw Error(fmt::format("scheme '{}': the groups can have {} values", scheme.text, fmt::join(groups, ", ")));
}

}  // namespace

std::vector<std::string> scheme_names() {
    std::vector<std::string> names{std::string(exact_name)};
    for (const LibraryScheme& scheme : library_schemes())
        if (std::find(names.begin(), names.end(), scheme.name) == names.end()) names.emplace_back(scheme.name);
    return names;
}

Scheme parse_scheme(const std::string& text) {
    Scheme scheme;
    scheme.text = text;
    std::string_view rest = text;
    const auto next = [&] {
        const std::size_t colon = rest.find(':');
        const std::string_view part = rest.substr(0, colon);
        rest = colon == std::string_view::npos ? std::string_view() : rest.substr(colon + 1);
        return part;
    };
    scheme.name = next();
    while (rest.data() != nullptr) {
        const std::string_view suffix = next();
        const std::size_t equals = suffix.find('=');
        const std::string_view key = suffix.substr(0, equals);
        std::optional<std::size_t>* value = key == "tail"    ? &scheme.tail
                                            : key == "sinks" ? &scheme.sinks
                                            : key == "group" ? &scheme.group
                                                             : nullptr;
        if (value == nullptr || equals == std::string_view::npos)
            throw Error(fmt::format("scheme '{}': '{}' is not tail=N, sinks=N or group=N", text, suffix));
        if (value->has_value()) throw Error(fmt::format("scheme '{}': {} stands there twice", text, key));
        *value = number(suffix.substr(equals + 1), text);
    }
    if (scheme.name != exact_name)
        scheme.needs_mean = find(scheme).takes_mean;
    else if (scheme.name != text)
        throw Error(fmt::format("scheme '{}': {} is exact and takes no suffixes", text, exact_name));
    return scheme;
}

std::unique_ptr<AttentionCache> make_cache(const Scheme& scheme, const Model& model, const SchemeOptions& options) {
    if (scheme.name == exact_name) return make_exact_cache(model, *options.pool);
    SchemeOptions own = options;
    own.tail = scheme.tail.value_or(options.tail);
    own.sinks = scheme.sinks.value_or(options.sinks);
    return make_library_sequence(find(scheme), model, own);
}

std::unique_ptr<AttentionCache> make_cache(const std::string& scheme, const Model& model,
                                           const SchemeOptions& options) {
    return make_cache(parse_scheme(scheme), model, options);
}

}  // namespace llm
