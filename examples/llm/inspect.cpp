#include "inspect.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <xquant/persistence.hpp>

#include "error.hpp"
#include "saved_cache.hpp"

namespace llm {
namespace {

namespace xq = xquant;

std::string count(std::size_t n, const char* what) { return fmt::format("{} {}{}", n, what, n == 1 ? "" : "s"); }

/// Calls f(first, behind the last) for each run of neighbours that are the same.
template <class Same, class F>
void for_each_run(std::size_t n, Same&& same, F&& f) {
    for (std::size_t begin = 0, end = 0; begin < n; begin = end) {
        while (end < n && same(begin, end)) ++end;
        f(begin, end);
    }
}

bool same_stream(const xq::SavedStreamInfo& a, const xq::SavedStreamInfo& b) {
    return a.width == b.width && a.bits == b.bits && a.quantized == b.quantized && a.group_tokens == b.group_tokens &&
           a.group_channels == b.group_channels;
}

bool same_layer(const xq::FileInfo& info, std::size_t i, std::size_t j) {
    return info.shapes[i] == info.shapes[j] && std::equal(info.streams[i].begin(), info.streams[i].end(),
                                                          info.streams[j].begin(), info.streams[j].end(), same_stream);
}

std::string to_text(const xq::SavedStreamInfo& s, std::size_t n) {
    std::string text = n > 1 ? fmt::format("{} x {} channels", n, s.width) : count(s.width, "channel");
    if (!s.quantized) return text + fmt::format(", not quantized, {} bits", s.bits);
    text += fmt::format(", {} bits, groups of ", s.bits);
    if (s.group_tokens == 1) return text + fmt::format("{} of a token", count(s.group_channels, "channel"));
    return text + fmt::format("{} x {}", count(s.group_tokens, "token"), count(s.group_channels, "channel"));
}

std::size_t pages(const xq::FileInfo& info) {
    return info.coded_pages + info.requantized_pages + info.tail_pages + info.sink_pages;
}

/// Of all sequences; tokens that two of them share count twice.
double bytes_per_token(const xq::FileInfo& info) {
    std::size_t tokens = 0;
    for (const auto& sequence : info.sequences) tokens += sequence.tokens;
    return tokens == 0 ? 0 : static_cast<double>(info.file_bytes) / static_cast<double>(tokens);
}

/// What xquant-llm wrote into the note; nothing where another program did.
std::optional<CacheNote> note_of(const xq::FileInfo& info) {
    try {
        return parse_note(info.note);
    } catch (const Error&) {
        return std::nullopt;
    }
}

std::string to_text(const xq::FileInfo& info, const std::optional<CacheNote>& note) {
    std::string text;
    const auto line = [&](const char* name, const std::string& value) {
        fmt::format_to(std::back_inserter(text), "{:<12}{}\n", name, value);
    };
    line("version", std::to_string(info.version));
    if (note)
        line("scheme", note->scheme);
    else
        line("note", fmt::format("{}, not written by xquant-llm", count(info.note.size(), "byte")));
    const auto by_layer = [&](const char* name, std::size_t begin, std::size_t end, const std::string& value) {
        line(name, end - begin == 1 ? fmt::format("{}: {}", begin, value)
                                    : fmt::format("{} to {}: {}", begin, end - 1, value));
    };
    for_each_run(
        info.shapes.size(), [&](std::size_t i, std::size_t j) { return same_layer(info, i, j); },
        [&](std::size_t begin, std::size_t end) {
            const xq::LayerShape& s = info.shapes[begin];
            by_layer("layers", begin, end,
                     fmt::format("width {}, {}, {}, {} channels a head", s.width, count(s.heads, "head"),
                                 count(s.kv_heads, "kv head"), s.head_dim));
            const auto& streams = info.streams[begin];
            for_each_run(
                streams.size(), [&](std::size_t i, std::size_t j) { return same_stream(streams[i], streams[j]); },
                [&](std::size_t first, std::size_t behind) {
                    line("", fmt::format("stream {}: {}",
                                         behind - first == 1 ? std::to_string(first)
                                                             : fmt::format("{} to {}", first, behind - 1),
                                         to_text(streams[first], behind - first)));
                });
        });
    if (info.cross_layer) line("", "layers store differences");
    for (std::size_t i = 0; i < info.sequences.size(); ++i) {
        const auto& s = info.sequences[i];
        line("sequence", fmt::format("{}: {}, next position {}, {}, {}", i, count(s.tokens, "token"), s.next_position,
                                     count(s.segments, "segment"), count(s.pages, "page")));
    }
    line("pages", fmt::format("{} coded, {} requantized, {} of the tail, {} of sinks ({} sinks kept)", info.coded_pages,
                              info.requantized_pages, info.tail_pages, info.sink_pages, info.sinks));
    line("bytes", fmt::format("{}, {:.1f} a token", info.file_bytes, bytes_per_token(info)));
    line("checksums", info.damaged_pages.empty()
                          ? fmt::format("all {} intact", count(pages(info), "page"))
                          : fmt::format("{} of {} damaged: {}", info.damaged_pages.size(), count(pages(info), "page"),
                                        fmt::join(info.damaged_pages, ", ")));
    return text;
}

std::string to_json(const xq::FileInfo& info, const std::optional<CacheNote>& note) {
    nlohmann::ordered_json json{{"version", info.version},
                                {"bytes", info.file_bytes},
                                {"bytes_per_token", bytes_per_token(info)},
                                {"sinks", info.sinks},
                                {"cross_layer", info.cross_layer}};
    if (note) json["scheme"] = note->scheme;
    json["pages"] = {{"coded", info.coded_pages},
                     {"requantized", info.requantized_pages},
                     {"tail", info.tail_pages},
                     {"sinks", info.sink_pages}};
    json["damaged_pages"] = info.damaged_pages;
    json["sequences"] = nlohmann::ordered_json::array();
    for (const auto& s : info.sequences)
        json["sequences"].push_back(
            {{"tokens", s.tokens}, {"next_position", s.next_position}, {"segments", s.segments}, {"pages", s.pages}});
    json["layers"] = nlohmann::ordered_json::array();
    for (std::size_t i = 0; i < info.shapes.size(); ++i) {
        const xq::LayerShape& s = info.shapes[i];
        nlohmann::ordered_json layer{
            {"width", s.width}, {"heads", s.heads}, {"kv_heads", s.kv_heads}, {"head_dim", s.head_dim}};
        layer["streams"] = nlohmann::ordered_json::array();
        for (const auto& stream : info.streams[i])
            layer["streams"].push_back({{"width", stream.width},
                                        {"bits", stream.bits},
                                        {"quantized", stream.quantized},
                                        {"group_tokens", stream.group_tokens},
                                        {"group_channels", stream.group_channels}});
        json["layers"].push_back(std::move(layer));
    }
    // A note of another program may be anything, also no UTF-8.
    return json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace

Inspection inspect_file(const std::string& path) {
    const xq::FileInfo info = xq::inspect(path);
    const std::optional<CacheNote> note = note_of(info);
    return {to_text(info, note), to_json(info, note), info.damaged_pages.empty()};
}

bool inspect(const std::string& path, const std::string& json) {
    const Inspection found = inspect_file(path);
    std::fputs(found.text.c_str(), stdout);
    if (!json.empty()) {
        std::ofstream out(json);
        if (!(out << found.json << std::flush)) throw Error(fmt::format("{}: can't be written", json));
    }
    return found.intact;
}

}  // namespace llm
