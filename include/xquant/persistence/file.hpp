// Files by POSIX calls: written under another name and renamed when complete, or mapped into memory.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
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
    Descriptor& operator=(Descriptor&&) = delete;
    ~Descriptor() {
        if (number_ >= 0) ::close(number_);
    }
    [[nodiscard]] int get() const noexcept { return number_; }
    /// Whether it was closed without an error.
    bool close() noexcept { return ::close(std::exchange(number_, -1)) == 0; }

private:
    int number_;
};

/// A file that replaces `path` when it is complete. Until then it has another name in the same folder, and is removed
/// if it is never completed. A process that is killed leaves the old file as it was, and perhaps the unfinished one.
class ReplacingFile {
public:
    /// Throws file_error.
    explicit ReplacingFile(std::string path)
        : path_(std::move(path)), name_(path_ + ".XXXXXX"), file_(::mkstemp(name_.data())) {
        if (file_.get() < 0) raise_errno("cannot write", name_);
        // mkstemp makes it private; files of a program usually are what its umask says.
        const mode_t mask = ::umask(0);
        ::umask(mask);
        ::fchmod(file_.get(), 0666 & ~mask);
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
        const std::size_t slash = path_.rfind('/');
        const std::string folder = slash == std::string::npos ? "." : path_.substr(0, slash + 1);
        const Descriptor directory(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
        if (directory.get() >= 0) ::fsync(directory.get());
    }

private:
    std::string path_, name_;
    Descriptor file_;
    bool done_ = false;
};

/// A file in memory, which this process may change without changing the file.
struct MappedFile {
    std::shared_ptr<void> owner;
    std::span<std::byte> bytes;
};

/// Throws file_error.
inline MappedFile map_file(const std::string& path) {
    const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    struct stat about {};
    if (file.get() < 0 || ::fstat(file.get(), &about) != 0) raise_errno("cannot read", path);
    expects<file_error>(S_ISREG(about.st_mode), "saved cache: not a regular file");
    const auto size = static_cast<std::size_t>(about.st_size);
    expects<damage_error>(size > 0, "saved cache: the file is empty");
    void* memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, file.get(), 0);
    if (memory == MAP_FAILED) raise_errno("cannot map", path);
    return {std::shared_ptr<void>(memory, [size](void* at) { ::munmap(at, size); }),
            {static_cast<std::byte*>(memory), size}};
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
