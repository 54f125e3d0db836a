/// The entries of a prefix store on a Redis server (5 or later, one server, no cluster), for several machines.
///
/// Keys, all of them below "xquant-prefixes:1:"
///   last, damaged       counters: of entries' numbers, and of entries that were removed because they could not be used
///   k:HEX               sorted set of the entries that have a key, by their count of keys
///   e:N                 hash of entry N: head, keys (hex), bytes of the body
///   p:N:I               piece I of the body, 1 MiB but for the last one
///   used, until, sizes  sorted sets and a hash over all entries: their last use, when they go, their bytes
///   bytes               the sum of sizes
///
/// Put      the pieces go first, each with a minute to live, then one script makes an entry of them: readers see all of
///          it or nothing, and a program that dies meanwhile leaves what goes by itself. An entry's pieces never
///          change; one that is put in its place has another number
/// Limit    that of the program that puts. What Redis itself evicts (maxmemory) is found no more
/// TTL      by the server's clock; Redis frees an entry's bytes at once
/// Time     each reply has `timeout`, and no more than 1 MiB: a server that sends less than 1 MiB in that time is out
///          of reach. After a failure no call asks the server for `retry`. Beside the bytes, find costs four round
///          trips, put two
/// Trust    neither password nor TLS: whoever can write to the server decides what is loaded
#pragma once

#include <chrono>
#include <memory>

#include "redis_connection.hpp"
#include "store.hpp"

namespace llm {

/// Connects when it is first used. Calls throw StoreUnavailable. Threads that share it wait for one another. Throws
/// Error.
std::unique_ptr<Store> open_redis(const RedisServer& server, const StoreOptions& options,
                                  std::chrono::milliseconds retry = std::chrono::seconds(5));

}  // namespace llm
