// Loads saved sequences into a cache of the same scheme and model, from a callable, a stream, bytes in memory or a
// mapped file; or encodes them anew for another scheme.
#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstring>
#include <istream>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <xquant/cache.hpp>
#include <xquant/persistence/file.hpp>
#include <xquant/persistence/fit.hpp>
#include <xquant/persistence/layout.hpp>

namespace xquant {

inline namespace XQUANT_ABI_NS {
namespace detail {

template <class Backend>
class Loader {
public:
    /// Throws damage_error, mismatch_error.
    Loader(Core& core, const FileHeader& header, Description file, const LoadOptions& options)
        : core_(&core), file_(std::move(file)), options_(options), hash_(header.description_hash) {
        const Description own = describe(core);
        check_rows(file_, own);
        const std::string other = code_difference(file_, own);
        expects<mismatch_error>(other.empty() || options.transcode,
                                "saved cache: the file is of another quantizer or layout: ", other,
                                "; LoadOptions::transcode decodes its rows and encodes them again");
        check_sequences(file_, core);
        formats_.reserve(core.page_groups() * kinds);
        for (std::uint32_t page_group = 0; page_group < core.page_groups(); ++page_group) {
            for (std::uint32_t kind = 0; kind < kinds; ++kind) {
                formats_.push_back(
                    format_of(core.ledger(), file_, page_group, static_cast<PageKind>(kind), core.streams()));
            }
        }
        for (const SavedPage& page : file_.pages) {
            expects<damage_error>(page.bytes == source(page).sizes.total - page_header_bytes,
                                  "saved cache: a page has another size than its scheme gives it");
        }
    }

    [[nodiscard]] const Description& file() const noexcept { return file_; }

    /// Page after page: a record [64], what lies behind it, and zeros, at `at`, which `owner` keeps; or (no owner) in a
    /// buffer.
    void add(std::size_t number, std::byte* at, const std::shared_ptr<void>& owner) {
        const SavedPage& about = file_.pages[number];
        const std::size_t bytes = static_cast<std::size_t>(about.bytes);
        const bool sound = is_sound({at, padded(record_bytes + bytes)}, number, bytes, options_.verify, hash_);
        if (!sound) raise<damage_error>("saved cache: page " + std::to_string(number) + " is damaged");
        const PageFormat& from = source(about);
        if (options_.verify) check_values(number, from, at);
        const PageFormat& to = target(about);
        const bool same = same_sections(from, to);
        PageMemory* const device = core_->ledger().page_memory();
        expects<mismatch_error>(
            same || device == nullptr,
            "saved cache: transcoding is done by the processor, and the pages of this cache lie on a device");
        expects<mismatch_error>(device == nullptr || to.kind != PageKind::requantized, "saved cache: page ", number,
                                " was requantized, and caches on a device do not read such pages");
        if (same && owner != nullptr && device == nullptr) {
            pages_.emplace_back(Page::adopt(core_->ledger(), to, at, owner));
        } else {
            pages_.emplace_back(Page::create(core_->ledger(), to));
            if (device != nullptr) {
                device->write(pages_.back()->data().data(), at + record_bytes, bytes);
            } else if (same) {
                std::memcpy(pages_.back()->data().data(), at + record_bytes, bytes);
            } else {
                transcode(about, from, at);
            }
        }
    }

    /// The sequences become part of the cache. Throws std::bad_alloc, budget_error; the cache is as it was then.
    Loaded finish() {
        Loaded out{{}, file_.note, pages_.size(), transcoded_};
        out.sequences.reserve(file_.sequences.size());
        Undo undo([&] {
            for (const Sequence sequence : out.sequences) core_->drop(sequence);
        });
        for (const auto& states : file_.sequences) {
            NewStates made = new_states(*core_, states.size());
            for (const SavedState& state : states) made.push_back(restored(state));
            const Sequence sequence = core_->create();
            become(core_->find(sequence), made.data());
            out.sequences.push_back(sequence);
        }
        undo.release();
        return out;
    }

private:
    static constexpr std::uint32_t kinds = 4;

    [[nodiscard]] const PageFormat& source(const SavedPage& page) const noexcept {
        return formats_[page.page_group * kinds + static_cast<std::uint32_t>(page.kind)];
    }
    [[nodiscard]] const PageFormat& target(const SavedPage& page) const noexcept {
        const PageGroup& page_group = core_->page_group(page.page_group);
        if (page.kind == PageKind::rows) return page_group.rows;
        if (page.kind == PageKind::sinks) return page_group.sinks;
        return page.kind == PageKind::requantized && core_->requantizes() ? page_group.requantized : page_group.coded;
    }

    /// Encoders rely on finite values, and a page may be encoded again; so a file with other values counts as damaged.
    /// No cache stores a row beyond 65504, which is 65536 in bf16.
    static void check_values(std::size_t number, const PageFormat& format, const std::byte* page) {
        bool finite = true;
        const auto check_halves = [&](std::size_t at, std::size_t count, std::uint16_t most) {
            const std::byte* from = page + at;
            for (std::size_t i = 0; i < count; ++i) {
                std::uint16_t bits = 0;
                std::memcpy(&bits, from + 2 * i, sizeof bits);
                finite &= (bits & 0x7FFFU) <= most;
            }
        };
        for (const PageSection& section : format.sections) {
            const StreamFormat& stream = section.format;
            if (stream.width == 0) continue;
            const std::size_t values = stream.code_bytes(format.tokens) * 8 / stream.bits;
            if (stream.kind == CodeKind::f16) check_halves(section.codes, values, 0x7BFF);
            if (stream.kind == CodeKind::bf16) check_halves(section.codes, values, 0x4780);
            for (std::size_t i = 0; i < values && stream.kind == CodeKind::f32; ++i) {
                float value = 0;
                std::memcpy(&value, page + section.codes + 4 * i, sizeof value);
                finite &= fits_f16(value);
            }
            check_halves(section.scales, stream.scale_bytes(format.tokens) / 2, 0x7BFF);
            check_halves(section.outliers, stream.outlier_count(format.tokens), 0x7BFF);
        }
        if (finite) return;
        raise<damage_error>("saved cache: page " + std::to_string(number) +
                            " has values that are not finite, or larger than any that a cache stores");
    }

    static bool same_sections(const PageFormat& a, const PageFormat& b) noexcept {
        if (a.sections.size() != b.sections.size() || a.sizes.total != b.sizes.total) return false;
        for (std::size_t i = 0; i < a.sections.size(); ++i) {
            const StreamFormat &x = a.sections[i].format, &y = b.sections[i].format;
            const bool levels =
                x.levels == nullptr ? y.levels == nullptr : y.levels != nullptr && levels_of(x) == levels_of(y);
            if (!same_format(x, y) || !levels) return false;
        }
        return true;
    }

    /// Decodes the page at `at`, which has the file's format, into the last of pages_.
    void transcode(const SavedPage& about, const PageFormat& from, std::byte* at) {
        const std::size_t tokens = static_cast<std::size_t>(about.filled);
        const std::shared_ptr<void> nobody(at, [](void*) {});
        const PageRef old(Page::adopt(core_->ledger(), from, at, nobody));
        Page* to = pages_.back().get();
        ++transcoded_;
        if (tokens == 0) return;
        if (to->format().is_coded()) {
            const bool fresh = &to->format() == &core_->page_group(about.page_group).coded;
            recode_page(Backend{}, *core_, about.page_group, old.get(), to, tokens,
                        [&](std::size_t layer, std::size_t stream) -> const StreamCodec& {
                            return fresh ? core_->codec(layer, stream) : core_->requantized_codec(layer, stream);
                        });
            return;
        }
        for (const PreparedLayer& layer : core_->layers()) {
            if (layer.page_group != about.page_group) continue;
            for (std::size_t stream = 0; stream < layer.encoders.size(); ++stream) {
                const std::size_t width = layer.encoders[stream].width;
                ScratchPool::Loan scratch(core_->scratch(), tokens * width);
                decode_rows(Backend{}, read_only(old->stream(layer.place, stream)), 0, tokens, scratch.data());
                clamp_to_f16(scratch.data(), tokens * width);
                const MutableStreamView out = to->stream(layer.place, stream);
                encode_rows(Backend{}, StreamCodec{out.format, nullptr},
                            backend::Matrix{scratch.data(), tokens, width, width}, 0, out);
            }
        }
    }

    SequenceState restored(const SavedState& state) {
        Segments segments(LedgerAllocator<Segment, Purpose::index>(core_->ledger()));
        segments.reserve(round_up(state.segments.size(), segment_step));
        for (const SavedSegment& segment : state.segments) {
            segments.push_back({pages_[segment.page], static_cast<std::size_t>(segment.begin),
                                static_cast<std::size_t>(segment.end), segment.first_position, segment.rope_lag});
        }
        return {std::move(segments), static_cast<std::size_t>(state.tokens), state.next_position, state.rope_lag};
    }

    Core* core_;
    Description file_;
    LoadOptions options_;
    std::uint64_t hash_;               ///< of the page that was added last
    std::vector<PageFormat> formats_;  ///< of the file: [page_groups][kinds]
    std::vector<PageRef> pages_;
    std::size_t transcoded_ = 0;
};

/// The description of a file, from its first bytes: header, description, padding.
inline Description description_of(const FileHeader& header, std::span<const std::byte> padded_bytes) {
    expects<damage_error>(hash_of(padded_bytes) == header.description_hash, "saved cache: its description is damaged");
    return from_bytes(padded_bytes.first(static_cast<std::size_t>(header.description_bytes)));
}

/// Where the records of pages lie. Throws damage_error unless they fill the file.
inline std::vector<std::size_t> record_places(const FileHeader& header, const Description& about) {
    std::vector<std::size_t> places;
    std::uint64_t at = pages_begin(static_cast<std::size_t>(header.description_bytes));
    for (const SavedPage& page : about.pages) {
        places.push_back(static_cast<std::size_t>(at));
        expects<damage_error>(page.bytes <= header.file_bytes, "saved cache: its list of pages is damaged");
        at += padded(record_bytes + static_cast<std::size_t>(page.bytes));
        expects<damage_error>(at <= header.file_bytes, "saved cache: its pages do not fill the file");
    }
    expects<damage_error>(at == header.file_bytes, "saved cache: its pages do not fill the file");
    return places;
}

/// Throws damage_error unless there are as many bytes as a header says.
inline void check_size(const FileHeader& header, std::size_t bytes) {
    expects<damage_error>(bytes == header.file_bytes, "saved cache: the file has ", bytes,
                          " bytes, and its header says ", header.file_bytes);
}

}  // namespace detail

/// Something that load takes bytes from: a callable that fills a std::span<std::byte> with the next ones. It returns
/// nothing, or false where they end before the span does; or it throws.
template <class T> concept byte_source = requires(T& source, std::span<std::byte> to) {
    requires std::same_as<decltype(source(to)), void> || std::same_as<decltype(source(to)), bool>;
};

/// Adds the sequences of a saved cache to one of the same scheme and model, and changes nothing else. `source` is asked
/// for bytes front to back, as far as the saved cache goes, for a page or 1 MiB at most at a time. Throws damage_error
/// (also where the source returns false), mismatch_error, std::bad_alloc, budget_error, and what the source throws; the
/// cache is as it was then. Cost: reads and hashes the bytes; what the sequences take is allocated, pages that they
/// share once.
template <class Cache, byte_source Source>
Loaded load(Cache& cache, Source&& source, const LoadOptions& options = {}) {
    detail::Core& core = detail::CacheAccess::core(cache);
    std::uint64_t done = 0;
    const auto read = [&](std::span<std::byte> to) {
        if constexpr (std::same_as<decltype(source(to)), bool>) {
            const bool filled = source(to);
            detail::expects<damage_error>(filled, "saved cache: the source ends within bytes ", done, " .. ",
                                          done + to.size());
        } else {
            source(to);
        }
        done += to.size();
    };
    std::vector<std::byte> bytes(detail::file_header_bytes);
    read(bytes);
    const detail::FileHeader header = detail::header_of(bytes);
    // In steps: what a damaged header says is not allocated before it is there.
    bytes.clear();
    const std::size_t rest =
        detail::pages_begin(static_cast<std::size_t>(header.description_bytes)) - detail::file_header_bytes;
    while (bytes.size() < rest) {
        const std::size_t before = bytes.size();
        bytes.resize(before + std::min<std::size_t>(rest - before, std::size_t{1} << 20U));
        read(std::span(bytes).subspan(before));
    }
    detail::Loader<typename Cache::backend> loader(core, header, detail::description_of(header, bytes), options);
    static_cast<void>(detail::record_places(header, loader.file()));
    for (std::size_t i = 0; i < loader.file().pages.size(); ++i) {
        bytes.resize(detail::padded(detail::record_bytes + static_cast<std::size_t>(loader.file().pages[i].bytes)));
        read(bytes);
        loader.add(i, bytes.data(), nullptr);
    }
    return loader.finish();
}

/// Like load from a source, but from a stream, which may go on behind the saved cache. Throws damage_error where it
/// ends too soon.
template <class Cache>
Loaded load(Cache& cache, std::istream& in, const LoadOptions& options = {}) {
    const auto read = [&in](std::span<std::byte> to) {
        in.read(reinterpret_cast<char*>(to.data()), static_cast<std::streamsize>(to.size()));
        detail::expects<damage_error>(static_cast<std::size_t>(in.gcount()) == to.size(),
                                      "saved cache: the stream ends after ", in.gcount(), " of ", to.size(), " bytes");
    };
    return load(cache, read, options);
}

/// Like load from a source, but from bytes in memory, which are a saved cache and nothing behind it. They may lie at
/// any address, are copied, and are not needed once this returns; LoadOptions::map means nothing here.
template <class Cache>
Loaded load(Cache& cache, std::span<const std::byte> file, const LoadOptions& options = {}) {
    detail::check_size(detail::header_of(file), file.size());
    auto read = [left = file](std::span<std::byte> to) mutable {
        if (to.size() > left.size()) return false;
        std::copy_n(left.begin(), to.size(), to.begin());
        left = left.subspan(to.size());
        return true;
    };
    return load(cache, read, options);
}

/// Like load from a source, but from a file, which may be larger than the memory. Pages of a mapped file count as
/// Bytes::mapped, and not toward Options::budget; the mapping lasts as long as one of them is used. Where `path` is no
/// regular file it throws file_error at once.
template <class Cache>
Loaded load(Cache& cache, const std::string& path, const LoadOptions& options = {}) {
    detail::Core& core = detail::CacheAccess::core(cache);
    const detail::MappedFile file = detail::map_file(path);
    const detail::FileHeader header = detail::header_of(file.bytes);
    detail::check_size(header, file.bytes.size());
    const std::size_t begin = detail::pages_begin(static_cast<std::size_t>(header.description_bytes));
    detail::expects<damage_error>(begin <= file.bytes.size(), "saved cache: its header is damaged");
    const auto description = file.bytes.subspan(detail::file_header_bytes, begin - detail::file_header_bytes);
    detail::Loader<typename Cache::backend> loader(core, header, detail::description_of(header, description), options);
    const std::vector<std::size_t> places = detail::record_places(header, loader.file());
    for (std::size_t i = 0; i < places.size(); ++i) {
        loader.add(i, file.bytes.data() + places[i], options.map ? file.owner : nullptr);
    }
    return loader.finish();
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
