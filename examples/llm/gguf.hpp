/// Reads a GGUF file (versions 2 and 3): metadata of every type, and tensors expanded to f32.
///
///   magic "GGUF" | version u32 | tensors u64 | entries u64 | entries: key, type, value ...
///   | tensor heads: name, dims, type, offset ... | padding to `general.alignment` | tensor data
///
/// Shapes  A GGUF tensor lists its fastest dimension first: {in, out} is a matrix of `out` rows with `in` values each.
/// Errors  Every count, length and offset is compared with the bytes that are left before anything is allocated from
///         it, so a damaged file ends in an llm::Error that names the damaged item, at a memory cost of a few times its
///         size.
/// Source  ggml/docs/gguf.md
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace llm {

/// One metadata value. Integers are widened to 64 bits and floats to double; arrays are flat (GGUF's nested arrays are
/// refused).
using MetadataValue =
    std::variant<bool, std::uint64_t, std::int64_t, double, std::string, std::vector<bool>, std::vector<std::uint64_t>,
                 std::vector<std::int64_t>, std::vector<double>, std::vector<std::string>>;

struct TensorHead {
    std::string name;
    std::vector<std::uint64_t> shape;  // fastest dimension first, 1 to 4 of them
    std::uint32_t type = 0;            // ggml's number
    std::uint64_t offset = 0;          // from the start of the data section
    std::size_t values = 0;            // product of the shape
    std::size_t bytes = 0;
};

class Gguf {
public:
    /// Reads the whole file. `name` stands in error messages.
    static Gguf open(const std::string& path);
    static Gguf parse(std::vector<std::byte> file, std::string name);

    const std::string& name() const { return name_; }
    std::uint32_t version() const { return version_; }
    const std::map<std::string, MetadataValue, std::less<>>& metadata() const { return metadata_; }
    const std::map<std::string, TensorHead, std::less<>>& tensors() const { return tensors_; }

    bool has(std::string_view key) const { return metadata_.contains(key); }
    bool has_tensor(std::string_view tensor) const { return tensors_.contains(tensor); }

    // Values by key; an absent key or a value of another kind is an error. Numbers convert where nothing is lost.
    bool boolean(std::string_view key) const;
    std::uint64_t integer(std::string_view key) const;
    double number(std::string_view key) const;
    const std::string& text(std::string_view key) const;
    const std::vector<std::string>& texts(std::string_view key) const;
    std::vector<std::int64_t> integers(std::string_view key) const;
    const std::vector<double>& numbers(std::string_view key) const;  // of an array of floats

    const TensorHead& tensor(std::string_view tensor) const;

    /// All values of a tensor as f32, in stored order: out[values].
    void expand(const TensorHead& head, std::span<float> out) const;

private:
    const MetadataValue& value(std::string_view key) const;

    std::string name_;
    std::uint32_t version_ = 0;
    std::vector<std::byte> file_;
    std::size_t data_ = 0;  // where the data section starts
    std::map<std::string, MetadataValue, std::less<>> metadata_;
    std::map<std::string, TensorHead, std::less<>> tensors_;
};

}  // namespace llm
