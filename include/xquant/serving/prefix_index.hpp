// Finds the known sequence that shares the longest prefix with a prompt, so that the prefix need not be computed again.
//
//     auto match = index.find(prompt.first(prompt.size() - 1));  // the last token is fed anyway: its output is wanted
//     auto s = match.tokens > 0 ? cache.fork(match.sequence, match.tokens) : cache.create();
//     index.insert(s, prompt.first(match.tokens));
//     after each commit:  index.extend(s, the step's tokens);
//     at the end:         index.erase(s);  cache.drop(s);
//
// A radix tree over token ids. Every path from the root spells the beginning of a known sequence; a node stands where
// sequences part or end:
//
//     (root) -- 1 7 7 3 -- ( ) -- 5 2 ------ (A ends)
//                           `---- 9 9 4 ---- (B ends) -- 6 -- (C ends)
//
// Edges keep no ids of their own: they name a sequence that runs along them and read its ids. A child is looked up by a
// hash of its parent and its first id; both are compared, and so is every further id, so no collision of hashes can
// give a wrong match.
// Source  RadixAttention (SGLang, arXiv 2312.07104), automatic prefix caching (vLLM). Fixed blocks with chained hashes,
// as vLLM has them, find whole blocks only; here a match ends at any token.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include <xquant/error.hpp>
#include <xquant/sequence/handle.hpp>

