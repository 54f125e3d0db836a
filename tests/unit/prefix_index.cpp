/// The longest known prefix of a prompt: written-out cases, a reference that compares with every sequence, hashes that
/// collide, memory that fails.
#include <xquant/serving/prefix_index.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <new>
#include <vector>

#include "support/catch.hpp"
#include "support/memory.hpp"
#include "support/model.hpp"

using namespace xquant;

namespace {

using Ids = std::vector<std::int32_t>;

/// All branches in one bucket.
struct OneHash {
    std::uint64_t operator()(std::uint32_t, std::int32_t) const noexcept { return 7; }
};
/// Branches of different parents collide, as do those of odd tokens.
struct TwoHashes {
    std::uint64_t operator()(std::uint32_t, std::int32_t token) const noexcept {
        return static_cast<std::uint64_t>(token & 1);
    }
};

constexpr Sequence a{11}, b{22}, c{33}, d{44}, e{55};

bool matches(const PrefixMatch& found, Sequence sequence, std::size_t tokens) {
    return found.sequence == sequence && found.tokens == tokens;
}

template <class Index>
Ids ids_of(const Index& index, Sequence sequence) {
    const auto tokens = index.tokens(sequence);
    return {tokens.begin(), tokens.end()};
}

/// What an index should say: every sequence is compared.
struct Reference {
    std::map<std::uint64_t, Ids> known;

    static std::size_t common(const Ids& x, const Ids& y) {
        std::size_t n = 0;
        while (n < x.size() && n < y.size() && x[n] == y[n]) ++n;
        return n;
    }
    [[nodiscard]] std::size_t longest(const Ids& prompt) const {
        std::size_t most = 0;
        for (const auto& [id, ids] : known) most = std::max(most, common(ids, prompt));
        return most;
    }
    template <class Index>
    [[nodiscard]] bool agrees(const Index& index, const Ids& prompt) const {
        const PrefixMatch found = index.find(prompt);
        if (found.tokens != longest(prompt)) return false;
        if (found.tokens == 0) return found.sequence == Sequence{};
        const auto at = known.find(found.sequence.id);
        return at != known.end() && common(at->second, prompt) == found.tokens;
    }
    template <class Index>
    [[nodiscard]] bool agrees(const Index& index) const {
        if (index.size() != known.size()) return false;
        return std::all_of(known.begin(), known.end(), [&](const auto& one) {
            return ids_of(index, Sequence{one.first}) == one.second && agrees(index, one.second);
        });
    }
};

/// Ids that share much: the beginning of a known sequence, then a few of three tokens.
Ids random_ids(test::Random& random, const Reference& reference, std::size_t most_new) {
    Ids ids;
    if (!reference.known.empty() && random.below(8) != 0) {
        auto from = reference.known.begin();
        std::advance(from, random.below(reference.known.size()));
        const std::size_t n = random.below(3) == 0 ? from->second.size() : random.below(from->second.size() + 1);
        ids.assign(from->second.begin(), from->second.begin() + static_cast<std::ptrdiff_t>(n));
    }
    for (std::size_t i = random.below(most_new + 1); i > 0; --i) {
        ids.push_back(static_cast<std::int32_t>(random.below(3)));
    }
    return ids;
}

/// One operation of any kind, on index and reference. Calls `run` with what the index has to do, then changes the
/// reference.
template <class Index, class Run>
void random_operation(Index& index, Reference& reference, test::Random& random, std::uint64_t& next_id, Run run) {
    const auto any = [&] {
        auto at = reference.known.begin();
        std::advance(at, random.below(reference.known.size()));
        return at;
    };
    const std::size_t kind = reference.known.empty() ? 0 : random.below(16);
    if (kind < 3) {
        const Ids ids = random_ids(random, reference, 90);
        const std::uint64_t id = kind == 2 ? any()->first : next_id++;
        run([&] { index.insert(Sequence{id}, ids); });
        reference.known[id] = ids;
    } else if (kind < 10) {
        const auto at = any();
        Ids more;
        for (std::size_t i = random.below(kind == 3 ? 100 : 3); i > 0; --i) {
            more.push_back(static_cast<std::int32_t>(random.below(3)));
        }
        run([&] { index.extend(Sequence{at->first}, more); });
        at->second.insert(at->second.end(), more.begin(), more.end());
    } else if (kind < 13) {
        const auto at = any();
        const std::size_t now = at->second.size();
        const std::size_t n = kind == 10 ? random.below(now + 1) : now - std::min(now, random.below(5));
        run([&] { index.truncate(Sequence{at->first}, n); });
        at->second.resize(n);
    } else if (kind < 15 && (kind == 13 || reference.known.size() > 40)) {
        const auto at = any();
        run([&] { CHECK(index.erase(Sequence{at->first})); });
        reference.known.erase(at);
    }
}

template <class Hash>
void compare_with_model(std::size_t operations, std::uint32_t seed) {
    test::CountingMemory memory;
    {
        BasicPrefixIndex<Hash> index(&memory);
        Reference reference;
        test::Random random(seed);
        std::uint64_t next_id = 1;
        for (std::size_t i = 0; i < operations; ++i) {
            random_operation(index, reference, random, next_id, [](auto operation) { operation(); });
            INFO("operation " << i);
            REQUIRE(reference.agrees(index, random_ids(random, reference, 40)));
            if (i % 100 == 0) REQUIRE(reference.agrees(index));
        }
        CHECK(next_id > operations / 20);
        CHECK(reference.known.size() > 10);
        while (!reference.known.empty()) {
            CHECK(index.erase(Sequence{reference.known.begin()->first}));
            reference.known.erase(reference.known.begin());
            REQUIRE(reference.agrees(index));
        }
        CHECK(index.find(Ids{0, 1, 2}).tokens == 0);
    }
    CHECK(memory.bytes() == 0);
    CHECK_FALSE(memory.misused());
}

}  // namespace

