/// Damaged files, by the thousand, and processes that are killed while they save. Whatever happens to a file, it is
/// refused by an error of the library's own, or taken, and then every answer is finite; nothing else, and the cache is
/// as it was. A file that was being saved is the old one or the new one, whole.
///
/// XQUANT_DAMAGED_FILES says how many files (6000), XQUANT_KILLS how many kills (100), XQUANT_SEED where to begin (1).
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include <xquant/persistence.hpp>

#include "support/catch.hpp"
#include "support/feed.hpp"
#include "support/folder.hpp"
#include "support/model.hpp"
#include "support/saved_file.hpp"

using namespace xquant;
using test::Feed;
using test::Folder;
using test::SavedFile;
using test::Scheme;

namespace {

const Options usual{.sinks = 4, .recent = 20};

std::size_t number_from(const char* variable, std::size_t otherwise) {
    const char* text = std::getenv(variable);
    return text != nullptr ? std::strtoull(text, nullptr, 10) : otherwise;
}

/// A line for those who wait, now and then.
void show_progress(const char* what, std::size_t done, std::size_t total) {
    if (total < 20000 || done % (total / 20) != 0) return;
    std::fprintf(stderr, "%s: %zu of %zu\n", what, done, total);
}

Bytes without_workspace(Bytes bytes) {
    bytes.workspace = bytes.index = 0;
    return bytes;
}

/// A cache, and a file of two of its sequences: sinks, codes and a tail, erased, shifted and forked.
struct Kept {
    Kept(const Scheme& scheme, const Model& model)
        : name(scheme.name), cache(scheme.make(model, usual)), file(saved_by(*cache, model)) {
        before = without_workspace(cache->bytes());
    }

