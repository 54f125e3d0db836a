/// The store of prefixes on a Redis server: what every store promises, two programs that share one, damage, servers
/// that are dead, slow or full, and that nothing stays for ever.
#include "prefix_store_contract.hpp"

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "redis_server.hpp"
#include "redis_store.hpp"

using namespace llm;
using namespace llm::test;
using ::test::Folder;

namespace {

using Ms = std::chrono::milliseconds;

PrefixStore on(const RedisServer& server, std::vector<std::string>& said, StoreOptions options = limit(plenty),
               const std::string& model = "a model") {
    return PrefixStore(open_redis(server, options, Ms(0)), model, [&](const std::string& why) { said.push_back(why); });
}

/// For servers that are there.
PrefixStore on(const TestRedis& server, StoreOptions options = limit(plenty), const std::string& model = "a model") {
    return PrefixStore(open_redis(server.address(), options), model, [](const std::string& why) { FAIL(why); });
}

const std::string prefix = "xquant-prefixes:1:";

/// A server that talks to one caller after the other, in a way of its own, until it goes.
template <class Talk>
class FakeServer {
public:
    explicit FakeServer(Talk talk)
        : thread_([this, talk] {
              for (;;) {
                  const int caller = listener_.accept();
                  if (!ends_) talk(caller);
                  ::close(caller);
                  if (ends_) return;
              }
          }) {}
    ~FakeServer() {
        ends_ = true;
        try {
            const RedisConnection last({"127.0.0.1", listener_.port(), Ms(10000)});  // accept() returns
        } catch (const StoreUnavailable&) {
            std::abort();
        }
        thread_.join();
    }
    int port() const { return listener_.port(); }

private:
    Listener listener_;
    std::atomic<bool> ends_ = false;
    std::thread thread_;
};

std::string last_line_with(const std::string& text, const std::string& start) {
    const std::size_t at = text.rfind(start);
    return at == std::string::npos ? "" : text.substr(at, text.find('\n', at) - at);
}

}  // namespace

TEST_CASE("a store on a Redis server", "[redis]") {
    if (!has_redis()) return;
    const TestRedis server;
    check_store([&](const StoreOptions& options, const std::string& model) { return on(server, options, model); });
}

TEST_CASE("two programs share a prompt, and a killed server costs the saving alone", "[redis]") {
    if (!has_redis()) return;
    TestRedis server;
    const Folder folder;
    const Bytes model = to_gguf(tiny_model()).bytes();
    ::test::write_bytes(folder / "model.gguf", {reinterpret_cast<const char*>(model.data()), model.size()});
    std::string text;
    for (int i = 0; i < 60; ++i) text += "word " + std::to_string(i) + ' ';
    ::test::write_bytes(folder / "text", text);
    const auto run = [&](const std::string& output) {
        const RedisServer at = server.address();
        const pid_t process = start({XQUANT_PREFIX_STORE_PROGRAM, "--model", folder / "model.gguf", "--text",
                                     folder / "text", "--scheme", "f16", "--tokens", "8", "--threads", "1", "--redis",
                                     at.host + ":" + std::to_string(at.port), "--timeout", "20000"},
                                    folder / output);
        REQUIRE(process > 0);
        int status = 1;
        ::waitpid(process, &status, 0);
        const std::string said = ::test::bytes_of(folder / output);
        INFO(said);
        CHECK(status == 0);
        return said;
    };
    const auto answer_of = [](const std::string& said) { return said.substr(0, said.find("first token")); };
    const std::string first = run("first"), second = run("second");
    CHECK(contains(last_line_with(first, "first token"), "tokens 0 came out of the store"));
    CHECK(contains(last_line_with(first, "put "), "384 tokens"));
    CHECK(contains(last_line_with(second, "first token"), "tokens 384 came out of the store"));
    CHECK(contains(last_line_with(second, "store "), "1 entries"));
    CHECK(answer_of(second) == answer_of(first));
    CHECK_FALSE(contains(second, "going on without it"));
    server.kill();
    const std::string third = run("third");
    CHECK(contains(third, "Connection refused; going on without it"));
    CHECK(third.find("going on without it") == third.rfind("going on without it"));
    CHECK(contains(last_line_with(third, "first token"), "tokens 0 came out of the store"));
    CHECK(contains(last_line_with(third, "store "), "out of reach"));
    CHECK(contains(third, answer_of(first)));
}

