#include "prefix_store.hpp"

#include <fmt/format.h>
#include <lmdb.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <string_view>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "error.hpp"

namespace llm {
namespace {

using Number = std::uint64_t;  // of an entry; never used twice
enum class Count : std::uint64_t { damaged, last_number };
using Hash = std::array<unsigned char, sizeof(XXH128_canonical_t)>;

void check(int result, const char* what) {
    if (result != MDB_SUCCESS) throw Error(fmt::format("prefix store: {}: {}", what, mdb_strerror(result)));
}

MDB_val value_of(const void* data, std::size_t size) { return {size, const_cast<void*>(data)}; }
template <class T>
MDB_val value_of(const T& of) {
    return value_of(&of, sizeof of);
}

/// What the store knows of an entry, in the table `about`: this, then scheme, model and ids.
struct About {
    std::uint64_t used = 0;   // rises with every use
    std::uint64_t bytes = 0;  // of the entry and of this
    std::uint64_t scheme = 0, model = 0, tokens = 0;
};

/// An entry of `about`, as views.
struct Entry {
    Number number = 0;
    About about;
    std::string_view scheme, model;
    const char* ids = nullptr;  // may stand at any address

    bool begins_with(std::span<const Token> with) const {
        return with.size() <= about.tokens && std::memcmp(ids, with.data(), with.size_bytes()) == 0;
    }
};

Entry entry_of(Number number, const MDB_val& value) {
    Entry entry{number, {}, {}, {}, nullptr};
    const char* at = static_cast<const char*>(value.mv_data);
    if (value.mv_size >= sizeof(About)) std::memcpy(&entry.about, at, sizeof(About));
    const About& a = entry.about;
    if (value.mv_size < sizeof(About) || a.scheme > value.mv_size || a.model > value.mv_size ||
        a.tokens > value.mv_size || sizeof(About) + a.scheme + a.model + a.tokens * sizeof(Token) != value.mv_size)
        throw Error(fmt::format("prefix store: entry {} is described in a way that no store writes", number));
    at += sizeof(About);
    entry.scheme = {at, a.scheme};
    entry.model = {at + a.scheme, a.model};
    entry.ids = at + a.scheme + a.model;
    return entry;
}

/// Hashes of the first block, the first two blocks, and so on.
std::vector<Hash> chain(std::string_view scheme, std::string_view model, std::span<const Token> ids) {
    XXH128_canonical_t last;
    std::vector<char> bytes(scheme.begin(), scheme.end());
    bytes.push_back('\0');
    bytes.insert(bytes.end(), model.begin(), model.end());
    XXH128_canonicalFromHash(&last, XXH3_128bits(bytes.data(), bytes.size()));
    const std::size_t block_bytes = PrefixStore::block * sizeof(Token);
    bytes.resize(sizeof last + block_bytes);
    std::vector<Hash> hashes;
    for (; ids.size() >= PrefixStore::block; ids = ids.subspan(PrefixStore::block)) {
        std::memcpy(bytes.data(), &last, sizeof last);
        std::memcpy(bytes.data() + sizeof last, ids.data(), block_bytes);
        XXH128_canonicalFromHash(&last, XXH3_128bits(bytes.data(), bytes.size()));
        std::memcpy(hashes.emplace_back().data(), &last, sizeof last);
    }
    return hashes;
}

}  // namespace

struct PrefixStore::Environment {
    MDB_env* env = nullptr;
    // number -> what was put; number -> About; hash -> numbers; a Count -> its value
    MDB_dbi entries = 0, about = 0, index = 0, counts = 0;

    Environment() { check(mdb_env_create(&env), "LMDB does not start"); }
    Environment(const Environment&) = delete;
    Environment& operator=(const Environment&) = delete;
    ~Environment() { mdb_env_close(env); }
};

/// Undone unless it is committed.
class PrefixStore::Transaction {
public:
    Transaction(const Environment& environment, bool read_only) : e_(environment) {
        MDB_txn* begun = nullptr;
        check(mdb_txn_begin(e_.env, nullptr, read_only ? MDB_RDONLY : 0U, &begun), "no transaction");
        txn_.reset(begun);
    }

