#include "gguf.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <limits>
#include <system_error>
#include <type_traits>
#include <utility>

#include "error.hpp"
#include "ggml_types.hpp"

static_assert(std::endian::native == std::endian::little, "GGUF is read as little-endian memory");

namespace llm {
namespace {

enum class ValueType : std::uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, text, array, u64, i64, f64 };

/// Names are cut and unprintable bytes replaced, since a damaged file may hold anything.
std::string printable(std::string_view text) {
    std::string shown(text.substr(0, 80));
    for (char& c : shown)
        if (c < ' ' || c > '~') c = '?';
    return shown;
}

/// A cursor that never moves past the end.
class Reader {
public:
    Reader(std::span<const std::byte> bytes, const std::string& name) : bytes_(bytes), name_(name) {}

    std::size_t at() const { return at_; }
    std::size_t left() const { return bytes_.size() - at_; }

    [[noreturn]] void fail(const std::string& what) const { throw Error(fmt::format("{}: {}", name_, what)); }

    const std::byte* take(std::uint64_t bytes, std::string_view what) {
        if (bytes > left())
            fail(fmt::format("truncated: {} needs {} bytes at {}, but {} are left", what, bytes, at_, left()));
        const std::byte* from = bytes_.data() + at_;
        at_ += static_cast<std::size_t>(bytes);
        return from;
    }

    template <class T>
    T get(std::string_view what) {
        T value;
        std::memcpy(&value, take(sizeof value, what), sizeof value);
        return value;
    }

    std::string text(std::string_view what) {
        const auto length = get<std::uint64_t>(what);
        const std::byte* from = take(length, what);
        return {reinterpret_cast<const char*>(from), static_cast<std::size_t>(length)};
    }