TEST_CASE("an empty index finds nothing, and knows no sequence") {
    PrefixIndex index;
    CHECK(index.size() == 0);
    CHECK(matches(index.find(Ids{1, 2, 3}), Sequence{}, 0));
    CHECK(matches(index.find(Ids{}), Sequence{}, 0));
    CHECK_FALSE(index.erase(a));
    CHECK_THROWS_AS(static_cast<void>(index.tokens(a)), sequence_error);
    CHECK_THROWS_AS(index.extend(a, Ids{1}), sequence_error);
    CHECK_THROWS_AS(index.truncate(a, 0), sequence_error);
}

TEST_CASE("a match ends at any token, within a sequence or at its end") {
    PrefixIndex index;
    index.insert(a, Ids{5, 6, 7, 8, 9});
    CHECK(matches(index.find(Ids{5, 6, 7, 8, 9}), a, 5));
    CHECK(matches(index.find(Ids{5, 6, 7, 8, 9, 10}), a, 5));
    CHECK(matches(index.find(Ids{5, 6, 7, 0, 9}), a, 3));
    CHECK(matches(index.find(Ids{5}), a, 1));
    CHECK(matches(index.find(Ids{6, 7}), Sequence{}, 0));
    CHECK(matches(index.find(Ids{}), Sequence{}, 0));

    index.insert(b, Ids{5, 6, 7, 1});
    index.insert(c, Ids{5, 6});
    CHECK(index.size() == 3);
    CHECK(matches(index.find(Ids{5, 6, 7, 1, 1}), b, 4));
    CHECK(matches(index.find(Ids{5, 6, 7, 8}), a, 4));
    CHECK(index.find(Ids{5, 6, 7}).tokens == 3);
    CHECK(index.find(Ids{5, 6, 9}).tokens == 2);
    CHECK(ids_of(index, b) == Ids{5, 6, 7, 1});
    // Parts on the way to 5 6, though what follows is on the way behind 5 6 7.
    CHECK(index.find(Ids{5, 8, 7, 8, 9}).tokens == 1);
    CHECK(index.find(Ids{5, 6, 8, 8, 9}).tokens == 2);
    index.insert(d, Ids{3, 4, 4, 2, 9});
    index.insert(e, Ids{3, 4, 4, 7});
    CHECK(index.find(Ids{3, 2, 4, 2, 9}).tokens == 1);
    CHECK(index.erase(d));
    CHECK(index.erase(e));

    CHECK(index.erase(a));
    CHECK_FALSE(index.erase(a));
    CHECK(matches(index.find(Ids{5, 6, 7, 8, 9}), b, 3));
    CHECK(index.erase(b));
    CHECK(matches(index.find(Ids{5, 6, 7, 8, 9}), c, 2));
    CHECK(index.size() == 1);
}

