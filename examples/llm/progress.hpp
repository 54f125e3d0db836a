/// A progress bar on stderr. Where stderr is no terminal it prints nothing, so logs stay clean.
#pragma once

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <string>
#include <utility>

namespace llm {

class Progress {
public:
    explicit Progress(std::size_t total)
        : total_(std::max<std::size_t>(total, 1)), shown_(isatty(STDERR_FILENO) != 0) {}
    ~Progress() { clear(); }
    Progress(const Progress&) = delete;
    Progress& operator=(const Progress&) = delete;

    void label(std::string text) {
        label_ = std::move(text);
        draw();
    }

    void advance(std::size_t amount) {
        done_ = std::min(total_, done_ + amount);
        draw();
    }

    /// Takes the bar off the screen, so that a line can be printed in its place.
    void clear() const {
        if (shown_) std::fputs("\r\033[K", stderr);
    }

private:
    void draw() const {
        if (!shown_) return;
        constexpr std::size_t width = 30;
        const std::size_t full = done_ * width / total_;
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
        const double left = done_ ? seconds * static_cast<double>(total_ - done_) / static_cast<double>(done_) : 0;
        fmt::print(stderr, "\r\033[K[{:#<{}}{:.<{}}] {:3} % {} ({:.0f} s left)", "", full, "", width - full,
                   done_ * 100 / total_, label_, left);
        std::fflush(stderr);
    }

    std::size_t total_, done_ = 0;
    bool shown_;
    std::string label_;
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace llm