    /// A number of items that take at least `least` bytes each.
    std::size_t count(std::uint64_t items, std::size_t least, std::string_view what) const {
        if (items > left() / least)
            fail(fmt::format("{} counts {} items, more than the file's last {} bytes can hold", what, items, left()));
        return static_cast<std::size_t>(items);
    }

private:
    std::span<const std::byte> bytes_;
    const std::string& name_;
    std::size_t at_ = 0;
};

bool read_bool(Reader& in, std::string_view what) {
    const auto byte = in.get<std::uint8_t>(what);
    if (byte > 1) in.fail(fmt::format("{} is a bool of value {}", what, byte));
    return byte == 1;
}

template <class Stored, class Widened>
MetadataValue read_numbers(Reader& in, std::uint64_t items, std::string_view what) {
    std::vector<Widened> values(in.count(items, sizeof(Stored), what));
    for (auto& value : values) value = in.get<Stored>(what);
    return values;
}

MetadataValue read_array(Reader& in, std::string_view what) {
    const auto type = in.get<std::uint32_t>(what);
    const auto items = in.get<std::uint64_t>(what);
    switch (static_cast<ValueType>(type)) {
        case ValueType::u8:
            return read_numbers<std::uint8_t, std::uint64_t>(in, items, what);
        case ValueType::i8:
            return read_numbers<std::int8_t, std::int64_t>(in, items, what);
        case ValueType::u16:
            return read_numbers<std::uint16_t, std::uint64_t>(in, items, what);
        case ValueType::i16:
            return read_numbers<std::int16_t, std::int64_t>(in, items, what);
        case ValueType::u32:
            return read_numbers<std::uint32_t, std::uint64_t>(in, items, what);
        case ValueType::i32:
            return read_numbers<std::int32_t, std::int64_t>(in, items, what);
        case ValueType::u64:
            return read_numbers<std::uint64_t, std::uint64_t>(in, items, what);
        case ValueType::i64:
            return read_numbers<std::int64_t, std::int64_t>(in, items, what);
        case ValueType::f32:
            return read_numbers<float, double>(in, items, what);
        case ValueType::f64:
            return read_numbers<double, double>(in, items, what);
        case ValueType::boolean: {
            std::vector<bool> values(in.count(items, 1, what));
            for (std::size_t i = 0; i < values.size(); ++i) values[i] = read_bool(in, what);
            return values;
        }
        case ValueType::text: {
            std::vector<std::string> values(in.count(items, sizeof(std::uint64_t), what));
            for (auto& value : values) value = in.text(what);
            return values;
        }
        case ValueType::array:
            in.fail(fmt::format("{} is an array of arrays, which this reader doesn't know", what));
    }
    in.fail(fmt::format("{} is an array of an unknown type, number {}", what, type));
}

MetadataValue read_value(Reader& in, std::string_view what) {
    const auto type = in.get<std::uint32_t>(what);
    switch (static_cast<ValueType>(type)) {
        case ValueType::u8:
            return std::uint64_t{in.get<std::uint8_t>(what)};
        case ValueType::i8:
            return std::int64_t{in.get<std::int8_t>(what)};
        case ValueType::u16:
            return std::uint64_t{in.get<std::uint16_t>(what)};
        case ValueType::i16:
            return std::int64_t{in.get<std::int16_t>(what)};
        case ValueType::u32:
            return std::uint64_t{in.get<std::uint32_t>(what)};
        case ValueType::i32:
            return std::int64_t{in.get<std::int32_t>(what)};
        case ValueType::u64:
            return in.get<std::uint64_t>(what);
        case ValueType::i64:
            return in.get<std::int64_t>(what);
        case ValueType::f32:
            return double{in.get<float>(what)};
        case ValueType::f64:
            return in.get<double>(what);
        case ValueType::boolean:
            return read_bool(in, what);
        case ValueType::text:
            return in.text(what);
        case ValueType::array:
            return read_array(in, what);
    }
    in.fail(fmt::format("{} has an unknown type, number {}", what, type));
}

TensorHead read_tensor_head(Reader& in) {
    TensorHead head;
    head.name = in.text("a tensor's name");
    const std::string what = fmt::format("tensor '{}'", printable(head.name));
    const auto dimensions = in.get<std::uint32_t>(what);
    if (dimensions < 1 || dimensions > 4)
        in.fail(fmt::format("{} has {} dimensions; 1 to 4 are possible", what, dimensions));
    constexpr std::uint64_t most =
        std::numeric_limits<std::int64_t>::max() / 8;  // so that sizes in bytes can't overflow
    std::uint64_t values = 1;
    for (std::uint32_t i = 0; i < dimensions; ++i) {
        const auto extent = in.get<std::uint64_t>(what);
        if (extent == 0 || extent > most / values)
            in.fail(fmt::format("{} has an impossible extent, {}", what, extent));
        values *= extent;
        head.shape.push_back(extent);
    }
    head.values = static_cast<std::size_t>(values);
    head.type = in.get<std::uint32_t>(what);
    head.offset = in.get<std::uint64_t>(what);
    const GgmlType* type = ggml_type(head.type);
    if (!type)
        in.fail(fmt::format("{} has type {}, which this reader doesn't know; it reads {}", what,
                            ggml_type_name(head.type), readable_ggml_types()));
    if (head.shape[0] % type->block_values != 0)
        in.fail(fmt::format("{} has rows of {} values, but {} comes in blocks of {}", what, head.shape[0], type->name,
                            type->block_values));
    head.bytes = head.values / type->block_values * type->block_bytes;
    return head;
}

std::uint64_t alignment_of(const std::map<std::string, MetadataValue, std::less<>>& metadata, const Reader& in) {
    const auto found = metadata.find("general.alignment");
    if (found == metadata.end()) return 32;
    const auto* alignment = std::get_if<std::uint64_t>(&found->second);
    if (!alignment || !std::has_single_bit(*alignment) || *alignment > (1u << 20))
        in.fail("'general.alignment' is not a power of two up to 2^20");
    return *alignment;
}

/// Every tensor lies inside the data section, aligned, and on no other tensor's bytes.
void check_offsets(const std::map<std::string, TensorHead, std::less<>>& tensors, std::uint64_t alignment,
                   std::size_t available, const Reader& in) {
    std::vector<const TensorHead*> order;
    order.reserve(tensors.size());
    for (const auto& [name, head] : tensors) {
        const auto what = [&label = name] { return fmt::format("tensor '{}'", printable(label)); };
        if (head.offset % alignment != 0)
            in.fail(fmt::format("{} starts at {}, no multiple of {}", what(), head.offset, alignment));
        if (head.bytes > available || head.offset > available - head.bytes)
            in.fail(fmt::format("truncated: {} takes bytes {} to {} of the data, but there are {}", what(), head.offset,
                                head.offset + static_cast<std::uint64_t>(head.bytes), available));
        order.push_back(&head);
    }
    std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) { return a->offset < b->offset; });
    for (std::size_t i = 1; i < order.size(); ++i)
        if (order[i]->offset < order[i - 1]->offset + order[i - 1]->bytes)
            in.fail(
                fmt::format("tensors '{}' and '{}' overlap", printable(order[i - 1]->name), printable(order[i]->name)));
}

}  // namespace

Gguf Gguf::open(const std::string& path) {
    // Opening a FIFO would wait for a writer.
    std::error_code unknown;
    if (std::filesystem::exists(path, unknown) && !std::filesystem::is_regular_file(path, unknown))
        throw Error(fmt::format("{}: can't be opened: it is no regular file", path));
    std::ifstream stream(path, std::ios::binary | std::ios::ate);
    const std::streamoff size = stream ? static_cast<std::streamoff>(stream.tellg()) : -1;
    if (size < 0) throw Error(fmt::format("{}: can't be opened", path));
    std::vector<std::byte> file;
    try {
        file.resize(static_cast<std::size_t>(size));
    } catch (const std::exception&) {
        throw Error(fmt::format("{}: takes {} bytes, and there is no memory for as many", path, size));
    }
    stream.seekg(0);
    if (!stream.read(reinterpret_cast<char*>(file.data()), size)) throw Error(fmt::format("{}: can't be read", path));
    return parse(std::move(file), path);
}

