/// Saved caches of prompts' beginnings, found again by their tokens; in a folder or on a server, as the Store is.
///
///   PrefixStore store(open_lmdb("folder", {.limit = 1 << 30}), fingerprint);
///   if (auto found = store.find("svd_head4", prompt)) load(found->bytes());  // holds the first found->tokens() tokens
///   store.put("svd_head4", ids, bytes);                                      // ids: whole blocks of 128
///
/// Keys     a chain of XXH3 hashes, 128 bits: of scheme and model, then of the last hash and the next 128 ids. Every
///          block of an entry is a key, so a prompt finds what it shares with a longer one. Ids, scheme and model are
///          stored and compared: two prompts with one hash cost a comparison, never an answer. An entry that lies under
///          a key which is not one of its own is removed, and counted as damaged.
/// Outage   where a server is out of reach (StoreUnavailable), nothing is found and nothing is put; the first time,
///          `warn` is told why. No call throws for it.
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

#include "store.hpp"
#include "tokenizer.hpp"

namespace llm {

class PrefixStore {
public:
    static constexpr std::size_t block = 128;  // tokens

    /// model: whatever tells models apart, a hash of the file, say.
    PrefixStore(std::unique_ptr<Store> store, std::string model, std::function<void(const std::string&)> warn = {});

    class Found {
    public:
        std::span<const std::byte> bytes() const { return entry_.body; }
        std::size_t tokens() const { return tokens_; }                // in common with the ids asked for, whole blocks
        std::size_t stored_tokens() const { return stored_tokens_; }  // in the entry, tokens() or more

    private:
        friend class PrefixStore;
        Store::Found entry_;
        std::size_t tokens_ = 0, stored_tokens_ = 0;
    };

    /// The entry with the most whole blocks in common with `ids`; of several, the shortest. Throws llm::Error.
    std::optional<Found> find(const std::string& scheme, std::span<const Token> ids);

    /// Stores an entry, or puts it in place of the one with the same ids. ids: one block or more, whole ones. False,
    /// and nothing has changed, if it alone is beyond the limit, or the server is out of reach. Throws llm::Error.
    bool put(const std::string& scheme, std::span<const Token> ids, std::span<const std::byte> bytes);

    /// Removes an entry that could not be loaded, and counts it; of a store that only reads, it does nothing.
    void remove_damaged(const Found& found);

    /// Nothing where the server is out of reach.
    std::optional<StoreFigures> figures();

private:
    /// f(), or T() where the server is out of reach.
    template <class T, class F>
    T reached(F f);

    std::unique_ptr<Store> store_;
    std::string model_;
    std::function<void(const std::string&)> warn_;
    std::unique_ptr<std::once_flag> warned_;
};

}  // namespace llm
