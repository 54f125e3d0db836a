/// Where a prefix store's entries lie: what a backend gives. lmdb_store.hpp has a folder, redis_store.hpp a server.
///
/// An entry has keys, a head and a body, all of them bytes that a backend does not read. It is found by any of its
/// keys; the caller judges by its head whether it is the right one.
///
/// Limit    where the entries' bytes would pass it, those that were used longest ago go first
/// TTL      an entry that was put so long ago is found no more, whether it was used or not; its bytes are free by the
///          next put at the latest
/// Threads  may share a store
#pragma once

#include <fmt/format.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string_view>

#include "error.hpp"

namespace llm {

/// A server that cannot be reached, does not answer in time, or answers with an error: the entries are out of reach
/// now, and nothing else is wrong. Backends that have no server never throw it.
struct StoreUnavailable : Error {
    using Error::Error;
};

using StoreKey = std::array<unsigned char, 16>;

struct StoreOptions {
    std::size_t limit = std::size_t{1} << 30U;  // bytes of all entries: bodies, heads and keys; 1 to 2^44
    std::chrono::milliseconds ttl{0};           // 0: entries stay until the limit is reached
    bool read_only = false;                     // finds alone; what it finds does not count as used
};

/// Throws Error for a limit or TTL that no backend takes.
inline void check_options(const StoreOptions& options) {
    constexpr std::size_t largest = std::size_t{1} << 44U;
    if (options.limit == 0 || options.limit > largest)
        throw Error(fmt::format("prefix store: a limit of {} bytes is not between 1 and {}", options.limit, largest));
    constexpr std::chrono::milliseconds longest = std::chrono::hours(24 * 365 * 100);
    if (options.ttl.count() < 0 || options.ttl > longest)
        throw Error(
            fmt::format("prefix store: a TTL of {} ms is not between 0 and {}", options.ttl.count(), longest.count()));
}

struct StoreFigures {
    std::size_t entries = 0, bytes = 0;
    std::size_t damaged = 0;  // entries removed since the store was made, because they could not be used
};

/// What the caller thinks of an entry, by its head. damaged: no caller of this store put it so.
enum class Verdict { take, pass, damaged };

class Store {
public:
    struct Found {
        std::shared_ptr<const void> owner;  // of body, which lives as long as it; drop it before the store
        std::span<const std::byte> body;
        std::uint64_t number = 0;
    };
    /// key: which of the keys the entry was found by.
    using Judge = std::function<Verdict(std::size_t key, std::string_view head)>;

    Store() = default;
    Store(const Store&) = delete;
    Store& operator=(const Store&) = delete;
    virtual ~Store() = default;

    /// Asks about the entries of the last key, those with few keys first, then about those of the key before it, and so
    /// on, until one is taken. Damaged entries are removed and counted. Throws Error.
    virtual std::optional<Found> find(std::span<const StoreKey> keys, const Judge& judge) = 0;

    /// Stores an entry, in place of the one with this last key and head. False, and nothing has changed, if it alone is
    /// beyond the limit. Throws Error: nothing is stored then, whatever went before.
    virtual bool put(std::span<const StoreKey> keys, std::string_view head, std::span<const std::byte> body) = 0;

    /// Removes and counts an entry whose body turned out to be damaged; of a store that only reads, it does nothing.
    virtual void remove_damaged(std::uint64_t number) = 0;

    virtual StoreFigures figures() = 0;
};

}  // namespace llm