    std::string name;
    std::shared_ptr<test::Cache> cache;
    SavedFile file;
    Bytes before;
    std::vector<std::size_t> takers{};  ///< numbers of the caches that take the file, as it is or transcoded

private:
    static SavedFile saved_by(test::Cache& cache, const Model& model) {
        Feed a{cache.create(), 1};
        test::feed(cache, model, {{&a, 200}});
        cache.erase(a.sequence, 150, 160);
        cache.shift(a.sequence, 100, 7);
        Feed b = a;
        b.sequence = cache.fork(a.sequence);
        test::feed(cache, model, {{&b, 30}});
        SavedFile out(test::saved(cache, {a.sequence, b.sequence}, "a note"));
        cache.drop(a.sequence);
        cache.drop(b.sequence);
        return out;
    }
};

enum class Kind { bits, shorter, zeros, blocks, longer, spliced, lying_description, lying_page, other_format, count };

/// Whether checksums are wrong, so that the file may not be taken at all.
bool is_plain(Kind kind) { return kind <= Kind::spliced; }

std::ptrdiff_t offset(std::size_t at) { return static_cast<std::ptrdiff_t>(at); }

/// Bytes that changed while no one looked.
std::string damaged(const std::string& good, const std::string& other, Kind kind, test::Random& random) {
    std::string bad = good;
    const std::size_t at =
        random.below(8) == 0 ? random.below(std::min<std::size_t>(4096, bad.size())) : random.below(bad.size());
    switch (kind) {
        case Kind::bits:
            bad[at] = static_cast<char>(bad[at] ^ (1 << random.below(8)));
            break;
        case Kind::shorter:
            bad.resize(at);
            break;
        case Kind::zeros:  // as a disk leaves them
            std::fill(bad.begin() + offset(at), bad.begin() + offset(std::min(bad.size(), at + 1 + random.below(600))),
                      '\0');
            break;
        case Kind::blocks: {  // two of them change places
            const std::size_t from = random.below(bad.size() / 64) * 64, here = at / 64 * 64;
            std::swap_ranges(bad.begin() + offset(here), bad.begin() + offset(here + 64), bad.begin() + offset(from));
            break;
        }
        case Kind::longer:
            bad.insert(at, 1, static_cast<char>(random.below(256)));
            break;
        default: {  // the rest of another file
            const std::size_t cut = random.below(2) == 0 ? at / 4096 * 4096 : at;
            bad.resize(cut);
            if (cut < other.size()) bad += other.substr(cut);
        }
    }
    return bad;
}

/// A stream's format that some cache may have, or none.
StreamFormat any_format(std::uint32_t width, test::Random& random) {
    StreamFormat format;
    format.width = width;
    format.kind = random.below(3) == 0 ? static_cast<CodeKind>(1 + random.below(3)) : CodeKind::planes;
    const bool planes = format.kind == CodeKind::planes;
    const std::uint32_t tokens[] = {1, 1, 128, 4, 2, 64, 3}, channels[] = {8, 16, 32, 64, 128, 1, width, 4096, 5000};
    const bool sound = random.below(8) != 0;
    format.group_tokens = planes || !sound ? tokens[random.below(sound ? 6 : 7)] : 1;
    format.group_channels = channels[random.below(sound ? 5 : 9)];
    if (sound && format.group_tokens > 16) format.group_channels = static_cast<std::uint32_t>(1 + random.below(8));
    if (!planes && sound) format.group_channels = std::min(format.group_channels, width);
    format.bits = static_cast<std::uint8_t>(planes ? 1 + random.below(8) : format.kind == CodeKind::f32 ? 32 : 16);
    format.stores_zero = planes && random.below(2) == 0;
    format.zero_code = planes ? static_cast<float>(random.below(130)) : 0;
    const std::uint32_t group = format.group_tokens * format.group_channels;
    const bool has_outliers = planes && random.below(4) == 0 && (group <= 256 || !sound);
    format.outliers = static_cast<std::uint8_t>(has_outliers ? 1 + random.below(3) : 0);
    return format;
}

/// A file that says something else, under checksums that are right.
std::string lying(const Kept& of, Kind kind, test::Random& random) {
    SavedFile file = of.file;
    if (kind == Kind::lying_description) {
        const std::size_t end = detail::to_bytes(file.about).size();
        for (std::size_t k = 0; k < 1 + random.below(3); ++k) {
            const std::size_t at = 64 + random.below(end);
            file.bytes[at] =
                random.below(2) == 0 ? static_cast<char>(random.below(256)) : static_cast<char>(file.bytes[at] + 1);
        }
        file.seal();
        return file.bytes;
    }
    if (kind == Kind::lying_page) {
        const std::size_t number = random.below(file.about.pages.size());
        const std::size_t size = static_cast<std::size_t>(file.about.pages[number].bytes);
        for (std::size_t k = 0; k < 1 + random.below(40); ++k) {
            file.page(number)[random.below(size)] = static_cast<std::byte>(random.below(256));
        }
        file.seal();
        return file.bytes;
    }
    for (auto& layer : file.about.layers) {
        for (auto& stream : layer.streams) {
            if (random.below(4) == 0) continue;
            stream.coded = any_format(stream.coded.width, random);
            stream.coded_levels.clear();
            if (stream.coded.quantized() && random.below(4) == 0) {
                stream.coded_levels = random.rows(std::size_t{1} << stream.coded.bits, 2);
            }
            stream.requantized = stream.coded;
            stream.requantized_levels = stream.coded_levels;
        }
    }
    if (random.below(2) == 0) file.about.rows = static_cast<DType>(random.below(3));
    detail::Ledger ledger(nullptr);
    std::size_t streams = 1;
    for (const auto& layer : file.about.layers) streams = std::max(streams, layer.streams.size());
    for (auto& page : file.about.pages) {
        page.bytes = detail::format_of(ledger, file.about, page.page_group, page.kind, streams).sizes.total - 64;
    }
    const std::size_t top = random.below(2) == 0 ? 64 : 120;  // of the high byte of a number: small ones, or large
    return file.rewritten([&](std::size_t, std::span<std::byte> page) {
        for (std::size_t i = 0; i < page.size(); ++i) {
            page[i] = static_cast<std::byte>(i % 2 == 0 ? random.below(256) : random.below(top));
        }
    });
}

struct Figures {
    std::size_t tried = 0, refused = 0, taken = 0, transcoded = 0;
};

/// "" where a cache refuses a file by an error of the library's own, or can go on with it.
std::string consequence(Kept& to, const Model& model, const std::string& bad, bool from_path,
                        const LoadOptions& options, const std::string& path, Figures& figures) {
    const bool from_memory = !from_path && figures.tried % 2 == 0;
    ++figures.tried;
    try {
        if (from_path) test::write_bytes(path, bad);
        const Loaded loaded = from_path     ? load(*to.cache, path, options)
                              : from_memory ? load(*to.cache, test::span_of(bad), options)
                                            : test::load_bytes(*to.cache, bad, options);
        ++figures.taken;
        figures.transcoded += loaded.pages_transcoded > 0 ? 1U : 0U;
        for (const Sequence sequence : loaded.sequences) {
            Feed feed{sequence, 3, to.cache->size(sequence)};
            try {
                test::feed(*to.cache, model, {{&feed, 1}});
            } catch (const shape_error&) {  // a position beyond the last that there is
            }
            to.cache->drop(sequence);
            for (const std::vector<float>& layer : feed.out) {
                for (const float value : layer) {
                    if (!std::isfinite(value)) return "an answer is not finite";
                }
            }
        }
    } catch (const error&) {
        ++figures.refused;
    } catch (const std::exception& e) {
        return std::string("not an error of the library: ") + e.what();
    }
    if (without_workspace(to.cache->bytes()) != to.before) return "something is left in the cache";
    return "";
}

}  // namespace