    MDB_txn* get() const { return txn_.get(); }
    /// What was read stays where it is as long as somebody has this.
    std::shared_ptr<void> keep() { return {std::move(txn_)}; }
    void commit() {
        last_result_ = mdb_txn_commit(txn_.release());  // frees it whatever comes of it
        check(last_result_, "a change cannot be written");
    }
    /// LMDB's answer to the last call that put something.
    bool was_full() const { return last_result_ == MDB_MAP_FULL; }

    std::optional<MDB_val> get(MDB_dbi table, MDB_val key) const {
        MDB_val value{};
        const int result = mdb_get(get(), table, &key, &value);
        if (result == MDB_NOTFOUND) return std::nullopt;
        check(result, "cannot read");
        return value;
    }
    void put(MDB_dbi table, MDB_val key, MDB_val value) {
        last_result_ = mdb_put(get(), table, &key, &value, 0);
        check(last_result_, "cannot write");
    }

    /// f(key, value) for each row of a table, or for each value of one key; until f returns false.
    void for_each(MDB_dbi table, std::optional<MDB_val> only, const std::function<bool(MDB_val, MDB_val)>& f) const {
        MDB_cursor* cursor = nullptr;
        check(mdb_cursor_open(get(), table, &cursor), "cannot read");
        const std::unique_ptr<MDB_cursor, void (*)(MDB_cursor*)> owner(cursor, mdb_cursor_close);
        MDB_val key = only.value_or(MDB_val{}), value{};
        int result = mdb_cursor_get(cursor, &key, &value, only ? MDB_SET_KEY : MDB_FIRST);
        while (result == MDB_SUCCESS && f(key, value))
            result = mdb_cursor_get(cursor, &key, &value, only ? MDB_NEXT_DUP : MDB_NEXT);
        if (result != MDB_NOTFOUND) check(result, "cannot read");
    }

    std::optional<Entry> entry(Number number) const {
        const auto value = get(e_.about, value_of(number));
        return value ? std::optional(entry_of(number, *value)) : std::nullopt;
    }

    /// The entries' heads, in the order in which they were made.
    std::vector<std::pair<Number, About>> all() const {
        std::vector<std::pair<Number, About>> out;
        for_each(e_.about, std::nullopt, [&](MDB_val key, MDB_val value) {
            Number number = 0;
            std::memcpy(&number, key.mv_data, sizeof number);
            out.emplace_back(number, entry_of(number, value).about);
            return true;
        });
        return out;
    }

    /// The last use of any entry.
    std::uint64_t clock() const {
        std::uint64_t last = 0;
        for (const auto& [number, about] : all()) last = std::max(last, about.used);
        return last;
    }

    /// Entries that were used, one after the other.
    void write_down(std::span<const Number> used) {
        std::uint64_t now = used.empty() ? 0 : clock();
        for (const Number number : used) {
            const auto value = get(e_.about, value_of(number));
            if (!value) continue;
            const auto* from = static_cast<const char*>(value->mv_data);
            std::vector<char> bytes(from, from + value->mv_size);
            ++now;
            std::memcpy(bytes.data() + offsetof(About, used), &now, sizeof now);
            put(e_.about, value_of(number), value_of(bytes.data(), bytes.size()));
        }
    }

    /// The entry that `ids`, all of them whole blocks, begin or are, with the fewest tokens.
    std::optional<Entry> shortest(const Hash& hash, std::string_view scheme, std::string_view model,
                                  std::span<const Token> ids) const {
        std::optional<Entry> best;
        for_each(e_.index, value_of(hash), [&](MDB_val, MDB_val value) {
            Number number = 0;
            std::memcpy(&number, value.mv_data, sizeof number);
            const std::optional<Entry> found = entry(number);
            if (found && found->scheme == scheme && found->model == model && found->begins_with(ids) &&
                (!best || found->about.tokens < best->about.tokens))
                best = found;
            return true;
        });
        return best;
    }

