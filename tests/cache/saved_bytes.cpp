/// Saving to callables, and loading from callables and from memory: the bytes are those of a file, their number is
/// known before, and what goes wrong on the way leaves a cache as it was.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <xquant/persistence.hpp>

#include "support/catch.hpp"
#include "support/feed.hpp"
#include "support/folder.hpp"
#include "support/model.hpp"
#include "support/saved_file.hpp"

using namespace xquant;
using test::Feed;
using test::Scheme;
using test::span_of;

namespace {

const Options usual{.sinks = 4, .recent = 20};

/// Of no library.
struct Own : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/// Two sequences that share pages, one of them with a gap.
struct Filled {
    explicit Filled(const Scheme& scheme)
        : setup(test::small_model()), cache(scheme.make(setup.model, usual)), a{cache->create(), 1} {
        test::feed(*cache, setup.model, {{&a, 200}});
        cache->erase(a.sequence, 150, 160, Gap::keep);
        b = a;
        b.sequence = cache->fork(a.sequence, 140);
        test::feed(*cache, setup.model, {{&b, 30}});
    }

    [[nodiscard]] std::vector<Sequence> both() const { return {a.sequence, b.sequence}; }

    test::Setup setup;
    std::shared_ptr<test::Cache> cache;
    Feed a, b;
};

void append(std::string& to, std::span<const std::byte> bytes) {
    to.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

/// Hands out the first bytes of a file.
struct Source {
    std::span<const std::byte> left;

    bool operator()(std::span<std::byte> to) {
        if (to.size() > left.size()) return false;
        std::copy_n(left.begin(), to.size(), to.begin());
        left = left.subspan(to.size());
        return true;
    }
};

template <class F>
std::string damage(F&& f) {
    try {
        f();
    } catch (const damage_error& e) {
        return e.what();
    }
    return "";
}
bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

Bytes without_workspace(Bytes bytes) {
    bytes.workspace = bytes.index = 0;
    return bytes;
}

static_assert(byte_sink<void (*)(std::span<const std::byte>)> && byte_sink<bool (*)(std::span<const std::byte>)>);
static_assert(!byte_sink<int (*)(std::span<const std::byte>)> && !byte_sink<std::string> && !byte_sink<std::ostream>);
static_assert(byte_source<Source> && byte_source<Source&> && !byte_source<std::istream> && !byte_source<std::string>);

}  // namespace

TEST_CASE("a sink gets the bytes of a file, and their number is known before") {
    const test::Folder folder;
    const std::string path = folder / "cache.xq";
    for (const Scheme& scheme : test::schemes()) {
        INFO(scheme.name);
        const Filled filled(scheme);
        const test::Cache& cache = *filled.cache;
        const std::vector<std::vector<Sequence>> lists{
            {}, {filled.a.sequence}, {filled.b.sequence}, filled.both(), {filled.b.sequence, filled.a.sequence}};
        std::vector<std::size_t> sizes;
        for (const auto& list : lists) {
            for (const std::string& note : {std::string(), std::string("ids"), std::string(5000, 'n')}) {
                save(cache, list, path, note);
                const std::string file = test::bytes_of(path);
                std::string given, given_all;
                save(
                    cache, list, [&](std::span<const std::byte> bytes) { append(given, bytes); }, note);
                CHECK(given == file);
                auto takes_all = [&](std::span<const std::byte> bytes) {
                    append(given_all, bytes);
                    return true;
                };
                save(cache, list, takes_all, note);
                CHECK(given_all == file);
                CHECK(test::saved(cache, list, note) == file);
                CHECK(saved_bytes(cache, list, note) == file.size());
                if (note.empty()) sizes.push_back(file.size());
            }
        }
        // Pages that two sequences share are written once.
        CHECK(sizes[3] < sizes[1] + sizes[2] - sizes[0]);
        CHECK(sizes[3] > sizes[1]);
    }
}

TEST_CASE("sequences come back from a source and from memory at any address as they do from a file") {
    for (const Scheme& scheme : test::schemes()) {
        INFO(scheme.name);
        const Filled filled(scheme);
        const std::string file = test::saved(*filled.cache, filled.both(), "a note");
        std::vector<std::byte> moved(file.size() + 64);
        for (const std::size_t at : {0, 1, 2, 37}) {
            std::copy_n(span_of(file).begin(), file.size(), moved.begin() + static_cast<std::ptrdiff_t>(at));
            const std::span<const std::byte> there = std::span(moved).subspan(at, file.size());
            const auto other = scheme.make(filled.setup.model, usual);
            const Loaded loaded = at == 0 ? load(*other, Source{there}) : load(*other, there);
            CHECK(std::equal(there.begin(), there.end(), span_of(file).begin()));
            CHECK(loaded.note == "a note");
            REQUIRE(loaded.sequences.size() == 2);
            CHECK(other->bytes().mapped == 0);
            std::fill(moved.begin(), moved.end(), std::byte{0xFF});  // nothing refers to it any more
            // What came back is saved again with the same bytes.
            CHECK(test::saved(*other, loaded.sequences, "a note") == file);
        }
    }
}

TEST_CASE("memory at any address is transcoded, and stays as it is") {
    const Filled filled(test::scheme("head svd 4"));
    const std::string file = test::saved(*filled.cache, filled.both());
    std::vector<std::string> stored;
    std::vector<std::byte> moved(file.size() + 1);
    for (const std::size_t at : {0, 1}) {
        std::copy_n(span_of(file).begin(), file.size(), moved.begin() + static_cast<std::ptrdiff_t>(at));
        const std::span<const std::byte> there = std::span(moved).subspan(at, file.size());
        const auto other = test::scheme("head svd 5 and 3").make(filled.setup.model, usual);
        const Loaded loaded = load(*other, there, {.transcode = true});
        CHECK(loaded.pages_transcoded > 0);
        CHECK(std::equal(there.begin(), there.end(), span_of(file).begin()));
        stored.push_back(test::saved(*other, loaded.sequences));
    }
    CHECK(stored[0] == stored[1]);
}

TEST_CASE("a sink that throws or refuses, at any piece, leaves the cache as it was") {
    const Filled filled(test::scheme("x rotated 3"));
    const Bytes before = filled.cache->bytes();
    const std::string file = test::saved(*filled.cache, filled.both());
    std::size_t pieces = 0;
    save(*filled.cache, filled.both(), [&](std::span<const std::byte>) { ++pieces; });
    REQUIRE(pieces > 10);
    for (std::size_t last = 0; last < pieces; ++last) {
        std::size_t count = 0, taken = 0;
        const auto throws = [&](std::span<const std::byte>) {
            if (count++ == last) throw Own("no room");
        };
        CHECK_THROWS_AS(save(*filled.cache, filled.both(), throws), Own);
        count = 0;
        const auto refuses = [&](std::span<const std::byte> bytes) {
            if (count++ == last) return false;
            taken += bytes.size();
            return true;
        };
        std::string problem;
        try {
            save(*filled.cache, filled.both(), refuses);
        } catch (const file_error& refused) {
            problem = refused.what();
        }
        CHECK(has(problem, "the sink took " + std::to_string(taken) + " bytes and refused "));
        CHECK(filled.cache->bytes() == before);
    }
    CHECK(test::saved(*filled.cache, filled.both()) == file);
    // Sequences that cannot be saved are refused before the sink is called.
    const auto never = [](std::span<const std::byte>) { throw Own("called"); };
    auto step = filled.cache->begin({{filled.a.sequence, 1}});
    CHECK_THROWS_AS(save(*filled.cache, filled.both(), never), sequence_error);
    CHECK_THROWS_AS(saved_bytes(*filled.cache, filled.both()), sequence_error);
}

TEST_CASE("bytes that end early, in every part, are refused as a file is, and the cache is as it was") {
    for (const char* name : {"x rotated 3", "cross-layer svd rotated 4"}) {
        const Filled filled(test::scheme(name));
        const std::string file = test::saved(*filled.cache, filled.both(), "note");
        const test::SavedFile parts(file);
        const auto other = test::scheme(name).make(filled.setup.model, usual);
        const Bytes before = without_workspace(other->bytes());
        const test::Folder folder;
        const std::string path = folder / "short.xq";
        std::vector<std::size_t> ends{0, 1, 63, 64, 65, 1000, 4095, parts.places[0] - 1};
        for (const std::size_t place : parts.places) {
            for (const std::size_t behind : {0, 1, 63, 64, 65, 500}) ends.push_back(place + behind);
        }
        ends.push_back(file.size() - 1);
        for (const std::size_t end : ends) {
            INFO(name << ": " << end << " of " << file.size() << " bytes");
            const std::span<const std::byte> some = span_of(file).first(end);
            const std::string from_source = damage([&] { static_cast<void>(load(*other, Source{some})); });
            CHECK(has(from_source, "the source ends within bytes "));
            Source throwing{some};
            const auto throws = [&](std::span<std::byte> to) {
                if (!throwing(to)) throw Own("the line is dead");
            };
            CHECK_THROWS_AS(load(*other, throws), Own);
            const std::string from_memory = damage([&] { static_cast<void>(load(*other, some)); });
            if (end > 0) {
                test::write_bytes(path, file.substr(0, end));
                CHECK(from_memory == damage([&] { static_cast<void>(load(*other, path)); }));
            }
            CHECK(has(from_memory, end < 64 ? "a header takes 64" : "its header says " + std::to_string(file.size())));
            CHECK(without_workspace(other->bytes()) == before);
        }
        // A source may go on behind the cache; memory may not.
        const std::string longer = file + "more";
        Source source{span_of(longer)};
        CHECK(load(*other, source).sequences.size() == 2);
        CHECK(source.left.size() == 4);
        CHECK(has(damage([&] { static_cast<void>(load(*other, span_of(longer))); }), "its header says "));
    }
}

TEST_CASE("a byte that changed in any part of what a source or memory gives is found") {
    const Filled filled(test::scheme("head svd 4"));
    const std::string file = test::saved(*filled.cache, filled.both(), "note");
    const test::SavedFile parts(file);
    const test::Folder folder;
    const std::string path = folder / "changed.xq";
    std::vector<std::size_t> places{0, 9, 60, 64, 500, parts.places[0] - 1};
    for (const std::size_t place : parts.places) places.insert(places.end(), {place, place + 8, place + 100});
    places.push_back(file.size() - 1);
    for (const std::size_t place : places) {
        INFO("byte " << place);
        std::string changed = file;
        changed[place] = static_cast<char>(changed[place] ^ 4);
        test::write_bytes(path, changed);
        const std::string expected = damage([&] { static_cast<void>(load(*filled.cache, path)); });
        CHECK(has(expected, "saved cache: "));
        CHECK(damage([&] { static_cast<void>(load(*filled.cache, span_of(changed))); }) == expected);
        CHECK(damage([&] { static_cast<void>(load(*filled.cache, Source{span_of(changed)})); }) == expected);
    }
}
