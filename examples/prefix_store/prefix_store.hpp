/// Saved caches of prompts' beginnings, on disk, found again by their tokens. An LMDB environment in a folder.
///
///   PrefixStore store("folder", {.limit = 1 << 30, .model = fingerprint});
///   if (auto found = store.find("svd_head4", prompt)) load(found->bytes());  // holds the first found->tokens() tokens
///   store.put("svd_head4", ids, bytes);                                      // ids: whole blocks of 128
///
/// Key      a chain of XXH3 hashes, 128 bits: of scheme and model, then of the last hash and the next 128 ids. Every
///          block of an entry is in the index, so a prompt finds what it shares with a longer one. Ids, scheme and
///          model are stored and compared: two prompts with one hash cost a comparison, never an answer.
/// Limit    where the entries' bytes would pass it, those that were used longest ago go first. The file may become
///          twice as large and 64 MB, as removed entries leave gaps, and never shrinks.
/// Sharing  LMDB's rules: one writer at a time, among all processes, any number of readers beside it; a process opens a
///          folder once, and its threads share the store; not on a network's file system.
/// Crash    a transaction is there as a whole or not at all. Which entries were used last may be forgotten.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "tokenizer.hpp"

namespace llm {

struct PrefixStoreOptions {
    std::size_t limit = std::size_t{1} << 30U;  // bytes of all entries, of all models
    std::string model;                          // whatever tells models apart: a hash of the file, say
    bool read_only = false;                     // finds alone; entries that it uses do not count as used
};

struct PrefixStoreFigures {
    std::size_t entries = 0, bytes = 0;
    std::size_t damaged = 0;  // entries removed since the store was made, because they could not be loaded
};

class PrefixStore {
public:
    static constexpr std::size_t block = 128;  // tokens

    /// Makes the folder if it is missing, and removes entries beyond the limit. Throws llm::Error.
    PrefixStore(const std::string& folder, PrefixStoreOptions options);
    ~PrefixStore();
    PrefixStore(const PrefixStore&) = delete;
    PrefixStore& operator=(const PrefixStore&) = delete;

    /// An entry as it lies in the file. Its bytes stay where they are as long as it lives, also if the entry is
    /// removed: drop it soon, since the file grows meanwhile, and before the store.
    class Found {
    public:
        std::span<const std::byte> bytes() const { return bytes_; }
        std::size_t tokens() const { return tokens_; }                // in common with the ids asked for, whole blocks
        std::size_t stored_tokens() const { return stored_tokens_; }  // in the entry, tokens() or more

    private:
        friend class PrefixStore;
        std::shared_ptr<void> reader_;
        std::span<const std::byte> bytes_;
        std::size_t tokens_ = 0, stored_tokens_ = 0;
        std::uint64_t number_ = 0;
    };

    /// The entry with the most whole blocks in common with `ids`; of several, the shortest. Throws llm::Error.
    std::optional<Found> find(const std::string& scheme, std::span<const Token> ids) const;

    /// Stores an entry, or puts it in place of the one with the same ids. ids: one block or more, whole ones. False,
    /// and nothing has changed, if it alone is beyond the limit. Throws llm::Error.
    bool put(const std::string& scheme, std::span<const Token> ids, std::span<const std::byte> bytes);

    /// Removes an entry that could not be loaded, and counts it; of a store that only reads, it does nothing.
    void remove_damaged(const Found& found);

    PrefixStoreFigures figures() const;

private:
    class Transaction;
    struct Environment;

    void change(const std::function<void(Transaction&)>& f);

    std::unique_ptr<Environment> environment_;
    PrefixStoreOptions options_;
    mutable std::mutex mutex_;
    mutable std::vector<std::uint64_t> used_;  // entries found since the last change, which writes this down
};

}  // namespace llm
