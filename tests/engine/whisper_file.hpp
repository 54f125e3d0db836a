/// Writes files as tools/whisper makes them, in memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include <fmt/format.h>

namespace whisper::test {

class FileWriter {
public:
    template <class T>
    void add(const std::string& name, const std::vector<std::uint64_t>& shape, const std::vector<T>& values) {
        number(static_cast<std::uint32_t>(name.size()));
        put(name.data(), name.size());
        number(std::uint32_t{std::is_same_v<T, float> ? 0U : 1U});
        number(static_cast<std::uint32_t>(shape.size()));
        for (const std::uint64_t size : shape) number(size);
        put(values.data(), values.size() * sizeof(T));
        ++count_;
    }
    /// All bytes, with the right CRC-32.
    std::vector<std::byte> bytes() const {
        FileWriter whole;
        whole.put("XQWHISP1", 8);
        whole.number(count_);
        whole.put(body_.data(), body_.size());
        whole.number(checksum(whole.body_));
        return whole.body_;
    }
    static std::uint32_t checksum(const std::vector<std::byte>& bytes) {
        std::uint32_t sum = 0xFFFFFFFFU;
        for (const std::byte byte : bytes) {
            sum ^= std::to_integer<std::uint32_t>(byte);
            for (int bit = 0; bit < 8; ++bit) sum = (sum & 1U) != 0 ? (sum >> 1U) ^ 0xEDB88320U : sum >> 1U;
        }
        return ~sum;
    }

private:
    void put(const void* from, std::size_t size) {
        const auto* const bytes = static_cast<const std::byte*>(from);
        body_.insert(body_.end(), bytes, bytes + size);
    }
    template <class T>
    void number(T value) {
        put(&value, sizeof(value));
    }

    std::vector<std::byte> body_;
    std::uint32_t count_ = 0;
};

/// A small decoder with random weights: 3 layers, 4 heads of 32, 50 tokens, one window of 300 frames.
inline std::vector<std::byte> small_file() {
    constexpr std::size_t D = 128, V = 50, F = 96, positions = 40, frames = 300;
    std::mt19937 bits(7);
    FileWriter to;
    const auto random = [&](const std::string& name, std::size_t rows, std::size_t columns, float scale) {
        std::vector<float> values(rows * columns);
        for (float& value : values) value = scale * (static_cast<float>(bits()) / 2147483648.0F - 1);
        if (columns == 1)
            to.add(name, {rows}, values);
        else
            to.add(name, {rows, columns}, values);
    };
    const auto norm = [&](const std::string& name) {
        to.add(name + ".gain", {D}, std::vector<float>(D, 1.0F));
        random(name + ".bias", D, 1, 0.1F);
    };
    to.add("heads", {1}, std::vector<std::int32_t>{4});
    random("embedding", V, D, 1);
    random("positions", positions, D, 1);
    norm("norm");
    for (int i = 0; i < 3; ++i) {
        for (const char* part : {"self", "cross"}) {
            const std::string name = fmt::format("layer.{}.{}", i, part);
            norm(name + ".norm");
            for (const char* matrix : {".q", ".k", ".v", ".o"}) {
                random(name + matrix, D, D, 0.25F);
                if (matrix[1] != 'k') random(name + matrix + ".bias", D, 1, 0.1F);
            }
        }
        const std::string name = fmt::format("layer.{}.feed_forward", i);
        norm(name + ".norm");
        random(name + ".up", F, D, 0.1F);
        random(name + ".up.bias", F, 1, 0.1F);
        random(name + ".down", D, F, 0.1F);
        random(name + ".down.bias", D, 1, 0.1F);
    }
    random("window.0.x", frames, D, 1.5F);
    std::vector<std::int32_t> tokens;
    for (std::int32_t i = 0; i < 30; ++i) tokens.push_back(i * 7 % 50);
    to.add("window.0.tokens", {tokens.size()}, tokens);
    to.add("window.0.first", {1}, std::vector<std::int32_t>{3});
    return to.bytes();
}

}  // namespace whisper::test
