// Little-endian bytes of a saved cache's description, written and read one value at a time.
#pragma once

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include <xquant/error.hpp>

namespace xquant {

inline namespace XQUANT_ABI_NS {
namespace detail {

class ByteWriter {
public:
    template <class T>
        requires std::is_arithmetic_v<T> || std::is_enum_v<T>
    void put(T value) {
        if constexpr (std::is_enum_v<T>) {
            put(static_cast<std::underlying_type_t<T>>(value));
        } else if constexpr (std::is_same_v<T, float>) {
            put(std::bit_cast<std::uint32_t>(value));
        } else if constexpr (std::is_same_v<T, double>) {
            put(std::bit_cast<std::uint64_t>(value));
        } else {
            for (std::size_t i = 0; i < sizeof(T); ++i) {
                bytes.push_back(static_cast<std::byte>(static_cast<std::uint64_t>(value) >> (8 * i) & 0xFFU));
            }
        }
    }
    void size(std::size_t value) { put(static_cast<std::uint64_t>(value)); }
    void text(const std::string& value) {
        size(value.size());
        for (const char c : value) bytes.push_back(static_cast<std::byte>(c));
    }
    void floats(std::span<const float> values) {
        size(values.size());
        for (const float value : values) put(value);
    }

    std::vector<std::byte> bytes;
};

/// Throws damage_error where the bytes end too soon.
class ByteReader {
public:
    explicit ByteReader(std::span<const std::byte> bytes) noexcept : left_(bytes) {}

    template <class T>
        requires std::is_arithmetic_v<T> || std::is_enum_v<T> T get() {
            if constexpr (std::is_enum_v<T>) {
                return static_cast<T>(get<std::underlying_type_t<T>>());
            } else if constexpr (std::is_same_v<T, float>) {
                return std::bit_cast<float>(get<std::uint32_t>());
            } else if constexpr (std::is_same_v<T, double>) {
                return std::bit_cast<double>(get<std::uint64_t>());
            } else {
                const auto from = take(sizeof(T));
                std::uint64_t value = 0;
                for (std::size_t i = 0; i < sizeof(T); ++i) value |= std::to_integer<std::uint64_t>(from[i]) << (8 * i);
                return static_cast<T>(value);
            }
        }
    /// A number of things that take at least `each` bytes of what is left.
    std::size_t count(std::size_t each) {
        const auto value = get<std::uint64_t>();
        expects<damage_error>(value <= left_.size() / each, "saved cache: its description is damaged: it counts ",
                              value, " things where ", left_.size(), " bytes are left");
        return static_cast<std::size_t>(value);
    }
    std::size_t size() { return static_cast<std::size_t>(get<std::uint64_t>()); }
    std::string text() {
        const auto from = take(count(1));
        return {reinterpret_cast<const char*>(from.data()), from.size()};
    }
    std::vector<float> floats() {
        std::vector<float> out(count(sizeof(float)));
        for (float& value : out) value = get<float>();
        return out;
    }
    [[nodiscard]] bool empty() const noexcept { return left_.empty(); }
    [[nodiscard]] std::size_t left() const noexcept { return left_.size(); }

private:
    std::span<const std::byte> take(std::size_t n) {
        expects<damage_error>(n <= left_.size(), "saved cache: its description ends too soon: ", n,
                              " bytes are read and ", left_.size(), " are left");
        const auto out = left_.first(n);
        left_ = left_.subspan(n);
        return out;
    }

    std::span<const std::byte> left_;
};

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
