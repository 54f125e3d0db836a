/// Saved caches: what was saved comes back, bit for bit; what was damaged, or belongs elsewhere, is refused by name; a
/// file that was there survives everything.
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <sstream>
#include <string>
#include <vector>

#include <xquant/persistence.hpp>

#include "support/catch.hpp"
#include "support/feed.hpp"
#include "support/folder.hpp"
#include "support/memory.hpp"
#include "support/model.hpp"
#include "support/saved_file.hpp"
#include "support/tolerance.hpp"

using namespace xquant;
using test::bytes_of;
using test::Feed;
using test::Folder;
using test::load_bytes;
using test::saved;
using test::Scheme;
using test::write_bytes;

namespace {

const Options usual{.sinks = 4, .recent = 20};
constexpr double rounding = 2e-5;

/// What is thrown, as "kind: text"; "" if nothing is.
template <class F>
std::string refusal(F&& f) {
    try {
        f();
    } catch (const damage_error& e) {
        return std::string("damage: ") + e.what();
    } catch (const mismatch_error& e) {
        return std::string("mismatch: ") + e.what();
    } catch (const file_error& e) {
        return std::string("file: ") + e.what();
    } catch (const error& e) {
        return std::string("error: ") + e.what();
    }
    return "";
}
bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

Bytes without_workspace(Bytes bytes) {
    bytes.workspace = bytes.index = 0;
    return bytes;
}

/// A sequence with sinks, codes and a tail, erased and shifted, and a fork of it.
struct Filled {
    Filled(test::Cache& cache, const Model& model) : a{cache.create(), 1} {
        test::feed(cache, model, {{&a, 200}});
        cache.erase(a.sequence, 150, 160);
        cache.shift(a.sequence, 100, 7);
        b = a;
        b.sequence = cache.fork(a.sequence);
        b.seed = 2;
        test::feed(cache, model, {{&b, 30}});
    }
    Feed a, b;
};

}  // namespace

TEST_CASE("sequences that were saved come back bit for bit, from a stream, copied or mapped from a file") {
    const test::Setup setup = test::small_model();
    const Folder folder;
    for (const Scheme& scheme : test::schemes()) {
        INFO(scheme.name);
        const auto cache = scheme.make(setup.model, usual);
        Filled filled(*cache, setup.model);
        const std::string path = folder / "cache.xq";
        save(*cache, {{filled.a.sequence, filled.b.sequence}}, path, "a note\n");
        CHECK(folder.files() == 1);
        CHECK(bytes_of(path) == saved(*cache, {filled.a.sequence, filled.b.sequence}, "a note\n"));
        CHECK(std::filesystem::file_size(path) % 4096 == 0);

        for (const int way : {0, 1, 2}) {
            INFO("way " << way);
            const auto other = scheme.make(setup.model, usual);
            const Sequence unrelated = other->create();
            const Bytes before = other->bytes();
            const Loaded loaded =
                way == 0 ? load_bytes(*other, bytes_of(path)) : load(*other, path, LoadOptions{.map = way == 2});
            CHECK(loaded.note == "a note\n");
            REQUIRE(loaded.sequences.size() == 2);
            CHECK(other->size(unrelated) == 0);
            const Bytes added = other->bytes();
            if (way == 2) {
                CHECK(added.codes + added.tail == before.codes + before.tail);
                CHECK(added.mapped > 0);
            } else {
                CHECK(added.mapped == 0);
                CHECK(without_workspace(added) == without_workspace(cache->bytes()));
            }
            Feed c = filled.a, d = filled.b;
            c.sequence = loaded.sequences[0];
            d.sequence = loaded.sequences[1];
            CHECK(other->size(c.sequence) == 190);
            CHECK(other->next_position(d.sequence) == cache->next_position(filled.b.sequence));
            for (const auto& [x, y] : {std::pair{&c, &filled.a}, std::pair{&d, &filled.b}}) {
                CHECK(test::stored_pages(*other, x->sequence, scheme, setup.model, usual) ==
                      test::stored_pages(*cache, y->sequence, scheme, setup.model, usual));
            }
            // They go on as those that were saved, in forks of these.
            Feed e = filled.a, f = filled.b;
            e.sequence = cache->fork(filled.a.sequence);
            f.sequence = cache->fork(filled.b.sequence);
            for (const std::size_t n : {1, 150}) {
                test::feed(*cache, setup.model, {{&e, n}, {&f, n}});
                test::feed(*other, setup.model, {{&c, n}, {&d, n}});
            }
            CHECK(test::distance(c, e, 151) < rounding);
            CHECK(test::distance(d, f, 151) < rounding);
            cache->drop(e.sequence);
            cache->drop(f.sequence);
            other->drop(c.sequence);
            other->drop(d.sequence);
            CHECK(other->bytes().mapped == 0);
            CHECK(other->bytes().codes == before.codes);
        }
    }
}

