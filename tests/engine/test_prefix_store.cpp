/// The store of prefixes in a folder: what every store promises, and what is a folder's own.
#include "prefix_store_contract.hpp"

#include <chrono>
#include <memory>
#include <sstream>
#include <string>

#include "folder.hpp"
#include "lmdb_store.hpp"

using namespace llm;
using namespace llm::test;
using ::test::Folder;

namespace {

using Ms = std::chrono::milliseconds;

/// Nothing is ever out of reach in a folder.
PrefixStore in(const std::string& folder, const StoreOptions& options, const std::string& model = "a model") {
    return PrefixStore(open_lmdb(folder, options), model, [](const std::string& why) { FAIL(why); });
}

}  // namespace

TEST_CASE("a store in a folder", "[store]") {
    const Folder folder;
    check_store(
        [&](const StoreOptions& options, const std::string& model) { return in(folder / "store", options, model); });
}

TEST_CASE("a smaller limit holds from the start", "[store]") {
    const Folder folder;
    const auto ids = [](std::uint32_t i) { return tokens(block, i); };
    {
        PrefixStore store = in(folder / "store", limit(40000));
        for (unsigned char i = 1; i <= 3; ++i) REQUIRE(store.put("f16", ids(i), filled(10000, i)));
    }
    PrefixStore store = in(folder / "store", limit(15000));
    CHECK(store.figures()->entries == 1);
    CHECK(found(store, ids(3)) == 3);
}

TEST_CASE("an entry in a folder is found until its TTL is over", "[store]") {
    const Folder folder;
    Ms now(1'000'000);
    const std::vector<Token> ids = tokens(block, 1), other = tokens(block, 2), last = tokens(block, 3);
    const auto open = [&](Ms ttl) {
        return PrefixStore(open_lmdb(folder / "store", {.limit = plenty, .ttl = ttl}, [&] { return now; }), "a model");
    };
    {
        PrefixStore store = open(Ms(1000));
        store.put("f16", ids, filled(100, 1));
        now += Ms(999);
        CHECK(found(store, ids) == 1);
        store.put("f16", other, filled(100, 2));
        now += Ms(1);
        CHECK(found(store, ids) == -1);  // that it was used does not keep it
        CHECK(found(store, other) == 2);
        CHECK(store.figures()->entries == 2);
        store.put("f16", last, filled(100, 3));  // puts away what is gone
        CHECK(store.figures()->entries == 2);
        CHECK(store.figures()->damaged == 0);
    }
    now += Ms(998);
    CHECK(open(Ms(0)).figures()->entries == 2);
    now += Ms(1);
    PrefixStore store = open(Ms(0));
    CHECK(store.figures()->entries == 1);  // so does opening the folder
    store.put("f16", last, filled(100, 4));
    now += std::chrono::hours(24 * 365);
    CHECK(found(store, last) == 4);
}

TEST_CASE("folders that are none are refused", "[store]") {
    const Folder folder;
    ::test::write_bytes(folder / "file", "");
    CHECK(contains(message<Error>([&] { in(folder / "file", limit(1)); }), folder / "file"));
    CHECK(contains(message<Error>([&] { in(folder / "none", {.limit = plenty, .read_only = true}); }),
                   "cannot be opened"));
}

TEST_CASE("an entry whose rows a window has freed is no help to a shorter prompt, and no damage", "[store]") {
    const Gguf gguf = Gguf::parse(to_gguf(tiny_model("gemma3")).bytes(), "test.gguf");
    const Model model(gguf);
    ThreadPool pool(1);
    const Folder folder;
    PrefixStore store(open_lmdb(folder / "store", limit(plenty)), "a model");
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
    CHECK(store.figures()->damaged == 0);
}
