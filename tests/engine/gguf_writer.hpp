/// Builds small GGUF files in memory, byte by byte, so that tests need no files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

namespace llm::test {

using Bytes = std::vector<std::byte>;

class GgufWriter {
public:
    explicit GgufWriter(std::uint32_t version = 3, std::size_t alignment = 32)
        : version_(version), alignment_(alignment) {}

    template <class T>
    GgufWriter& number(const std::string& key, std::uint32_t type, T value) {
        return entry(key, type, [&] { put(metadata_, value); });
    }
    GgufWriter& u32(const std::string& key, std::uint32_t value) { return number(key, 4, value); }
    GgufWriter& f32(const std::string& key, float value) { return number(key, 6, value); }
    GgufWriter& boolean(const std::string& key, bool value) { return number(key, 7, std::uint8_t{value}); }
    GgufWriter& text(const std::string& key, const std::string& value) {
        return entry(key, 8, [&] { put_text(metadata_, value); });
    }
    GgufWriter& texts(const std::string& key, const std::vector<std::string>& values) {
        return entry(key, 9, [&] {
            put(metadata_, std::uint32_t{8});
            put(metadata_, std::uint64_t{values.size()});
            for (const auto& value : values) put_text(metadata_, value);
        });
    }
    template <class T>
    GgufWriter& numbers(const std::string& key, std::uint32_t type, const std::vector<T>& values) {
        return entry(key, 9, [&] {
            put(metadata_, type);
            put(metadata_, std::uint64_t{values.size()});
            for (const auto& value : values) put(metadata_, value);
        });
    }
    /// Any value, as its bytes stand in the file.
    GgufWriter& raw(const std::string& key, std::uint32_t type, const Bytes& value) {
        return entry(key, type, [&] { metadata_.insert(metadata_.end(), value.begin(), value.end()); });
    }

    GgufWriter& tensor(const std::string& name, const std::vector<std::uint64_t>& shape, std::uint32_t type,
                       const Bytes& data) {
        return tensor_at(name, shape, type, data_.size(), data);
    }
    /// With an offset of the test's choice, which may be a wrong one.
    GgufWriter& tensor_at(const std::string& name, const std::vector<std::uint64_t>& shape, std::uint32_t type,
                          std::uint64_t offset, const Bytes& data) {
        put_text(heads_, name);
        put(heads_, static_cast<std::uint32_t>(shape.size()));
        for (const auto extent : shape) put(heads_, extent);
        put(heads_, type);
        put(heads_, offset);
        data_.insert(data_.end(), data.begin(), data.end());
        while (data_.size() % alignment_ != 0) data_.push_back({});
        ++tensors_;
        return *this;
    }
    GgufWriter& tensor(const std::string& name, const std::vector<std::uint64_t>& shape,
                       const std::vector<float>& values) {
        Bytes data(values.size() * sizeof(float));
        std::memcpy(data.data(), values.data(), data.size());
        return tensor(name, shape, 0, data);
    }

    Bytes bytes() const {
        Bytes file;
        for (const char c : {'G', 'G', 'U', 'F'}) put(file, c);
        put(file, version_);
        put(file, tensors_);
        put(file, entries_);
        file.insert(file.end(), metadata_.begin(), metadata_.end());
        file.insert(file.end(), heads_.begin(), heads_.end());
        while (file.size() % alignment_ != 0) file.push_back({});
        file.insert(file.end(), data_.begin(), data_.end());
        return file;
    }

    template <class T>
    static void put(Bytes& to, T value) {
        const std::size_t at = to.size();
        to.resize(at + sizeof value);
        std::memcpy(to.data() + at, &value, sizeof value);
    }

private:
    template <class F>
    GgufWriter& entry(const std::string& key, std::uint32_t type, F&& write) {
        put_text(metadata_, key);
        put(metadata_, type);
        write();
        ++entries_;
        return *this;
    }
    static void put_text(Bytes& to, const std::string& text) {
        put(to, std::uint64_t{text.size()});
        for (const char c : text) put(to, c);
    }

    std::uint32_t version_;
    std::size_t alignment_;
    std::uint64_t tensors_ = 0, entries_ = 0;
    Bytes metadata_, heads_, data_;
};

/// what() of the llm::Error that f throws, or "" if it throws none.
template <class Error, class F>
std::string message(F&& f) {
    try {
        f();
    } catch (const Error& error) {
        return error.what();
    }
    return {};
}

inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace llm::test
