#include "redis_store.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <mutex>
#include <string>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

namespace llm {
namespace {

constexpr std::size_t piece_bytes = std::size_t{1} << 20U;
constexpr std::size_t pieces_ahead = 8;        // commands that are out before their replies are awaited
constexpr std::size_t candidates_at_once = 4;  // two prompts with one hash of 128 bits are no case to be fast in

const std::string prefix = "xquant-prefixes:1:";

/// Of Lua: what all scripts share.
const std::string shared_script = R"(
local P = 'xquant-prefixes:1:'
local PIECE = 1048576
local function now()
  local t = redis.call('TIME')
  return t[1] * 1000000 + t[2]
end
local function pieces_of(bytes)
  return math.floor((bytes + PIECE - 1) / PIECE)
end
local function remove(n)
  local e = redis.pcall('HMGET', P .. 'e:' .. n, 'keys')
  local keys = not e.err and e[1] or ''
  for i = 1, #keys - 31, 32 do redis.pcall('ZREM', P .. 'k:' .. string.sub(keys, i, i + 31), n) end
  local size = tonumber(redis.call('HGET', P .. 'sizes', n) or '')
  if size then
    for i = 0, pieces_of(size) - 1 do redis.call('UNLINK', P .. 'p:' .. n .. ':' .. i) end
    redis.call('INCRBY', P .. 'bytes', string.format('%.0f', -size))
  end
  redis.call('HDEL', P .. 'sizes', n)
  redis.call('ZREM', P .. 'used', n)
  redis.call('ZREM', P .. 'until', n)
  redis.call('UNLINK', P .. 'e:' .. n)
  return size ~= nil
end
local function remove_gone()
  for _, n in ipairs(redis.call('ZRANGEBYSCORE', P .. 'until', '-inf', string.format('%.0f', now()))) do remove(n) end
end
)";

/// number, keys (hex), head, bytes of the body, bytes of all, limit, TTL in ms or 0 -> 1, or 0 where a piece is gone
const std::string publish_script = shared_script + R"(
local n, keys, head, body, size, limit, ttl = unpack(ARGV)
ttl = tonumber(ttl)
remove_gone()
local order = #keys / 32
local last = P .. 'k:' .. string.sub(keys, -32)
for _, other in ipairs(redis.call('ZRANGEBYSCORE', last, order, order)) do
  local e = redis.pcall('HMGET', P .. 'e:' .. other, 'head')
  if not e.err and e[1] == head then remove(other) end
end
while tonumber(redis.call('GET', P .. 'bytes') or '0') + size > tonumber(limit) do
  local oldest = redis.call('ZRANGE', P .. 'used', 0, 0)
  if #oldest == 0 then break end
  remove(oldest[1])
end
for i = 0, pieces_of(body) - 1 do
  local piece = P .. 'p:' .. n .. ':' .. i
  local kept
  if ttl > 0 then kept = redis.call('PEXPIRE', piece, ttl) else kept = redis.call('PERSIST', piece) end
  if kept == 0 then return 0 end
end
local e = P .. 'e:' .. n
redis.call('HSET', e, 'head', head, 'keys', keys, 'bytes', body)
if ttl > 0 then
  redis.call('PEXPIRE', e, ttl)
  redis.call('ZADD', P .. 'until', string.format('%.0f', now() + ttl * 1000), n)
end
for i = 1, #keys - 31, 32 do
  local k = P .. 'k:' .. string.sub(keys, i, i + 31)
  local left = redis.call('PTTL', k)
  redis.call('ZADD', k, order, n)
  if ttl == 0 then redis.call('PERSIST', k) elseif left ~= -1 and left < ttl then redis.call('PEXPIRE', k, ttl) end
end
redis.call('ZADD', P .. 'used', string.format('%.0f', now()), n)
redis.call('HSET', P .. 'sizes', n, size)
redis.call('INCRBY', P .. 'bytes', size)
return 1
)";

/// number: the entry was used now
const std::string use_script = shared_script + R"(
redis.call('ZADD', P .. 'used', 'XX', string.format('%.0f', now()), ARGV[1])
return 1
)";

/// number, 1 where the entry counts as damaged
const std::string remove_script = shared_script + R"(
if remove(ARGV[1]) and ARGV[2] == '1' then redis.call('INCR', P .. 'damaged') end
return 1
)";

/// -> entries, bytes, damaged
const std::string figures_script = shared_script + R"(
remove_gone()
return {redis.call('HLEN', P .. 'sizes'), tonumber(redis.call('GET', P .. 'bytes') or '0'),
        tonumber(redis.call('GET', P .. 'damaged') or '0')}
)";
const std::string figures_script_read_only = shared_script + R"(
return {redis.call('HLEN', P .. 'sizes'), tonumber(redis.call('GET', P .. 'bytes') or '0'),
        tonumber(redis.call('GET', P .. 'damaged') or '0')}
)";

