/// The file that tools/whisper makes: named arrays of f32 or i32. tools/whisper_prepare.py says what is in it.
///
/// Format, little endian: "XQWHISP1", number of arrays u32, of each: length of its name u32, the name, type u32 (0 f32,
/// 1 i32), dimensions u32, their sizes u64, the values; at the end the CRC-32 u32 of all before it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace whisper {

struct Array {
    std::vector<std::size_t> shape;
    std::vector<float> floats;           // of type f32
    std::vector<std::int32_t> integers;  // of type i32
};

class Arrays {
public:
    /// Throws llm::Error, a sentence that names the file and what is wrong with it.
    static Arrays read(const std::string& path);
    /// The bytes of such a file; `name` is what errors call it.
    static Arrays parse(std::span<const std::byte> bytes, const std::string& name);

    bool has(const std::string& name) const { return all_.contains(name); }
    /// Throws llm::Error unless there is one of that name.
    const Array& get(const std::string& name) const;
    /// f32 values of this shape, of which 0 stands for any size. Throws llm::Error where there are none.
    const std::vector<float>& floats(const std::string& name, const std::vector<std::size_t>& shape) const;
    /// i32 values in one row, one or more. Throws llm::Error where there are none.
    const std::vector<std::int32_t>& integers(const std::string& name) const;

private:
    std::string name_;
    std::map<std::string, Array> all_;
};

}  // namespace whisper