TEST_CASE("what no store has written is refused and removed", "[redis]") {
    if (!has_redis()) return;
    const TestRedis server;
    PrefixStore store = on(server);
    const std::vector<Token> ids = tokens(2 * block, 1);
    const std::vector<std::byte> body = filled((1 << 20) + 1000, 1);  // two pieces
    REQUIRE(store.put("f16", ids, body));
    REQUIRE(found(store, ids) == 1);
    const std::string entry = server.keys(prefix + "e:*").at(0), number = entry.substr(entry.rfind(':') + 1),
                      piece = prefix + "p:" + number + ":1", index = server.keys(prefix + "k:*").at(0);

    std::size_t damaged = 1;
    SECTION("garbage for a head") { server.ask({"HSET", entry, "head", "garbage"}); }
    SECTION("no head") { server.ask({"HDEL", entry, "head"}); }
    SECTION("a size that is no number") { server.ask({"HSET", entry, "bytes", "many"}); }
    SECTION("a size that is another one") { server.ask({"HSET", entry, "bytes", "1048577"}); }
    SECTION("a piece cut short") { server.ask({"SET", piece, "short"}); }
    SECTION("a piece that is no string") {
        server.ask({"UNLINK", piece});
        server.ask({"RPUSH", piece, "a"});
    }
    SECTION("something else for an entry") { server.ask({"SET", entry, "garbage"}); }
    const auto put_foreign_head = [&](const std::string& scheme, const std::string& model) {
        on(server, limit(plenty), model).put(scheme, ids, body);
        const std::string foreign = prefix + "e:" + std::to_string(std::stoul(number) + 1);
        server.ask({"HSET", entry, "head", std::string(server.ask({"HGET", foreign, "head"}).text().value())});
    };
    SECTION("another model's head") { put_foreign_head("f16", "another model"); }
    SECTION("another scheme's head") { put_foreign_head("kv4", "a model"); }
    SECTION("a piece that Redis has evicted") {
        server.ask({"UNLINK", piece});
        damaged = 0;
    }
    SECTION("an entry that is gone, and its names are left") {
        server.ask({"UNLINK", entry});
        damaged = 0;
    }
    SECTION("a name for an entry that never was") {
        server.ask({"UNLINK", entry});
        server.ask({"ZADD", index, "1", "no number"});
        damaged = 0;  // it has no entry that could count
    }
    SECTION("names that are no set") {
        for (const std::string& key : server.keys(prefix + "k:*")) {
            server.ask({"UNLINK", key});
            server.ask({"SET", key, "garbage"});
        }
        damaged = 0;
    }
    CHECK(found(store, ids) == -1);
    CHECK(found(store, std::span(ids).first(block)) == -1);
    CHECK(store.figures()->damaged == damaged);
    if (damaged == 1) {
        CHECK(server.ask({"EXISTS", entry}).number() == 0);
        CHECK(server.keys(prefix + "p:" + number + ":*").empty());
    }
    REQUIRE(store.put("f16", ids, body));
    CHECK(found(store, ids) == 1);
}

TEST_CASE("a server that is dead, slow or full costs the saving alone, and is named once", "[redis]") {
    if (!has_redis()) return;
    TestRedis server;
    const std::vector<Token> ids = tokens(block, 1);
    std::vector<std::string> said;
    SECTION("dead, and alive again") {
        PrefixStore store = on(server.address(), said);
        REQUIRE(store.put("f16", ids, filled(10, 1)));
        server.kill();
        CHECK(found(store, ids) == -1);
        CHECK_FALSE(store.put("f16", ids, filled(10, 1)));
        CHECK_FALSE(store.figures());
        REQUIRE(said.size() == 1);
        CHECK(contains(said[0], "the Redis server 127.0.0.1:" + std::to_string(server.address().port)));
        REQUIRE(server.start_again());
        CHECK(found(store, ids) == -1);  // it kept nothing
        CHECK(store.put("f16", ids, filled(10, 2)));
        CHECK(found(store, ids) == 2);
        CHECK(said.size() == 1);
    }
    SECTION("dead, and not asked again at once") {
        PrefixStore store(open_redis(server.address(), limit(plenty), std::chrono::hours(1)), "a model",
                          [&](const std::string& why) { said.push_back(why); });
        server.kill();
        CHECK(found(store, ids) == -1);
        REQUIRE(server.start_again());
        CHECK_FALSE(store.put("f16", ids, filled(10, 1)));
        CHECK(server.keys("*").empty());
    }
    SECTION("it does not answer") {
        PrefixStore store = on(server.address(Ms(50)), said);
        server.stop();
        CHECK(found(store, ids) == -1);
        CHECK_FALSE(store.put("f16", ids, filled(10, 1)));
        server.go_on();
        REQUIRE(said.size() == 1);
        CHECK(contains(said[0], "no answer within 50 ms"));
    }
    SECTION("full") {
        PrefixStore store = on(server.address(), said);
        server.ask({"CONFIG", "SET", "maxmemory", "1"});
        CHECK_FALSE(store.put("f16", ids, filled(10, 1)));
        REQUIRE(said.size() == 1);
        CHECK(contains(said[0], "OOM"));
        server.ask({"CONFIG", "SET", "maxmemory", "0"});
        CHECK(store.put("f16", ids, filled(10, 1)));
    }
}