std::string hex(std::span<const StoreKey> keys) {
    std::string text;
    for (const StoreKey& key : keys) {
        for (const unsigned char byte : key) fmt::format_to(std::back_inserter(text), "{:02x}", byte);
    }
    return text;
}

std::optional<std::uint64_t> parse_number(std::string_view text) {
    std::uint64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
    return value;
}

std::size_t pieces_of(std::size_t bytes) { return (bytes + piece_bytes - 1) / piece_bytes; }
std::string piece_name(std::uint64_t number, std::size_t i) { return fmt::format("{}p:{}:{}", prefix, number, i); }

class RedisStore final : public Store {
public:
    RedisStore(RedisServer server, const StoreOptions& options, std::chrono::milliseconds retry)
        : server_(std::move(server)), options_(options), retry_(retry) {}

    std::optional<Found> find(std::span<const StoreKey> keys, const Judge& judge) override {
        return with_server([&](RedisConnection& server) -> std::optional<Found> {
            for (std::size_t i = last_known(server, keys); i-- > 0;) {
                if (auto found = find_by(server, keys[i], i, judge)) return found;
            }
            return std::nullopt;
        });
    }

    bool put(std::span<const StoreKey> keys, std::string_view head, std::span<const std::byte> body) override {
        if (options_.read_only) throw Error("prefix store: it was opened for reading alone");
        const std::string names = hex(keys);
        const std::size_t size = head.size() + names.size() + body.size();
        if (size > options_.limit) return false;
        return with_server([&](RedisConnection& server) {
            const std::string last = prefix + "last";
            server.send({"INCR", last});
            const std::optional<std::int64_t> number = server.receive_accepted().number();
            if (!number) throw StoreUnavailable("the Redis server counts in a way that no store does");
            const auto n = static_cast<std::uint64_t>(*number);
            for_each_piece(
                body.size(),
                [&](std::size_t i) {
                    const auto piece =
                        body.subspan(i * piece_bytes, std::min(piece_bytes, body.size() - i * piece_bytes));
                    const std::string_view bytes(reinterpret_cast<const char*>(piece.data()), piece.size());
                    server.send({"SET", piece_name(n, i), bytes, "PX", "60000"});
                },
                [&](std::size_t) { server.receive_accepted(); });
            const std::string words[] = {std::to_string(n), std::to_string(body.size()), std::to_string(size),
                                         std::to_string(options_.limit), std::to_string(options_.ttl.count())};
            server.send({"EVAL", publish_script, "0", words[0], names, head, words[1], words[2], words[3], words[4]});
            if (server.receive_accepted().number() != 1)
                throw StoreUnavailable("the Redis server dropped an entry while it was written");
            return true;
        });
    }

    void remove_damaged(std::uint64_t number) override {
        if (options_.read_only) return;
        with_server([&](RedisConnection& server) {
            remove(server, std::to_string(number), true);
            return true;
        });
    }

    StoreFigures figures() override {
        return with_server([&](RedisConnection& server) {
            server.send({"EVAL", options_.read_only ? figures_script_read_only : figures_script, "0"});
            const RedisReply reply = server.receive_accepted();
            const auto at = [&](std::size_t i) {
                return static_cast<std::size_t>(i < reply.size() ? reply[i].number().value_or(0) : 0);
            };
            return StoreFigures{at(0), at(1), at(2)};
        });
    }

private:
    using Clock = std::chrono::steady_clock;

    /// f(connection). After a failure the next calls fail at once, until it is time to try again.
    template <class F>
    std::invoke_result_t<F&, RedisConnection&> with_server(F f) {
        const std::lock_guard lock(mutex_);
        try {
            if (!connection_) {
                if (failed_ && Clock::now() < *failed_ + retry_) throw StoreUnavailable(why_);
                connection_ = std::make_unique<RedisConnection>(server_);
            }
            return f(*connection_);
        } catch (const StoreUnavailable& error) {
            if (connection_ || !failed_ || Clock::now() >= *failed_ + retry_) failed_ = Clock::now();
            why_ = error.what();
            connection_.reset();  // replies that are still to come belong to nobody
            throw;
        } catch (...) {
            connection_.reset();
            throw;
        }
    }

    /// Sends up to pieces_ahead commands before it awaits the first one's reply.
    template <class Send, class Receive>
    static void for_each_piece(std::size_t bytes, Send send, Receive receive) {
        const std::size_t count = pieces_of(bytes);
        for (std::size_t i = 0; i < count + pieces_ahead; ++i) {
            if (i >= pieces_ahead && i - pieces_ahead < count) receive(i - pieces_ahead);
            if (i < count) send(i);
        }
    }

