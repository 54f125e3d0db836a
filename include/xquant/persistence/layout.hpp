// The layout of a saved cache. docs/format.md draws it.
//
//     0     64 bytes of header: magic, version, sizes, checksum
//     64    the description (description.hpp), zeros up to a multiple of 4096, its checksum in the header
//     ...   pages, each at a multiple of 4096: 64 bytes of record, then its bytes as a cache has them, zeros up to 4096
//
// Every byte, padding too, is covered by a checksum (XXH3, 64 bits), and a page's covers the checksum before it: pages
// of two files do not make one. A page's record has the size of a page's header in memory, so a mapped file serves as
// pages: the header is written over the record, in memory that only this process sees.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include <xquant/persistence/description.hpp>

#define XXH_INLINE_ALL
XQUANT_UNDEFINED_REGISTERS_BEGIN
#include <xxhash.h>
XQUANT_UNDEFINED_REGISTERS_END

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

inline constexpr char file_magic[8] = {'X', 'Q', 'C', 'A', 'C', 'H', 'E', '\n'};
inline constexpr std::uint32_t file_version = 2;
inline constexpr std::size_t file_header_bytes = 64, file_step = 4096, record_bytes = 64;
static_assert(record_bytes == page_header_bytes, "a page's header is written over its record");
static_assert(std::endian::native == std::endian::little, "pages are saved as they are, and those are little-endian");

/// The header, as 64 bytes.
struct FileHeader {
    std::uint64_t description_bytes = 0;  ///< without padding
    std::uint64_t file_bytes = 0;         ///< of the whole file
    std::uint64_t description_hash = 0;   ///< of the padded description
};

/// The record before a page's bytes, as 64 bytes.
struct PageRecord {
    /// Of the hash before it (of the page before, or of the description), the record behind it, the page's bytes and
    /// the padding.
    std::uint64_t hash = 0;
    std::uint64_t number = 0;
    std::uint64_t bytes = 0;  ///< of the page, without padding
};

constexpr std::size_t padded(std::size_t bytes) noexcept { return round_up(bytes, file_step); }
/// Where the first page's record lies.
constexpr std::size_t pages_begin(std::size_t description_bytes) noexcept {
    return padded(file_header_bytes + description_bytes);
}

inline std::uint64_t hash_of(std::span<const std::byte> bytes) noexcept {
    return XXH3_64bits(bytes.data(), bytes.size());
}

/// A hash of several pieces, one after another.
class Hasher {
public:
    Hasher() noexcept { XXH3_64bits_reset(&state_); }
    void add(std::span<const std::byte> bytes) noexcept { XXH3_64bits_update(&state_, bytes.data(), bytes.size()); }
    [[nodiscard]] std::uint64_t value() const noexcept { return XXH3_64bits_digest(&state_); }

private:
    XXH3_state_t state_;
};

inline std::vector<std::byte> to_bytes(const FileHeader& header) {
    ByteWriter out;
    for (const char c : file_magic) out.put(static_cast<std::uint8_t>(c));
    out.put(file_version);
    out.put(std::uint32_t{0});
    out.put(header.description_bytes);
    out.put(header.file_bytes);
    out.put(header.description_hash);
    out.bytes.resize(file_header_bytes - sizeof(std::uint64_t));
    out.put(hash_of(out.bytes));
    return out.bytes;
}

/// Throws damage_error, mismatch_error for another version.
inline FileHeader header_of(std::span<const std::byte> bytes) {
    expects<damage_error>(bytes.size() >= file_header_bytes, "saved cache: it has ", bytes.size(),
                          " bytes; a header takes ", file_header_bytes);
    expects<damage_error>(std::memcmp(bytes.data(), file_magic, sizeof file_magic) == 0,
                          "not a saved cache: it does not begin with XQCACHE");
    ByteReader in(bytes.subspan(sizeof file_magic, file_header_bytes - sizeof file_magic));
    const auto version = in.get<std::uint32_t>();
    ByteReader end(bytes.subspan(file_header_bytes - sizeof(std::uint64_t), sizeof(std::uint64_t)));
    const bool intact = hash_of(bytes.first(file_header_bytes - sizeof(std::uint64_t))) == end.get<std::uint64_t>();
    if (intact && version != file_version) {
        raise<mismatch_error>("saved cache: the file has version ", version, ", this build reads version ",
                              file_version);
    }
    expects<damage_error>(intact, "saved cache: its header is damaged");
    static_cast<void>(in.get<std::uint32_t>());
    FileHeader header;
    header.description_bytes = in.get<std::uint64_t>();
    header.file_bytes = in.get<std::uint64_t>();
    header.description_hash = in.get<std::uint64_t>();
    expects<damage_error>(
        header.description_bytes <= header.file_bytes && header.file_bytes <= (std::uint64_t{1} << 56U),
        "saved cache: its header is damaged");
    return header;
}

inline std::vector<std::byte> to_bytes(const PageRecord& record) {
    ByteWriter out;
    out.put(record.hash);
    out.put(record.number);
    out.put(record.bytes);
    out.bytes.resize(record_bytes);
    return out.bytes;
}

inline PageRecord record_of(std::span<const std::byte> bytes) {
    ByteReader in(bytes);
    PageRecord record;
    record.hash = in.get<std::uint64_t>();
    record.number = in.get<std::uint64_t>();
    record.bytes = in.get<std::uint64_t>();
    return record;
}

/// The zeros behind `bytes` bytes.
inline std::span<const std::byte> padding_after(std::size_t bytes) noexcept {
    static constexpr std::byte zeros[file_step]{};
    return {zeros, padded(bytes) - bytes};
}

/// Hash of the hash before a page, and of the page's record, bytes and padding.
inline std::uint64_t page_hash(std::uint64_t before, std::span<const std::byte> record, std::span<const std::byte> data,
                               std::span<const std::byte> padding) noexcept {
    Hasher hasher;
    hasher.add(std::as_bytes(std::span(&before, 1)));
    hasher.add(record.subspan(sizeof(std::uint64_t)));
    hasher.add(data);
    hasher.add(padding);
    return hasher.value();
}

/// Whether a page in a file (record, bytes and padding) has a record with this number and size and, if `verify`, the
/// hash that its record says. `before` is the hash before the page, and becomes the one that the record says.
inline bool is_sound(std::span<const std::byte> page, std::size_t number, std::size_t bytes, bool verify,
                     std::uint64_t& before) {
    const auto record = page.first(record_bytes);
    const PageRecord found = record_of(record);
    const std::uint64_t last = std::exchange(before, found.hash);
    return found.number == number && found.bytes == bytes &&
           (!verify || found.hash == page_hash(last, record, page.subspan(record_bytes, bytes),
                                               page.subspan(record_bytes + bytes)));
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
