#include "lmdb_store.hpp"

#include <fmt/format.h>
#include <lmdb.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <string_view>
#include <utility>
#include <vector>

namespace llm {
namespace {

using Number = std::uint64_t;  // of an entry; never used twice
enum class Count : std::uint64_t { damaged, last_number };

void check(int result, const char* what) {
    if (result != MDB_SUCCESS) throw Error(fmt::format("prefix store: {}: {}", what, mdb_strerror(result)));
}

MDB_val value_of(const void* data, std::size_t size) { return {size, const_cast<void*>(data)}; }
template <class T>
MDB_val value_of(const T& of) {
    return value_of(&of, sizeof of);
}

/// What the store knows of an entry, in the table `about`: this, then its keys, then its head.
struct About {
    std::uint64_t used = 0;   // rises with every use
    std::uint64_t bytes = 0;  // of the entry and of this
    std::int64_t until = 0;   // ms since 1970; 0: for ever
    std::uint64_t keys = 0;
};

/// An entry of `about`, as views.
struct Entry {
    Number number = 0;
    About about;
    const char* keys = nullptr;  // may stand at any address
    std::string_view head;

    StoreKey key(std::size_t i) const {
        StoreKey key;
        std::memcpy(key.data(), keys + i * sizeof key, sizeof key);
        return key;
    }
    bool gone(std::int64_t now) const { return about.until != 0 && about.until <= now; }
};

Entry entry_of(Number number, const MDB_val& value) {
    Entry entry{number, {}, {}, {}};
    const char* at = static_cast<const char*>(value.mv_data);
    if (value.mv_size >= sizeof(About)) std::memcpy(&entry.about, at, sizeof(About));
    if (value.mv_size < sizeof(About) || entry.about.keys > (value.mv_size - sizeof(About)) / sizeof(StoreKey))
        throw Error(fmt::format("prefix store: entry {} is described in a way that no store writes", number));
    const std::size_t before = sizeof(About) + entry.about.keys * sizeof(StoreKey);
    entry.keys = at + sizeof(About);
    entry.head = {at + before, value.mv_size - before};
    return entry;
}

struct Environment {
    MDB_env* env = nullptr;
    // number -> what was put; number -> About; hash -> numbers; a Count -> its value
    MDB_dbi entries = 0, about = 0, index = 0, counts = 0;

    Environment() { check(mdb_env_create(&env), "LMDB does not start"); }
    Environment(const Environment&) = delete;
    Environment& operator=(const Environment&) = delete;
    ~Environment() { mdb_env_close(env); }
};

/// Undone unless it is committed.
class Transaction {
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

    void open_tables(Environment& e, bool read_only) {
        const unsigned create = read_only ? 0U : MDB_CREATE;
        const char* what = "the folder holds no store";
        check(mdb_dbi_open(get(), "entries 2", create | MDB_INTEGERKEY, &e.entries), what);
        check(mdb_dbi_open(get(), "about 2", create | MDB_INTEGERKEY, &e.about), what);
        check(mdb_dbi_open(get(), "index 2", create | MDB_DUPSORT | MDB_DUPFIXED, &e.index), what);
        check(mdb_dbi_open(get(), "counts 2", create | MDB_INTEGERKEY, &e.counts), what);
    }

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

    /// All entries, in the order in which they were made.
    std::vector<Entry> all() const {
        std::vector<Entry> out;
        for_each(e_.about, std::nullopt, [&](MDB_val key, MDB_val value) {
            Number number = 0;
            std::memcpy(&number, key.mv_data, sizeof number);
            out.push_back(entry_of(number, value));
            return true;
        });
        return out;
    }

    /// Those that have a key, the ones with few keys first.
    std::vector<Entry> with(const StoreKey& key) const {
        std::vector<Entry> out;
        for_each(e_.index, value_of(key), [&](MDB_val, MDB_val value) {
            Number number = 0;
            std::memcpy(&number, value.mv_data, sizeof number);
            if (const auto found = entry(number)) out.push_back(*found);
            return true;
        });
        std::stable_sort(out.begin(), out.end(),
                         [](const Entry& a, const Entry& b) { return a.about.keys < b.about.keys; });
        return out;
    }

    /// The last use of any entry.
    std::uint64_t clock() const {
        std::uint64_t last = 0;
        for (const Entry& entry : all()) last = std::max(last, entry.about.used);
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
        std::vector<StoreKey> keys;  // of its own: the first change may move what `found` views
        for (std::size_t i = 0; i < found->about.keys; ++i) keys.push_back(found->key(i));
        for (const StoreKey& key : keys) erase(e_.index, value_of(key), value_of(number));
        erase(e_.entries, value_of(number), std::nullopt);
        erase(e_.about, value_of(number), std::nullopt);
        return true;
    }

    /// Removes the entry that was used longest ago. False if there is none.
    bool remove_oldest() {
        const std::vector<Entry> entries = all();
        const auto oldest = std::min_element(
            entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.about.used < b.about.used; });
        return oldest != entries.end() && remove(oldest->number);
    }