TEST_CASE("damaged files: each is refused, or taken with finite values, and the cache is as it was") {
#if defined(__SANITIZE_ADDRESS__)
    constexpr std::size_t some = 1500;
#else
    constexpr std::size_t some = 6000;
#endif
    const std::size_t total = number_from("XQUANT_DAMAGED_FILES", some), seed = number_from("XQUANT_SEED", 1);
    const test::Setup setup = test::small_model();
    std::vector<std::unique_ptr<Kept>> kept;
    for (const Scheme& scheme : test::schemes()) kept.push_back(std::make_unique<Kept>(scheme, setup.model));
    for (const auto& from : kept) {
        for (std::size_t to = 0; to < kept.size(); ++to) {
            try {
                test::Cache& cache = *kept[to]->cache;
                const Loaded loaded = test::load_bytes(cache, from->file.bytes, {.transcode = true});
                for (const Sequence sequence : loaded.sequences) cache.drop(sequence);
                from->takers.push_back(to);
            } catch (const mismatch_error&) {
            }
        }
        CHECK(!from->takers.empty());
    }
    const Folder folder;
    const std::string path = folder / "damaged.xq";
    std::vector<Figures> figures(static_cast<std::size_t>(Kind::count));
    for (std::size_t i = 0; i < total; ++i) {
        show_progress("damaged files", i, total);
        test::Random random(static_cast<std::uint32_t>(seed * 1000003 + i));
        Kept &from = *kept[i % kept.size()], &other = *kept[random.below(kept.size())];
        // Most files are read by a cache that would take them if they were not damaged.
        const std::vector<std::size_t>& takers = from.takers;
        Kept& to = *kept[random.below(4) == 0 ? random.below(kept.size()) : takers[random.below(takers.size())]];
        const auto kind = static_cast<Kind>(i / kept.size() % static_cast<std::size_t>(Kind::count));
        const std::string& good = from.file.bytes;
        const std::string bad =
            is_plain(kind) ? damaged(good, other.file.bytes, kind, random) : lying(from, kind, random);
        if (bad == good || bad == other.file.bytes) continue;
        LoadOptions options;
        options.transcode = kind == Kind::other_format || random.below(2) == 0;
        options.map = random.below(2) == 0;
        // A stream may go on behind a cache.
        const bool from_path = kind == Kind::longer || kind == Kind::spliced || random.below(8) == 0;
        Figures& of = figures[static_cast<std::size_t>(kind)];
        const std::size_t taken = of.taken;
        const std::string problem = consequence(to, setup.model, bad, from_path, options, path, of);
        if (!problem.empty() || (is_plain(kind) && of.taken > taken)) {
            FAIL("file " << i << ", seed " << seed << ", damage " << static_cast<int>(kind) << " of " << from.name
                         << " into " << to.name << ": " << (problem.empty() ? "it was taken" : problem));
        }
    }
    Figures all;
    for (const Figures& of : figures) {
        all.tried += of.tried;
        all.refused += of.refused;
        all.taken += of.taken;
        all.transcoded += of.transcoded;
    }
    std::fprintf(stderr,
                 "damaged files: %zu tried, %zu refused, %zu taken with finite answers, %zu of them transcoded\n",
                 all.tried, all.refused, all.taken, all.transcoded);
    CHECK(all.tried > total / 2);
    CHECK(all.tried == all.refused + all.taken);
    // The files that lie test something only if some of them are taken.
    if (total >= 1000) CHECK(figures[static_cast<std::size_t>(Kind::lying_page)].taken > 0);
    if (total >= 1000) CHECK(figures[static_cast<std::size_t>(Kind::other_format)].transcoded > 0);
}

