// Sequences of a cache, written front to back: to a callable, to a stream, or to a file that replaces the old one when
// it is complete.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <functional>
#include <map>
#include <ostream>
#include <span>
#include <string>

#include <xquant/cache.hpp>
#include <xquant/persistence/file.hpp>
#include <xquant/persistence/layout.hpp>
#include <xquant/persistence/rules.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// The pages of sequences, each once, and where they stand in the file.
struct PageList {
    std::map<const Page*, std::size_t, std::less<>> numbers;
    std::vector<PageRef> pages;
};

inline PageList list_pages(Core& core, std::span<const Sequence> sequences, Description& about) {
    PageList list;
    for (const Sequence sequence : sequences) {
        const Slot& slot = core.find_idle(sequence);
        auto& states = about.sequences.emplace_back();
        for (std::size_t i = 0; i < slot.states.size(); ++i) {
            const SequenceState& state = slot.states[i];
            SavedState& saved = states.emplace_back();
            saved.tokens = state.tokens;
            saved.next_position = state.next_position;
            saved.rope_lag = state.rope_lag;
            for (const Segment& segment : state.segments) {
                const Page* page = segment.page.get();
                const auto [at, added] = list.numbers.try_emplace(page, list.pages.size());
                if (added) {
                    list.pages.push_back(segment.page);
                    about.pages.push_back({static_cast<std::uint32_t>(i), page->format().kind, 0, page->data().size()});
                }
                std::uint64_t& filled = about.pages[at->second].filled;
                filled = (std::max)(filled, std::uint64_t{segment.end});
                saved.segments.push_back(
                    {at->second, segment.begin, segment.end, segment.first_position, segment.rope_lag});
            }
        }
    }
    return list;
}

/// Bytes of the file that holds a description, padded or not, and its pages.
inline std::uint64_t file_bytes_of(std::size_t description_bytes, const Description& about) {
    std::uint64_t bytes = pages_begin(description_bytes);
    for (const SavedPage& page : about.pages) bytes += padded(record_bytes + static_cast<std::size_t>(page.bytes));
    return bytes;
}

template <class Write>
void write_cache(Core& core, std::span<const Sequence> sequences, const std::string& note, Write&& write) {
    Description about = describe(core);
    about.note = note;
    const PageList list = list_pages(core, sequences, about);
    std::vector<std::byte> description = to_bytes(about);
    FileHeader header;
    header.description_bytes = description.size();
    header.file_bytes = file_bytes_of(description.size(), about);
    description.resize(pages_begin(description.size()) - file_header_bytes);
    header.description_hash = hash_of(description);
    write(std::span<const std::byte>(to_bytes(header)));
    write(std::span<const std::byte>(description));
    std::vector<std::byte> copied;  // of a page on a device
    std::uint64_t before = header.description_hash;
    for (std::size_t i = 0; i < list.pages.size(); ++i) {
        std::span<const std::byte> data = std::as_const(*list.pages[i].get()).data();
        if (PageMemory* const device = core.ledger().page_memory(); device != nullptr) {
            copied.resize(data.size());
            device->read(copied.data(), data.data(), data.size());
            data = copied;
        }
        const auto padding = padding_after(record_bytes + data.size());
        PageRecord record{0, i, data.size()};
        record.hash = before = page_hash(before, to_bytes(record), data, padding);
        write(std::span<const std::byte>(to_bytes(record)));
        write(data);
        write(padding);
    }
}

}  // namespace detail

/// Something that save hands bytes to: a callable that takes a std::span<const std::byte>, in order and front to back.
/// It returns nothing, or false where it takes no more.
template <class T> concept byte_sink = requires(T& sink, std::span<const std::byte> bytes) {
    requires std::same_as<decltype(sink(bytes)), void> || std::same_as<decltype(sink(bytes)), bool>;
};

/// Hands sequences to `sink`, front to back, piece by piece: the bytes that a file of them has. Pages that they share
/// come once. `note` is kept as it is: the ids of the tokens, say. The cache does not change. Throws sequence_error,
/// file_error where the sink returns false, and what the sink throws. Cost: reads and hashes what the sequences take,
/// and all weights once.
template <class Cache, byte_sink Sink>
void save(const Cache& cache, std::span<const Sequence> sequences, Sink&& sink, const std::string& note = {}) {
    std::uint64_t taken = 0;
    detail::write_cache(detail::CacheAccess::core(cache), sequences, note, [&](std::span<const std::byte> bytes) {
        if constexpr (std::same_as<decltype(sink(bytes)), bool>) {
            const bool takes = sink(bytes);
            detail::expects<file_error>(takes, "saved cache: the sink took ", taken, " bytes and refused ",
                                        bytes.size(), " more");
        } else {
            sink(bytes);
        }
        taken += bytes.size();
    });
}

/// How many bytes save writes of these sequences. Throws sequence_error. Cost: a look at each page's place in the
/// sequences; neither pages nor matrices are read.
template <class Cache>
[[nodiscard]] std::uint64_t saved_bytes(const Cache& cache, std::span<const Sequence> sequences,
                                        const std::string& note = {}) {
    detail::Core& core = detail::CacheAccess::core(cache);
    detail::Description about = detail::describe(core, detail::Weights::left_out);
    about.note = note;
    static_cast<void>(detail::list_pages(core, sequences, about));
    return detail::file_bytes_of(detail::to_bytes(about).size(), about);
}

/// Like save into a sink, but into a stream, which may be a pipe. Throws file_error where it fails.
template <class Cache>
void save(const Cache& cache, std::span<const Sequence> sequences, std::ostream& out, const std::string& note = {}) {
    const auto write = [&out](std::span<const std::byte> bytes) {
        out.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
        detail::expects<file_error>(static_cast<bool>(out), "saved cache: writing to the stream failed");
    };
    save(cache, sequences, write, note);
    out.flush();
    detail::expects<file_error>(static_cast<bool>(out), "saved cache: writing to the stream failed");
}

/// Like save into a sink, but into a file. It is written under another name and replaces `path` once it is complete
/// and on the disk: whatever happens before, a file that was there is as it was. A file that is replaced keeps its
/// permissions, a new one has what the umask leaves; where `path` is a symbolic link, what it leads to is replaced.
/// Throws sequence_error, file_error (also where `path` is a folder, a FIFO or a device).
template <class Cache>
void save(const Cache& cache, std::span<const Sequence> sequences, const std::string& path,
          const std::string& note = {}) {
    detail::ReplacingFile file(path);
    save(
        cache, sequences, [&file](std::span<const std::byte> bytes) { file.write(bytes); }, note);
    file.replace();
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
