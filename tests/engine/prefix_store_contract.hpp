/// What a store of prefixes promises wherever its entries lie; a test of each backend calls this, in a store of its own
/// for each section.
#pragma once

#include <algorithm>
#include <array>
#include <functional>
#include <random>
#include <span>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "answer.hpp"
#include "catch.hpp"
#include "error.hpp"
#include "gguf.hpp"
#include "prefix_store.hpp"
#include "schemes.hpp"
#include "tiny_model.hpp"

namespace llm::test {

constexpr std::size_t block = PrefixStore::block, plenty = 1 << 22;

/// Opens the one store of a test once more.
using Open = std::function<PrefixStore(StoreOptions options, const std::string& model)>;

inline std::vector<Token> tokens(std::size_t n, std::uint32_t seed) {
    std::mt19937 random(seed);
    std::vector<Token> ids(n);
    for (Token& id : ids) id = static_cast<Token>(random() % 259);
    return ids;
}

inline std::vector<std::byte> filled(std::size_t n, unsigned char value) {
    return std::vector<std::byte>(n, static_cast<std::byte>(value));
}

/// The value of the entry that is found, -1 if there is none.
inline int found(PrefixStore& store, std::span<const Token> ids, const std::string& scheme = "f16") {
    const auto entry = store.find(scheme, ids);
    if (!entry) return -1;
    const auto bytes = entry->bytes();
    REQUIRE(!bytes.empty());
    REQUIRE(std::all_of(bytes.begin(), bytes.end(), [&](std::byte b) { return b == bytes[0]; }));
    return std::to_integer<int>(bytes[0]);
}

inline StoreOptions limit(std::size_t bytes) { return {.limit = bytes}; }

inline void check_longest_prefix(const Open& open) {
    PrefixStore store = open(limit(plenty), "a model");
    const std::vector<Token> ids = tokens(6 * block, 1), other = tokens(6 * block, 2);
    const auto first = [&](std::size_t n) { return std::span(ids).first(n); };
    CHECK(found(store, ids) == -1);
    REQUIRE(store.put("f16", first(2 * block), filled(100, 2)));
    REQUIRE(store.put("f16", first(4 * block), filled(100, 4)));
    REQUIRE(store.put("f16", std::span(other).first(block), filled(100, 9)));
    CHECK(found(store, first(block - 1)) == -1);
    CHECK(found(store, first(block)) == 2);  // both entries have it: the shortest
    CHECK(found(store, first(2 * block)) == 2);
    CHECK(found(store, first(3 * block)) == 4);
    CHECK(found(store, ids) == 4);
    CHECK(found(store, other) == 9);

    std::vector<Token> fork = ids;
    ++fork[3 * block + 5];
    const auto entry = store.find("f16", fork);
    REQUIRE(entry);
    CHECK(entry->tokens() == 3 * block);
    CHECK(entry->stored_tokens() == 4 * block);
    ++fork[5];
    CHECK_FALSE(store.find("f16", fork));

    REQUIRE(store.put("f16", first(4 * block), filled(50, 5)));  // in place of the old one
    CHECK(found(store, ids) == 5);
    CHECK(store.figures()->entries == 3);
}

inline void check_schemes_and_models(const Open& open) {
    const std::vector<Token> ids = tokens(block, 1);
    {
        PrefixStore store = open(limit(plenty), "a model");
        store.put("f16", ids, filled(10, 1));
        store.put("svd_head4", ids, filled(10, 2));
        CHECK(found(store, ids, "f16") == 1);
        CHECK(found(store, ids, "svd_head4") == 2);
        CHECK(found(store, ids, "kv4") == -1);
    }
    PrefixStore other = open(limit(plenty), "another model");
    CHECK(found(other, ids) == -1);
    other.put("f16", ids, filled(10, 3));
    CHECK(found(other, ids) == 3);
    CHECK(other.figures()->entries == 3);
}

inline void check_limit(const Open& open) {
    const auto ids = [](std::uint32_t i) { return tokens(block, i); };
    const auto options = limit(4 * 10000);  // room for three: an entry is counted with its ids
    {
        PrefixStore store = open(options, "a model");
        for (unsigned char i = 1; i <= 3; ++i) REQUIRE(store.put("f16", ids(i), filled(10000, i)));
        CHECK(found(store, ids(1)) == 1);  // now 2 is the oldest
        REQUIRE(store.put("f16", ids(4), filled(10000, 4)));
        CHECK(found(store, ids(2)) == -1);
        CHECK(store.figures()->entries == 3);
        CHECK(store.figures()->bytes <= options.limit);
        CHECK(store.figures()->bytes >= 30000);
        CHECK(found(store, ids(3)) == 3);  // 1 is the oldest, and the store closes before it changes again
    }
    PrefixStore store = open(options, "a model");
    REQUIRE(store.put("f16", ids(5), filled(10000, 5)));
    CHECK(found(store, ids(1)) == -1);
    for (const int i : {3, 4, 5}) CHECK(found(store, ids(static_cast<std::uint32_t>(i))) == i);
    // What alone is beyond the limit pushes nothing out.
    CHECK_FALSE(store.put("f16", ids(6), filled(options.limit, 6)));
    CHECK(store.figures()->entries == 3);
}

inline void check_all_sizes(const Open& open) {
    const auto options = limit(3 << 20);
    PrefixStore store = open(options, "a model");
    std::mt19937 random(1);
    for (std::uint32_t i = 0; i < 60; ++i) {
        const std::vector<Token> ids = tokens(block * (1 + random() % 4), i);
        REQUIRE(store.put("f16", ids, filled(1 + random() % (5 << 19), static_cast<unsigned char>(i))));
        CHECK(found(store, ids) == static_cast<int>(i));
        CHECK(store.figures()->bytes <= options.limit);
    }
}

inline void check_held(const Open& open) {
    PrefixStore store = open(limit(300000), "a model");
    const std::vector<Token> ids = tokens(block, 1);
    store.put("f16", ids, filled(100000, 1));
    const auto held = store.find("f16", ids);
    REQUIRE(held);
    for (std::uint32_t i = 2; i < 12; ++i)
        store.put("f16", tokens(block, i), filled(100000, static_cast<unsigned char>(i)));
    CHECK_FALSE(store.find("f16", ids));
    const auto bytes = held->bytes();
    CHECK(bytes.size() == 100000);
    CHECK(std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{1}; }));
}

