/// The store of prefixes: what is found and what goes first, restarts, damage; and that an answer does not depend on
/// it.
#include "prefix_store.hpp"

#include <algorithm>
#include <array>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "answer.hpp"
#include "catch.hpp"
#include "error.hpp"
#include "folder.hpp"
#include "gguf.hpp"
#include "schemes.hpp"
#include "tiny_model.hpp"

using namespace llm;
using namespace llm::test;
using ::test::Folder;

namespace {

constexpr std::size_t block = PrefixStore::block;

std::vector<Token> tokens(std::size_t n, std::uint32_t seed) {
    std::mt19937 random(seed);
    std::vector<Token> ids(n);
    for (Token& id : ids) id = static_cast<Token>(random() % 259);
    return ids;
}

std::vector<std::byte> filled(std::size_t n, unsigned char value) {
    return std::vector<std::byte>(n, static_cast<std::byte>(value));
}

/// The value of the entry that is found, -1 if there is none.
int found(const PrefixStore& store, std::span<const Token> ids, const std::string& scheme = "f16") {
    const auto entry = store.find(scheme, ids);
    if (!entry) return -1;
    const auto bytes = entry->bytes();
    REQUIRE(std::all_of(bytes.begin(), bytes.end(), [&](std::byte b) { return b == bytes[0]; }));
    return std::to_integer<int>(bytes[0]);
}

PrefixStoreOptions limit(std::size_t bytes, const std::string& model = "a model") { return {bytes, model, false}; }

constexpr std::size_t plenty = 1 << 22;

}  // namespace

TEST_CASE("the longest prefix in whole blocks is found", "[store]") {
    const Folder folder;
    PrefixStore store(folder / "store", limit(plenty));
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
    CHECK(store.figures().entries == 3);
}

TEST_CASE("schemes and models do not mix", "[store]") {
    const Folder folder;
    const std::vector<Token> ids = tokens(block, 1);
    {
        PrefixStore store(folder / "store", limit(plenty));
        store.put("f16", ids, filled(10, 1));
        store.put("svd_head4", ids, filled(10, 2));
        CHECK(found(store, ids, "f16") == 1);
        CHECK(found(store, ids, "svd_head4") == 2);
        CHECK(found(store, ids, "kv4") == -1);
    }
    PrefixStore other(folder / "store", limit(plenty, "another model"));
    CHECK(found(other, ids) == -1);
    other.put("f16", ids, filled(10, 3));
    CHECK(found(other, ids) == 3);
    CHECK(other.figures().entries == 3);
}

TEST_CASE("what was used longest ago goes when the limit is reached, also after a restart", "[store]") {
    const Folder folder;
    const auto ids = [](std::uint32_t i) { return tokens(block, i); };
    const auto options = limit(4 * 10000);  // room for three: an entry is counted with its ids
    {
        PrefixStore store(folder / "store", options);
        for (unsigned char i = 1; i <= 3; ++i) REQUIRE(store.put("f16", ids(i), filled(10000, i)));
        CHECK(found(store, ids(1)) == 1);  // now 2 is the oldest
        REQUIRE(store.put("f16", ids(4), filled(10000, 4)));
        CHECK(found(store, ids(2)) == -1);
        CHECK(store.figures().entries == 3);
        CHECK(store.figures().bytes <= options.limit);
        CHECK(found(store, ids(3)) == 3);  // 1 is the oldest, and the store closes before it changes again
    }
    {
        PrefixStore store(folder / "store", options);
        REQUIRE(store.put("f16", ids(5), filled(10000, 5)));
        CHECK(found(store, ids(1)) == -1);
        for (const int i : {3, 4, 5}) CHECK(found(store, ids(static_cast<std::uint32_t>(i))) == i);
        // What alone is beyond the limit pushes nothing out.
        CHECK_FALSE(store.put("f16", ids(6), filled(options.limit, 6)));
        CHECK(store.figures().entries == 3);
    }
    PrefixStore store(folder / "store", limit(15000));  // a smaller limit holds from the start
    CHECK(store.figures().entries == 1);
    CHECK(found(store, ids(5)) == 5);
}

TEST_CASE("entries of all sizes come and go", "[store]") {
    const Folder folder;
    const auto options = limit(1 << 20);
    PrefixStore store(folder / "store", options);
    std::mt19937 random(1);
    for (std::uint32_t i = 0; i < 60; ++i) {
        const std::vector<Token> ids = tokens(block * (1 + random() % 4), i);
        REQUIRE(store.put("f16", ids, filled(1 + random() % (1 << 19), static_cast<unsigned char>(i))));
        CHECK(found(store, ids) == static_cast<int>(i));
        CHECK(store.figures().bytes <= options.limit);
    }
}