TEST_CASE("any 32-bit id may be a token, and sequences may be empty or equal") {
    PrefixIndex index;
    const std::int32_t least = std::numeric_limits<std::int32_t>::min(),
                       most = std::numeric_limits<std::int32_t>::max();
    index.insert(a, Ids{});
    index.insert(b, Ids{least, -1, 0, most});
    index.insert(c, Ids{least, -1, 0, most});
    CHECK(index.size() == 3);
    CHECK(index.tokens(a).empty());
    CHECK(index.find(Ids{least, -1, 0, most, 4}).tokens == 4);
    CHECK(index.erase(b));
    CHECK(matches(index.find(Ids{least, -1, 0, most}), c, 4));
    CHECK(index.erase(c));
    CHECK(matches(index.find(Ids{least}), Sequence{}, 0));
    index.extend(a, Ids{least});
    CHECK(matches(index.find(Ids{least, 0}), a, 1));
    index.truncate(a, 0);
    CHECK(matches(index.find(Ids{least, 0}), Sequence{}, 0));
}

TEST_CASE("sequences grow side by side, part, and are taken back") {
    PrefixIndex index;
    index.insert(a, Ids{1, 2, 3});
    // A fork: the same tokens first.
    index.insert(b, index.tokens(a));
    CHECK(matches(index.find(Ids{1, 2, 3, 4}), index.find(Ids{1, 2, 3}).sequence, 3));
    index.extend(a, Ids{4});
    index.extend(b, Ids{4});
    index.extend(b, Ids{5, 6});
    index.extend(a, Ids{7});
    CHECK(matches(index.find(Ids{1, 2, 3, 4, 5, 6, 7}), b, 6));
    CHECK(matches(index.find(Ids{1, 2, 3, 4, 7, 7}), a, 5));
    // Drafts that were not taken.
    index.truncate(b, 4);
    CHECK(index.find(Ids{1, 2, 3, 4, 5, 6, 7}).tokens == 4);
    CHECK(matches(index.find(Ids{1, 2, 3, 4, 7}), a, 5));
    index.extend(b, Ids{7, 7});
    CHECK(matches(index.find(Ids{1, 2, 3, 4, 7, 7}), b, 6));
    index.truncate(b, 2);
    index.extend(b, Ids{9});
    CHECK(matches(index.find(Ids{1, 2, 9}), b, 3));
    CHECK_THROWS_AS(index.truncate(b, 4), shape_error);
    CHECK(ids_of(index, b) == Ids{1, 2, 9});
    // What was known of it is replaced, by part of its own ids.
    index.insert(b, index.tokens(b).subspan(1));
    CHECK(ids_of(index, b) == Ids{2, 9});
    CHECK(matches(index.find(Ids{1, 2, 9}), a, 2));
    CHECK(matches(index.find(Ids{2, 9, 9}), b, 2));
    // Its own ids again, with and without room for them.
    for (int i = 0; i < 6; ++i) index.extend(b, index.tokens(b));
    CHECK(index.tokens(b).size() == 128);
    index.extend(b, index.tokens(b).first(3));
    CHECK(index.tokens(b).size() == 131);
    for (std::size_t i = 0; i < 131; ++i) REQUIRE(index.tokens(b)[i] == (i % 2 == 0 ? 2 : 9));
    CHECK(index.find(index.tokens(b)).tokens == 131);
}

TEST_CASE("long sequences part at every token around a run of 64") {
    for (std::size_t at = 0; at < 200; ++at) {
        PrefixIndex index;
        Ids ids(200, 3);
        index.insert(a, ids);
        ids[at] = 4;
        INFO(at);
        CHECK(index.find(ids).tokens == at);
        index.insert(b, ids);
        CHECK(matches(index.find(ids), b, 200));
        CHECK(matches(index.find(Ids(200, 3)), a, 200));
        ids[at] = 5;
        CHECK(index.find(ids).tokens == at);
        CHECK(index.find(std::span(ids).first(at)).tokens == at);
    }
}

TEST_CASE("10,000 random operations answer as a comparison with every sequence does") {
    compare_with_model<detail::BranchHash>(10000, 1);
    compare_with_model<detail::BranchHash>(3000, 2);
}

TEST_CASE("hashes that collide change no answer") {
    compare_with_model<OneHash>(4000, 3);
    compare_with_model<TwoHashes>(4000, 4);
}