namespace xquant {

/// A known sequence, and how many of its first tokens a prompt begins with; 0: none.
struct PrefixMatch {
    Sequence sequence;       ///< only where tokens > 0
    std::size_t tokens = 0;  ///< in common, from the first on
};

inline namespace XQUANT_ABI_NS {
namespace detail {

/// Spreads pairs (node, token) over 64 bits: the last steps of splitmix64.
struct BranchHash {
    std::uint64_t operator()(std::uint32_t node, std::int32_t token) const noexcept {
        std::uint64_t z = std::uint64_t{node} << 32U | static_cast<std::uint32_t>(token);
        z = (z + 0x9E3779B97F4A7C15U) * 0xBF58476D1CE4E5B9U;
        z = (z ^ (z >> 27U)) * 0x94D049BB133111EBU;
        return z ^ (z >> 31U);
    }
};

}  // namespace detail

/// Token ids of sequences, searched by prefix. It knows handles and ids alone, so it serves any store of sequences, and
/// knows only what it is told: a sequence that is dropped has to be erased here.
///
/// Takes 4 bytes for each token (up to 8 where sequences grow) and at most some 300 for each sequence. Not safe for use
/// by several threads at once. A call that throws (std::bad_alloc from the memory resource, sequence_error,
/// shape_error) leaves everything as it was.
///
/// @tparam Hash  of a node's number and a token's id; the answers do not depend on it
template <class Hash = detail::BranchHash>
class BasicPrefixIndex {
public:
    /// An empty index; `memory` null: the default resource.
    explicit BasicPrefixIndex(std::pmr::memory_resource* memory = nullptr)
        : known_(memory ? memory : std::pmr::get_default_resource()),
          nodes_(1, known_.get_allocator().resource()),
          buckets_(known_.get_allocator().resource()) {}
    BasicPrefixIndex(const BasicPrefixIndex&) = delete;
    BasicPrefixIndex& operator=(const BasicPrefixIndex&) = delete;

    /// Sequences that are known, empty ones included.
    [[nodiscard]] std::size_t size() const noexcept { return known_.size(); }

    /// The ids that are known of a sequence; good until it is changed. Throws sequence_error if it is not known.
    [[nodiscard]] std::span<const std::int32_t> tokens(Sequence sequence) const {
        const auto found = known_.find(sequence.id);
        detail::expects<sequence_error>(found != known_.end(), unknown);
        return found->second.tokens;
    }

    /// The sequence that shares the most first tokens with `tokens`, exact to the token; one of them where several do.
    /// Cost: a comparison for each token that matches, and a look-up for each place on the way where sequences part or
    /// end; it does not depend on how many sequences are known.
    [[nodiscard]] PrefixMatch find(std::span<const std::int32_t> tokens) const noexcept {
        const Place at = walk(tokens, {root, 0});
        if (at.depth == 0) return {};
        return {nodes_[at.node].owner->sequence, at.depth};
    }

    /// Makes a sequence known by its ids; they replace what was known of it. `tokens` may be what tokens() gives of
    /// another sequence. Cost: copying the ids, and a find.
    void insert(Sequence sequence, std::span<const std::int32_t> tokens) {
        std::pmr::vector<std::int32_t> copy(tokens.begin(), tokens.end(), known_.get_allocator());
        make_room();
        const auto [at, is_new] = known_.try_emplace(sequence.id, sequence, known_.get_allocator().resource());
        // From here on nothing throws.
        Known& known = at->second;
        if (!is_new) leave_tree(known);
        known.tokens.swap(copy);
        enter_tree(known, {root, 0});
    }

    /// Appends ids to a known sequence. Throws sequence_error if it is not known.
    /// Cost: constant for each token (amortised), and no look-up while the sequence goes where no other one went.
    void extend(Sequence sequence, std::span<const std::int32_t> tokens) {
        Known& known = find_known(sequence);
        if (tokens.empty()) return;
        const std::size_t before = known.tokens.size(), after = before + tokens.size();
        std::pmr::vector<std::int32_t> grown(known_.get_allocator());
        if (after > known.tokens.capacity()) {
            grown.reserve((std::max)(after, 2 * before));
            grown.assign(known.tokens.begin(), known.tokens.end());
        }
        make_room();
        // From here on nothing throws. The ids may be the sequence's own, so the old ones stay where they are until the
        // end.
        std::pmr::vector<std::int32_t>& to = after > known.tokens.capacity() ? grown : known.tokens;
        to.resize(after);
        std::copy_n(tokens.data(), tokens.size(), to.data() + before);
        if (&to == &grown) known.tokens.swap(grown);
        if (is_alone(known)) {
            nodes_[known.node].end = after;
            return;
        }
        const Index left = known.node;
        unlist(known);
        enter_tree(known, {left, before});
        tidy(left);
    }

    /// Keeps the first `tokens` ids of a sequence and forgets the rest. Throws sequence_error if it is not known,
    /// shape_error if it has fewer. Cost: constant where no other sequence shares the ids that go or ends among them,
    /// else a find.
    void truncate(Sequence sequence, std::size_t tokens) {
        Known& known = find_known(sequence);
        detail::expects(tokens <= known.tokens.size(), "truncate: ", tokens, " tokens, but the index knows ",
                        known.tokens.size(), " of the sequence");
        if (tokens == known.tokens.size()) return;
        if (is_alone(known) && tokens > nodes_[nodes_[known.node].parent].end) {
            known.tokens.resize(tokens);
            nodes_[known.node].end = tokens;
            return;
        }
        make_room();
        // From here on nothing throws.
        leave_tree(known);
        known.tokens.resize(tokens);
        enter_tree(known, {root, 0});
    }

    /// Forgets a sequence; false if it was not known. Cost: a step for each place where it parted from others.
    bool erase(Sequence sequence) noexcept {
        const auto found = known_.find(sequence.id);
        if (found == known_.end()) return false;
        leave_tree(found->second);
        known_.erase(found);
        return true;
    }

private:
    using Index = std::uint32_t;
    static constexpr Index root = 0, none = static_cast<Index>(-1);
    static constexpr const char* unknown =
        "the index does not know the sequence: it was never inserted, or it was erased";

    struct Known {
        Known(Sequence handle, std::pmr::memory_resource* memory) noexcept : sequence(handle), tokens(memory) {}

        Sequence sequence;
        std::pmr::vector<std::int32_t> tokens;
        Index node = root;                           ///< where it ends
        Known *next = nullptr, *previous = nullptr;  ///< others that end there
    };

    /// A place in the tree, with the edge that leads to it. All but the root have a sequence that ends there or at
    /// least two children, so there are fewer than two for each sequence.
    struct Node {
        const Known* owner = nullptr;        ///< a sequence that runs through: the edge's ids are its own
        Known* ending = nullptr;             ///< sequences that end here
        std::size_t end = 0;                 ///< tokens from the root to here
        std::int32_t first = 0;              ///< the edge's first id
        Index parent = none, child = none;   ///< child: one of them, the others are its siblings
        Index next = none, previous = none;  ///< siblings
        Index chain = none;                  ///< the next one in its bucket, or in the list of free nodes
    };

    /// Where a walk ends: in a node (depth is its end) or on the edge that leads to it.
    struct Place {
        Index node;
        std::size_t depth;
    };

    [[nodiscard]] Known& find_known(Sequence sequence) {
        const auto found = known_.find(sequence.id);
        detail::expects<sequence_error>(found != known_.end(), unknown);
        return found->second;
    }

    /// As far down from a node as the ids lead. `from.depth` is the node's end, and the ids before it are the node's.
    [[nodiscard]] Place walk(std::span<const std::int32_t> ids, Place from) const noexcept {
        Place at = from;
        while (at.depth < ids.size()) {
            const Index child = child_of(at.node, ids[at.depth]);
            if (child == none) break;
            const Node& node = nodes_[child];
            const std::int32_t* edge = node.owner->tokens.data();
            const std::size_t stop = (std::min)(node.end, ids.size());
            std::size_t same = at.depth + 1;
            // Whole runs first: std::equal is vectorized, std::mismatch is not.
            constexpr std::size_t run = 64;
            while (stop - same >= run && std::equal(edge + same, edge + same + run, ids.data() + same)) same += run;
            while (same < stop && edge[same] == ids[same]) ++same;
            at = {child, same};
            if (same < node.end) break;
        }
        return at;
    }

    [[nodiscard]] Index child_of(Index parent, std::int32_t first) const noexcept {
        if (buckets_.empty()) return none;
        Index at = buckets_[bucket(parent, first)];
        while (at != none && (nodes_[at].parent != parent || nodes_[at].first != first)) at = nodes_[at].chain;
        return at;
    }
    [[nodiscard]] std::size_t bucket(Index parent, std::int32_t first) const noexcept {
        return static_cast<std::size_t>(Hash{}(parent, first)) & (buckets_.size() - 1);
    }

    /// Whether nothing else ends at the sequence's node or goes on from it.
    [[nodiscard]] bool is_alone(const Known& known) const noexcept {
        const Node& node = nodes_[known.node];
        return known.node != root && node.child == none && node.ending == &known && known.next == nullptr;
    }

    /// Makes sure of two free nodes, more than any call takes, and of buckets for them. Throws std::bad_alloc.
    void make_room() {
        if (free_count_ + (nodes_.capacity() - nodes_.size()) < 2) {
            nodes_.reserve((std::max)(nodes_.size() + 2, 2 * nodes_.size()));
        }
        if (nodes_.size() + 2 <= buckets_.size()) return;
        std::pmr::vector<Index> old(std::max<std::size_t>(16, 2 * buckets_.size()), none, buckets_.get_allocator());
        old.swap(buckets_);
        for (Index at : old) {
            while (at != none) {
                const Index next = nodes_[at].chain;
                put_in_bucket(at);
                at = next;
            }
        }
    }

    [[nodiscard]] Index take_node() noexcept {
        if (free_ == none) {
            nodes_.emplace_back();
            return static_cast<Index>(nodes_.size() - 1);
        }
        const Index taken = free_;
        free_ = nodes_[taken].chain;
        --free_count_;
        nodes_[taken] = Node{};
        return taken;
    }
    void give_back(Index node) noexcept {
        nodes_[node].chain = free_;
        free_ = node;
        ++free_count_;
    }

    void put_in_bucket(Index at) noexcept {
        Index& head = buckets_[bucket(nodes_[at].parent, nodes_[at].first)];
        nodes_[at].chain = head;
        head = at;
    }

    /// Makes a node a child.
    void attach(Index parent, Index at) noexcept {
        Node& node = nodes_[at];
        node.parent = parent;
        node.previous = none;
        node.next = nodes_[parent].child;
        if (node.next != none) nodes_[node.next].previous = at;
        nodes_[parent].child = at;
        put_in_bucket(at);
    }
    void detach(Index at) noexcept {
        const Node& node = nodes_[at];
        (node.previous != none ? nodes_[node.previous].next : nodes_[node.parent].child) = node.next;
        if (node.next != none) nodes_[node.next].previous = node.previous;
        Index* link = &buckets_[bucket(node.parent, node.first)];
        while (*link != at) link = &nodes_[*link].chain;
        *link = node.chain;
    }

    /// A new node on the edge to another one.
    [[nodiscard]] Index split(Index below, std::size_t depth) noexcept {
        const Index made = take_node(), parent = nodes_[below].parent;
        detach(below);
        nodes_[made].owner = nodes_[below].owner;
        nodes_[made].first = nodes_[below].first;
        nodes_[made].end = depth;
        attach(parent, made);
        nodes_[below].first = nodes_[below].owner->tokens[depth];
        attach(made, below);
        return made;
    }

    /// Lets a sequence end where its ids lead, from a node that they lead to. Takes at most two nodes.
    void enter_tree(Known& known, Place from) noexcept {
        Place at = walk(known.tokens, from);
        if (at.depth < nodes_[at.node].end) at.node = split(at.node, at.depth);
        if (at.depth < known.tokens.size()) {
            const Index leaf = take_node();
            nodes_[leaf].owner = &known;
            nodes_[leaf].first = known.tokens[at.depth];
            nodes_[leaf].end = known.tokens.size();
            attach(at.node, leaf);
            at.node = leaf;
        }
        known.node = at.node;
        known.previous = nullptr;
        known.next = nodes_[at.node].ending;
        if (known.next != nullptr) known.next->previous = &known;
        nodes_[at.node].ending = &known;
    }

    void unlist(Known& known) noexcept {
        (known.previous != nullptr ? known.previous->next : nodes_[known.node].ending) = known.next;
        if (known.next != nullptr) known.next->previous = known.previous;
    }

    /// The reverse of enter_tree; the sequence still has its ids.
    void leave_tree(Known& known) noexcept {
        unlist(known);
        // Bottom up: what is below has owners of its own by then.
        for (Index at = tidy(known.node); at != root; at = nodes_[at].parent) {
            Node& node = nodes_[at];
            if (node.owner == &known) node.owner = node.ending != nullptr ? node.ending : nodes_[node.child].owner;
        }
    }

    /// Removes a node that stands for nothing any more, and its parent if that is left with one child.
    /// @return  the lowest node above it, or itself, that is still there
    Index tidy(Index at) noexcept {
        while (at != root && nodes_[at].ending == nullptr) {
            const Index child = nodes_[at].child, parent = nodes_[at].parent;
            if (child != none && nodes_[child].next != none) break;
            if (child != none) {
                // One child: its edge begins where this one did.
                detach(child);
                detach(at);
                nodes_[child].first = nodes_[at].first;
                attach(parent, child);
                give_back(at);
                return parent;
            }
            detach(at);
            give_back(at);
            at = parent;
        }
        return at;
    }

    std::pmr::unordered_map<std::uint64_t, Known> known_;  ///< by Sequence::id; entries never move
    std::pmr::vector<Node> nodes_;
    std::pmr::vector<Index> buckets_;  ///< first node of each chain; a power of two, more than there are nodes
    Index free_ = none;
    std::size_t free_count_ = 0;
};

using PrefixIndex = BasicPrefixIndex<>;

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