TEST_CASE("servers that are none cost the saving alone", "[redis]") {
    std::vector<std::string> said;
    const std::vector<Token> ids = tokens(block, 1);
    const auto write = [](int caller, std::string_view text) {
        return ::send(caller, text.data(), text.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(text.size());
    };
    const auto ask = [&](int port, Ms timeout = std::chrono::seconds(20)) {
        PrefixStore store = on(RedisServer{"127.0.0.1", port, timeout}, said);
        CHECK(found(store, ids) == -1);
        CHECK_FALSE(store.put("f16", ids, filled(5 << 20, 1)));  // more than a socket takes at once
        REQUIRE(said.size() == 1);
    };
    SECTION("the answer breaks off") {
        const FakeServer server([&](int caller) { write(caller, "$100\r\nabc"); });
        ask(server.port());
    }
    SECTION("another protocol") {
        const FakeServer server([&](int caller) { write(caller, "HTTP/1.1 400 Bad Request\r\n\r\n"); });
        ask(server.port());
        CHECK(contains(said[0], "Protocol error"));
    }
    SECTION("it refuses everything") {
        const FakeServer server([&](int caller) {
            write(caller, "-LOADING Redis is loading the dataset in memory\r\n");
            char byte = 0;
            while (::recv(caller, &byte, 1, 0) > 0) {
            }
        });
        ask(server.port());
        CHECK(contains(said[0], "LOADING"));
    }
    SECTION("a byte now and then, without an end") {
        const FakeServer server([&](int caller) {
            bool goes = write(caller, "$1000000\r\n");
            for (int i = 0; goes && i < 2000; ++i) {
                std::this_thread::sleep_for(Ms(5));
                goes = write(caller, "x");
            }
            const std::string rest(998'000, 'x');
            if (goes && write(caller, rest)) write(caller, "\r\n");
        });
        ask(server.port(), Ms(200));
        CHECK(contains(said[0], "no answer within 200 ms"));
    }
}

TEST_CASE("what lies on a server goes when its TTL is over", "[redis]") {
    if (!has_redis()) return;
    const TestRedis server;
    const std::vector<Token> ids = tokens(3 * block, 1);
    {
        PrefixStore store = on(server, {.limit = plenty, .ttl = std::chrono::hours(1)});
        REQUIRE(store.put("f16", ids, filled(2 << 20, 1)));
        for (const char* kind : {"e:*", "p:*", "k:*"}) {
            const auto keys = server.keys(prefix + kind);
            CHECK(keys.size() == (kind[0] == 'e' ? 1 : kind[0] == 'p' ? 2 : 3));
            for (const std::string& key : keys) {
                const std::int64_t left = server.ask({"PTTL", key}).number().value();
                CHECK((left > 60'000 && left <= 3'600'000));
            }
        }
    }
    PrefixStore store = on(server, {.limit = plenty, .ttl = Ms(1)});
    REQUIRE(store.put("f16", std::span(ids).first(block), filled(10, 2)));
    for (int i = 0; i < 5000 && found(store, std::span(ids).first(block)) == 2; ++i) std::this_thread::sleep_for(Ms(1));
    CHECK(found(store, std::span(ids).first(block)) == 1);  // the longer entry, which has an hour
    CHECK(store.figures()->entries == 1);
    CHECK(store.figures()->damaged == 0);

    PrefixStore for_ever = on(server);
    REQUIRE(for_ever.put("f16", ids, filled(10, 3)));
    for (const char* kind : {"e:*", "p:*", "k:*"}) {
        for (const std::string& key : server.keys(prefix + kind)) CHECK(server.ask({"PTTL", key}).number() == -1);
    }
}

TEST_CASE("pieces that no program made an entry of go by themselves", "[redis]") {
    if (!has_redis()) return;
    const TestRedis server({"--rename-command", "EVAL", ""});
    std::vector<std::string> said;
    PrefixStore store = on(server.address(), said);
    CHECK_FALSE(store.put("f16", tokens(block, 1), filled(2 << 20, 1)));
    REQUIRE(said.size() == 1);
    CHECK(contains(said[0], "EVAL"));
    const auto pieces = server.keys(prefix + "p:*");
    CHECK(pieces.size() == 2);
    for (const std::string& piece : pieces) {
        const std::int64_t left = server.ask({"PTTL", piece}).number().value();
        CHECK((left > 0 && left <= 60'000));
    }
    CHECK(found(store, tokens(block, 1)) == -1);
}

TEST_CASE("addresses that are none are refused", "[redis]") {
    CHECK(contains(message<Error>([] { open_redis({"", 6379, Ms(1)}, {}); }), "'', port 6379, is no address"));
    CHECK(contains(message<Error>([] { open_redis({"a", 65536, Ms(1)}, {}); }), "port 65536, is no address"));
    CHECK(contains(message<Error>([] { open_redis({"a", 1, Ms(0)}, {}); }), "0 ms is not between 1 and 60000"));
    CHECK(contains(message<Error>([] { open_redis({"a", 1, Ms(1)}, limit(0)); }), "a limit of 0 bytes"));
}