    std::uint64_t count(Count which) const {
        std::uint64_t value = 0;
        if (const auto found = get(e_.counts, value_of(which)))
            std::memcpy(&value, found->mv_data, std::min(sizeof value, found->mv_size));
        return value;
    }
    std::uint64_t count_up(Count which) {
        const std::uint64_t value = count(which) + 1;
        put(e_.counts, value_of(which), value_of(value));
        return value;
    }

    /// False if there is no such entry.
    bool remove(Number number) {
        const std::optional<Entry> found = entry(number);
        if (!found) return false;
        std::vector<Token> ids(found->about.tokens);
        std::memcpy(ids.data(), found->ids, ids.size() * sizeof(Token));
        for (const Hash& hash : chain(found->scheme, found->model, ids))
            erase(e_.index, value_of(hash), value_of(number));
        erase(e_.entries, value_of(number), std::nullopt);
        erase(e_.about, value_of(number), std::nullopt);
        return true;
    }

    /// Removes the entry that was used longest ago. False if there is none.
    bool remove_oldest() {
        const auto entries = all();
        const auto oldest = std::min_element(
            entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.second.used < b.second.used; });
        return oldest != entries.end() && remove(oldest->first);
    }

    /// Removes entries until there is room.
    void make_room(std::size_t limit, std::size_t wanted) {
        const auto bytes = [&] {
            std::size_t sum = wanted;
            for (const auto& [number, about] : all()) sum += about.bytes;
            return sum;
        };
        while (bytes() > limit && remove_oldest()) {
        }
    }

private:
    void erase(MDB_dbi table, MDB_val key, std::optional<MDB_val> value) {
        last_result_ = mdb_del(get(), table, &key, value ? &*value : nullptr);
        if (last_result_ != MDB_NOTFOUND) check(last_result_, "cannot remove");
    }

    const Environment& e_;
    std::unique_ptr<MDB_txn, void (*)(MDB_txn*)> txn_{nullptr, mdb_txn_abort};
    int last_result_ = MDB_SUCCESS;
};

PrefixStore::PrefixStore(const std::string& folder, PrefixStoreOptions options) : options_(std::move(options)) {
    constexpr std::size_t largest = std::size_t{1} << 44U;  // addresses are finite
    if (options_.limit == 0 || options_.limit > largest)
        throw Error(fmt::format("prefix store: a limit of {} bytes is not between 1 and {}", options_.limit, largest));
    std::error_code failed;
    if (!options_.read_only) std::filesystem::create_directories(folder, failed);
    if (failed) throw Error(fmt::format("prefix store: {}: {}", folder, failed.message()));
    environment_ = std::make_unique<Environment>();
    Environment& e = *environment_;
    check(mdb_env_set_maxdbs(e.env, 4), "LMDB does not start");
    check(mdb_env_set_mapsize(e.env, 2 * options_.limit + (std::size_t{64} << 20U)), "LMDB does not start");
    // Readers belong to what was found, not to a thread: a thread may find several, and change the store meanwhile.
    const unsigned flags = MDB_NOTLS | (options_.read_only ? MDB_RDONLY : 0U);
    if (const int result = mdb_env_open(e.env, folder.c_str(), flags, 0644); result != MDB_SUCCESS)
        throw Error(fmt::format("prefix store: {} cannot be opened: {}", folder, mdb_strerror(result)));
    int dead = 0;
    check(mdb_reader_check(e.env, &dead), "readers that have died cannot be cleared");
    Transaction t(e, options_.read_only);
    const unsigned create = options_.read_only ? 0U : MDB_CREATE;
    const char* what = "the folder holds no store";
    check(mdb_dbi_open(t.get(), "entries 1", create | MDB_INTEGERKEY, &e.entries), what);
    check(mdb_dbi_open(t.get(), "about 1", create | MDB_INTEGERKEY, &e.about), what);
    check(mdb_dbi_open(t.get(), "index 1", create | MDB_DUPSORT | MDB_DUPFIXED, &e.index), what);
    check(mdb_dbi_open(t.get(), "counts 1", create | MDB_INTEGERKEY, &e.counts), what);
    if (!options_.read_only) t.make_room(options_.limit, 0);
    t.commit();
}

