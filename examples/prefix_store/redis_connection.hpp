/// A connection to a Redis server that never keeps its caller waiting for long.
///
/// hiredis' own timeouts hold for one call of the system each, so that a server which sends a byte now and then has no
/// end. Here a deadline holds for a whole reply, and for the connection; a name of a host is looked up before it begins
/// (give an address where that may take long). A connection that failed once is closed.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

struct redisContext;
struct redisReply;

namespace llm {

struct RedisServer {
    std::string host;
    int port = 6379;
    std::chrono::milliseconds timeout{100};  // for the connection, and for each reply
};

class RedisReply {
public:
    explicit RedisReply(redisReply* reply);

    /// An array's elements; none for what is no array.
    std::size_t size() const;
    RedisReply operator[](std::size_t i) const;

    std::optional<std::string_view> text() const;       // nothing for what is no string
    std::optional<std::int64_t> number() const;         // nothing for what is no integer
    std::optional<std::string_view> complaint() const;  // what the server says of a command that it refused

private:
    RedisReply(std::shared_ptr<redisReply> owner, const redisReply* at) : owner_(std::move(owner)), at_(at) {}

    std::shared_ptr<redisReply> owner_;
    const redisReply* at_;
};

class RedisConnection {
public:
    /// Throws StoreUnavailable.
    explicit RedisConnection(RedisServer server);

    /// Hands a command over; it goes out while replies are awaited.
    void send(const std::vector<std::string_view>& words);

    /// The reply to the first command that has none yet, in which commands of a script may have been refused. Throws
    /// StoreUnavailable where it is not there in time.
    RedisReply receive();

    /// As receive(); a refused command is StoreUnavailable, too.
    RedisReply receive_accepted();

private:
    using Clock = std::chrono::steady_clock;
    /// Returns the events that are there, 0 at the deadline.
    int wait(int events, Clock::time_point deadline) const;
    [[noreturn]] void fail(const std::string& why) const;

    RedisServer server_;
    std::unique_ptr<redisContext, void (*)(redisContext*)> context_;
};

}  // namespace llm