Gguf Gguf::parse(std::vector<std::byte> file, std::string name) {
    Gguf result;
    result.file_ = std::move(file);
    result.name_ = std::move(name);
    Reader in(result.file_, result.name_);

    if (std::memcmp(in.take(4, "the magic"), "GGUF", 4) != 0) in.fail("no GGUF file: it doesn't start with 'GGUF'");
    result.version_ = in.get<std::uint32_t>("the version");
    if (result.version_ != 2 && result.version_ != 3)
        in.fail(fmt::format("GGUF version {}; this reader knows 2 and 3", result.version_));
    const auto tensors = in.get<std::uint64_t>("the number of tensors");
    const auto entries = in.get<std::uint64_t>("the number of metadata entries");
    in.count(entries, 8 + 4 + 1, "the metadata");  // a key's length, a type, a value
    in.count(tensors, 8 + 4 + 8 + 4 + 8, "the tensor list");

    for (std::uint64_t i = 0; i < entries; ++i) {
        std::string key = in.text("a metadata key");
        const std::string what = fmt::format("metadata '{}'", printable(key));
        MetadataValue value = read_value(in, what);
        if (!result.metadata_.emplace(std::move(key), std::move(value)).second) in.fail(what + " occurs twice");
    }
    for (std::uint64_t i = 0; i < tensors; ++i) {
        TensorHead head = read_tensor_head(in);
        std::string key = head.name;
        if (!result.tensors_.emplace(key, std::move(head)).second)
            in.fail(fmt::format("tensor '{}' occurs twice", printable(key)));
    }
    const std::uint64_t alignment = alignment_of(result.metadata_, in);
    const std::size_t padding = static_cast<std::size_t>((alignment - in.at() % alignment) % alignment);
    if (tensors > 0) in.take(padding, "the padding before the tensor data");
    result.data_ = in.at();
    check_offsets(result.tensors_, alignment, in.left(), in);
    return result;
}

const MetadataValue& Gguf::value(std::string_view key) const {
    const auto found = metadata_.find(key);
    if (found == metadata_.end()) throw Error(fmt::format("{}: metadata '{}' is missing", name_, key));
    return found->second;
}

namespace {
[[noreturn]] void wrong_kind(const std::string& file, std::string_view key, std::string_view expected) {
    throw Error(fmt::format("{}: metadata '{}' is not {}", file, key, expected));
}
}  // namespace

bool Gguf::boolean(std::string_view key) const {
    if (const auto* found = std::get_if<bool>(&value(key))) return *found;
    wrong_kind(name_, key, "a bool");
}

std::uint64_t Gguf::integer(std::string_view key) const {
    const MetadataValue& found = value(key);
    if (const auto* plain = std::get_if<std::uint64_t>(&found)) return *plain;
    if (const auto* plain = std::get_if<std::int64_t>(&found); plain && *plain >= 0)
        return static_cast<std::uint64_t>(*plain);
    wrong_kind(name_, key, "an integer of 0 or more");
}

double Gguf::number(std::string_view key) const {
    const MetadataValue& found = value(key);
    if (const auto* plain = std::get_if<double>(&found)) return *plain;
    if (const auto* plain = std::get_if<std::uint64_t>(&found)) return static_cast<double>(*plain);
    if (const auto* plain = std::get_if<std::int64_t>(&found)) return static_cast<double>(*plain);
    wrong_kind(name_, key, "a number");
}

const std::string& Gguf::text(std::string_view key) const {
    if (const auto* found = std::get_if<std::string>(&value(key))) return *found;
    wrong_kind(name_, key, "a text");
}

const std::vector<std::string>& Gguf::texts(std::string_view key) const {
    if (const auto* found = std::get_if<std::vector<std::string>>(&value(key))) return *found;
    wrong_kind(name_, key, "a list of texts");
}

std::vector<std::int64_t> Gguf::integers(std::string_view key) const {
    const MetadataValue& found = value(key);
    if (const auto* list = std::get_if<std::vector<std::int64_t>>(&found)) return *list;
    if (const auto* list = std::get_if<std::vector<std::uint64_t>>(&found)) {
        std::vector<std::int64_t> converted(list->size());
        for (std::size_t i = 0; i < list->size(); ++i) {
            if (!std::in_range<std::int64_t>((*list)[i])) wrong_kind(name_, key, "a list of 64-bit integers");
            converted[i] = static_cast<std::int64_t>((*list)[i]);
        }
        return converted;
    }
    wrong_kind(name_, key, "a list of integers");
}

const std::vector<double>& Gguf::numbers(std::string_view key) const {
    if (const auto* found = std::get_if<std::vector<double>>(&value(key))) return *found;
    wrong_kind(name_, key, "a list of floats");
}

const TensorHead& Gguf::tensor(std::string_view tensor) const {
    const auto found = tensors_.find(tensor);
    if (found == tensors_.end()) throw Error(fmt::format("{}: tensor '{}' is missing", name_, tensor));
    return found->second;
}

void Gguf::expand(const TensorHead& head, std::span<float> out) const {
    if (out.size() != head.values)
        throw Error(fmt::format("tensor '{}' has {} values, not {}", head.name, head.values, out.size()));
    const GgmlType& type = *ggml_type(head.type);
    type.expand(file_.data() + data_ + head.offset, out.data(), head.values / type.block_values);
}

}  // namespace llm