TEST_CASE("layers with windows, empty sequences and no sequences at all are saved like others") {
    test::Setup setup = test::small_model();
    setup.model.layers[1].window = 30;
    const Scheme& scheme = test::scheme("head svd 4");
    const auto cache = scheme.make(setup.model, usual), other = scheme.make(setup.model, usual);
    Feed a{cache->create(), 1};
    test::feed(*cache, setup.model, {{&a, 299}});
    test::feed(*cache, setup.model, {{&a, 1}});
    const Loaded loaded = load_bytes(*other, saved(*cache, {a.sequence, cache->create()}));
    REQUIRE(loaded.sequences.size() == 2);
    CHECK(other->size(loaded.sequences[1]) == 0);
    Feed b = a;
    b.sequence = loaded.sequences[0];
    test::feed(*cache, setup.model, {{&a, 5}});
    test::feed(*other, setup.model, {{&b, 5}});
    CHECK(test::distance(a, b, 5) < rounding);
    CHECK(load_bytes(*other, saved(*cache, {})).sequences.empty());
}

TEST_CASE("inspect says what a file holds, and which pages are damaged") {
    const test::Setup setup = test::small_model();
    const Folder folder;
    const auto cache = test::scheme("cross-layer svd rotated 4").make(setup.model, usual);
    Filled filled(*cache, setup.model);
    const std::string path = folder / "cache.xq";
    save(*cache, {{filled.a.sequence, filled.b.sequence}}, path, "some ids");
    FileInfo info = inspect(path);
    CHECK(info.note == "some ids");
    CHECK(info.version == 2);
    CHECK(info.sinks == 4);
    CHECK(info.cross_layer);
    CHECK(info.shapes.size() == 4);
    CHECK(info.streams.at(0).size() == 2);
    REQUIRE(info.sequences.size() == 2);
    CHECK(info.sequences[0].tokens == 190);
    CHECK(info.sequences[1].next_position == cache->next_position(filled.b.sequence));
    CHECK(info.coded_pages > 0);
    CHECK(info.sink_pages == 1);
    CHECK(info.damaged_pages.empty());
    std::string bytes = bytes_of(path);
    bytes[bytes.size() - 1] = 1;  // padding of the last page
    write_bytes(path, bytes);
    info = inspect(path);
    CHECK(info.damaged_pages.size() == 1);
    write_bytes(path, bytes.substr(0, bytes.size() - 4096));
    CHECK(!inspect(path).damaged_pages.empty());
    CHECK(has(refusal([&] { static_cast<void>(inspect(folder / "none")); }), "file: xquant: cannot read"));
}

TEST_CASE("pages of two files do not make one, though both are of the same cache and as long") {
    const test::Setup setup = test::small_model();
    const auto cache = test::scheme("x rotated 3").make(setup.model, usual);
    Feed a{cache->create(), 1}, b{cache->create(), 2};
    test::feed(*cache, setup.model, {{&a, 300}, {&b, 300}});
    const std::string one = saved(*cache, {a.sequence}), other = saved(*cache, {b.sequence});
    REQUIRE(one.size() == other.size());
    test::SavedFile parts(one);
    REQUIRE(parts.places.size() > 3);
    const Folder folder;
    for (std::size_t i = 1; i < parts.places.size(); ++i) {
        const std::string mixed = one.substr(0, parts.places[i]) + other.substr(parts.places[i]);
        CHECK(refusal([&] { static_cast<void>(load_bytes(*cache, mixed)); }) ==
              "damage: xquant: saved cache: page " + std::to_string(i) + " is damaged");
        write_bytes(folder / "mixed.xq", mixed);
        CHECK(inspect(folder / "mixed.xq").damaged_pages == std::vector<std::size_t>{i});
    }
}