TEST_CASE("a process that is killed while it saves leaves the old file or the new one, whole") {
    const std::size_t total = number_from("XQUANT_KILLS", 100);
    const test::Setup setup = test::small_model();
    const Folder folder;
    const auto cache = test::scheme("x rotated 3").make(setup.model, usual);
    Feed a{cache->create(), 1}, b{cache->create(), 2};
    test::feed(*cache, setup.model, {{&a, 200}, {&b, 150}});
    const std::vector<Sequence> both{a.sequence, b.sequence};
    const std::string path = folder / "cache.xq";
    save(*cache, {{a.sequence}}, path, "0");
    test::Random random(8);
    std::size_t replaced = 0, unfinished = 0;
    for (std::size_t round = 1; round <= total; ++round) {
        if (total >= 1000 && round % 200 == 0) std::fprintf(stderr, "kills: %zu of %zu\n", round, total);
        const std::string old = test::bytes_of(path), note = std::to_string(round);
        const std::string one = test::saved(*cache, {a.sequence}, note), two = test::saved(*cache, both, note);
        const pid_t child = ::fork();
        REQUIRE(child >= 0);
        if (child == 0) {
            try {
                for (std::size_t i = 0;; ++i) save(*cache, std::span(both).first(1 + i % 2), path, note);
            } catch (...) {
            }
            ::_exit(1);
        }
        std::this_thread::sleep_for(std::chrono::microseconds(random.below(4000)));
        ::kill(child, SIGKILL);
        int status = 0;
        REQUIRE(::waitpid(child, &status, 0) == child);
        REQUIRE(WIFSIGNALED(status));
        const std::string now = test::bytes_of(path);
        if (now != old && now != one && now != two) FAIL("kill " << round << " left a file that no one wrote");
        replaced += now != old ? 1U : 0U;
        unfinished += folder.files() - 1;
        for (const auto& entry : std::filesystem::directory_iterator(folder / "")) {
            if (entry.path() != path) std::filesystem::remove(entry.path());
        }
    }
    std::fprintf(stderr, "kills: %zu; %zu times the new file was there, %zu times the old one; %zu unfinished files\n",
                 total, replaced, total - replaced, unfinished);
    CHECK(replaced > total / 20);
    CHECK(unfinished > total / 20);
    for (const Sequence sequence : load(*cache, path).sequences) CHECK(cache->size(sequence) >= 150);
}