inline void check_threads(const Open& open) {
    PrefixStore store = open(limit(plenty), "a model");
    const std::vector<Token> ids = tokens(block, 0);
    store.put("f16", ids, filled(1000, 7));
    std::vector<std::thread> readers;
    std::array<bool, 3> right{};
    for (bool& all : right) {
        readers.emplace_back([&] {
            all = true;
            for (int i = 0; i < 200; ++i) {
                const auto entry = store.find("f16", ids);
                all = all && entry && entry->bytes().size() == 1000 && entry->bytes()[999] == std::byte{7};
            }
        });
    }
    for (std::uint32_t i = 1; i < 20; ++i) store.put("f16", tokens(block, i), filled(1000, 1));
    for (std::thread& reader : readers) reader.join();
    CHECK(right == std::array{true, true, true});
}

inline void check_read_only(const Open& open) {
    const std::vector<Token> ids = tokens(block, 1);
    open(limit(plenty), "a model").put("f16", ids, filled(10, 1));
    PrefixStore store = open({.limit = plenty, .read_only = true}, "a model");
    CHECK(found(store, ids) == 1);
    store.remove_damaged(*store.find("f16", ids));
    CHECK(found(store, ids) == 1);
    CHECK(contains(message<Error>([&] { store.put("f16", ids, filled(10, 1)); }), "for reading alone"));
}

inline void check_refused(const Open& open) {
    PrefixStore store = open(limit(plenty), "a model");
    CHECK(contains(message<Error>([&] { store.put("f16", {}, filled(1, 1)); }), "whole blocks"));
    CHECK(contains(message<Error>([&] { store.put("f16", tokens(block + 1, 1), filled(1, 1)); }),
                   "129 tokens are not whole blocks of 128"));
    CHECK(contains(message<Error>([&] { open(limit(0), "a model"); }), "a limit of 0 bytes is not between 1 and"));
    CHECK(contains(message<Error>([&] { open({.ttl = std::chrono::milliseconds(-1)}, "a model"); }),
                   "a TTL of -1 ms is not between 0 and"));
}

