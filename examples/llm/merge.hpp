/// The merging that both kinds of tokenizers share: again and again the two neighbours of lowest rank become one part,
/// the leftmost first, until no pair has a rank.
///
/// Cost  n log n for n parts: a heap over a linked list.
#pragma once

#include <cstddef>
#include <functional>
#include <queue>
#include <tuple>
#include <vector>

#include "tokenizer.hpp"

namespace llm {

/// A piece of the text and its token, -1 if there is none.
struct Part {
    std::size_t begin, length;  // bytes
    Token token;
};

/// parts: consecutive pieces of one text. find(left, right) returns an optional<pair<Rank, Token>> for the two of them
/// as one part; small ranks go first. Returns what is left, in order.
template <class Rank, class Find>
std::vector<Part> merge_neighbours(const std::vector<Part>& parts, Find&& find) {
    constexpr std::size_t none = static_cast<std::size_t>(-1);
    struct Link {
        Part part;
        std::size_t before, after;  // neighbours; `none` at the ends
        bool gone = false;          // swallowed by the part before it
    };
    std::vector<Link> links;
    links.reserve(parts.size());
    for (std::size_t i = 0; i < parts.size(); ++i)
        links.push_back({parts[i], i == 0 ? none : i - 1, i + 1 == parts.size() ? none : i + 1});

    // Rank, left part, and the length of the pair: parts only grow, so it tells whether an entry is out of date.
    using Candidate = std::tuple<Rank, std::size_t, std::size_t, Token>;
    std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> heap;
    const auto consider = [&](std::size_t left) {
        if (left == none || links[left].after == none) return;
        const Part &a = links[left].part, &b = links[links[left].after].part;
        if (const auto found = find(a, b)) heap.emplace(found->first, left, a.length + b.length, found->second);
    };
    for (std::size_t i = 0; i + 1 < links.size(); ++i) consider(i);
    while (!heap.empty()) {
        const auto [rank, left, length, token] = heap.top();
        heap.pop();
        Link& link = links[left];
        if (link.gone || link.after == none || link.part.length + links[link.after].part.length != length) continue;
        link.part.length = length;
        link.part.token = token;
        links[link.after].gone = true;
        link.after = links[link.after].after;
        if (link.after != none) links[link.after].before = left;
        consider(link.before);
        consider(left);
    }
    std::vector<Part> left;
    for (const Link& link : links)
        if (!link.gone) left.push_back(link.part);
    return left;
}

}  // namespace llm