TEST_CASE(
    "a step that adds a token to each of a hundred sequences is found at once, and takes no memory most of the time") {
    test::CountingMemory memory;
    PrefixIndex index(&memory);
    Ids prompt(1000);
    for (std::size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<std::int32_t>(i * i % 1009);
    for (std::uint64_t s = 0; s < 100; ++s) index.insert(Sequence{s}, prompt);
    const std::size_t calls = memory.calls();
    constexpr std::size_t steps = 500;
    for (std::size_t step = 0; step < steps; ++step) {
        for (std::uint64_t s = 0; s < 100; ++s) {
            // They part at different steps.
            const Ids id{static_cast<std::int32_t>(step < s ? 0 : 10 + s)};
            index.extend(Sequence{s}, id);
        }
    }
    CHECK(memory.calls() - calls < 300);
    Ids asked = prompt;
    asked.insert(asked.end(), 40, 0);
    CHECK(index.find(asked).tokens == 1040);
    asked.insert(asked.end(), 3000, 10 + 40);
    CHECK(matches(index.find(asked), Sequence{40}, 1000 + steps));
}

TEST_CASE("what comes and goes leaves nothing behind") {
    test::CountingMemory memory;
    PrefixIndex index(&memory);
    std::size_t after_first = 0;
    for (int round = 0; round < 20; ++round) {
        test::Random random(5);
        Reference reference;
        std::uint64_t next_id = 1;
        for (int i = 0; i < 500; ++i) {
            random_operation(index, reference, random, next_id, [](auto operation) { operation(); });
        }
        for (const auto& [id, ids] : reference.known) index.erase(Sequence{id});
        CHECK(index.size() == 0);
        if (round == 0) after_first = memory.bytes();
        CHECK(memory.bytes() == after_first);
    }
}

TEST_CASE("a sequence that follows another one token by token leaves no nodes on its way") {
    test::CountingMemory memory;
    PrefixIndex index(&memory);
    const Ids ids(10000, 5);
    const auto bytes_beside_ids = [&] {
        std::size_t capacity = 0;
        for (const Sequence sequence : {a, b}) {
            // Room doubles at most.
            capacity += 2 * sizeof(std::int32_t) * index.tokens(sequence).size();
        }
        return memory.bytes() - std::min(capacity, memory.bytes());
    };
    index.insert(a, ids);
    index.insert(b, Ids{5});
    for (std::size_t n = 2; n <= ids.size(); ++n) index.extend(b, Ids{5});
    CHECK(ids_of(index, b) == ids);
    CHECK(bytes_beside_ids() < 2000);
    const std::size_t bytes = memory.bytes();
    for (std::size_t n = ids.size(); n-- > 0;) index.truncate(b, n);
    CHECK(memory.bytes() == bytes);
    CHECK(matches(index.find(ids), a, 10000));
}

TEST_CASE("memory that runs out at any moment leaves the index as it was, and in working order") {
    test::CountingMemory memory;
    PrefixIndex index(&memory);
    Reference reference;
    test::Random random(6);
    std::uint64_t next_id = 1;
    std::size_t failures = 0;
    const auto watched = [&](auto operation) {
        for (std::size_t k = 1;; ++k) {
            std::vector<PrefixMatch> before;
            const auto answers = [&] {
                std::vector<PrefixMatch> out;
                for (const auto& [id, ids] : reference.known) out.push_back(index.find(ids));
                return out;
            };
            before = answers();
            memory.fail_at(k);
            try {
                operation();
                memory.fail_at(0);
                return;
            } catch (const std::bad_alloc&) {
                ++failures;
                REQUIRE(reference.agrees(index));
                const auto after = answers();
                REQUIRE(std::equal(before.begin(), before.end(), after.begin(), after.end(),
                                   [](const PrefixMatch& x, const PrefixMatch& y) {
                                       return x.sequence == y.sequence && x.tokens == y.tokens;
                                   }));
            }
        }
    };
    for (int i = 0; i < 1000; ++i) {
        random_operation(index, reference, random, next_id, watched);
        REQUIRE(reference.agrees(index));
    }
    CHECK(failures > 300);
    CHECK_FALSE(memory.misused());
    memory.fail_at(1);
    CHECK_THROWS_AS(PrefixIndex(&memory), std::bad_alloc);
}