PrefixStore::~PrefixStore() {
    try {
        if (!used_.empty()) change([](Transaction&) {});
    } catch (const std::exception&) {
        // Which entries were used is not worth more.
    }
}

/// f in a transaction, after what was used since the last one. Where the file is full of gaps that fit nothing, the
/// entry that was used longest ago goes, and f is called again.
void PrefixStore::change(const std::function<void(Transaction&)>& f) {
    std::vector<std::uint64_t> used;
    {
        const std::lock_guard lock(mutex_);
        used.swap(used_);
    }
    for (;;) {
        {
            Transaction t(*environment_, false);
            try {
                t.write_down(used);
                f(t);
                t.commit();
                return;
            } catch (const Error&) {
                if (!t.was_full()) throw;
            }
        }
        Transaction t(*environment_, false);
        if (!t.remove_oldest()) throw Error("prefix store: the file has no room left");
        t.commit();
    }
}

std::optional<PrefixStore::Found> PrefixStore::find(const std::string& scheme, std::span<const Token> ids) const {
    const std::vector<Hash> hashes = chain(scheme, options_.model, ids);
    Transaction t(*environment_, true);
    for (std::size_t blocks = hashes.size(); blocks > 0; --blocks) {
        const std::optional<Entry> entry =
            t.shortest(hashes[blocks - 1], scheme, options_.model, ids.first(blocks * block));
        if (!entry) continue;
        const auto bytes = t.get(environment_->entries, value_of(entry->number));
        if (!bytes) continue;
        Found found;
        found.bytes_ = {static_cast<const std::byte*>(bytes->mv_data), bytes->mv_size};
        found.tokens_ = blocks * block;
        found.stored_tokens_ = entry->about.tokens;
        found.number_ = entry->number;
        found.reader_ = t.keep();
        if (!options_.read_only) {
            const std::lock_guard lock(mutex_);
            used_.push_back(found.number_);
        }
        return found;
    }
    return std::nullopt;
}

bool PrefixStore::put(const std::string& scheme, std::span<const Token> ids, std::span<const std::byte> bytes) {
    if (options_.read_only) throw Error("prefix store: it was opened for reading alone");
    if (ids.empty() || ids.size() % block != 0)
        throw Error(fmt::format("prefix store: {} tokens are not whole blocks of {}", ids.size(), block));
    std::string head(sizeof(About), '\0');
    head += scheme;
    head += options_.model;
    head.append(reinterpret_cast<const char*>(ids.data()), ids.size_bytes());
    About about{0, head.size() + bytes.size(), scheme.size(), options_.model.size(), ids.size()};
    if (about.bytes > options_.limit) return false;
    const std::vector<Hash> hashes = chain(scheme, options_.model, ids);
    change([&](Transaction& t) {
        const auto same = t.shortest(hashes.back(), scheme, options_.model, ids);
        if (same && same->about.tokens == ids.size()) t.remove(same->number);
        t.make_room(options_.limit, about.bytes);
        about.used = t.clock() + 1;
        const Number number = t.count_up(Count::last_number);
        std::memcpy(head.data(), &about, sizeof about);
        t.put(environment_->entries, value_of(number), value_of(bytes.data(), bytes.size()));
        t.put(environment_->about, value_of(number), value_of(head.data(), head.size()));
        for (const Hash& hash : hashes) t.put(environment_->index, value_of(hash), value_of(number));
    });
    return true;
}

void PrefixStore::remove_damaged(const Found& found) {
    if (options_.read_only) return;
    change([&](Transaction& t) {
        if (t.remove(found.number_)) t.count_up(Count::damaged);
    });
}

PrefixStoreFigures PrefixStore::figures() const {
    const Transaction t(*environment_, true);
    PrefixStoreFigures out;
    for (const auto& [number, about] : t.all()) ++out.entries, out.bytes += about.bytes;
    out.damaged = t.count(Count::damaged);
    return out;
}

}  // namespace llm
