/// The entries of a prefix store in a folder: an LMDB environment.
///
/// Limit    the file may become twice as large and 64 MB, as removed entries leave gaps, and never shrinks
/// Sharing  LMDB's rules: one writer at a time, among all processes, any number of readers beside it; a process opens a
///          folder once; not on a network's file system
/// Found    an entry is read where it lies in the file, also if it is removed meanwhile: drop it soon, since the file
///          grows until then
/// Crash    a transaction is there as a whole or not at all. Which entries were used last may be forgotten
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "store.hpp"

namespace llm {

/// Milliseconds since 1970, as the system says.
std::chrono::milliseconds system_time();

/// Makes the folder if it is missing, and removes entries beyond the limit and the TTL. now: what time it is, for TTLs.
/// Throws Error.
std::unique_ptr<Store> open_lmdb(const std::string& folder, const StoreOptions& options,
                                 std::function<std::chrono::milliseconds()> now = system_time);

}  // namespace llm
