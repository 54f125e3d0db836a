// Files by POSIX calls: written under another name and renamed when complete, or mapped into memory.
#pragma once

#if !__has_include(<sys/mman.h>)
#error "xquant/persistence/file.hpp needs a POSIX system: it maps files by mmap and renames them by rename"
#endif
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include <xquant/persistence/bytes.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

[[noreturn]] inline void raise_errno(const std::string& what, const std::string& path) {
    const int number = errno;
    raise<file_error>(what + " " + path + ": " + std::strerror(number));
}

class Descriptor {
public:
    explicit Descriptor(int number) noexcept : number_(number) {}
    Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
    Descriptor& operator=(Descriptor&& other) noexcept {
        std::swap(number_, other.number_);
        return *this;
    }
    ~Descriptor() {
        if (number_ >= 0) ::close(number_);
    }
    [[nodiscard]] int get() const noexcept { return number_; }
    /// Whether it was closed without an error.
    bool close() noexcept { return ::close(std::exchange(number_, -1)) == 0; }

private:
    int number_;
};

/// The folder that a path names a file in, with a slash at its end.
inline std::string folder_of(const std::string& path) {
    const std::size_t slash = path.rfind('/');
    return slash == std::string::npos ? "./" : path.substr(0, slash + 1);
}

/// What a path leads to where it is a symbolic link, whether or not there is a file; else the path. Throws file_error.
inline std::string end_of_links(std::string path) {
    for (int links = 0; links < 40; ++links) {
        std::array<char, 4096> text;
        const ssize_t n = ::readlink(path.c_str(), text.data(), text.size());
        if (n <= 0) return path;
        const std::string to(text.data(), static_cast<std::size_t>(n));
        path = to.front() == '/' ? to : folder_of(path) + to;
    }
    errno = ELOOP;
    raise_errno("cannot write", path);
}

/// A file that replaces `path` when it is complete. Until then it has another name in the same folder, and is removed
/// if it is never completed. A process that is killed leaves the old file as it was, and perhaps the unfinished one.
///
/// The new file has the permissions of the one that it replaces, else what the umask leaves of 0666. A link stays, and
/// what it leads to is replaced.
class ReplacingFile {
public:
    /// Throws file_error.
    explicit ReplacingFile(const std::string& path) : path_(end_of_links(path)) {
        struct stat old {};
        const bool replaces = ::stat(path_.c_str(), &old) == 0;
        expects<file_error>(!replaces || S_ISREG(old.st_mode), "cannot write ", path_, ": it is no regular file");
        // The umask cannot be read without setting it, which other threads would notice: open applies it.
        const mode_t mode = replaces ? old.st_mode & 0777U : 0666U;
        static std::atomic<unsigned> count{0};
        do {
            name_ = path_ + "." + std::to_string(::getpid()) + "-" + std::to_string(count++);
            file_ = Descriptor(::open(name_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode));
        } while (file_.get() < 0 && errno == EEXIST);
        if (file_.get() < 0) raise_errno("cannot write", name_);
        Undo undo([&] { ::unlink(name_.c_str()); });
        struct stat made {};
        if (::fstat(file_.get(), &made) != 0) raise_errno("cannot write", name_);
        const bool kept = !replaces || (made.st_mode & 0777U) == mode || ::fchmod(file_.get(), mode) == 0;
        if (!kept) raise_errno("cannot set the permissions of", name_);
        undo.release();
    }
    ReplacingFile(const ReplacingFile&) = delete;
    ReplacingFile& operator=(const ReplacingFile&) = delete;
    ~ReplacingFile() {
        if (!done_) ::unlink(name_.c_str());
    }

    /// Throws file_error.
    void write(std::span<const std::byte> bytes) {
        while (!bytes.empty()) {
            const ssize_t n = ::write(file_.get(), bytes.data(), bytes.size());
            if (n < 0 && errno == EINTR) continue;
            if (n < 0) raise_errno("cannot write", name_);
            bytes = bytes.subspan(static_cast<std::size_t>(n));
        }
    }

    /// The file is on the disk, then it has its name. Throws file_error.
    void replace() {
        if (::fsync(file_.get()) != 0 || !file_.close()) raise_errno("cannot write", name_);
        if (::rename(name_.c_str(), path_.c_str()) != 0) raise_errno("cannot rename to", path_);
        done_ = true;
        // The name is on the disk, too, as far as the folder's file system cares.
        const Descriptor directory(::open(folder_of(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
        if (directory.get() >= 0) ::fsync(directory.get());
    }

private:
    std::string path_, name_;
    Descriptor file_{-1};
    bool done_ = false;
};

/// A file in memory, which this process may change without changing the file.
struct MappedFile {
    std::shared_ptr<void> owner;
    std::span<std::byte> bytes;
};

/// Throws file_error.
inline MappedFile map_file(const std::string& path) {
    // Without O_NONBLOCK, opening a FIFO waits for a writer.
    const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    struct stat about {};
    if (file.get() < 0 || ::fstat(file.get(), &about) != 0) raise_errno("cannot read", path);
    expects<file_error>(S_ISREG(about.st_mode), "cannot read ", path, ": it is no regular file");
    const auto size = static_cast<std::size_t>(about.st_size);
    expects<damage_error>(size > 0, "saved cache: the file is empty");
    // Only headers of pages are written. Without MAP_NORESERVE the kernel counts the whole file as memory that may be
    // needed, and refuses one that is larger than what the machine has.
    void* memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, file.get(), 0);
    if (memory == MAP_FAILED) raise_errno("cannot map", path);
    return {std::shared_ptr<void>(memory, [size](void* at) { ::munmap(at, size); }),
            {static_cast<std::byte*>(memory), size}};
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