TEST_CASE("files of another version, model, scheme or cache are refused with what differs") {
    const test::Setup setup = test::small_model();
    const auto cache = test::scheme("head svd 4").make(setup.model, usual);
    Filled filled(*cache, setup.model);
    const std::string file = saved(*cache, {filled.a.sequence});
    const auto reason = [&](const Model& model, const char* scheme, const Options& options) {
        const auto other = test::scheme(scheme).make(model, options);
        const Bytes before = without_workspace(other->bytes());
        const std::string out = refusal([&] { static_cast<void>(load_bytes(*other, file)); });
        CHECK((out.empty() || without_workspace(other->bytes()) == before));
        return out;
    };
    CHECK(reason(setup.model, "head svd 4", usual).empty());
    CHECK(has(reason(setup.model, "x rotated 3", usual),
              "mismatch: xquant: saved cache: the file is of another projection"));
    CHECK(has(reason(setup.model, "head svd 5 and 3", usual),
              "of another quantizer or layout: layer 0, stream 0: 4 bits in groups of 128 tokens x 1 channels (a zero "
              "each, 0 outliers each) there, 5 bits in"));
    CHECK(has(reason(setup.model, "head svd 4", {.sinks = 3, .recent = 20}), "it keeps 4 sinks, this one 3"));
    CHECK(has(reason(setup.model, "head svd 4", {.sinks = 4, .recent = 20, .rows = DType::bf16}),
              "of another quantizer or layout: sinks and tail: f16 there, bf16 here"));
    CHECK(reason(setup.model, "head svd 4", {.sinks = 4, .recent = 50}).empty());  // no property of what is stored

    const test::Setup others({.width = 24, .heads = 4, .kv_heads = 1, .head_dim = 8}, RopePairing::interleaved, 4,
                             static_cast<std::size_t>(-1), 2);
    CHECK(has(reason(others.model, "head svd 4", usual), "model or projection: layer 0: weights of stream 0 0: "));
    Model fewer = setup.model;
    fewer.layers.pop_back();
    CHECK(has(reason(fewer, "head svd 4", usual), "it has 4 layers, this one 3"));
    const test::Setup wider({.width = 32, .heads = 4, .kv_heads = 1, .head_dim = 8}, RopePairing::interleaved, 4);
    CHECK(has(reason(wider.model, "head svd 4", usual), "model: layer 0 has width"));

    std::string skewed = file;
    skewed[8] = 1;
    CHECK(has(refusal([&] { static_cast<void>(load_bytes(*cache, skewed)); }), "damage: "));  // its checksum is not
    const std::uint64_t hash = XXH3_64bits(skewed.data(), 56);
    for (std::size_t i = 0; i < 8; ++i) skewed[56 + i] = static_cast<char>(hash >> (8 * i));
    CHECK(refusal([&] { static_cast<void>(load_bytes(*cache, skewed)); }) ==
          "mismatch: xquant: saved cache: the file has version 1, this build reads version 2");
    CHECK(has(refusal([&] { static_cast<void>(load_bytes(*cache, "GGUF" + std::string(100, 'x'))); }),
              "not a saved cache: it does not begin with XQCACHE"));
}

TEST_CASE("rows of the same projection are transcoded, if that is asked for") {
    const test::Setup setup = test::small_model();
    const LoadOptions transcode{.transcode = true};
    struct Pair {
        const char *from, *to;
    };
    for (const auto& [from, to] : {Pair{"head svd 4", "head svd 5 and 3"},
                                   {"f32 head svd", "head svd 4"},
                                   {"x rotated 4, requantizable to 2", "x rotated 3"},
                                   {"f32 x, rotated", "x per channel 6"},
                                   {"cross-layer x rotated 2", "cross-layer x rotated 2"}}) {
        INFO(from << " to " << to);
        const auto cache = test::scheme(from).make(setup.model, usual),
                   other = test::scheme(to).make(setup.model, usual);
        Filled filled(*cache, setup.model);
        const std::string file = saved(*cache, {filled.a.sequence});
        const bool same = std::string(from) == to;
        if (!same) CHECK(has(refusal([&] { static_cast<void>(load_bytes(*other, file)); }), "transcode"));
        const Loaded loaded = load_bytes(*other, file, transcode);
        CHECK((loaded.pages_transcoded > 0) == !same);
        Feed a = filled.a, b = filled.a;
        b.sequence = loaded.sequences.at(0);
        test::feed(*cache, setup.model, {{&a, 3}});
        test::feed(*other, setup.model, {{&b, 3}});
        const double distance = test::relative_distance(a, b, 3);
        if (same) {
            CHECK(distance < 1e-9);
            continue;
        }
        // The answers of the one have the error of its codes, those of the other that of both.
        const double own =
            std::max(test::own_error(test::scheme(from), setup.model), test::own_error(test::scheme(to), setup.model));
        CHECK(distance < test::tolerance_of(own));
        CHECK(distance > 0);
    }
    const auto x = test::scheme("f32 x").make(setup.model, usual),
               k = test::scheme("f32 k and v").make(setup.model, usual);
    Feed a{x->create(), 1};
    test::feed(*x, setup.model, {{&a, 10}});
    const std::string file = saved(*x, {a.sequence});
    CHECK(has(refusal([&] { static_cast<void>(load_bytes(*k, file, transcode)); }), "of another projection"));
}

