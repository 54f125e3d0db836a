/// A saved cache as bytes, and its parts: so that tests change one of them and make every checksum right again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <xquant/persistence.hpp>

#include "support/schemes.hpp"

namespace test {

inline std::string saved(const Cache& cache, const std::vector<xquant::Sequence>& sequences,
                         const std::string& note = "") {
    std::ostringstream out;
    save(cache, sequences, out, note);
    return out.str();
}

inline std::span<const std::byte> span_of(const std::string& bytes) { return std::as_bytes(std::span(bytes)); }

inline xquant::Loaded load_bytes(Cache& cache, const std::string& bytes, const xquant::LoadOptions& options = {}) {
    std::istringstream in(bytes);
    return load(cache, in, options);
}

class SavedFile {
public:
    explicit SavedFile(std::string file) : bytes(std::move(file)) {
        const auto all = writable();
        const xquant::detail::FileHeader header = xquant::detail::header_of(all);
        const std::size_t begin = pages_begin(header);
        about = xquant::detail::description_of(header, all.subspan(64, begin - 64));
        places = xquant::detail::record_places(header, about);
    }

    /// Of the file's first byte of a page, behind its record.
    [[nodiscard]] std::byte* page(std::size_t number) { return writable().data() + places[number] + 64; }

    /// Changes to `bytes` get the checksums that they need.
    void seal() {
        const auto all = writable();
        xquant::detail::FileHeader header = xquant::detail::header_of(all);
        header.description_hash = xquant::detail::hash_of(all.subspan(64, pages_begin(header) - 64));
        put(0, xquant::detail::to_bytes(header));
        std::uint64_t before = header.description_hash;
        for (std::size_t i = 0; i < places.size(); ++i) {
            const std::size_t size = static_cast<std::size_t>(about.pages[i].bytes), at = places[i];
            const auto record = all.subspan(at, 64);
            xquant::detail::PageRecord found = xquant::detail::record_of(record);
            found.hash = before =
                xquant::detail::page_hash(before, record, all.subspan(at + 64, size),
                                          all.subspan(at + 64 + size, xquant::detail::padding_after(64 + size).size()));
            put(at, xquant::detail::to_bytes(found));
        }
    }

    /// The file that `about` describes; f(number, bytes) fills each page.
    template <class F>
    [[nodiscard]] std::string rewritten(F&& fill) const {
        std::vector<std::byte> description = xquant::detail::to_bytes(about);
        xquant::detail::FileHeader header;
        header.description_bytes = description.size();
        description.resize(pages_begin(header) - 64);
        header.description_hash = xquant::detail::hash_of(description);
        header.file_bytes = 64 + description.size();
        for (const auto& one : about.pages) {
            header.file_bytes += xquant::detail::padded(64 + static_cast<std::size_t>(one.bytes));
        }
        std::string out;
        std::uint64_t before = header.description_hash;
        const auto add = [&out](std::span<const std::byte> part) {
            out.append(reinterpret_cast<const char*>(part.data()), part.size());
        };
        add(xquant::detail::to_bytes(header));
        add(description);
        for (std::size_t i = 0; i < about.pages.size(); ++i) {
            std::vector<std::byte> data(static_cast<std::size_t>(about.pages[i].bytes));
            fill(i, std::span(data));
            const auto padding = xquant::detail::padding_after(64 + data.size());
            xquant::detail::PageRecord record{0, i, data.size()};
            record.hash = before = xquant::detail::page_hash(before, xquant::detail::to_bytes(record), data, padding);
            add(xquant::detail::to_bytes(record));
            add(data);
            add(padding);
        }
        return out;
    }

    std::string bytes;
    xquant::detail::Description about;
    std::vector<std::size_t> places;  ///< of the pages' records

private:
    static std::size_t pages_begin(const xquant::detail::FileHeader& header) {
        return xquant::detail::pages_begin(static_cast<std::size_t>(header.description_bytes));
    }
    std::span<std::byte> writable() { return std::as_writable_bytes(std::span(bytes.data(), bytes.size())); }
    void put(std::size_t at, const std::vector<std::byte>& part) {
        std::memcpy(bytes.data() + at, part.data(), part.size());
    }
};

}  // namespace test