/// An answer is the same out of the store, and damage costs only time.
inline void check_answers(const Open& open) {
    for (const char* architecture : {"llama", "gemma3"}) {
        const Gguf gguf = Gguf::parse(to_gguf(tiny_model(architecture)).bytes(), "test.gguf");
        const Tokenizer tokenizer(gguf);
        const Model model(gguf);
        ThreadPool pool(1);
        for (const std::string scheme : {"f16", "svd_head4", "kv8:rest=x4_rot"}) {
            INFO(architecture << ' ' << scheme);
            if (scheme.find("rest") != scheme.npos && architecture == std::string("gemma3")) continue;  // windows
            PrefixStore store = open(limit(plenty), std::string(architecture));
            const std::size_t damaged_before = store.figures()->damaged;
            SchemeOptions options;
            options.tail = 16;
            options.pool = &pool;
            const auto ask = [&](std::span<const Token> prompt, PrefixStore* from) {
                const auto cache = make_cache(scheme, model, options);
                return answer({scheme, prompt, {}, 12}, model, tokenizer, *cache, from, pool, [](auto) {});
            };
            const std::vector<Token> ids = tokens(3 * block + 40, 3);
            const Answer cold = ask(ids, nullptr), first = ask(ids, &store), warm = ask(ids, &store);
            CHECK(cold.tokens.size() == 12);
            CHECK(cold.read == ids.size());
            CHECK(first.reused == 0);
            CHECK(first.saved == 3 * block);
            CHECK(first.tokens == cold.tokens);
            CHECK(warm.reused == 3 * block);
            CHECK(warm.read == 40);
            CHECK(warm.saved == 0);
            CHECK(warm.tokens == cold.tokens);

            // A shorter prompt takes a part of the entry.
            CHECK(ask(std::span(ids).first(2 * block + 10), &store).reused == 2 * block);
            // One block ends with the last token, which must be read.
            CHECK(ask(std::span(ids).first(block), &store).reused == 0);

            // An entry that is no cache, one that has a wrong byte, one that is cut short, and one of another scheme.
            const std::vector<Token> other = tokens(2 * block + 1, 4);
            store.put(scheme, std::span(other).first(2 * block), filled(5000, 1));
            CHECK(ask(other, &store).reused == 0);
            const auto whole = store.find(scheme, std::span(ids).first(3 * block));
            REQUIRE(whole);
            const std::vector<std::byte> good(whole->bytes().begin(), whole->bytes().end());
            std::vector<std::byte> wrong = good;
            wrong[wrong.size() / 2] ^= std::byte{1};
            const std::vector<std::byte> cut(good.begin(), good.end() - 100);
            const auto another = make_cache("kv4", model, options);
            for (std::size_t i = 0; i < 3; ++i) model.forward(std::span(ids).subspan(i * block, block), *another, pool);
            std::ostringstream saved;
            another->save(saved, "");
            const auto foreign = std::as_bytes(std::span(saved.view()));
            for (const std::span<const std::byte> bytes : {std::span<const std::byte>(wrong), {cut}, foreign}) {
                store.put(scheme, std::span(ids).first(3 * block), bytes);
                const Answer damaged = ask(ids, &store);
                CHECK(damaged.tokens == cold.tokens);
                CHECK(damaged.reused == 0);
                CHECK(damaged.saved == 3 * block);
            }
            CHECK(store.figures()->damaged - damaged_before == 4);
            CHECK(ask(ids, &store).reused == 3 * block);
            CHECK(ask(ids, &store).tokens == cold.tokens);
        }
    }
}

inline void check_store(const Open& open) {
    SECTION("the longest prefix in whole blocks is found") { check_longest_prefix(open); }
    SECTION("schemes and models do not mix") { check_schemes_and_models(open); }
    SECTION("what was used longest ago goes when the limit is reached, also after a restart") { check_limit(open); }
    SECTION("entries of all sizes come and go") { check_all_sizes(open); }
    SECTION("what was found stays while it is held, whatever happens to its entry") { check_held(open); }
    SECTION("threads find entries while one puts") { check_threads(open); }
    SECTION("a store that only reads changes nothing") { check_read_only(open); }
    SECTION("calls that make no sense are refused") { check_refused(open); }
    SECTION("an answer is the same out of the store, and damage costs only time") { check_answers(open); }
}

}  // namespace llm::test
