// What a file holds, without a cache to read it.
#pragma once

#include <string>
#include <vector>

#include <xquant/persistence/load.hpp>

namespace xquant {

/// One stream of a layer in a saved cache.
struct SavedStreamInfo {
    std::size_t width = 0;         ///< channels of a coded row
    unsigned bits = 0;             ///< of a code, or of a value where rows are not quantized
    bool quantized = true;         ///< whether rows are in codes
    std::size_t group_tokens = 1,  ///< tokens of a group
        group_channels = 1;        ///< channels of a group
};

/// A sequence in a saved cache.
struct SavedSequenceInfo {
    std::size_t tokens = 0;          ///< as Cache::size
    std::int64_t next_position = 0;  ///< as Cache::next_position
    std::size_t segments = 0,        ///< runs of neighbouring tokens in a page; of all layers together
        pages = 0;                   ///< of all layers together
};

/// What a saved cache says of itself.
struct FileInfo {
    std::uint32_t version = 0;                          ///< of the file format
    std::string note;                                   ///< what save was given
    std::size_t file_bytes = 0;                         ///< of the whole file
    std::size_t sinks = 0;                              ///< Options::sinks of the cache that was saved
    std::vector<LayerShape> shapes;                     ///< [layers]
    std::vector<std::vector<SavedStreamInfo>> streams;  ///< [layers][streams]
    bool cross_layer = false;                           ///< some layers store differences
    std::vector<SavedSequenceInfo> sequences;           ///< in the order in which they were saved
    std::size_t coded_pages = 0,                        ///< pages of codes
        requantized_pages = 0,                          ///< pages that were rewritten with fewer bits
        tail_pages = 0,                                 ///< pages of newest rows
        sink_pages = 0;                                 ///< pages of first rows
    std::vector<std::size_t> damaged_pages;             ///< numbers of the pages whose checksum is wrong
};

inline namespace XQUANT_ABI_NS {

/// Reads the description of a saved cache and compares every checksum. A damaged page is reported, not thrown: the rest
/// is worth seeing. Throws file_error, damage_error where header or description are damaged or bytes follow behind the
/// last page, mismatch_error for another version.
inline FileInfo inspect(const std::string& path) {
    using namespace detail;
    const MappedFile file = map_file(path);
    const FileHeader header = header_of(file.bytes);
    expects<damage_error>(file.bytes.size() <= header.file_bytes, "saved cache: the file has ", file.bytes.size(),
                          " bytes, and its header says ", header.file_bytes);
    const std::size_t begin = pages_begin(static_cast<std::size_t>(header.description_bytes));
    expects<damage_error>(begin <= file.bytes.size(), "saved cache: the file ends within its description");
    const Description about = description_of(header, file.bytes.subspan(file_header_bytes, begin - file_header_bytes));
    FileInfo out;
    out.version = file_version;
    out.note = about.note;
    out.file_bytes = file.bytes.size();
    out.sinks = static_cast<std::size_t>(about.sinks);
    for (const SavedLayer& layer : about.layers) {
        out.shapes.push_back(layer.shape);
        out.cross_layer |= layer.role == CrossRole::difference;
        auto& streams = out.streams.emplace_back();
        for (const SavedStream& stream : layer.streams) {
            streams.push_back({stream.coded.width, stream.coded.bits, stream.coded.quantized(),
                               stream.coded.group_tokens, stream.coded.group_channels});
        }
    }
    for (const auto& states : about.sequences) {
        SavedSequenceInfo& info = out.sequences.emplace_back();
        std::vector<std::uint64_t> pages;
        for (const SavedState& state : states) {
            info.tokens = static_cast<std::size_t>(state.tokens);
            info.next_position = state.next_position;
            info.segments += state.segments.size();
            for (const SavedSegment& segment : state.segments) pages.push_back(segment.page);
        }
        std::sort(pages.begin(), pages.end());
        info.pages = static_cast<std::size_t>(std::unique(pages.begin(), pages.end()) - pages.begin());
    }
    const std::vector<std::size_t> places = record_places(header, about);
    std::uint64_t before = header.description_hash;
    for (std::size_t i = 0; i < places.size(); ++i) {
        const SavedPage& page = about.pages[i];
        ++(page.kind == PageKind::coded         ? out.coded_pages
           : page.kind == PageKind::requantized ? out.requantized_pages
           : page.kind == PageKind::rows        ? out.tail_pages
                                                : out.sink_pages);
        const auto bytes = static_cast<std::size_t>(page.bytes);
        const std::size_t size = padded(record_bytes + bytes);
        const bool sound = places[i] + size <= file.bytes.size() &&
                           is_sound(file.bytes.subspan(places[i], size), i, bytes, true, before);
        if (!sound) out.damaged_pages.push_back(i);
    }
    return out;
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
