/// docs/format.md once more, as plainly as it can be written: what the library's storage is compared with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <span>
#include <string>
#include <vector>

namespace test {

/// One stream of a page.
struct StoredStream {
    std::size_t width = 0;
    std::size_t group_tokens = 1, group_channels = 1;
    unsigned bits = 0;  ///< of a code, or of a value that is stored as it is
    bool quantized = true, stores_zero = true;
};

/// The planes that a code is cut into, widest first.
inline std::vector<unsigned> planes_of(unsigned bits) {
    switch (bits) {
        case 3:
            return {2, 1};
        case 5:
            return {4, 1};
        case 6:
            return {4, 2};
        case 7:
            return {4, 2, 1};
        default:
            return {bits};
    }
}

struct BitPlace {
    std::size_t byte;
    unsigned bit;
};

/// Where a bit of code i lies in the bytes of a group of n codes.
inline BitPlace place_of_bit(std::size_t i, unsigned bit, std::size_t n, unsigned bits) {
    std::size_t padded = n;
    while (padded % 8 != 0) ++padded;
    std::size_t first_byte = 0;
    unsigned lowest = bits;  // the bits of a code that this plane and those before it hold begin here
    for (const unsigned plane : planes_of(bits)) {
        lowest -= plane;
        const std::size_t stride = padded * plane / 8;
        if (bit >= lowest) return {first_byte + i % stride, static_cast<unsigned>(i / stride) * plane + bit - lowest};
        first_byte += stride;
    }
    return {};
}

/// Bytes of a group of n codes.
inline std::size_t group_size(std::size_t n, unsigned bits) {
    while (n % 8 != 0) ++n;
    return n * bits / 8;
}

inline std::vector<std::uint8_t> pack_bit_by_bit(const std::vector<std::uint8_t>& codes, unsigned bits) {
    std::vector<std::uint8_t> out(group_size(codes.size(), bits));
    for (std::size_t i = 0; i < codes.size(); ++i) {
        for (unsigned bit = 0; bit < bits; ++bit) {
            const BitPlace at = place_of_bit(i, bit, codes.size(), bits);
            if ((codes[i] >> bit) % 2 != 0) out.at(at.byte) = static_cast<std::uint8_t>(out[at.byte] | 1U << at.bit);
        }
    }
    return out;
}

inline std::vector<std::uint8_t> unpack_bit_by_bit(const std::uint8_t* bytes, std::size_t n, unsigned bits) {
    std::vector<std::uint8_t> out(n);
    for (std::size_t i = 0; i < n; ++i) {
        for (unsigned bit = 0; bit < bits; ++bit) {
            const BitPlace at = place_of_bit(i, bit, n, bits);
            out[i] = static_cast<std::uint8_t>(out[i] | (bytes[at.byte] >> at.bit) % 2 << bit);
        }
    }
    return out;
}

/// A run of bytes of a page, counted from the end of its header.
struct Range {
    std::size_t begin = 0, end = 0;
    [[nodiscard]] std::size_t size() const { return end - begin; }
};

/// Where the parts of a stream lie in a page.
struct Section {
    Range codes, scales, zeros;
    std::size_t end = 0;  ///< where the next stream begins
};

inline std::size_t next_multiple(std::size_t n, std::size_t step) {
    while (n % step != 0) ++n;
    return n;
}

/// The parts of a section that hold token blocks first .. last: codes, scales and zeros of one channel block after
/// another.
inline std::vector<Range> parts_of(const StoredStream& s, const Section& at, std::size_t tokens, std::size_t first,
                                   std::size_t last) {
    const std::size_t token_blocks = next_multiple(tokens, s.group_tokens) / s.group_tokens;
    std::vector<Range> out;
    std::size_t begin = at.codes.begin;
    for (std::size_t c = 0; c < s.width; c += s.group_channels) {
        const std::size_t channels = s.width - c < s.group_channels ? s.width - c : s.group_channels;
        const std::size_t size = s.quantized ? group_size(s.group_tokens * channels, s.bits) : channels * s.bits / 8;
        out.push_back({begin + first * size, begin + last * size});
        begin += token_blocks * size;
    }
    for (const Range& halves : {at.scales, at.zeros}) {
        for (std::size_t i = halves.begin; i < halves.end; i += 2 * token_blocks) {
            out.push_back({i + 2 * first, i + 2 * last});
        }
    }
    return out;
}

/// The codes of the groups of one token block.
inline std::size_t block_size(const StoredStream& s) {
    std::size_t bytes = 0;
    for (std::size_t c = 0; c < s.width; c += s.group_channels) {
        const std::size_t channels = s.width - c < s.group_channels ? s.width - c : s.group_channels;
        bytes += s.quantized ? group_size(s.group_tokens * channels, s.bits) : channels * s.bits / 8;
    }
    return bytes;
}

inline Section section_at(const StoredStream& s, std::size_t begin, std::size_t tokens) {
    std::size_t token_blocks = 0, channel_blocks = 0;
    for (std::size_t t = 0; t < tokens; t += s.group_tokens) ++token_blocks;
    for (std::size_t c = 0; c < s.width; c += s.group_channels) ++channel_blocks;
    Section out;
    out.codes = {begin, begin + token_blocks * block_size(s)};
    const std::size_t scales = next_multiple(out.codes.end, 64);
    const std::size_t halves = s.quantized ? 2 * token_blocks * channel_blocks : 0;
    out.scales = {scales, scales + halves};
    out.zeros = {out.scales.end, out.scales.end + (s.stores_zero ? halves : 0)};
    out.end = next_multiple(out.zeros.end, 64);
    return out;
}

/// The sections of a page of `tokens` tokens, layer after layer, stream after stream.
inline std::vector<std::vector<Section>> page_sections(const std::vector<std::vector<StoredStream>>& layers,
                                                       std::size_t tokens) {
    std::vector<std::vector<Section>> out;
    std::size_t at = 0;
    for (const std::vector<StoredStream>& layer : layers) {
        out.emplace_back();
        for (const StoredStream& stream : layer) {
            out.back().push_back(section_at(stream, at, tokens));
            at = out.back().back().end;
        }
    }
    return out;
}

/// "" where two runs of bytes are equal; else where they differ first, what was expected there, and what was found.
inline std::string difference(std::span<const std::byte> expected, std::span<const std::byte> found) {
    if (expected.size() != found.size()) {
        return "expected " + std::to_string(expected.size()) + " bytes, found " + std::to_string(found.size());
    }
    if (expected.empty() || std::memcmp(expected.data(), found.data(), expected.size()) == 0) return "";
    std::size_t first = expected.size(), count = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
        if (expected[i] == found[i]) continue;
        if (++count == 1) first = i;
    }
    char text[128];
    std::snprintf(text, sizeof text, "byte %zu of %zu: expected 0x%02x, found 0x%02x; %zu bytes differ", first,
                  expected.size(), std::to_integer<unsigned>(expected[first]), std::to_integer<unsigned>(found[first]),
                  count);
    return text;
}

/// The same for vectors of plain values.
template <class T>
std::string difference(const std::vector<T>& expected, const std::vector<T>& found) {
    return difference(std::as_bytes(std::span(expected)), std::as_bytes(std::span(found)));
}

}  // namespace test