TEST_CASE("a load that runs out of memory, or of its budget, changes nothing") {
    const test::Setup setup = test::small_model();
    const Folder folder;
    const auto from = test::scheme("head svd 4").make(setup.model, usual);
    Filled filled(*from, setup.model);
    const std::string path = folder / "cache.xq";
    save(*from, {{filled.a.sequence, filled.b.sequence}}, path);
    for (const bool map : {false, true}) {
        test::CountingMemory memory;
        Options options = usual;
        options.memory = &memory;
        const auto cache = test::scheme("head svd 4").make(setup.model, options);
        Feed own{cache->create(), 1};
        test::feed(*cache, setup.model, {{&own, 100}});
        const Bytes before = without_workspace(cache->bytes());
        std::size_t failures = 0;
        for (std::size_t k = 1;; ++k) {
            memory.fail_at(k);
            try {
                const Loaded loaded = load(*cache, path, LoadOptions{.map = map});
                memory.fail_at(0);
                CHECK(loaded.sequences.size() == 2);
                break;
            } catch (const std::bad_alloc&) {
                memory.fail_at(0);
                ++failures;
                if (without_workspace(cache->bytes()) != before) FAIL("something is left after failure " << k);
            }
        }
        CHECK(failures > 3);
        CHECK_FALSE(memory.misused());
    }
    Options tight = usual;
    tight.budget = 30000;
    const auto cache = test::scheme("head svd 4").make(setup.model, tight);
    CHECK_THROWS_AS(load(*cache, path, LoadOptions{.map = false}), budget_error);
    CHECK(load(*cache, path).sequences.size() == 2);  // what is mapped is no one's budget
}

namespace {

/// A stream that takes so many bytes and no more.
class ShortBuffer : public std::streambuf {
public:
    explicit ShortBuffer(std::size_t room) : room_(room) {}

private:
    std::streamsize xsputn(const char*, std::streamsize n) override {
        const auto taken = std::min<std::streamsize>(n, static_cast<std::streamsize>(room_));
        room_ -= static_cast<std::size_t>(taken);
        return taken;
    }
    int_type overflow(int_type c) override {
        if (room_ == 0) return traits_type::eof();
        --room_;
        return c;
    }
    std::size_t room_;
};

}  // namespace

TEST_CASE("a stream or a disk that is full, at any byte: file_error, and the old file is as it was") {
    const test::Setup setup = test::small_model();
    const Folder folder;
    const auto cache = test::scheme("x rotated 3").make(setup.model, usual);
    Filled filled(*cache, setup.model);
    const std::string path = folder / "cache.xq";
    save(*cache, {{filled.a.sequence}}, path);
    const std::string old = bytes_of(path);
    const std::size_t size = saved(*cache, {filled.a.sequence, filled.b.sequence}).size();
    for (std::size_t room = 0; room < size; room += 997) {
        ShortBuffer buffer(room);
        std::ostream out(&buffer);
        const std::string problem = refusal([&] { save(*cache, {{filled.a.sequence, filled.b.sequence}}, out); });
        if (!has(problem, "file: ")) FAIL("room for " << room << " bytes: " << problem);
    }

    struct rlimit limit {};
    REQUIRE(::getrlimit(RLIMIT_FSIZE, &limit) == 0);
    const auto handler = std::signal(SIGXFSZ, SIG_IGN);
    std::size_t failures = 0;
    for (std::size_t room = 0; room < size; room += 4096) {
        struct rlimit small = limit;
        small.rlim_cur = room;
        REQUIRE(::setrlimit(RLIMIT_FSIZE, &small) == 0);
        const std::string problem = refusal([&] { save(*cache, {{filled.a.sequence, filled.b.sequence}}, path); });
        REQUIRE(::setrlimit(RLIMIT_FSIZE, &limit) == 0);
        failures += has(problem, "file: xquant: cannot write") ? 1U : 0U;
        if (bytes_of(path) != old || folder.files() != 1) FAIL("the disk was full after " << room << " bytes");
    }
    std::signal(SIGXFSZ, handler);
    CHECK(failures == (size + 4095) / 4096);
    CHECK(has(refusal([&] { save(*cache, {{filled.a.sequence}}, folder / "no/such/folder"); }), "file: "));
    cache->drop(filled.a.sequence);
    CHECK_THROWS_AS(save(*cache, {{filled.a.sequence}}, path), sequence_error);
    CHECK(bytes_of(path) == old);
}
