#include "arrays.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <bit>
#include <cstring>
#include <fstream>
#include <iterator>

#include "error.hpp"

namespace whisper {
namespace {

static_assert(std::endian::native == std::endian::little, "the file's values are read as they lie");

constexpr char magic[] = {'X', 'Q', 'W', 'H', 'I', 'S', 'P', '1'};

/// CRC-32 as zlib has it (polynomial 0xEDB88320, reflected).
std::uint32_t crc32(std::span<const std::byte> bytes) {
    static const auto table = [] {
        std::array<std::uint32_t, 256> out{};
        for (std::uint32_t i = 0; i < 256; ++i) {
            std::uint32_t c = i;
            for (int bit = 0; bit < 8; ++bit) c = (c >> 1U) ^ ((c & 1U) != 0 ? 0xEDB88320U : 0U);
            out[i] = c;
        }
        return out;
    }();
    std::uint32_t sum = 0xFFFFFFFFU;
    for (const std::byte byte : bytes) sum = table[(sum ^ std::to_integer<std::uint32_t>(byte)) & 0xFFU] ^ (sum >> 8U);
    return ~sum;
}

/// Takes values off the front of the bytes.
class Reader {
public:
    Reader(std::span<const std::byte> bytes, const std::string& name) : bytes_(bytes), name_(name) {}

    std::span<const std::byte> take(std::size_t count, const std::string& what) {
        if (count > bytes_.size())
            throw llm::Error(fmt::format("{}: ends within {}; make it again with tools/whisper", name_, what));
        const auto out = bytes_.first(count);
        bytes_ = bytes_.subspan(count);
        return out;
    }
    template <class T>
    T number(const std::string& what) {
        T out;
        std::memcpy(&out, take(sizeof(T), what).data(), sizeof(T));
        return out;
    }
    std::size_t left() const { return bytes_.size(); }

private:
    std::span<const std::byte> bytes_;
    const std::string& name_;
};

template <class T>
void fill(std::vector<T>& values, std::size_t count, Reader& from, const std::string& what) {
    const auto bytes = from.take(count * sizeof(T), what);
    values.resize(count);
    if (count > 0) std::memcpy(values.data(), bytes.data(), bytes.size());
}

}  // namespace

Arrays Arrays::parse(std::span<const std::byte> bytes, const std::string& name) {
    constexpr std::size_t checksum_bytes = sizeof(std::uint32_t);
    if (bytes.size() < sizeof(magic) || std::memcmp(bytes.data(), magic, sizeof(magic)) != 0)
        throw llm::Error(fmt::format("{}: is not a file of tools/whisper", name));
    if (bytes.size() < sizeof(magic) + 2 * checksum_bytes)
        throw llm::Error(fmt::format("{}: ends within its head; make it again with tools/whisper", name));
    Reader from(bytes.subspan(sizeof(magic), bytes.size() - sizeof(magic) - checksum_bytes), name);
    Arrays out;
    out.name_ = name;
    const auto count = from.number<std::uint32_t>("its head");
    for (std::uint32_t i = 0; i < count; ++i) {
        std::string what = fmt::format("array {} of {}", i + 1, count);
        const auto letters = from.take(from.number<std::uint32_t>(what), what);
        const std::string key(reinterpret_cast<const char*>(letters.data()), letters.size());
        what = fmt::format("array '{}'", key);
        const auto type = from.number<std::uint32_t>(what), dimensions = from.number<std::uint32_t>(what);
        if (type > 1 || dimensions > 4)
            throw llm::Error(fmt::format("{}: {} has type {} and {} dimensions; expected type 0 or 1, and up to 4",
                                         name, what, type, dimensions));
        if (out.has(key)) throw llm::Error(fmt::format("{}: {} is there twice", name, what));
        Array& array = out.all_[key];
        std::size_t values = 1;
        for (std::uint32_t d = 0; d < dimensions; ++d) {
            array.shape.push_back(static_cast<std::size_t>(from.number<std::uint64_t>(what)));
            // More than the file has bytes ends the reading below.
            if (__builtin_mul_overflow(values, array.shape.back(), &values) || values > from.left())
                throw llm::Error(fmt::format("{}: {} has sizes [{}], more than the file holds", name, what,
                                             fmt::join(array.shape, ", ")));
        }
        if (type == 0)
            fill(array.floats, values, from, what);
        else
            fill(array.integers, values, from, what);
    }
    if (from.left() != 0)
        throw llm::Error(fmt::format("{}: {} bytes are left behind the last array", name, from.left()));
    std::uint32_t sum = 0;
    std::memcpy(&sum, bytes.data() + bytes.size() - checksum_bytes, checksum_bytes);
    if (sum != crc32(bytes.first(bytes.size() - checksum_bytes)))
        throw llm::Error(
            fmt::format("{}: is damaged: its CRC-32 is another one; make it again with tools/whisper", name));
    return out;
}

Arrays Arrays::read(const std::string& path) {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    if (!file) throw llm::Error(fmt::format("{}: can't be opened", path));
    std::vector<std::byte> bytes(static_cast<std::size_t>(file.tellg()));
    file.seekg(0);
    if (!file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size())))
        throw llm::Error(fmt::format("{}: can't be read", path));
    return parse(bytes, path);
}

const Array& Arrays::get(const std::string& name) const {
    const auto found = all_.find(name);
    if (found == all_.end()) throw llm::Error(fmt::format("{}: has no array '{}'", name_, name));
    return found->second;
}

const std::vector<float>& Arrays::floats(const std::string& name, const std::vector<std::size_t>& shape) const {
    const Array& array = get(name);
    bool fits = array.shape.size() == shape.size() && !array.floats.empty();
    for (std::size_t i = 0; fits && i < shape.size(); ++i) fits = shape[i] == 0 || shape[i] == array.shape[i];
    if (!fits)
        throw llm::Error(fmt::format("{}: array '{}' has sizes [{}]{}; expected [{}] of f32 (0: any)", name_, name,
                                     fmt::join(array.shape, ", "), array.integers.empty() ? "" : " of i32",
                                     fmt::join(shape, ", ")));
    return array.floats;
}

const std::vector<std::int32_t>& Arrays::integers(const std::string& name) const {
    const Array& array = get(name);
    if (array.shape.size() != 1 || array.integers.empty())
        throw llm::Error(fmt::format("{}: array '{}' has sizes [{}]; expected one row of i32", name_, name,
                                     fmt::join(array.shape, ", ")));
    return array.integers;
}

}  // namespace whisper