    /// Removes what is older than its TTL, then entries until there is room.
    void make_room(std::size_t limit, std::size_t wanted, std::int64_t now) {
        std::vector<Number> gone;
        for (const Entry& entry : all()) {
            if (entry.gone(now)) gone.push_back(entry.number);
        }
        for (const Number number : gone) remove(number);
        const auto bytes = [&] {
            std::size_t sum = wanted;
            for (const Entry& entry : all()) sum += entry.about.bytes;
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

class LmdbStore final : public Store {
public:
    LmdbStore(const std::string& folder, const StoreOptions& options, std::function<std::chrono::milliseconds()> now)
        : options_(options), now_(std::move(now)) {
        std::error_code failed;
        if (!options_.read_only) std::filesystem::create_directories(folder, failed);
        if (failed) throw Error(fmt::format("prefix store: {}: {}", folder, failed.message()));
        MDB_env* const env = environment_.env;
        check(mdb_env_set_maxdbs(env, 4), "LMDB does not start");
        check(mdb_env_set_mapsize(env, 2 * options_.limit + (std::size_t{64} << 20U)), "LMDB does not start");
        // Readers belong to what was found, not to a thread: a thread may find several, and change the store meanwhile.
        const unsigned flags = MDB_NOTLS | (options_.read_only ? MDB_RDONLY : 0U);
        if (const int result = mdb_env_open(env, folder.c_str(), flags, 0644); result != MDB_SUCCESS)
            throw Error(fmt::format("prefix store: {} cannot be opened: {}", folder, mdb_strerror(result)));
        int dead = 0;
        check(mdb_reader_check(env, &dead), "readers that have died cannot be cleared");
        Transaction t(environment_, options_.read_only);
        t.open_tables(environment_, options_.read_only);
        if (!options_.read_only) t.make_room(options_.limit, 0, now_().count());
        t.commit();
    }
    ~LmdbStore() override {
        try {
            if (!used_.empty()) change([](Transaction&) {});
        } catch (const std::exception&) {
            // Which entries were used is not worth more.
        }
    }

    std::optional<Found> find(std::span<const StoreKey> keys, const Judge& judge) override {
        std::vector<Number> damaged;
        std::optional<Found> found = look_up(keys, judge, damaged);
        for (const Number number : damaged) remove_damaged(number);
        if (found && !options_.read_only) {
            const std::lock_guard lock(mutex_);
            used_.push_back(found->number);
        }
        return found;
    }

    bool put(std::span<const StoreKey> keys, std::string_view head, std::span<const std::byte> body) override {
        if (options_.read_only) throw Error("prefix store: it was opened for reading alone");
        const std::int64_t now = now_().count();
        About about;
        about.keys = keys.size();
        about.until = options_.ttl.count() == 0 ? 0 : now + options_.ttl.count();
        std::string described(sizeof about, '\0');
        for (const StoreKey& key : keys) described.append(reinterpret_cast<const char*>(key.data()), key.size());
        described += head;
        about.bytes = described.size() + body.size();
        if (about.bytes > options_.limit) return false;
        change([&](Transaction& t) {
            for (const Entry& entry : t.with(keys.back())) {
                if (entry.head != head) continue;
                t.remove(entry.number);
                break;  // there is one at most, and the views are stale now
            }
            t.make_room(options_.limit, about.bytes, now);
            about.used = t.clock() + 1;
            const Number number = t.count_up(Count::last_number);
            std::memcpy(described.data(), &about, sizeof about);
            t.put(environment_.entries, value_of(number), value_of(body.data(), body.size()));
            t.put(environment_.about, value_of(number), value_of(described.data(), described.size()));
            for (const StoreKey& key : keys) t.put(environment_.index, value_of(key), value_of(number));
        });
        return true;
    }

    void remove_damaged(std::uint64_t number) override {
        if (options_.read_only) return;
        change([&](Transaction& t) {
            if (t.remove(number)) t.count_up(Count::damaged);
        });
    }

    StoreFigures figures() override {
        const Transaction t(environment_, true);
        StoreFigures out;
        for (const Entry& entry : t.all()) ++out.entries, out.bytes += entry.about.bytes;
        out.damaged = t.count(Count::damaged);
        return out;
    }

private:
    std::optional<Found> look_up(std::span<const StoreKey> keys, const Judge& judge, std::vector<Number>& damaged) {
        const std::int64_t now = now_().count();
        Transaction t(environment_, true);
        for (std::size_t i = keys.size(); i-- > 0;) {
            for (const Entry& entry : t.with(keys[i])) {
                if (entry.gone(now)) continue;
                const Verdict verdict = judge(i, entry.head);
                if (verdict == Verdict::damaged) damaged.push_back(entry.number);
                if (verdict != Verdict::take) continue;
                const auto body = t.get(environment_.entries, value_of(entry.number));
                if (!body) continue;
                return Found{t.keep(), {static_cast<const std::byte*>(body->mv_data), body->mv_size}, entry.number};
            }
        }
        return std::nullopt;
    }

    /// f in a transaction, after what was used since the last one. Where the file is full of gaps that fit nothing, the
    /// entry that was used longest ago goes, and f is called again.
    void change(const std::function<void(Transaction&)>& f) {
        std::vector<Number> used;
        {
            const std::lock_guard lock(mutex_);
            used.swap(used_);
        }
        for (;;) {
            {
                Transaction t(environment_, false);
                try {
                    t.write_down(used);
                    f(t);
                    t.commit();
                    return;
                } catch (const Error&) {
                    if (!t.was_full()) throw;
                }
            }
            Transaction t(environment_, false);
            if (!t.remove_oldest()) throw Error("prefix store: the file has no room left");
            t.commit();
        }
    }

    Environment environment_;
    StoreOptions options_;
    std::function<std::chrono::milliseconds()> now_;
    std::mutex mutex_;
    std::vector<Number> used_;  // entries found since the last change, which writes this down
};

}  // namespace

std::chrono::milliseconds system_time() {
    return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::system_clock::now().time_since_epoch());
}

std::unique_ptr<Store> open_lmdb(const std::string& folder, const StoreOptions& options,
                                 std::function<std::chrono::milliseconds()> now) {
    check_options(options);
    return std::make_unique<LmdbStore>(folder, options, std::move(now));
}

}  // namespace llm