TEST_CASE("what was found stays while it is held, whatever happens to its entry", "[store]") {
    const Folder folder;
    PrefixStore store(folder / "store", limit(300000));
    const std::vector<Token> ids = tokens(block, 1);
    store.put("f16", ids, filled(100000, 1));
    const auto held = store.find("f16", ids);
    REQUIRE(held);
    for (std::uint32_t i = 2; i < 12; ++i)
        store.put("f16", tokens(block, i), filled(100000, static_cast<unsigned char>(i)));
    CHECK_FALSE(store.find("f16", ids));
    const auto bytes = held->bytes();
    CHECK(std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{1}; }));
}

TEST_CASE("threads find entries while one puts", "[store]") {
    const Folder folder;
    PrefixStore store(folder / "store", limit(plenty));
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

TEST_CASE("a store that only reads changes nothing", "[store]") {
    const Folder folder;
    const std::vector<Token> ids = tokens(block, 1);
    { PrefixStore(folder / "store", limit(plenty)).put("f16", ids, filled(10, 1)); }
    PrefixStore store(folder / "store", {plenty, "a model", true});
    CHECK(found(store, ids) == 1);
    store.remove_damaged(*store.find("f16", ids));
    CHECK(found(store, ids) == 1);
    CHECK(contains(message<Error>([&] { store.put("f16", ids, filled(10, 1)); }), "for reading alone"));
}

TEST_CASE("calls that make no sense are refused", "[store]") {
    const Folder folder;
    PrefixStore store(folder / "store", limit(plenty));
    CHECK(contains(message<Error>([&] { store.put("f16", {}, filled(1, 1)); }), "whole blocks"));
    CHECK(contains(message<Error>([&] { store.put("f16", tokens(block + 1, 1), filled(1, 1)); }),
                   "129 tokens are not whole blocks of 128"));
    CHECK(contains(message<Error>([&] { PrefixStore(folder / "other", limit(0)); }), "limit"));
    ::test::write_bytes(folder / "file", "");
    CHECK(contains(message<Error>([&] { PrefixStore(folder / "file", limit(1)); }), folder / "file"));
    CHECK(contains(message<Error>([&] {
                       PrefixStore(folder / "none", {plenty, "a model", true});
                   }),
                   "cannot be opened"));
}

TEST_CASE("an answer is the same out of the store, and damage costs only time", "[store]") {
    for (const char* architecture : {"llama", "gemma3"}) {
        const Gguf gguf = Gguf::parse(to_gguf(tiny_model(architecture)).bytes(), "test.gguf");
        const Tokenizer tokenizer(gguf);
        const Model model(gguf);
        ThreadPool pool(1);
        for (const char* scheme : {"f16", "svd_head4"}) {
            INFO(architecture << ' ' << scheme);
            const Folder folder;
            PrefixStore store(folder / "store", limit(plenty));
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

            // An entry that is no cache, and one that has a wrong byte.
            const std::vector<Token> other = tokens(2 * block + 1, 4);
            store.put(scheme, std::span(other).first(2 * block), filled(5000, 1));
            const auto whole = store.find(scheme, std::span(ids).first(3 * block));
            REQUIRE(whole);
            std::vector<std::byte> bytes(whole->bytes().begin(), whole->bytes().end());
            bytes[bytes.size() / 2] ^= std::byte{1};
            store.put(scheme, std::span(ids).first(3 * block), bytes);
            const Answer damaged = ask(ids, &store);
            CHECK(damaged.tokens == cold.tokens);
            CHECK(damaged.saved == 3 * block);
            CHECK(ask(other, &store).reused == 0);
            CHECK(store.figures().damaged == 2);
            CHECK(ask(ids, &store).reused == 3 * block);
            CHECK(ask(ids, &store).tokens == cold.tokens);
        }
    }
}

TEST_CASE("an entry whose rows a window has freed is no help to a shorter prompt, and no damage", "[store]") {
    const Gguf gguf = Gguf::parse(to_gguf(tiny_model("gemma3")).bytes(), "test.gguf");
    const Model model(gguf);
    ThreadPool pool(1);
    const Folder folder;
    PrefixStore store(folder / "store", limit(plenty));
    SchemeOptions options;
    options.tail = 16;
    options.pool = &pool;
    const auto cache = make_cache("f16", model, options);
    const std::vector<Token> ids = tokens(3 * block, 3);
    for (std::size_t i = 0; i < 3; ++i) model.forward(std::span(ids).subspan(i * block, block), *cache, pool);
    std::ostringstream bytes;
    cache->save(bytes, "");
    store.put("f16", ids, std::as_bytes(std::span(bytes.view())));
    CHECK(load_prefix(store, "f16", std::span(ids).first(block), *cache) == 0);
    CHECK(cache->size() == 0);
    CHECK(load_prefix(store, "f16", ids, *cache) == 3 * block);
    CHECK(cache->size() == 3 * block);
    CHECK(store.figures().damaged == 0);
}
