/// A stream that reads bytes where they lie.
#pragma once

#include <cstddef>
#include <istream>
#include <span>
#include <streambuf>

namespace llm {

class MemoryStream final : private std::streambuf, public std::istream {
public:
    explicit MemoryStream(std::span<const std::byte> bytes) : std::istream(static_cast<std::streambuf*>(this)) {
        // Never written through: a streambuf has no other pointers.
        auto* begin = const_cast<char*>(reinterpret_cast<const char*>(bytes.data()));
        setg(begin, begin, begin + bytes.size());
    }
};

}  // namespace llm
