/// UTF-8 in small pieces: one character to bytes, the first bad byte of a text, and a stream that never prints half a
/// character.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace llm {

/// Appends one code point, U+0000 to U+FFFF without surrogates.
inline void append_utf8(std::string& out, std::uint32_t code_point) {
    const auto put = [&](std::uint32_t byte) { out += static_cast<char>(static_cast<unsigned char>(byte)); };
    if (code_point < 0x80) return put(code_point);
    if (code_point < 0x800) return put(0xc0 | code_point >> 6), put(0x80 | (code_point & 63));
    put(0xe0 | code_point >> 12), put(0x80 | (code_point >> 6 & 63)), put(0x80 | (code_point & 63));
}

enum class Utf8 { whole, partial, bad };

/// Looks at the character that text starts with: whole (length bytes), the start of one that isn't all there, or no
/// UTF-8.
inline Utf8 first_character(std::string_view text, std::size_t& length) {
    const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
    const unsigned first = byte(0);
    length = first < 0x80                    ? 1
             : first >= 0xc2 && first < 0xe0 ? 2
             : first >= 0xe0 && first < 0xf0 ? 3
             : first >= 0xf0 && first < 0xf5 ? 4
                                             : 0;
    if (length == 0) return Utf8::bad;
    for (std::size_t i = 1; i < length; ++i) {
        if (i == text.size()) return Utf8::partial;
        unsigned low = 0x80, high = 0xbf;
        if (i == 1) {  // no overlong forms, no surrogates, nothing beyond U+10FFFF
            if (first == 0xe0) low = 0xa0;
            if (first == 0xed) high = 0x9f;
            if (first == 0xf0) low = 0x90;
            if (first == 0xf4) high = 0x8f;
        }
        if (byte(i) < low || byte(i) > high) return Utf8::bad;
    }
    return Utf8::whole;
}

/// Position of the first byte that belongs to no character, or npos.
inline std::size_t find_bad_utf8(std::string_view text) {
    for (std::size_t at = 0, length = 0; at < text.size(); at += length)
        if (first_character(text.substr(at), length) != Utf8::whole) return at;
    return std::string_view::npos;
}

/// Takes bytes as tokens deliver them and gives out whole characters; what can't become one turns into U+FFFD.
class Utf8Stream {
public:
    std::string push(std::string_view bytes) {
        waiting_ += bytes;
        std::string out;
        std::size_t at = 0, length = 0;
        while (at < waiting_.size()) {
            const Utf8 found = first_character(std::string_view(waiting_).substr(at), length);
            if (found == Utf8::partial) break;
            if (found == Utf8::whole)
                out.append(waiting_, at, length);
            else
                append_utf8(out, 0xfffd), length = 1;
            at += length;
        }
        waiting_.erase(0, at);
        return out;
    }

    /// The end of the text: a character that was never completed.
    std::string finish() {
        std::string out;
        if (!waiting_.empty()) append_utf8(out, 0xfffd);
        waiting_.clear();
        return out;
    }

private:
    std::string waiting_;
};

}  // namespace llm
