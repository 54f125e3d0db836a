#include "prefix_store.hpp"

#include <fmt/format.h>

#include <cstring>
#include <string_view>
#include <vector>

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace llm {
namespace {

/// What an entry's head begins with; then scheme, model and ids.
struct Sizes {
    std::uint64_t scheme = 0, model = 0, tokens = 0;
};

struct Head {
    std::string_view scheme, model;
    std::vector<Token> ids;

    bool begins_with(std::span<const Token> with) const {
        return with.size() <= ids.size() && std::equal(with.begin(), with.end(), ids.begin());
    }
};

std::string to_bytes(std::string_view scheme, std::string_view model, std::span<const Token> ids) {
    const Sizes sizes{scheme.size(), model.size(), ids.size()};
    std::string head(reinterpret_cast<const char*>(&sizes), sizeof sizes);
    head += scheme;
    head += model;
    head.append(reinterpret_cast<const char*>(ids.data()), ids.size_bytes());
    return head;
}

/// Nothing for bytes that to_bytes does not make.
std::optional<Head> parse(std::string_view bytes) {
    Sizes sizes;
    if (bytes.size() < sizeof sizes) return std::nullopt;
    std::memcpy(&sizes, bytes.data(), sizeof sizes);
    bytes.remove_prefix(sizeof sizes);
    if (sizes.scheme > bytes.size() || sizes.model > bytes.size() || sizes.tokens > bytes.size() ||
        sizes.scheme + sizes.model + sizes.tokens * sizeof(Token) != bytes.size())
        return std::nullopt;
    Head head{bytes.substr(0, sizes.scheme), bytes.substr(sizes.scheme, sizes.model), {}};
    head.ids.resize(sizes.tokens);
    bytes.remove_prefix(sizes.scheme + sizes.model);
    std::memcpy(head.ids.data(), bytes.data(), bytes.size());
    return head;
}

/// Hashes of the first block, the first two blocks, and so on.
std::vector<StoreKey> chain(std::string_view scheme, std::string_view model, std::span<const Token> ids) {
    XXH128_canonical_t last;
    static_assert(sizeof last == sizeof(StoreKey));
    std::vector<char> bytes(scheme.begin(), scheme.end());
    bytes.push_back('\0');
    bytes.insert(bytes.end(), model.begin(), model.end());
    XXH128_canonicalFromHash(&last, XXH3_128bits(bytes.data(), bytes.size()));
    const std::size_t block_bytes = PrefixStore::block * sizeof(Token);
    bytes.resize(sizeof last + block_bytes);
    std::vector<StoreKey> keys;
    for (; ids.size() >= PrefixStore::block; ids = ids.subspan(PrefixStore::block)) {
        std::memcpy(bytes.data(), &last, sizeof last);
        std::memcpy(bytes.data() + sizeof last, ids.data(), block_bytes);
        XXH128_canonicalFromHash(&last, XXH3_128bits(bytes.data(), bytes.size()));
        std::memcpy(keys.emplace_back().data(), &last, sizeof last);
    }
    return keys;
}

}  // namespace

PrefixStore::PrefixStore(std::unique_ptr<Store> store, std::string model, std::function<void(const std::string&)> warn)
    : store_(std::move(store)),
      model_(std::move(model)),
      warn_(std::move(warn)),
      warned_(std::make_unique<std::once_flag>()) {}

template <class T, class F>
T PrefixStore::reached(F f) {
    try {
        return f();
    } catch (const StoreUnavailable& error) {
        std::call_once(*warned_, [&] {
            if (warn_) warn_(error.what());
        });
        return T();
    }
}

std::optional<PrefixStore::Found> PrefixStore::find(const std::string& scheme, std::span<const Token> ids) {
    const std::vector<StoreKey> keys = chain(scheme, model_, ids);
    Found found;
    const auto judge = [&](std::size_t key, std::string_view bytes) {
        const std::optional<Head> head = parse(bytes);
        if (!head) return Verdict::damaged;
        const std::size_t tokens = (key + 1) * block;
        if (head->scheme != scheme || head->model != model_ || !head->begins_with(ids.first(tokens))) {
            const std::vector<StoreKey> own = chain(head->scheme, head->model, head->ids);
            return key < own.size() && own[key] == keys[key] ? Verdict::pass : Verdict::damaged;
        }
        found.tokens_ = tokens;
        found.stored_tokens_ = head->ids.size();
        return Verdict::take;
    };
    return reached<std::optional<Found>>([&]() -> std::optional<Found> {
        std::optional<Store::Found> entry = store_->find(keys, judge);
        if (!entry) return std::nullopt;
        found.entry_ = std::move(*entry);
        return std::move(found);
    });
}

bool PrefixStore::put(const std::string& scheme, std::span<const Token> ids, std::span<const std::byte> bytes) {
    if (ids.empty() || ids.size() % block != 0)
        throw Error(fmt::format("prefix store: {} tokens are not whole blocks of {}", ids.size(), block));
    return reached<bool>([&] { return store_->put(chain(scheme, model_, ids), to_bytes(scheme, model_, ids), bytes); });
}

void PrefixStore::remove_damaged(const Found& found) {
    reached<bool>([&] {
        store_->remove_damaged(found.entry_.number);
        return true;
    });
}

std::optional<StoreFigures> PrefixStore::figures() {
    return reached<std::optional<StoreFigures>>([&] { return std::optional(store_->figures()); });
}

}  // namespace llm