    /// 1 + which of the keys is the last one that the server has, 0 if it has none.
    static std::size_t last_known(RedisConnection& server, std::span<const StoreKey> keys) {
        std::vector<std::string> names;
        for (const StoreKey& key : keys) names.push_back(prefix + "k:" + hex({&key, 1}));
        for (const std::string& name : names) server.send({"EXISTS", name});
        std::size_t known = 0;
        for (std::size_t i = 0; i < keys.size(); ++i) {
            if (server.receive_accepted().number() == 1) known = i + 1;
        }
        return known;
    }

    std::optional<Found> find_by(RedisConnection& server, const StoreKey& key, std::size_t index, const Judge& judge) {
        const std::string name = prefix + "k:" + hex({&key, 1});
        for (std::size_t tries = 0; tries < 4; ++tries) {  // again where some of them were gone
            server.send({"ZRANGE", name, "0", std::to_string(candidates_at_once - 1)});
            const RedisReply names = server.receive();
            if (names.complaint()) {  // no sorted set: no store made it
                if (!options_.read_only) ask(server, {"UNLINK", name});
                return std::nullopt;
            }
            bool removed = false;
            for (std::size_t i = 0; i < names.size(); ++i) {
                const std::string number(names[i].text().value_or(""));
                std::optional<Found> found;
                switch (look_at(server, number, index, judge, found)) {
                    case State::taken:
                        return found;
                    case State::passed:
                        continue;
                    case State::gone:
                        remove(server, number, false);
                        break;
                    case State::damaged:
                        remove(server, number, true);
                        break;
                }
                if (!options_.read_only) ask(server, {"ZREM", name, number});
                removed = true;
            }
            if (!removed || options_.read_only) return std::nullopt;
        }
        return std::nullopt;
    }

    enum class State { taken, passed, gone, damaged };
    State look_at(RedisConnection& server, const std::string& text, std::size_t index, const Judge& judge,
                  std::optional<Found>& found) {
        const std::optional<std::uint64_t> number = parse_number(text);
        if (!number) return State::damaged;
        server.send({"HMGET", prefix + "e:" + text, "head", "bytes"});
        const RedisReply entry = server.receive();
        if (entry.complaint() || entry.size() != 2) return State::damaged;
        const auto head = entry[0].text(), size = entry[1].text();
        if (!head && !size) return State::gone;
        const std::optional<std::uint64_t> bytes = size ? parse_number(*size) : std::nullopt;
        if (!head || !bytes) return State::damaged;
        if (*bytes > options_.limit) return State::passed;  // of a program with a larger limit
        switch (judge(index, *head)) {
            case Verdict::pass:
                return State::passed;
            case Verdict::damaged:
                return State::damaged;
            case Verdict::take:
                break;
        }
        return read_body(server, *number, *bytes, found);
    }

    State read_body(RedisConnection& server, std::uint64_t number, std::size_t bytes, std::optional<Found>& found) {
        const auto body = std::make_shared<std::vector<std::byte>>();
        body->reserve(bytes);
        State state = State::taken;
        for_each_piece(
            bytes,
            [&](std::size_t i) {
                server.send({"GET", piece_name(number, i)});
            },
            [&](std::size_t i) {
                const RedisReply reply = server.receive();
                const auto piece = reply.text();
                const std::size_t expected = std::min(piece_bytes, bytes - i * piece_bytes);
                if (!piece && !reply.complaint() && state == State::taken) state = State::gone;
                if (reply.complaint() || (piece && piece->size() != expected)) state = State::damaged;
                if (state != State::taken) return;  // the other replies have to be read all the same
                const auto* from = reinterpret_cast<const std::byte*>(piece->data());
                body->insert(body->end(), from, from + piece->size());
            });
        if (state != State::taken) return state;
        if (!options_.read_only) ask(server, {"EVAL", use_script, "0", std::to_string(number)});
        found = Found{body, *body, number};
        return state;
    }

    void remove(RedisConnection& server, const std::string& number, bool damaged) const {
        if (!options_.read_only) ask(server, {"EVAL", remove_script, "0", number, damaged ? "1" : "0"});
    }
    static void ask(RedisConnection& server, const std::vector<std::string_view>& words) {
        server.send(words);
        server.receive_accepted();
    }

    RedisServer server_;
    StoreOptions options_;
    std::chrono::milliseconds retry_;
    std::mutex mutex_;
    std::unique_ptr<RedisConnection> connection_;
    std::optional<Clock::time_point> failed_;
    std::string why_;
};

}  // namespace

std::unique_ptr<Store> open_redis(const RedisServer& server, const StoreOptions& options,
                                  std::chrono::milliseconds retry) {
    check_options(options);
    if (server.host.empty() || server.port < 1 || server.port > 65535)
        throw Error(
            fmt::format("prefix store: '{}', port {}, is no address of a Redis server", server.host, server.port));
    if (server.timeout.count() < 1 || server.timeout > std::chrono::minutes(1))
        throw Error(fmt::format("prefix store: a timeout of {} ms is not between 1 and 60000", server.timeout.count()));
    return std::make_unique<RedisStore>(server, options, retry);
}

}  // namespace llm
