/// What saving does to files besides their bytes: permissions, links, descriptors; and what is no file.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>
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
using test::bytes_of;
using test::Folder;

namespace {

/// A cache with a sequence to save.
struct Filled {
    test::Setup setup = test::small_model();
    std::shared_ptr<test::Cache> cache = test::scheme("x rotated 3").make(setup.model, {.sinks = 2, .recent = 4});
    test::Feed feed{cache->create()};
    Filled() { test::feed(*cache, setup.model, {{&feed, 12}}); }

    void save_to(const std::string& path) const { save(*cache, std::vector<Sequence>{feed.sequence}, path); }
};

/// The process' umask for the length of a test.
class Umask {
public:
    explicit Umask(mode_t mask) : before_(::umask(mask)) {}
    Umask(const Umask&) = delete;
    Umask& operator=(const Umask&) = delete;
    ~Umask() { ::umask(before_); }

private:
    mode_t before_;
};

unsigned mode_of(const std::string& path) {
    struct stat about {};
    REQUIRE(::stat(path.c_str(), &about) == 0);
    return about.st_mode & 07777U;
}

template <class F>
std::string refusal(F&& f) {
    try {
        f();
    } catch (const file_error& e) {
        return e.what();
    }
    return "";
}
bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("a new file has what the umask leaves, and a file that is replaced keeps its permissions") {
    const Filled filled;
    const Folder folder;
    for (const mode_t mask : {0022U, 0027U, 0077U, 0000U}) {
        const Umask set(mask);
        const std::string path = folder / ("new " + std::to_string(mask));
        filled.save_to(path);
        CHECK(mode_of(path) == (0666U & ~mask));
        for (const mode_t mode : {0600U, 0640U, 0666U, 0444U, 0751U}) {
            INFO("umask " << mask << ", mode " << mode);
            REQUIRE(::chmod(path.c_str(), mode) == 0);
            {
                // The unfinished file is open to no one whom the old one was closed to.
                const detail::ReplacingFile unfinished(path);
                std::size_t others = 0;
                for (const auto& entry : std::filesystem::directory_iterator(folder / "")) {
                    if (!entry.path().string().starts_with(path + ".")) continue;
                    CHECK(mode_of(entry.path().string()) == mode);
                    ++others;
                }
                CHECK(others == 1);
            }
            filled.save_to(path);
            CHECK(mode_of(path) == mode);
        }
    }
    CHECK(folder.files() == 4);
}

TEST_CASE("saving leaves the files of other threads their permissions") {
    const Filled filled;
    const Folder folder;
    const Umask set(0022);
    std::atomic<bool> done{false};
    std::atomic<std::size_t> made{0}, wrong{0};
    std::thread other([&] {
        const std::string path = folder / "other";
        while (!done) {
            const int file = ::open(path.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0666);
            struct stat about {};
            wrong += file < 0 || ::fstat(file, &about) != 0 || (about.st_mode & 0777U) != 0644 ? 1U : 0U;
            ::close(file);
            ::unlink(path.c_str());
            ++made;
        }
    });
    for (std::size_t i = 0; i < 200 || made < 1000; ++i) filled.save_to(folder / "cache.xq");
    done = true;
    other.join();
    INFO(made << " files");
    CHECK(wrong == 0);
}

TEST_CASE("a link stays a link, and what it leads to is replaced") {
    const Filled filled;
    const Folder folder;
    std::filesystem::create_directory(folder / "far");
    const std::string target = folder / "far/cache.xq", link = folder / "link", chain = folder / "chain";
    test::write_bytes(target, "old");
    REQUIRE(::chmod(target.c_str(), 0600) == 0);
    std::filesystem::create_symlink("far/cache.xq", link);
    std::filesystem::create_symlink(link, chain);
    for (const std::string& path : {link, chain}) {
        filled.save_to(path);
        CHECK(std::filesystem::is_symlink(path));
        CHECK(std::filesystem::is_regular_file(std::filesystem::symlink_status(target)));
        CHECK(inspect(target).sequences.size() == 1);
        CHECK(mode_of(target) == 0600);
        test::write_bytes(target, "old");
    }
    const std::string dangling = folder / "dangling", round = folder / "round";
    std::filesystem::create_symlink("far/new.xq", dangling);
    filled.save_to(dangling);
    CHECK(std::filesystem::is_symlink(dangling));
    CHECK(inspect(folder / "far/new.xq").sequences.size() == 1);
    std::filesystem::create_symlink("round", round);
    CHECK(has(refusal([&] { filled.save_to(round); }), "cannot write"));
    CHECK(folder.files() == 5);
    std::filesystem::current_path(folder / "far");  // a name without a folder
    filled.save_to("here.xq");
    std::filesystem::current_path("/");
    CHECK(inspect(folder / "far/here.xq").sequences.size() == 1);
}

TEST_CASE("a program that is started while a file is written gets no descriptor of it") {
    const Folder folder;
    const auto descriptors = [] {
        std::FILE* const list = ::popen("ls -l /proc/self/fd", "r");
        REQUIRE(list != nullptr);
        std::string text;
        char some[256];
        while (std::fgets(some, sizeof some, list) != nullptr) text += some;
        ::pclose(list);
        REQUIRE(has(text, " 1 -> pipe"));
        return text;
    };
    const int plain = ::open((folder / "plain").c_str(), O_CREAT | O_WRONLY, 0600);
    REQUIRE(has(descriptors(), folder / "plain"));  // such a file would be seen
    ::close(plain);
    const detail::ReplacingFile file(folder / "cache.xq");
    CHECK_FALSE(has(descriptors(), folder / ""));
}

TEST_CASE("what is no regular file is neither read nor replaced, and nothing waits for it") {
    const Filled filled;
    const Folder folder;
    const std::string fifo = folder / "fifo";
    REQUIRE(::mkfifo(fifo.c_str(), 0600) == 0);
    std::filesystem::create_symlink("fifo", folder / "link");
    for (const std::string& path : {fifo, folder / "link", folder / "", std::string("/dev/null")}) {
        INFO(path);
        CHECK(has(refusal([&] { static_cast<void>(load(*filled.cache, path)); }), "it is no regular file"));
        CHECK(has(refusal([&] { static_cast<void>(inspect(path)); }), "it is no regular file"));
        // A library that got this wrong would replace the machine's device.
        if (path == "/dev/null") continue;
        CHECK(has(refusal([&] { filled.save_to(path); }), "it is no regular file"));
    }
    CHECK(folder.files() == 2);
}

TEST_CASE("a file that is larger than the memory is mapped") {
    std::ifstream setting("/proc/sys/vm/overcommit_memory");
    int strict = 0;
    setting >> strict;
    if (strict == 2) {
        WARN("skipped: this machine reserves memory for every mapping");
        return;
    }
    const Filled filled;
    const Folder folder;
    const std::string path = folder / "large.xq";
    filled.save_to(path);
    const auto size = std::filesystem::file_size(path);
    const std::uintmax_t memory =
        static_cast<std::uintmax_t>(::sysconf(_SC_PHYS_PAGES)) * static_cast<std::uintmax_t>(::sysconf(_SC_PAGE_SIZE));
    std::filesystem::resize_file(path, 8 * memory);  // a hole: it takes no room on the disk
    // It was mapped where its size is compared with what its header says.
    const std::string says = "the file has " + std::to_string(8 * memory) + " bytes, and its header says ";
    CHECK(has(refusal([&] { static_cast<void>(load(*filled.cache, path)); }), says + std::to_string(size)));
    CHECK(has(refusal([&] { static_cast<void>(inspect(path)); }), says + std::to_string(size)));
}

TEST_CASE("rows that several layers read are saved once, and a file says which layer they are of") {
    const auto model = [](std::size_t rows_of) {
        test::Setup setup = test::small_model();
        setup.model.layers[3].rows_of = rows_of;
        return setup;
    };
    const test::Setup borrowing = model(1), other = model(0), own = model(Layer::itself);
    const auto make = [](const test::Setup& setup) { return test::scheme("x rotated 3").make(setup.model, {}); };
    const auto cache = make(borrowing), again = make(borrowing);
    const std::vector<Sequence> list{cache->create()};
    {
        auto step = cache->begin({{list[0], 300}});
        for (std::size_t layer = 0; layer < 3; ++layer) {
            const test::Rows rows = test::rows_of(borrowing.model.layers[layer], layer, 1, 0, 300);
            step.append(layer, MatrixView(rows.x.data(), 300, 24));
        }
        step.commit();
    }
    std::stringstream file;
    save(*cache, list, file);
    CHECK(file.str().size() == saved_bytes(*cache, list));
    const Loaded loaded = load(*again, file);
    const test::Rows rows = test::rows_of(borrowing.model.layers[3], 3, 1, 0, 5);
    std::vector<float> wanted(5 * 32), found(5 * 32);
    for (std::size_t layer = 0; layer < 4; ++layer) {
        cache->attend(layer, {{list[0], 5}}, MatrixView(rows.q.data(), 5, 32), wanted.data());
        again->attend(layer, {{loaded.sequences[0], 5}}, MatrixView(rows.q.data(), 5, 32), found.data());
        CHECK(wanted == found);
    }
    const auto refusal_of = [&](const test::Setup& setup) {
        std::stringstream copy(file.str());
        return refusal([&] { static_cast<void>(load(*make(setup), copy)); });
    };
    CHECK(refusal_of(own).find("layer 3 has 0 streams there and 1 here") != std::string::npos);
    CHECK(refusal_of(other).find("layer 3: layer whose rows are read: 1 there, 0 here") != std::string::npos);
}
